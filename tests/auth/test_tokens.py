"""The table of tokens and the gate before it."""

import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from undercroft.auth import tokens
from undercroft.auth.counted_gate import CountedGate
from undercroft.auth.grants import ANYBODY, Caller, Question, Right
from undercroft.auth.tokens import NewToken, TokenGate, create_token, list_tokens, revoke_token
from undercroft.clock import now_us
from undercroft.database import Database
from undercroft.database.schema import NODE
from undercroft.errors import (
    BadRequestError,
    ForbiddenError,
    ReadOnlyError,
    SettingsError,
    UnauthenticatedError,
)
from undercroft.telemetry import events
from undercroft.telemetry.events import Events

WANTED = NewToken("ci", ("acme/*",), may_read=True, may_write=False)


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    database = Database(tmp_path / "node.sqlite", NODE)
    database.open()
    yield database
    await database.close()


@pytest.fixture
def gate(database: Database) -> TokenGate:
    return TokenGate(database, Events(), anonymous_read=False)


def asked(text: str | None, right: Right = "read", project: Callable[[], Any] | None = None) -> Question:
    header = None if text is None else f"Bearer {text}".encode()
    return Question(header, right, project or (lambda: ("acme", "app")))


def later(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Lets so much time pass for the gate."""
    now = time.monotonic() + seconds
    monkeypatch.setattr(time, "monotonic", lambda: now)


def contents_of(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.iterdir())


async def test_who_knows_the_secret_is_the_caller(database: Database, gate: TokenGate) -> None:
    token = await create_token(database, WANTED._replace(scope="pr"))
    assert await gate.admit(asked(token.text)) == Caller("ci", "pr", token.id)
    assert await gate.admit(asked(token.text, "any")) == Caller("ci", "pr", token.id)
    with pytest.raises(ForbiddenError):
        await gate.admit(asked(token.text, "write"))


async def test_what_is_told_of_who_is_let_in(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    telemetry = Events()
    told: list[str] = []
    for event in (events.AUTH_CACHE, events.AUTHORIZED, events.AUTH_REFUSED):
        telemetry.attach(event, lambda _m, metadata: told.extend(metadata.values()))
    gate = CountedGate(TokenGate(database, telemetry, anonymous_read=False), telemetry)
    token = (await create_token(database, WANTED)).text
    await gate.admit(asked(token))
    await gate.admit(asked(token, "any"))
    later(monkeypatch, tokens.FRESH_S * 2)
    await gate.admit(asked(token))
    assert told == ["miss", "token", "hit", "token", "miss", "token"]
    told.clear()

    def other_project() -> Any:
        return ("other", "app")

    refused = (asked(None), asked("nonsense"), asked(token, "write"), asked(token, "read", other_project))
    for question in refused:
        with pytest.raises((UnauthenticatedError, ForbiddenError)):
            await gate.admit(question)
    assert [reason for reason in told if reason not in ("hit", "miss")] == [
        "missing",
        "unauthenticated",
        "read_only",
        "forbidden",
    ]


async def test_neither_id_nor_hash_is_enough(database: Database, gate: TokenGate) -> None:
    token = await create_token(database, WANTED)
    stored = database.find("SELECT hex(secret_sha256) FROM tokens")
    assert stored is not None
    for secret in (stored[0].lower(), "x" * 43, token.secret[:-1] + "!"):
        with pytest.raises(UnauthenticatedError):
            await gate.admit(asked(f"uct_{token.id}_{secret}"))
    with pytest.raises(UnauthenticatedError, match="unknown"):
        await gate.admit(asked(f"uct_{'0' * 12}_{token.secret}"))


async def test_the_secret_is_nowhere_in_the_files(database: Database, tmp_path: Path) -> None:
    token = await create_token(database, WANTED)
    await database.truncate_wal()
    contents = contents_of(tmp_path)
    assert token.id.encode() in contents
    assert token.secret.encode() not in contents


async def test_the_credential_is_looked_at_before_the_project(database: Database, gate: TokenGate) -> None:
    def no_project() -> Any:
        raise BadRequestError("no project")

    token = await create_token(database, WANTED)
    with pytest.raises(UnauthenticatedError):
        await gate.admit(asked(None, "read", no_project))
    with pytest.raises(UnauthenticatedError):
        await gate.admit(asked("nonsense", "read", no_project))
    with pytest.raises(BadRequestError):
        await gate.admit(asked(token.text, "read", no_project))


async def test_anonymous_readers_only_read(database: Database) -> None:
    gate = TokenGate(database, Events(), anonymous_read=True)
    assert await gate.admit(asked(None)) == ANYBODY
    for right in ("write", "clean"):
        with pytest.raises(ReadOnlyError):
            await gate.admit(asked(None, right))
    with pytest.raises(UnauthenticatedError):  # the metrics are of no project
        await gate.admit(asked(None, "any"))
    # A wrong token is a mistake somebody wants to hear of.
    with pytest.raises(UnauthenticatedError):
        await gate.admit(asked("nonsense"))


async def test_a_revoked_token_is_refused_without_a_restart(
    database: Database, gate: TokenGate, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = await create_token(database, WANTED)
    await gate.admit(asked(token.text))
    assert await revoke_token(database, "ci")
    await gate.admit(asked(token.text))  # remembered for a moment
    later(monkeypatch, tokens.FRESH_S * 2)
    with pytest.raises(UnauthenticatedError, match="token ci was revoked"):
        await gate.admit(asked(token.text))
    assert not await revoke_token(database, "ci")


async def test_a_remembered_token_expires_all_the_same(
    database: Database, gate: TokenGate, monkeypatch: pytest.MonkeyPatch
) -> None:
    expires_at = now_us() + 60_000_000
    token = await create_token(database, WANTED._replace(expires_at=expires_at))
    await gate.admit(asked(token.text))
    monkeypatch.setattr(tokens, "now_us", lambda: expires_at)
    with pytest.raises(UnauthenticatedError, match="token ci expired on"):
        await gate.admit(asked(token.text))


async def test_who_is_remembered_is_bounded(
    database: Database, gate: TokenGate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "REMEMBERED", 3)
    token = await create_token(database, WANTED)
    for spaces in range(10):
        await gate.admit(asked(" " * spaces + token.text))
    assert len(gate._known) <= 3


async def test_names_are_taken_once_until_they_are_revoked(database: Database) -> None:
    await create_token(database, WANTED)
    with pytest.raises(SettingsError, match="'ci' already"):
        await create_token(database, WANTED)
    assert await revoke_token(database, "ci")
    await create_token(database, WANTED)
    unnamed = await create_token(database, WANTED._replace(name=None))
    assert [one.name for one in await list_tokens(database)] == ["ci", "ci", unnamed.id]
    assert await revoke_token(database, unnamed.id)
    assert [one.revoked_at is None for one in await list_tokens(database)] == [False, True, False]


async def test_which_projects_a_token_may_read(gate: TokenGate, database: Database) -> None:
    names = {"acme/app", "acme/x", "other/app", "(unknown)", "a/b/c"}
    reads = await create_token(database, NewToken("reads", ("acme/*",), may_read=True, may_write=False))
    writes = await create_token(database, NewToken("writes", ("*/*",), may_read=False, may_write=True))
    assert await gate.readable(f"Bearer {reads.text}".encode(), names) == {"acme/app", "acme/x"}
    assert await gate.readable(f"Bearer {writes.text}".encode(), names) == set()
    with pytest.raises(UnauthenticatedError):
        await gate.readable(b"Bearer nonsense", names)
