"""`python -m tests.system.screenshots`: renews the pictures of page and command in docs/images.

The node in them is real, and so is what it did: some load of several tools in several projects.
"""

import io
import random
import tempfile
import time
from pathlib import Path
from typing import Literal

import msgspec
from rich.console import Console

from tests.support.browser import chromium, set_theme
from tests.support.node_process import node_process
from tests.system.client import Client
from undercroft.cli.status import rendered
from undercroft.telemetry.status import Status

IMAGES = Path(__file__).parents[2] / "docs/images"
THEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
SECONDS = 150

# Where each tool has its artifacts, and how large those are in kB.
TOOLS = {
    "/ccache/{project}/{key}": (4, 64),
    "/bazel/{project}/ac/{key}{key:.24}": (1, 8),
    "/gradle/{project}/{key:.32}": (20, 400),
    "/turborepo/{project}/v8/artifacts/{key:.16}": (100, 2_000),
    "/webdav/{project}/{key}": (8, 128),
}
PROJECTS = ("acme/app", "acme/website", "acme/backend")


def build_for_a_while(url: str, seconds: float) -> None:
    """Builds ask, store what is missing, and report the time they saved."""
    generator, ends = random.Random(7), time.monotonic() + seconds
    with Client(url) as client:
        while time.monotonic() < ends:
            project = generator.choices(PROJECTS, (6, 3, 1))[0]
            pattern, (least, most) = generator.choice(list(TOOLS.items()))
            path = pattern.format(project=project, key=f"{int(generator.paretovariate(0.7)) % 3_000:040x}")
            if client.request("GET", path).status == 404:
                client.request("PUT", path, generator.randbytes(generator.randint(least, most) * 1_000))
            elif "turborepo" in path:
                body = b'[{"source": "REMOTE", "event": "HIT", "duration": 4000}]'
                client.request("POST", path.rpartition("/")[0] + "/events", body)
            if generator.random() < 0.5:
                client.put_value(f"cas{generator.randrange(500)}", "value")
                client.get_value(f"cas{generator.randrange(600)}")
            time.sleep(generator.random() * 0.02 * (1.5 + random.Random(int(time.time() / 60)).random()))


def picture_of_command(url: str) -> None:
    """What `undercroft status` prints."""
    terminal = Console(record=True, width=100, file=io.StringIO(), highlight=False)
    terminal.print(rendered(status_of(url), day=False))
    terminal.save_svg(str(IMAGES / "status-command.svg"), title="undercroft status")


def status_of(url: str) -> Status:
    with Client(url) as client:
        return msgspec.json.decode(client.request("GET", "/api/status").body, type=Status)


def main() -> None:
    """Runs for some minutes."""
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        limit = {"DISK__LIMIT_BYTES": "2GB"}
        with (
            node_process(Path(folder) / "node", limit) as node,
            chromium(Path(folder) / "profile") as browser,
        ):
            build_for_a_while(node.url, SECONDS)
            picture_of_command(node.url)
            for theme in THEMES:
                set_theme(browser, theme)
                browser.get(node.url)
                time.sleep(3)
                height: int = browser.execute_script("return document.documentElement.scrollHeight")
                browser.set_window_size(1380, height + 160)
                time.sleep(1)
                browser.save_screenshot(str(IMAGES / f"status-{theme}.png"))


if __name__ == "__main__":
    main()
