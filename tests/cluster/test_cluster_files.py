"""The files in cluster/ against the schemas of the tools that read them."""

import json
import re
import tomllib
from importlib.util import find_spec
from pathlib import Path

import jsonschema
import pytest
import yaml
from packaging.requirements import Requirement
from pydantic import BaseModel

from recsys.serve.config import parse_config

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "cluster"
SCHEMAS = ROOT.parent / "shared" / "schemas"


def read(name: str):
    return yaml.safe_load((CLUSTER / name).read_text())


def serve_configs() -> list:
    service = read("kuberay/rayservice.yaml")
    return [
        pytest.param(read("serve.yaml"), id="serve.yaml"),
        pytest.param(yaml.safe_load(service["spec"]["serveConfigV2"]), id="rayservice.yaml"),
    ]


@pytest.mark.parametrize("name", ["raycluster", "rayjob", "rayservice"])
def test_kuberay_files_follow_the_operator_s_schema(name):
    document = read(f"kuberay/{name}.yaml")
    path = SCHEMAS / f"{document['kind']}.json"
    if not path.exists():
        pytest.skip(f"no schema of {document['kind']} at {path}: the file is NOT checked")
    jsonschema.validate(document, json.loads(path.read_text()))


def test_the_operator_s_schema_notices_a_slip():
    path = SCHEMAS / "RayCluster.json"
    if not path.exists():
        pytest.skip(f"no schema at {path}")
    document = read("kuberay/raycluster.yaml")
    document["spec"]["workerGroupSpec"] = document["spec"].pop("workerGroupSpecs")
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, json.loads(path.read_text()))


@pytest.mark.parametrize("name", ["aws", "gcp"])
def test_containers_see_the_folder_that_all_nodes_share(name):
    assert "-v /runs:/runs" in read(f"{name}.yaml")["docker"]["run_options"]


@pytest.mark.parametrize("name", ["local", "aws", "gcp"])
def test_launcher_files_follow_ray_s_schema(name):
    spec = find_spec("ray")
    assert spec is not None
    assert spec.origin is not None
    path = Path(spec.origin).parent / "autoscaler" / "ray-schema.json"
    jsonschema.validate(read(f"{name}.yaml"), json.loads(path.read_text()))


@pytest.mark.parametrize("name", ["local", "aws", "gcp"])
def test_launched_clusters_ask_for_the_token(name):
    config = read(f"{name}.yaml")
    starts = [
        command
        for kind in ("head", "worker")
        for command in config[f"{kind}_start_ray_commands"]
        if "ray start" in command
    ]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in command for command in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]


@pytest.mark.parametrize("config", serve_configs())
def test_serve_configs_have_known_keys_and_settings(config):
    from ray.serve.schema import ServeDeploySchema

    schema = ServeDeploySchema.model_validate(config)
    assert unknown_keys(config, schema) == []
    for application in config["applications"]:
        assert application["import_path"] == "recsys.serve.on_ray:build"
        parse_config(application["args"])
        for deployment in application.get("deployments", []):
            assert deployment["name"] == "Recommend"


def unknown_keys(value, model: BaseModel, where: str = "") -> list[str]:
    """Ray's own schema ignores keys that it does not know."""
    known = type(model).model_fields
    found = [f"{where}{key}" for key in value if key not in known]
    for key in set(value) & set(known):
        part = getattr(model, key)
        pairs = (
            zip(value[key], part, strict=True) if isinstance(part, list) else [(value[key], part)]
        )
        for one, parsed in pairs:
            if isinstance(parsed, BaseModel):
                found += unknown_keys(one, parsed, f"{where}{key}.")
    return found


def test_a_slip_in_a_serve_config_is_noticed():
    from ray.serve.schema import ServeDeploySchema

    config = read("serve.yaml")
    config["applications"][0]["route_prefx"] = "/"
    schema = ServeDeploySchema.model_validate(config)
    assert unknown_keys(config, schema) == ["applications.route_prefx"]


def test_only_the_service_of_a_cluster_listens_beyond_loopback():
    assert read("serve.yaml")["http_options"]["host"] == "127.0.0.1"


def test_the_runtime_environment_of_the_job_is_yaml():
    from ray.runtime_env import RuntimeEnv

    RuntimeEnv(**yaml.safe_load(read("kuberay/rayjob.yaml")["spec"]["runtimeEnvYAML"]))


def test_requirements_pin_what_the_project_needs():
    pins = dict(
        line.split("==")
        for line in (CLUSTER / "requirements.txt").read_text().splitlines()
        if not line.startswith("#")
    )
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for text in (*project["dependencies"], *project["optional-dependencies"]["content"]):
        requirement = Requirement(text)
        assert requirement.specifier.contains(pins[requirement.name]), requirement
    assert f"torch=={pins['torch']} --index-url" in (CLUSTER / "Dockerfile").read_text()


def test_one_version_of_ray_everywhere():
    pinned = re.search(r"^ray==(.*)$", (CLUSTER / "requirements.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    assert f"rayproject/ray:{pinned[1]}-" in (CLUSTER / "Dockerfile").read_text()
    specs = [
        read("kuberay/raycluster.yaml")["spec"],
        read("kuberay/rayjob.yaml")["spec"]["rayClusterSpec"],
        read("kuberay/rayservice.yaml")["spec"]["rayClusterConfig"],
    ]
    assert {spec["rayVersion"] for spec in specs} == {pinned[1]}
