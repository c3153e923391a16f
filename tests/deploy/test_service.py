"""The systemd unit, as systemd and the command read it."""

import inspect
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from undercroft.cli.parent import EXIT_UNUSABLE
from undercroft.cli.serve import serve

UNIT = Path(__file__).parents[2] / "deploy/systemd/undercroft.service"


def value(name: str) -> str:
    (found,) = re.findall(rf"^{name}=(.*)$", UNIT.read_text(), re.MULTILINE)
    return str(found)


def verified(folder: Path, text: str) -> str:
    """What `systemd-analyze verify` has to say about a unit whose program is there."""
    unit = folder / UNIT.name
    unit.write_text(re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", text, flags=re.MULTILINE))
    ran = subprocess.run(
        ["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, timeout=30, check=False
    )
    return "".join(line for line in ran.stderr.splitlines() if UNIT.name in line)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    assert verified(tmp_path, UNIT.read_text()) == ""
    assert "NoSuchSetting" in verified(tmp_path, UNIT.read_text() + "[Service]\nNoSuchSetting=yes\n")


def test_the_command_has_the_options_of_the_unit() -> None:
    _, command, *arguments = shlex.split(value("ExecStart"))
    assert command == serve.__name__
    known = {"--" + name.replace("_", "-") for name in inspect.signature(serve).parameters}
    given = {one for one in arguments if one.startswith("-")}
    assert given
    assert given <= known


def test_the_data_directory_is_the_one_systemd_makes() -> None:
    arguments = shlex.split(value("ExecStart"))
    data_dir = arguments[arguments.index("--data-dir") + 1]
    assert data_dir == f"/var/lib/{value('StateDirectory')}"


def test_a_node_that_cannot_be_used_is_not_started_again() -> None:
    assert value("RestartPreventExitStatus") == str(EXIT_UNUSABLE)
