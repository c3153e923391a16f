"""`/api/spec` is the contract: a running node answers what the document says, whatever it is asked."""

import os
import re
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeAlias
from uuid import uuid4

import httpx
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.schemas import APIOperation
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.support.node_process import NodeProcess, node_process
from undercroft.api.openapi import openapi, shown_path
from undercroft.api.routing import COMPONENT, Route
from undercroft.config import Settings
from undercroft.node import Node

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]

# The same questions each time, and not so many that anybody has to wait.
EXAMPLES = settings(
    max_examples=200 if os.environ.get("HYPOTHESIS_PROFILE") == "long" else 8,
    derandomize=True,
    database=None,
    deadline=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
)

# OpenAPI knows no parameter with slashes: what is asked in the place of those that are more than a name.
SHAPES = {"instance_kind_hash": ("ac/{hash}", "cas/{hash}", "{instance}/ac/{hash}", "{instance}/{hash}")}
NO_KEYS = ("{instance}/{hash}", "/{folder}/{key}", "/{folder}/{folder_2}/{key}")
"""Shapes that no tool has, so that nothing can be stored there."""
ANY_SHAPE = ("{key}", "{folder}/{key}", "{folder}/{folder_2}/{key}")
HASH = {"type": "string", "pattern": "^[0-9a-f]{64}$"}


def in_shapes(document: dict[str, Any], routes: Sequence[Route]) -> dict[str, Any]:
    """The document with each path of several components in shapes that OpenAPI can describe."""
    paths = dict(document["paths"])
    for path in {shown_path(route) for route in routes if "...}" in route.path}:
        item = paths.pop(path)
        above, _, last = path.rpartition("/")
        for shape in SHAPES.get(last.strip("{}"), ANY_SHAPE):
            paths[f"{above}/{shape}"] = {
                method: _in_shape(operation, last.strip("{}"), shape) for method, operation in item.items()
            }
    return document | {"paths": paths}


def _in_shape(operation: dict[str, Any], replaced: str, shape: str) -> dict[str, Any]:
    parameters = [one for one in operation["parameters"] if (one["name"], one["in"]) != (replaced, "path")]
    for name in re.findall(r"{(\w+)}", shape):
        schema = HASH if name == "hash" else COMPONENT
        parameters.append({"name": name, "in": "path", "required": True, "schema": schema})
    return operation | {"parameters": parameters, "operationId": f"{operation['operationId']} {shape}"}


Operation: TypeAlias = APIOperation[Any, Any, Any, Any]

ROUTES = Node(Settings(data_dir=Path("never made")))._routes()
DOCUMENT = openapi(ROUTES)
SCHEMA = schemathesis.openapi.from_dict(in_shapes(DOCUMENT, ROUTES))
OPERATIONS = [found.ok() for found in SCHEMA.get_all_operations() if isinstance(found, Ok)]
every_operation = pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.label)


def bring_about(case: Case[Any], session: requests.Session, url: str) -> None:
    """Makes it so that the request can succeed: stores what it asks for, begins what it goes on with."""
    if case.operation.path.endswith("/cas/{hash}"):
        case.path_parameters["hash"] = sha256(b"blob").hexdigest()
    asked = case.as_transport_kwargs(base_url=url)
    where, query, path = asked["url"], asked["params"] or {}, case.operation.path
    if path.startswith("/api/cache/module/"):
        _bring_about_module(case, session, f"{url}/api/cache/module", dict(query))
    elif path == "/api/cache/keyvalue/{cas_id}":
        body = {"cas_id": case.path_parameters["cas_id"], "entries": [{"value": "v"}]}
        session.put(f"{url}/api/cache/keyvalue", params=query, json=body, timeout=20)
    elif path == "/api/cache/clean" and case.method == "GET":
        session.delete(where, params=query, timeout=20)
    elif path.endswith("/cas/{hash}") and case.method == "PUT":
        case.body = b"blob"
    elif case.method in ("GET", "HEAD"):
        for method in {"PUT", "POST"} & {method.upper() for method in SCHEMA[path]}:
            session.request(method, where, params=query, data=b"blob", timeout=20)


def _bring_about_module(case: Case[Any], session: requests.Session, url: str, query: dict[str, Any]) -> None:
    if case.operation.path.endswith("/start"):
        return
    named = {"hash": uuid4().hex, "name": "n"} | query
    begun = session.post(f"{url}/start", params=named, timeout=20).json().get("upload_id")
    going_on = {**query, "upload_id": begun, "part_number": 1}
    if not case.operation.path.endswith("/part"):
        session.post(f"{url}/part", params=going_on, data=b"part", timeout=20)
    if "upload_id" in case.query:
        case.query["upload_id"] = begun
        if case.operation.path.endswith("/complete"):
            case.body = {"parts": [1]}
    else:
        session.post(f"{url}/complete", params=going_on, json={"parts": [1]}, timeout=20)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    with node_process(tmp_path_factory.mktemp("spec") / "data") as running:
        yield running
        assert running.stop() == 0
        assert running.logged("request_failed") == []


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    with requests.Session() as opened:
        yield opened


def ask(case: Case[Any], session: requests.Session, node: NodeProcess) -> int:
    """Sends the request, and fails unless the answer is a documented one."""
    answer = case.call(base_url=node.url, session=session, timeout=20, allow_redirects=False)
    case.validate_response(answer, checks=CHECKS)
    return int(answer.status_code)


@pytest.mark.system
@every_operation
def test_what_is_allowed(node: NodeProcess, session: requests.Session, operation: Operation) -> None:
    seen = set()

    @seed(1)
    @EXAMPLES
    @given(case=operation.as_strategy(generation_mode=GenerationMode.POSITIVE))
    def answers_as_documented(case: Case[Any]) -> None:
        # First as it is, which mostly is of something that does not exist.
        seen.add(ask(case, session, node))
        bring_about(case, session, node.url)
        seen.add(ask(case, session, node))

    answers_as_documented()
    assert operation.path.endswith(NO_KEYS) or min(seen) < 300, seen


@pytest.mark.system
@every_operation
def test_what_is_at_a_bound_and_beyond(
    node: NodeProcess, session: requests.Session, operation: Operation
) -> None:
    """Each parameter and part of a body in turn is left out, of another type, too short, too long."""
    cases = SCHEMA.iter_coverage_cases(
        operation=operation,
        generation_modes=list(GenerationMode),
        generation_config=SCHEMA.config.generation_for(operation=operation),
    )
    asked = [case for case in cases if case.method == operation.method.upper()]
    assert asked
    for case in asked:
        ask(case, session, node)


def test_every_operation_is_asked() -> None:
    paths = in_shapes(DOCUMENT, ROUTES)["paths"]
    # The methods of WebDAV are in the document as extensions.
    assert len(OPERATIONS) == sum(not name.startswith("x-") for path in paths.values() for name in path)


def test_the_document_is_the_one_that_is_served(node: NodeProcess) -> None:
    assert httpx.get(f"{node.url}/api/spec").json() == DOCUMENT
