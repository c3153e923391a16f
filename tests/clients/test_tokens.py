"""Every tool with a node that asks for tokens, which each is given in its own way."""

import pytest

from .build_client import Build, BuildClient
from .conftest import BothBuilds
from .token_builds import TokenBuilds, build_with_tokens

# Rush waits between its attempts, and the first test of a tool makes all of its builds.
pytestmark = [pytest.mark.client, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def builds(
    client: BuildClient, both_builds: BothBuilds, tmp_path_factory: pytest.TempPathFactory
) -> TokenBuilds:
    return build_with_tokens(client, both_builds.project, tmp_path_factory.mktemp(f"{client.name}-tokens"))


# They fail the run, and show what the node says.
RED_WITH_A_WRONG_TOKEN = {"nx"}


def test_a_trusted_token_stores_and_finds(builds: TokenBuilds, both_builds: BothBuilds) -> None:
    _assert_right(builds.cold, both_builds)
    assert not builds.cold.complaints, builds.cold.messages
    _assert_all_found(builds.warm, both_builds)
    assert "ci" in builds.writers


def test_what_a_scope_stored_only_the_scope_finds(builds: TokenBuilds, both_builds: BothBuilds) -> None:
    _assert_right(builds.scoped_cold, both_builds)
    assert not builds.scoped_cold.complaints, builds.scoped_cold.messages
    assert "pr" in builds.writers
    _assert_all_found(builds.scoped_warm, both_builds)
    # It came after them, and nobody trusted had stored anything before.
    assert builds.cold.hits == 0, builds.cold.messages


def test_a_token_that_may_only_read_finds_and_stores_nothing(
    builds: TokenBuilds, both_builds: BothBuilds
) -> None:
    _assert_all_found(builds.reader_warm, both_builds)
    _assert_right(builds.reader_cold, both_builds)
    assert builds.reader_cold.hits == 0
    assert "desk" not in builds.writers


def test_an_unknown_token_finds_nothing(
    client: BuildClient, builds: TokenBuilds, both_builds: BothBuilds
) -> None:
    assert builds.stranger.hits == 0
    assert builds.writers == {"ci", "pr"}
    if client.name not in RED_WITH_A_WRONG_TOKEN:
        _assert_right(builds.stranger, both_builds)
        assert builds.stranger.complaints, builds.stranger.messages
    else:
        # Tools change; then this one has a better side now, and its entry is to be renewed.
        assert not builds.stranger.green, builds.stranger.messages
        assert "the token is unknown to this node" in builds.stranger.messages


def _assert_all_found(build: Build, reference: BothBuilds) -> None:
    _assert_right(build, reference)
    assert build.hits == build.cacheable > 0, build.messages
    assert not build.complaints, build.messages


def _assert_right(build: Build, reference: BothBuilds) -> None:
    assert build.green, build.messages
    assert build.outputs == reference.cold.outputs
