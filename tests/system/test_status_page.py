"""The status page in a real browser: it loads, tells the truth as it changes, and everybody can use it."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from typer.testing import CliRunner

from tests.support.browser import chromium, complaints, set_theme
from tests.support.node_process import NodeProcess, node_process
from tests.system.client import Client, eventually
from undercroft.cli import app

ROOT = Path(__file__).parents[2]
AXE = ROOT / ".venv/npm/node_modules/axe-core/axe.min.js"
RUN_AXE = "const done = arguments[0]; axe.run().then((found) => done(found.violations))"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    with chromium(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture
def node(data_dir: Path) -> Iterator[NodeProcess]:
    with node_process(data_dir) as running:
        yield running


def text_of(browser: Chrome, identifier: str) -> str:
    return browser.find_element(By.ID, identifier).text


def rows_of(browser: Chrome, identifier: str) -> dict[str, list[str]]:
    """The cells of a table by the first of each row, read in one go: it is filled anew every other second."""
    script = (
        "return [...document.querySelectorAll(arguments[0])].map(r => [...r.cells].map(c => c.innerText))"
    )
    rows: list[list[str]] = browser.execute_script(script, f"#{identifier} tbody tr")
    return {row[0]: row[1:] for row in rows}


def open_page(browser: Chrome, url: str) -> None:
    complaints(browser)  # those of the test before
    browser.get(url)
    eventually(lambda: text_of(browser, "health") == "All is well", "the page has its first figures")


def build(url: str, hits: int) -> None:
    """What a small build does: a miss, a write, hits."""
    with Client(url) as client:
        assert client.get_ccache("ab" * 20) is None
        assert client.put_ccache("ab" * 20, b"x" * 10_000).status == 201
        for _ in range(hits):
            assert client.get_ccache("ab" * 20) is not None
        assert client.put_value("cas", "v").status == 204
        assert client.get_value("cas") == "v"


def test_it_loads_without_complaints_and_asks_nobody_else(browser: Chrome, node: NodeProcess) -> None:
    open_page(browser, node.url)
    assert complaints(browser) == []
    loaded: list[str] = browser.execute_script(
        "return performance.getEntriesByType('resource').map(e => e.name)"
    )
    assert len(loaded) > 4
    assert {url.removeprefix(node.url).partition("/")[1] for url in loaded} == {"/"}
    assert len(browser.find_elements(By.CSS_SELECTOR, ".plot canvas")) == 2


def test_numbers_move_under_load(browser: Chrome, node: NodeProcess) -> None:
    open_page(browser, node.url)
    assert text_of(browser, "requests") == "0"
    assert rows_of(browser, "tools") == {"no build has asked for anything in the last hour": []}
    build(node.url, hits=3)
    eventually(lambda: text_of(browser, "requests") == "7", "the page shows what was asked")
    assert text_of(browser, "hit-ratio") == "80.0 %"
    assert text_of(browser, "served") == "30.0 kB"
    assert text_of(browser, "stored") == "10.0 kB"
    assert rows_of(browser, "tools")["ccache"][:4] == ["5", "75.0 %", "30.0 kB", "10.0 kB"]
    assert rows_of(browser, "tools")["key values"][:2] == ["2", "100.0 %"]
    assert rows_of(browser, "projects")["acme/app"][0] == "7"
    assert set(rows_of(browser, "buffers")) == {"key values", "cas artifacts", "s3 transfers"}
    assert rows_of(browser, "buffers")["key values"][4].endswith(" ms")
    assert "hits: 4, misses: 1" in (
        browser.find_element(By.ID, "plot-hits").get_attribute("aria-label") or ""
    )
    build_more = Client(node.url)
    with build_more:
        build_more.get_ccache("ab" * 20)
    eventually(lambda: text_of(browser, "requests") == "8", "it goes on")
    assert complaints(browser) == []


def test_the_period_is_chosen_by_keyboard(browser: Chrome, node: NodeProcess) -> None:
    build(node.url, hits=1)
    open_page(browser, node.url)
    browser.find_element(By.TAG_NAME, "body").send_keys(Keys.TAB)
    assert browser.switch_to.active_element.text == "Skip to the figures"
    browser.switch_to.active_element.send_keys(Keys.TAB)
    browser.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    assert "By tool, last day" in (browser.find_element(By.ID, "tools").get_attribute("textContent") or "")
    assert text_of(browser, "requests") == "5"


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_everybody_can_use_it(browser: Chrome, node: NodeProcess, theme: Literal["light", "dark"]) -> None:
    build(node.url, hits=2)
    set_theme(browser, theme)
    open_page(browser, node.url)
    ground: str = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    red = int(re.findall(r"\d+", ground)[0])
    assert (red > 200) == (theme == "light")
    # Contrast, names, roles, order of headings: https://dequeuniversity.com/rules/axe
    browser.execute_cdp_cmd("Page.setBypassCSP", {"enabled": True})
    browser.execute_script(AXE.read_text())
    violations: list[dict[str, Any]] = browser.execute_async_script(RUN_AXE)
    assert [(one["id"], [node["html"] for node in one["nodes"]]) for one in violations] == []


def test_names_are_text_whatever_is_in_them(browser: Chrome, node: NodeProcess) -> None:
    evil = "<img src=x onerror=alert(1)>"
    with Client(node.url) as client:
        client.request("PUT", f"/ccache/{quote(evil, safe='')}/app/{'cd' * 20}", b"x")
    open_page(browser, node.url)
    eventually(lambda: f"{evil}/app" in rows_of(browser, "projects"), "the project is shown")
    assert browser.find_elements(By.CSS_SELECTOR, "#projects img") == []
    assert complaints(browser) == []


def test_it_says_when_the_node_is_gone_and_comes_back(browser: Chrome, data_dir: Path) -> None:
    with node_process(data_dir) as node:
        open_page(browser, node.url)
        # A page that is watched holds up nobody.
        assert node.stop() == 0
        port = int(node.url.rpartition(":")[2])
    eventually(lambda: "No answer" in text_of(browser, "health"), "the page sees that the node is gone")
    with node_process(data_dir, port=port):
        eventually(lambda: text_of(browser, "health") == "All is well", "the page is back")


def test_warnings_and_troubles_are_shown(browser: Chrome, data_dir: Path) -> None:
    with node_process(data_dir, {"OBJECT_STORE__REGION": "eu"}) as node:
        open_page(browser, node.url)
        shown = text_of(browser, "warnings")
    assert "object_store_settings_without_url" in shown
    assert "region" in shown


def create_token(data_dir: Path, projects: str) -> str:
    arguments = ("token", "create", "--data-dir", str(data_dir), "--project", projects, "--read", "--write")
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    return done.output.strip()


def test_behind_tokens(browser: Chrome, data_dir: Path) -> None:
    token, other = create_token(data_dir, "acme/*"), create_token(data_dir, "other/*")
    with node_process(data_dir, {"AUTH__MODE": "tokens"}) as node:
        with Client(node.url) as client:
            for path in ("/", "/page/page.js", "/api/status"):
                answer = client.request("GET", path)
                assert answer.status == 401
                assert "Basic" in answer.headers["www-authenticate"]
            with_token = {"authorization": f"Bearer {token}"}
            client.request("PUT", f"/ccache/acme/app/{'ab' * 20}", b"x", with_token)
        open_page(browser, node.url.replace("//", f"//someone:{token}@"))
        eventually(lambda: "acme/app" in rows_of(browser, "projects"), "what the token may read is shown")
        with Client(node.url) as client:
            answer = client.request("GET", "/api/status", headers={"authorization": f"Bearer {other}"})
            assert answer.status == 200
            assert b"acme" not in answer.body
            assert b'"ccache"' in answer.body
