"""`undercroft config`."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from undercroft.cli import app
from undercroft.config import every_setting


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["config", *arguments])


def shown(*arguments: str) -> dict[str, dict[str, str | None]]:
    done = run("show", "--json", *arguments)
    assert done.exit_code == 0, done.output
    found = [json.loads(line) for line in done.output.splitlines()]
    return {one["name"]: one for one in found}


def test_every_setting_is_shown_with_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "node.toml"
    file.write_text('port = 4001\nack = "buffered"\n[buffers]\nflush_interval_ms = 5\n')
    monkeypatch.setenv("UNDERCROFT_PORT", "4002")
    found = shown("--config", str(file), "--data-dir", "here")
    assert list(found) == [name for name, _ in every_setting()]
    assert (found["data_dir"]["value"], found["data_dir"]["source"]) == ("here", "flag")
    assert (found["port"]["value"], found["port"]["source"]) == ("4002", "environment")
    assert (found["ack"]["value"], found["ack"]["source"]) == ("buffered", "file")
    interval = found["buffers.flush_interval_ms"]
    assert (interval["value"], interval["source"]) == ("5", "file")
    assert found["host"]["source"] == found["buffers.max_batch_size"]["source"] == "default"
    assert found["host"]["environment"] == "UNDERCROFT_HOST"


def test_secrets_are_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDERCROFT_OBJECT_STORE__SECRET_ACCESS_KEY", "hush")
    monkeypatch.setenv("UNDERCROFT_OBJECT_STORE__ENDPOINT", "http://user:hush@127.0.0.1:1")
    assert "hush" not in run("show").output
    assert "hush" not in run("show", "--json").output


def test_the_table_has_a_line_for_each() -> None:
    heading, *lines = run("show").output.splitlines()
    assert heading.split() == ["setting", "value", "from"]
    assert len(lines) == len(list(every_setting()))


def test_right_settings() -> None:
    done = run("check")
    assert done.exit_code == 0
    assert "the settings are right" in done.output
    assert json.loads(run("check", "--json").output) == {"problems": [], "without_effect": []}


def test_wrong_settings_have_a_line_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDERCROFT_PORT", "x")
    monkeypatch.setenv("UNDERCROFT_PROT", "1")
    done = run("check")
    assert done.exit_code == 2
    assert len(done.stderr.splitlines()) == 2
    as_json = run("check", "--json")
    assert as_json.exit_code == 2
    problems = json.loads(as_json.output)["problems"]
    assert [problem.split()[0] for problem in problems] == ["UNDERCROFT_PROT", "port"]
    refused = run("show")
    assert refused.exit_code == 2
    assert "port = 'x'" in refused.stderr


def test_settings_without_effect_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDERCROFT_AUTH__ANONYMOUS_READ", "true")
    monkeypatch.setenv("UNDERCROFT_OBJECT_STORE__REGION", "eu")
    done = run("check")
    assert done.exit_code == 0
    assert "object_store.region has no effect" in done.output
    assert "auth.anonymous_read has no effect" in done.output
