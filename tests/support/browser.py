"""A real headless Chromium, as Debian has it."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest
from selenium.webdriver import Chrome, ChromeOptions, ChromeService

# It must reach nothing but the node, and would try: updates, tips, certificates.
SWITCHES = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1380,1600",
)


@contextmanager
def chromium(profile: Path) -> Iterator[Chrome]:
    """A browser with a new profile; skipped without one, but for CI=true, where that fails."""
    found = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if None in found:
        complaint = "chromium is missing: apt-get install chromium chromium-driver"
        pytest.fail(complaint) if os.environ.get("CI") == "true" else pytest.skip(complaint)
    options = ChromeOptions()
    options.binary_location = str(found[0])
    for switch in (*SWITCHES, f"--user-data-dir={profile}"):
        options.add_argument(switch)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = Chrome(options=options, service=ChromeService(str(found[1])))
    try:
        yield browser
    finally:
        browser.quit()


def complaints(browser: Chrome) -> list[str]:
    """What the browser's console said since it was asked last."""
    lines = browser.get_log("browser")  # type: ignore[no-untyped-call]  # the library has no types for it
    return [f"{line['level']}: {line['message']}" for line in lines]


def set_theme(browser: Chrome, theme: Literal["light", "dark"]) -> None:
    """Prefers it from now on."""
    features: list[dict[str, Any]] = [{"name": "prefers-color-scheme", "value": theme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
