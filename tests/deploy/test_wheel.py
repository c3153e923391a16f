"""The wheel has all a node needs, and nothing else."""

import subprocess
import sys
import zipfile
from pathlib import Path

import httpx
import pytest

import undercroft
from tests.support.node_process import node_process

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=60)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture
def installed(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The command of the wheel, found before that of the repository."""
    target = tmp_path / "installed"
    offline = ("--no-deps", "--no-index", "--no-compile", "--disable-pip-version-check")
    install = [sys.executable, "-m", "pip", "install", "--quiet", *offline, "--target", str(target)]
    subprocess.run([*install, str(wheel)], check=True, timeout=60)
    monkeypatch.setenv("PYTHONPATH", str(target))
    monkeypatch.chdir(tmp_path)
    return target / "bin/undercroft"


def test_the_wheel_has_every_file_of_the_package_and_no_other(wheel: Path) -> None:
    package = ROOT / "src/undercroft"
    sources = {
        str(path.relative_to(ROOT / "src"))
        for path in package.rglob("*")
        if path.is_file() and path.parent.name != "__pycache__"
    }
    about = f"undercroft-{undercroft.__version__}.dist-info/"
    files = set(zipfile.ZipFile(wheel).namelist())
    assert {name for name in files if not name.startswith(about)} == sources
    assert f"{about}licenses/LICENSE" in files


def test_a_node_runs_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    place = "import undercroft; print(undercroft.__file__)"
    run = [[sys.executable, "-c", place], [str(installed), "--version"]]
    file, version = (subprocess.check_output(one, text=True, timeout=30).strip() for one in run)
    assert Path(file).is_relative_to(tmp_path)
    assert version == f"undercroft {undercroft.__version__}"
    with node_process(tmp_path / "data", program=[str(installed)]) as node, httpx.Client() as client:
        page = client.get(node.url)
        assert page.status_code == 200
        assert "<title>" in page.text
        for name in ("page.js", "page.css"):
            assert name in page.text
        stored = client.put(f"{node.url}/ccache/acme/app/ab/{'0' * 38}", content=b"object")
        assert stored.is_success
        assert client.get(f"{node.url}/ccache/acme/app/ab/{'0' * 38}").content == b"object"
        assert node.stop() == 0
