"""The endpoint on Ray Serve: one deployment that takes a request from bytes to bytes.

A second deployment behind the first would cost several milliseconds a request; so would FastAPI.
"""

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from ray import serve
from ray.exceptions import RayActorError
from ray.serve.config import AutoscalingConfig, HTTPOptions
from ray.serve.schema import LoggingConfig
from starlette.requests import Request as HttpRequest
from starlette.responses import HTMLResponse, Response

from recsys.config import to_json
from recsys.files import hash_of
from recsys.serve.config import ServeConfig, parse_config
from recsys.serve.openapi import docs_page, openapi_document
from recsys.serve.recommender import Recommender
from recsys.serve.schema import (
    Limits,
    Recommendation,
    Request,
    RequestError,
    encode,
    parse_request,
    too_large,
)

APPLICATION = "recsys"
DEPLOYMENT = "Recommend"
ROUTES = {
    "/v1/recommend": "POST",
    "/v1/model": "GET",
    "/healthz": "GET",
    "/openapi.json": "GET",
    "/docs": "GET",
}
logger = logging.getLogger("ray.serve")


class Batched(NamedTuple):
    """A request's share of a batch."""

    version: str
    size: int
    recommendations: list[Recommendation]


class Recommend:
    """A replica: the model, and the batch that its callers share."""

    def __init__(self, config: ServeConfig) -> None:
        self._config = config
        self._model: Recommender | None = None
        self._refused: dict[str, str] | None = None
        self._batch.set_max_batch_size(config.batch_size)  # type: ignore[attr-defined]
        self._batch.set_batch_wait_timeout_s(config.batch_wait_s)  # type: ignore[attr-defined]

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Changes to the model directory `user_config["model"]` between two batches.

        Raises:
            ValueError: it cannot be served, and there is no model yet. A replica that has one
                keeps it, and says in /v1/model what it refused.
        """
        directory = _model_of(user_config)
        try:
            self._model = await asyncio.to_thread(
                Recommender, directory, threads=self._config.threads
            )
            self._refused = None
        except Exception as error:
            if self._model is None:
                raise
            # Raising here would make Serve kill a replica that can answer.
            self._refused = {"model": str(directory), "error": str(error)}
            logger.error("kept the model in service: %s", error)

    async def __call__(self, request: HttpRequest) -> Response:
        """Returns the answer to any HTTP request."""
        path = request.scope["path"].removeprefix(request.scope.get("root_path", "")) or "/"
        method = ROUTES.get(path)
        if method is None:
            return _error(404, f"no such page: {path}; there are {', '.join(ROUTES)}")
        if request.method != method and not (method == "GET" and request.method == "HEAD"):
            return _error(405, f"{path} answers to {method} only", {"Allow": method})
        if path == "/v1/recommend":
            return await self._recommend(request)
        return self._page(path)

    def _page(self, path: str) -> Response:
        if path == "/healthz":
            return _json({"status": "ok"})
        if path == "/v1/model":
            return _json(self._about())
        model = self._served
        document = openapi_document(self._config.limits, model.num_items, model.scores_seen)
        return _json(document) if path == "/openapi.json" else HTMLResponse(docs_page(document))

    @property
    def _served(self) -> Recommender:
        assert self._model is not None, "Serve calls reconfigure before any request"
        return self._model

    def _about(self) -> dict[str, Any]:
        model = self._served
        about = {
            "version": model.version,
            "num_items": model.num_items,
            "config": model.config,
            "report": model.report,
        }
        return about if self._refused is None else {**about, "refused": self._refused}

    async def _recommend(self, http_request: HttpRequest) -> Response:
        limits = self._config.limits
        try:
            body = await _read(http_request, limits)
            model = self._served
            request = parse_request(
                body, num_items=model.num_items, limits=limits, scores_seen=model.scores_seen
            )
        except RequestError as error:
            return _error(error.status, str(error))
        batched = await self._batch((model, request))
        answer = {"model_version": batched.version, "recommendations": batched.recommendations}
        return _json(answer, headers={"x-batch-size": str(batched.size)})

    @serve.batch
    async def _batch(self, asked: list[tuple[Recommender, Request]]) -> list[Batched]:
        # In a thread, so that the next batch is read while this one is computed.
        return await asyncio.to_thread(answer_together, asked)


def answer_together(asked: Sequence[tuple[Recommender, Request]]) -> list[Batched]:
    """Returns the answer to each request, by the model that it was checked against; there are two
    of them only while one takes the place of the other."""
    batched: dict[int, Batched] = {}
    for model in dict.fromkeys(model for model, _ in asked):
        own = {i: request for i, (of, request) in enumerate(asked) if of is model}
        answers = model.answer(list(own.values()))
        for i, answer in zip(own, answers, strict=True):
            batched[i] = Batched(model.version, len(own), answer)
    return [batched[i] for i in range(len(asked))]


def build(args: Mapping[str, Any]) -> serve.Application:
    """Returns the application for `args`, the fields of `ServeConfig`.

    `import_path` of cluster/serve.yaml names this function.

    Raises:
        ValueError: an unknown or wrong setting, or a directory that cannot be served.
    """
    return application(parse_config(args))


def application(config: ServeConfig) -> serve.Application:
    """Returns the application that serves `config.model_directory`.

    Raises:
        ValueError: the directory cannot be served; found here, before any replica starts.
    """
    Recommender(Path(config.model_directory))
    code = to_json(replace(config, model_directory=""))
    deployment = serve.deployment(
        name=DEPLOYMENT,
        autoscaling_config=AutoscalingConfig(
            min_replicas=config.min_replicas,
            max_replicas=config.max_replicas,
            target_ongoing_requests=config.target_ongoing_requests,
        ),
        max_ongoing_requests=config.max_ongoing_requests,
        max_queued_requests=config.max_queued_requests,
        # Another every time: a replica that has refused the model may be able to read it now.
        user_config={"model": config.model_directory, "version": time.time_ns()},
        ray_actor_options={"num_cpus": 1},
        graceful_shutdown_timeout_s=5,
        graceful_shutdown_wait_loop_s=0.5,
        # One line of log a request costs more than the model.
        logging_config=LoggingConfig(enable_access_log=False),
    )(Recommend)
    # With the code version that it had before, a replica takes new weights without a restart; by
    # default every deployment counts as new code.
    return deployment.options(version=hash_of(code), _internal=True).bind(
        replace(config, model_directory="")
    )


def start(config: ServeConfig, *, host: str, port: int, request_timeout_s: float = 30) -> None:
    """Starts the endpoint on a Ray that runs already, and returns once it answers.

    Raises:
        ValueError: the directory cannot be served.
        RuntimeError: Ray has given up its proxy, as it does where that takes too long to start.
    """
    logger.setLevel(logging.WARNING)
    try:
        serve.start(
            http_options=HTTPOptions(host=host, port=port, request_timeout_s=request_timeout_s),
            logging_config=LoggingConfig(log_level="WARNING", enable_access_log=False),
        )
    except RayActorError:
        raise RuntimeError("Ray's proxy has not started: is the machine busy? Try again") from None
    update(config)


def update(config: ServeConfig) -> None:
    """Applies `config` to the running endpoint, without a lost request.

    Where only the model differs, the replicas stay and load it.

    Raises:
        ValueError: the directory cannot be served; the endpoint stays as it is.
    """
    serve.run(application(config), name=APPLICATION, route_prefix="/")


def stop() -> None:
    """Ends the endpoint after the requests that are under way."""
    serve.shutdown()


def _model_of(user_config: Mapping[str, Any]) -> Path:
    unknown = set(user_config) - {"model", "version"}
    if unknown or not isinstance(user_config.get("model"), str):
        raise ValueError(
            'user_config must be {"model": directory} or {"model": directory, "version": anything}'
            f", not {dict(user_config)}; another version makes replicas read the directory again"
        )
    return Path(user_config["model"])


async def _read(request: HttpRequest, limits: Limits) -> bytes:
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        # The rest is read but not kept: a client that is still sending would not hear the answer.
        if size <= limits.max_body_bytes:
            parts.append(part)
        elif size > 16 * limits.max_body_bytes:
            break
    if size > limits.max_body_bytes:
        raise too_large(limits)
    return b"".join(parts)


def _json(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(encode(value), status, headers, media_type="application/json")


def _error(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    return _json({"error": message}, status, headers)
