"""A real endpoint, asked over HTTP: one process of jobs.serve for all tests, ended by the last."""

import asyncio
import itertools
import json
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from recsys.serve.environment import free_ports

ROOT = Path(__file__).resolve().parents[2]
write_model = runpy.run_path(str(Path(__file__).with_name("tiny_model.py")))["write_model"]
LISTENING = "0A"
LOOPBACK = {"0100007F", "0" * 24 + "01000000", "0" * 16 + "FFFF00000100007F"}


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    client: httpx.Client
    process: subprocess.Popen[bytes]
    model: Path
    log: Path

    def ask(self, **body) -> httpx.Response:
        return self.client.post("/v1/recommend", json=body)

    def version(self) -> str:
        return self.client.get("/v1/model").json()["version"]

    def wait_for_log(self, words: str) -> None:
        for _ in range(1200):  # a machine that is busy otherwise starts slowly
            if words in self.log.read_text():
                return
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.1)
        pytest.fail(f"{words!r} is not in the log: {self.log.read_text()}")


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory):
    directory = tmp_path_factory.mktemp("endpoint")
    model, log, (port,) = write_model(directory / "model"), directory / "log", free_ports(1)
    words = [sys.executable, "-m", "jobs.serve", str(model), "--port", str(port)]
    words += ["--max-replicas", "1"]
    with log.open("w") as file:
        process = subprocess.Popen(words, cwd=ROOT, stdout=file, stderr=file)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
        endpoint = Endpoint(client=client, process=process, model=model, log=log)
        try:
            endpoint.wait_for_log("curl http")
            yield endpoint
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(30)


def ids(response: httpx.Response) -> list[str]:
    assert response.status_code == 200, response.text
    lists = response.json()["recommendations"]
    return ["".join(item["item_id"] for item in one["items"]) for one in lists]


def test_ranked_items_with_scores_and_version(endpoint):
    response = endpoint.ask(histories=[["a", "x"], []], k=2, exclude_seen=True)
    assert response.json() == {
        "model_version": endpoint.version(),
        "recommendations": [
            {
                "items": [{"item_id": "f", "score": 16.0}, {"item_id": "e", "score": 15.0}],
                "unknown_items": ["x"],
                "popular": False,
            },
            {
                "items": [{"item_id": "a", "score": 6.0}, {"item_id": "b", "score": 5.0}],
                "unknown_items": [],
                "popular": True,
            },
        ],
    }


def test_the_curl_line_that_was_printed_works(endpoint):
    line = next(one for one in endpoint.log.read_text().splitlines() if one.startswith("curl"))
    body = line.split("-d '")[1].rstrip("'")
    assert ids(endpoint.client.post("/v1/recommend", content=body)) == ["abcde"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"\x00\xff\xfe", 400),
        (b'{"histories": [["a"]', 400),
        (b"[" * 100_000, 400),
        (b"histories=a&k=3", 400),
        (b"null", 422),
        (b'{"histories": [["a"]], "k": 7}', 422),
        (b'{"histories": [["a"]], "k": NaN}', 422),
        (b'{"histories": [[{"item": "a"}]]}', 422),
        (b'{"history": ["a"]}', 422),
        (json.dumps({"histories": [[]] * 257}).encode(), 422),
        (b" " * (1 << 21), 413),
        (b"x" * (40 << 20), 413),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_rubbish_gets_a_status_and_a_reason(endpoint, body, status):
    response = endpoint.client.post("/v1/recommend", content=body)
    assert response.status_code == status
    (reason,) = response.json().values()
    assert len(reason) > 20
    assert list(response.json()) == ["error"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/recommend", 405),
        ("POST", "/v1/model", 405),
        ("DELETE", "/healthz", 405),
        ("GET", "/", 404),
        ("POST", "/v1/recommend/", 404),
        ("GET", "/v1/../etc/passwd", 404),
        ("HEAD", "/healthz", 200),
    ],
)
def test_other_paths_and_methods(endpoint, method, path, status):
    response = endpoint.client.request(method, path)
    assert response.status_code == status
    assert ("allow" in response.headers) == (status == 405)
    assert method == "HEAD" or "error" in response.json()


def test_pages(endpoint):
    assert endpoint.client.get("/healthz").json() == {"status": "ok"}
    about = endpoint.client.get("/v1/model").json()
    assert about["config"]["role"] == "student"
    assert about["report"] is None
    document = endpoint.client.get("/openapi.json").json()
    request = document["components"]["schemas"]["Request"]
    assert request["properties"]["k"]["maximum"] == about["num_items"] == 6
    assert "/v1/recommend" in endpoint.client.get("/docs").text


def test_callers_share_batches_and_get_their_own_answers(endpoint):
    bodies = [
        {"histories": [[first, second]], "k": k, "exclude_seen": exclude}
        for first, second, k, exclude in itertools.product("abc", "def", (1, 3), (True, False))
    ]
    alone = [ids(endpoint.ask(**body)) for body in bodies]

    async def together() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=endpoint.client.base_url, timeout=20) as client:
            asked = [client.post("/v1/recommend", json=body) for body in bodies * 3]
            return await asyncio.gather(*asked)

    responses = asyncio.run(together())
    assert [ids(response) for response in responses] == alone * 3
    assert max(int(response.headers["x-batch-size"]) for response in responses) > 1


def replace_model(directory: Path, sign: float) -> None:
    write_model(directory.with_name("next"), sign=sign)
    directory.rename(directory.with_name(f"before-{sign}"))
    directory.with_name("next").rename(directory)


def test_new_weights_come_into_service_without_a_lost_request(endpoint):
    before, outcomes, done = endpoint.version(), [], threading.Event()

    def keep_asking() -> None:
        with httpx.Client(base_url=endpoint.client.base_url, timeout=20) as client:
            while not done.is_set():
                response = client.post(
                    "/v1/recommend", json={"histories": [["c"]], "k": 5, "exclude_seen": True}
                )
                outcomes.append((response.status_code, response.text))

    asking = threading.Thread(target=keep_asking)
    asking.start()
    replicas = replica_processes(endpoint.process.pid)
    replace_model(endpoint.model, sign=-1)
    endpoint.process.send_signal(signal.SIGHUP)
    endpoint.wait_for_log("reading the model again")
    assert endpoint.version() != before
    time.sleep(0.2)
    done.set()
    asking.join()
    assert {status for status, _ in outcomes} == {200}
    answers = {
        "".join(i["item_id"] for i in json.loads(text)["recommendations"][0]["items"])
        for _, text in outcomes
    }
    assert answers == {"fedba", "abdef"}
    assert replica_processes(endpoint.process.pid) == replicas


def test_a_request_is_answered_by_the_model_it_was_checked_against(tmp_path):
    from recsys.serve.on_ray import answer_together
    from recsys.serve.recommender import Recommender
    from recsys.serve.schema import Request

    before = Recommender(write_model(tmp_path / "before"))
    after = Recommender(write_model(tmp_path / "after", sign=-1))
    requests = [Request(histories=(("a",),), k=k, exclude_seen=True) for k in (1, 2, 3)]
    batched = answer_together(list(zip((before, after, before), requests, strict=True)))
    assert [one.version for one in batched] == [before.version, after.version, before.version]
    assert [one.size for one in batched] == [2, 1, 2]
    for one, model, request in zip(batched, (before, after, before), requests, strict=True):
        assert one.recommendations == model.recommend(request.histories, k=request.k)


def test_another_report_is_read_again(endpoint):
    (endpoint.model / "report.json").write_text('{"ndcg@10": 0.7}')
    endpoint.process.send_signal(signal.SIGHUP)
    for _ in range(100):
        if endpoint.client.get("/v1/model").json()["report"] == {"ndcg@10": 0.7}:
            return
        time.sleep(0.1)
    pytest.fail(f"the old report stays: {endpoint.log.read_text()}")


def test_a_damaged_model_is_refused_and_the_old_one_stays(endpoint):
    version = endpoint.version()
    config = endpoint.model / "config.json"
    whole = config.read_text()
    config.write_text(json.dumps({**json.loads(whole), "files": []}))
    endpoint.process.send_signal(signal.SIGHUP)
    endpoint.wait_for_log("does not describe a model")
    config.write_text(whole)
    (endpoint.model / "model.onnx").write_bytes(b"not a graph")
    endpoint.process.send_signal(signal.SIGHUP)
    endpoint.wait_for_log("kept the model in service")
    assert endpoint.version() == version
    assert endpoint.ask(histories=[["c"]]).status_code == 200


def test_nothing_listens_beyond_loopback_but_the_replica_s_guarded_port(endpoint):
    open_ports = listeners_beyond_loopback(endpoint.process.pid)
    assert set(open_ports) <= replica_processes(endpoint.process.pid)
    for port in itertools.chain.from_iterable(open_ports.values()):
        assert refuses_strangers(port)


def test_sigterm_ends_it_and_all_its_processes(endpoint):
    family = descendants(endpoint.process.pid)
    assert family
    endpoint.process.terminate()
    assert endpoint.process.wait(30) == 0
    assert endpoint.log.read_text().count("Traceback") == 0
    for _ in range(50):
        left = {pid for pid in family if Path(f"/proc/{pid}").exists()}
        if not left:
            return
        time.sleep(0.1)
    pytest.fail(f"still there: {left}")


def descendants(pid: int) -> set[int]:
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        try:
            status = (entry / "stat").read_text() if entry.name.isdigit() else ""
        except OSError:
            continue
        if status:
            children.setdefault(int(status.rsplit(")", 1)[1].split()[1]), []).append(
                int(entry.name)
            )
    found, waiting = set(), [pid]
    while waiting:
        below = children.get(waiting.pop(), [])
        found.update(below)
        waiting += below
    return found


def replica_processes(pid: int) -> set[int]:
    return {
        one
        for one in descendants(pid)
        if Path(f"/proc/{one}/cmdline").read_bytes().startswith(b"ray::ServeReplica")
    }


def listeners_beyond_loopback(pid: int) -> dict[int, list[int]]:
    ports: dict[str, int] = {}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            address, state, inode = (line.split()[i] for i in (1, 3, 9))
            host, port = address.split(":")
            if state == LISTENING and host not in LOOPBACK:
                ports[f"socket:[{inode}]"] = int(port, 16)
    found: dict[int, list[int]] = {}
    for one in {pid, *descendants(pid)}:
        for descriptor in Path(f"/proc/{one}/fd").iterdir():
            try:
                target = os.readlink(descriptor)  # noqa: PTH115
            except OSError:
                continue
            if target in ports:
                found.setdefault(one, []).append(ports[target])
    return found


def refuses_strangers(port: int) -> bool:
    import grpc

    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary("/ray.serve.ASGIService/HandleRequest")
        with pytest.raises(grpc.RpcError) as caught:
            call(b"", timeout=5)
        return caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
