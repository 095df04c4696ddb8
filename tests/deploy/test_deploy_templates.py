"""The templates in deploy/: valid by the published schemas, careful, and true to the command line. Run where an engine is."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from coterie.cli import application

DEPLOY = Path(__file__).parents[2] / "deploy"
KUBERNETES = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
COMPOSE = DEPLOY / "compose" / "compose.yaml"
KUBERNETES_VERSION = "1.32"
PINNED = re.compile(r"[\w./-]+:\d[\w.+-]*")


def documents(*files: Path) -> list[dict[str, Any]]:
    return [document for file in files for document in yaml.safe_load_all(file.read_text()) if document]


def resources() -> list[dict[str, Any]]:
    return documents(*(file for file in KUBERNETES if file.name != "kustomization.yaml"))


def pods() -> list[tuple[str, dict[str, Any]]]:
    """Name and pod template of all that runs."""
    return [
        (f"{resource['kind']} {resource['metadata'].get('name', '')}", resource["spec"]["template"])
        for resource in resources()
        if resource["kind"] in ("Deployment", "Job")
    ]


def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = yaml.safe_load(COMPOSE.read_text())["services"]
    return found


@pytest.mark.parametrize("resource", resources(), ids=lambda resource: resource["kind"])
def test_kubernetes_knows_every_field(resource: dict[str, Any]) -> None:
    validate = pytest.importorskip("kubernetes_validate").validate
    # A Job with generateName has no name, which the schema's own examples have.
    validate(resource, KUBERNETES_VERSION, strict=True)


def test_compose_knows_every_field() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    package = pytest.importorskip("check_jsonschema")
    schema = Path(package.__file__).parent / "builtin_schemas" / "vendor" / "compose-spec.json"
    jsonschema.validate(yaml.safe_load(COMPOSE.read_text()), json.loads(schema.read_text()))


def commands() -> Iterator[tuple[str, list[str]]]:
    """Every command line of ours in the templates, with the names of what runs it."""
    for name, pod in pods():
        for container in pod["spec"]["containers"]:
            yield name, container["args"]
    for name, service in services().items():
        if name != "postgres":
            yield f"compose {name}", service["command"]


@pytest.mark.parametrize(("name", "arguments"), list(commands()))
def test_the_command_line_takes_what_they_give(name: str, arguments: list[str], monkeypatch) -> None:
    command, *options = [str(argument) for argument in arguments]
    if command == "serve":
        pytest.importorskip("coterie_server.commands.serve")
    monkeypatch.setenv("COTERIE_STORE", "http://server:4747")
    group: Any = typer.main.get_command(application([command]))
    found = group.get_command(group.make_context("coterie", [command], resilient_parsing=True), command)
    # Raises for an option that there is not, or a value that it does not take.
    assert not found.make_context(command, options).args


@pytest.mark.parametrize(("name", "pod"), pods())
def test_pods_are_careful(name: str, pod: dict[str, Any]) -> None:
    spec = pod["spec"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    volumes = {volume["name"] for volume in spec["volumes"]}
    for container in spec["containers"]:
        assert PINNED.fullmatch(container["image"]), container["image"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
        assert "memory" in container["resources"]["limits"]
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes
        assert any(mount["mountPath"] == "/tmp" for mount in container["volumeMounts"])
        for variable in container["env"]:
            secret = re.search("TOKEN$|PASSWORD|KEY|SECRET", variable["name"])
            assert ("secretKeyRef" in variable.get("valueFrom", {})) or not secret, variable
    wait = re.search(r"--drain-seconds (\d+)", " ".join(spec["containers"][0]["args"]))
    # Draining, and half a minute for what is then given back.
    assert spec["terminationGracePeriodSeconds"] >= (int(wait[1]) if wait else 30) + 30


def test_selectors_find_what_they_mean() -> None:
    found = resources()
    pod_labels = [pod["metadata"]["labels"] for _, pod in pods()]

    def has(labels: Mapping[str, str], selector: Mapping[str, Any]) -> bool:
        exact = selector.get("matchLabels", {} if "matchExpressions" in selector else selector)
        several = {one["key"]: one["values"] for one in selector.get("matchExpressions", ())}
        return exact.items() <= labels.items() and all(labels.get(key) in values for key, values in several.items())

    for resource in found:
        spec = resource.get("spec", {})
        selector = spec.get("selector") or spec.get("podSelector")
        if selector:
            assert any(has(labels, selector) for labels in pod_labels), resource["metadata"]["name"]
    (service,) = [resource for resource in found if resource["kind"] == "Service"]
    (server,) = [pod for name, pod in pods() if name == "Deployment coterie-server"]
    ports = {port["name"]: port["containerPort"] for port in server["spec"]["containers"][0]["ports"]}
    assert [(ports[port["targetPort"]], port["port"]) for port in service["spec"]["ports"]] == [(4747, 4747)]
    for probe in ("livenessProbe", "readinessProbe", "startupProbe"):
        assert server["spec"]["containers"][0][probe]["httpGet"]["port"] in ports
    assert server["spec"]["containers"][0]["readinessProbe"]["httpGet"]["path"] == "/ready"
    names = {resource["metadata"].get("name") for resource in found}
    for _, pod in pods():
        for variable in pod["spec"]["containers"][0]["env"]:
            if variable["name"] == "COTERIE_STORE" and "value" in variable:
                assert re.fullmatch(r"http://([\w-]+):4747", variable["value"])[1] in names  # type: ignore[index]


def test_the_job_plays_as_the_deployment_does_and_ends() -> None:
    args = {name.split()[0]: pod["spec"]["containers"][0]["args"] for name, pod in pods() if "server" not in name}
    assert args["Job"] == [*args["Deployment"], "--until-idle", "60"]


def test_the_kustomization_names_what_is_there() -> None:
    kustomization = documents(DEPLOY / "kubernetes" / "kustomization.yaml")[0]
    files = {file.name for file in KUBERNETES} - {"kustomization.yaml", "job.yaml"}
    assert set(kustomization["resources"]) == files
    images = {container["image"] for _, pod in pods() for container in pod["spec"]["containers"]}
    assert {f"{image['name']}:{image['newTag']}" for image in kustomization["images"]} == images


def test_compose_services_are_careful() -> None:
    text = COMPOSE.read_text()
    for name, service in services().items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert PINNED.fullmatch(service["image"]) or service["image"].startswith("${"), service["image"]
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
        for variable, value in service.get("environment", {}).items():
            assert not re.search("TOKEN$|PASSWORD$", variable) or value.startswith("${"), variable
    asked = set(re.findall(r"\$\{(\w+)", text))
    told = set(re.findall(r"^(\w+)=", (COMPOSE.parent / ".env.example").read_text(), re.MULTILINE))
    assert asked == told
    assert {".env", "secrets/"} <= set((COMPOSE.parent / ".gitignore").read_text().split())


@pytest.mark.parametrize("name", ["Dockerfile", "runner.Dockerfile"])
def test_images_are_pinned_and_run_as_nobody_special(name: str) -> None:
    lines = (DEPLOY / name).read_text().splitlines()
    bases = [line.split()[1] for line in lines if line.startswith("FROM ")]
    assert bases
    assert all(PINNED.fullmatch(base) for base in bases)
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert users[-1] == "10001:10001"
    for line in lines:
        if line.startswith("COPY ") and "--from" not in line and name == "Dockerfile":
            for source in line.split()[1:-1]:
                assert (DEPLOY.parent / source).exists()
                assert f"!{source}" in (DEPLOY.parent / ".dockerignore").read_text().split()


def engine(*command: str) -> None:
    """Skip, with the reason, where a program is not installed or does not work."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    if done.returncode:
        pytest.skip(f"{' '.join(command)}: {(done.stderr or done.stdout).strip().splitlines()[-1:]}")


def output(command: Sequence[str], **environment: str) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, cwd=DEPLOY.parent, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_kustomize_builds_it() -> None:
    engine("kubectl", "version", "--client")
    built = list(yaml.safe_load_all(output(["kubectl", "kustomize", "deploy/kubernetes"])))
    assert len(built) == len(resources()) - 1
    assert {resource["metadata"]["namespace"] for resource in built if resource["kind"] != "Namespace"} == {"coterie"}


def test_compose_reads_it() -> None:
    engine("docker", "compose", "version")
    secrets = {"COTERIE_POSTGRES_PASSWORD": "p", "COTERIE_RUNNER_TOKEN": "t", "COTERIE_RUNNER_IMAGE": "my-team:1.0.0"}
    shown = output(
        ["docker", "compose", "--file", "deploy/compose/compose.yaml", "config", "--format", "json"], **secrets
    )
    assert set(json.loads(shown)["services"]) == set(services())


def test_the_image_builds_and_serves() -> None:
    engine("docker", "version")
    output(["docker", "build", "--file", "deploy/Dockerfile", "--tag", "coterie:test", "."])
    assert output(["docker", "run", "--rm", "--read-only", "coterie:test", "--version"]).startswith("coterie ")
