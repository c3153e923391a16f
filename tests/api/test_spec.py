"""`/api/spec` is the contract: a running node answers what the document says, whatever it is asked."""

import os
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import requests
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import Case, GenerationMode

from tests.support.node_process import NodeProcess, node_process
from tests.support.spec_cases import (
    CHECKS,
    DOCUMENT,
    NO_KEYS,
    OPERATIONS,
    ROUTES,
    SCHEMA,
    Operation,
    bring_about,
    in_shapes,
)

# The same questions each time, and not so many that anybody has to wait.
EXAMPLES = settings(
    max_examples=200 if os.environ.get("HYPOTHESIS_PROFILE") == "long" else 8,
    derandomize=True,
    database=None,
    deadline=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
)

every_operation = pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.label)


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
