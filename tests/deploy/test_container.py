"""The Dockerfile and the compose file: settings that exist, a health check that tells, files."""

import json
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.support.node_process import node_process
from undercroft.config import Settings, load

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "deploy/docker/Dockerfile").read_text().replace("\\\n", " ")
COMPOSE = yaml.safe_load((ROOT / "deploy/docker/compose.yml").read_text())


def of_the_image() -> dict[str, str]:
    lines = re.findall(r"^ENV (.*)$", DOCKERFILE, re.MULTILINE)
    pairs = (pair.split("=", 1) for line in lines for pair in line.split())
    return {name: text for name, text in pairs if name.startswith("UNDERCROFT_")}


def of_the_service() -> dict[str, str]:
    return dict(COMPOSE["services"]["undercroft"]["environment"])


def settings(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> Settings:
    for name, text in environment.items():
        monkeypatch.setenv(name, text)
    return load({})


def test_the_settings_of_the_image_are_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    secured = {**of_the_image(), "UNDERCROFT_AUTH__MODE": "tokens"}
    loaded = settings(monkeypatch, secured)
    assert (str(loaded.data_dir), loaded.host, loaded.port) == ("/data", "0.0.0.0", 4000)
    assert "EXPOSE 4000\n" in DOCKERFILE
    assert "VOLUME /data\n" in DOCKERFILE


def test_the_settings_of_the_compose_file_are_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = settings(monkeypatch, {**of_the_image(), **of_the_service()})
    store = loaded.object_store
    assert store.url == "s3://undercroft"
    # The endpoint is told the same key, and makes the bucket.
    s3 = COMPOSE["services"]["s3"]["command"][0]
    secret = of_the_service()["UNDERCROFT_OBJECT_STORE__SECRET_ACCESS_KEY"]
    assert f"--auth-key {of_the_service()['UNDERCROFT_OBJECT_STORE__ACCESS_KEY_ID']},{secret} " in s3
    assert "mkdir -p /bucket/undercroft " in s3
    assert of_the_service()["UNDERCROFT_OBJECT_STORE__ENDPOINT"] == "http://s3:9000"


def test_volumes_of_the_compose_file_are_declared_and_files_are_there() -> None:
    for service in COMPOSE["services"].values():
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            there = (
                (ROOT / "deploy/docker" / source).exists() if "/" in source else source in COMPOSE["volumes"]
            )
            assert there, volume


def health_check(port: int) -> int:
    """The exit status of the image's health check, asked of another port."""
    (command,) = re.findall(r"^HEALTHCHECK .* CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)
    program, *arguments = json.loads(command)
    assert program == "python"
    asked = [one.replace("127.0.0.1:4000", f"127.0.0.1:{port}") for one in arguments]
    assert asked != arguments
    return subprocess.run([sys.executable, *asked], capture_output=True, timeout=30, check=False).returncode


def test_the_health_check_tells_a_node_from_none(tmp_path: Path) -> None:
    with node_process(tmp_path / "data") as node:
        assert health_check(int(node.url.rsplit(":", 1)[1])) == 0
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        assert health_check(nobody.getsockname()[1]) == 1


def test_docker_is_given_what_the_image_is_made_of() -> None:
    let_in = set(re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE))
    copied = [
        source
        for line in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.MULTILINE)
        for source in line.split()[:-1]
    ]
    assert set(copied) == let_in
    for source in copied:
        assert (ROOT / source).exists(), source
