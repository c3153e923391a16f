"""`/api/spec` by chance, with and without tokens: documented answers only, and what was stored comes back."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import pytest
import requests
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import Case, GenerationMode
from schemathesis.core.transport import Response
from typer.testing import CliRunner

from tests.support.campaign import Campaign
from tests.support.node_process import NodeProcess, node_process
from tests.support.properties import for_examples
from tests.support.spec_cases import CHECKS, OPERATIONS, Operation, bring_about, operations_with
from undercroft.auth.credentials import new_token
from undercroft.cli import app
from undercroft.config import Settings
from undercroft.settings_sections import AuthSection

TIMEOUT_S = 30
STORED = (200, 201, 202, 204)
READABLE = {operation.path for operation in OPERATIONS if operation.method.upper() == "GET"}
KEY_VALUES = "/api/cache/keyvalue"


class Caller(NamedTuple):
    """Somebody who asks, and with which headers."""

    name: str
    headers: Mapping[str, str]
    may_write: bool


@pytest.fixture
def node(data_dir: Path, request: pytest.FixtureRequest) -> Iterator[NodeProcess]:
    with node_process(data_dir, {"AUTH__MODE": request.param}) as running:
        yield running


def callers_of(node: NodeProcess, mode: str) -> list[Caller]:
    """Everybody, or whoever may do more, less or nothing."""
    if mode == "none":
        return [Caller("everybody", {}, True)]

    def token(name: str, *options: str) -> dict[str, str]:
        given = ["token", "create", "--name", name, *options, "--data-dir", str(node.data_dir)]
        made = CliRunner().invoke(app, given)
        assert made.exit_code == 0, made.output
        return {"Authorization": f"Bearer {made.stdout.strip()}"}

    return [
        Caller("writer", token("writer", "--project", "*/*", "--read", "--write"), True),
        Caller("scope", token("pr", "--project", "*/*", "--read", "--write", "--scope", "pr"), True),
        Caller("reader", token("reader", "--project", "*/*", "--read"), False),
        Caller("neighbour", token("neighbour", "--project", "nobody/nothing", "--read", "--write"), False),
        Caller("stranger", {"Authorization": f"Bearer {new_token().text}"}, False),
        Caller("nobody", {}, False),
    ]


@pytest.mark.parametrize("node", ["none", "tokens"], indirect=True)
def test_by_chance(node: NodeProcess, campaign: Campaign, request: pytest.FixtureRequest) -> None:
    mode = request.node.callspec.params["node"]
    callers = callers_of(node, mode)
    known = operations_with(Settings(data_dir=node.data_dir, auth=AuthSection(mode=mode)))
    operations = campaign.random.sample(known, len(known) if campaign.torture else 6)
    with requests.Session() as session:
        asker = Asker(node.url, session, campaign)
        for operation in operations:
            for kind in GenerationMode:
                _try_operation(operation, kind, callers, asker)
    assert node.stop() == 0
    assert node.logged("request_failed") == []


def _try_operation(operation: Operation, mode: GenerationMode, callers: list[Caller], asker: "Asker") -> None:
    cases = operation.as_strategy(generation_mode=mode)
    try:

        @for_examples(asker.campaign, cases, st.sampled_from(callers), short=2, long=8)
        def answers_as_documented(case: Case[Any], caller: Caller) -> None:
            asker.ask(case, caller, mode)

    except Unsatisfiable:
        # There is nothing to be wrong about in a request without parameters and body.
        assert mode is GenerationMode.NEGATIVE


class Asker:
    """Asks, and compares."""

    def __init__(self, url: str, session: requests.Session, campaign: Campaign) -> None:
        self.url = url
        self.session = session
        self.campaign = campaign

    def ask(self, case: Case[Any], caller: Caller, mode: GenerationMode) -> None:
        """Sends a request as it is, and if it could be a good one again when it can succeed."""
        case.headers.pop("Authorization", None)
        case.headers.update(caller.headers)
        self._answer(case)
        if mode is GenerationMode.POSITIVE and caller.may_write:
            self.session.headers.update(caller.headers)
            try:
                bring_about(case, self.session, self.url)
                self._round_trip(case, caller)
            finally:
                for name in caller.headers:
                    del self.session.headers[name]

    def _answer(self, case: Case[Any]) -> Response:
        answer = case.call(base_url=self.url, session=self.session, timeout=TIMEOUT_S, allow_redirects=False)
        case.validate_response(answer, checks=CHECKS)
        self.campaign.checked("answers")
        self.campaign.checked(f"of {answer.status_code // 100}xx")
        return answer

    def _round_trip(self, case: Case[Any], caller: Caller) -> None:
        asked = case.as_transport_kwargs(base_url=self.url)
        where, query = asked["url"], asked["params"] or {}
        path, stores = case.operation.path, case.method in ("PUT", "POST")
        artifact = stores and path in READABLE and path != f"{KEY_VALUES}/{{cas_id}}"
        there = artifact and self._get(where, query).status_code == 200
        answer = self._answer(case)
        if answer.status_code not in STORED:
            return
        if path == KEY_VALUES:
            body: Any = case.body
            found = self._get(f"{where}/{quote(body['cas_id'], safe='')}", query)
            values = [entry["value"] for entry in body["entries"]]
            assert [entry["value"] for entry in found.json()["entries"]] == values
        elif artifact and not there and "content-encoding" not in answer.request.headers:
            found = self._get(where, query)
            assert (found.status_code, found.content) == (200, answer.request.body or b"")
        else:
            return
        self.campaign.checked("bytes that came back")

    def _get(self, where: str, query: Mapping[str, str]) -> requests.Response:
        return self.session.get(where, params=query, timeout=TIMEOUT_S)
