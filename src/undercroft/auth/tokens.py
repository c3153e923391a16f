"""The table of tokens, and the gate that asks for them."""

import hashlib
import hmac
import json
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, NamedTuple

import apsw
import msgspec

from undercroft.auth.credentials import Token, new_token, token_of
from undercroft.auth.grants import Caller, Grant, Question, Standing, admit_anonymous
from undercroft.clock import now_us
from undercroft.database import Database, transaction
from undercroft.database.insisting import insisting
from undercroft.errors import SettingsError, UnauthenticatedError
from undercroft.telemetry import events
from undercroft.telemetry.events import Events

# How long what the table said of a token is taken for true: a revoked one works on for so long. The
# query takes some 10 microseconds of the event loop, for each request.
FRESH_S = 1.0

# Clients that are remembered; beyond that all are forgotten, and asked for again.
REMEMBERED = 4_096

# Compared for a token nobody has, so that it takes as long as for one with a wrong secret.
_NOBODY = bytes(32)


class NewToken(NamedTuple):
    """What a token is to be. Patterns and scope are checked (`auth.grants`)."""

    name: str | None
    projects: tuple[str, ...]
    may_read: bool
    may_write: bool
    scope: str | None = None
    expires_at: int | None = None
    """Microseconds since the epoch; None for never."""


class ListedToken(msgspec.Struct, frozen=True):
    """A token as it is shown; times in microseconds since the epoch."""

    id: str
    name: str
    projects: list[str]
    may_read: bool
    may_write: bool
    scope: str | None
    created_at: int
    expires_at: int | None
    revoked_at: int | None


class _Row(NamedTuple):
    secret_sha256: bytes
    grant: Grant
    expires_at: int | None
    revoked_at: int | None


# --- keeping them ---------------------------------------------------------------------------------


async def create_token(database: Database, wanted: NewToken) -> Token:
    """Adds a token. Its secret is kept nowhere but in the answer.

    Raises `SettingsError` if a token that is not revoked has the name, `DatabaseLockedError`,
    `DataDirectoryError`.
    """
    token = new_token()
    name = wanted.name or token.id
    row = (
        token.id,
        name,
        _hash(token.secret),
        json.dumps(wanted.projects),
        wanted.may_read,
        wanted.may_write,
        wanted.scope,
        now_us(),
        wanted.expires_at,
    )

    def insert(connection: apsw.Connection) -> bool:
        with transaction(connection):
            return bool(connection.execute(INSERT, row).fetchall())

    if not await insisting(database, lambda: database.write(insert)):
        raise SettingsError(f"there is a token named {name!r} already: revoke it, or choose another name")
    return token


async def list_tokens(database: Database) -> list[ListedToken]:
    """All tokens, revoked and expired ones too, the oldest first. Raises like `revoke_token`."""

    def select(connection: apsw.Connection) -> list[Any]:
        return connection.execute(LIST).fetchall()

    rows = await insisting(database, lambda: database.read(select))
    return [
        ListedToken(id_, name, json.loads(projects), bool(reads), bool(writes), *rest)
        for id_, name, projects, reads, writes, *rest in rows
    ]


async def revoke_token(database: Database, name_or_id: str) -> bool:
    """Revokes the token of this name or id; False if there is none that is not revoked.

    Raises `DatabaseLockedError`, `DataDirectoryError`.
    """

    def update(connection: apsw.Connection) -> int:
        with transaction(connection):
            connection.execute(REVOKE, (now_us(), name_or_id, name_or_id)).fetchall()
            return connection.changes()

    return bool(await insisting(database, lambda: database.write(update)))


def has_valid_token(database: Database) -> bool:
    """Whether there is a token that is neither revoked nor expired. One query; blocks."""
    return database.find(ANY_VALID, now_us()) is not None


# --- asking for them ------------------------------------------------------------------------------


class TokenGate:
    """Lets in who has a token, and with `anonymous_read` whoever only reads."""

    def __init__(self, database: Database, telemetry: Events, *, anonymous_read: bool) -> None:
        self._database = database
        self._telemetry = telemetry
        self._anonymous_read = anonymous_read
        self._known: dict[bytes, tuple[float, _Row]] = {}

    async def admit(self, asked: Question) -> Caller:
        """See `Gate`. The tables are read again when they are older than `FRESH_S`."""
        if asked.authorization is None:
            return admit_anonymous(asked, may_read=self._anonymous_read)
        row = self._row_of(asked.authorization)
        if asked.right != "any":
            row.grant.check(asked.right, asked.project())
        self._telemetry.emit(events.AUTHORIZED, {"count": 1}, {"method": "token"})
        return row.grant.caller

    def standing(self, authorization: bytes | None, caller: Caller) -> Standing | None:
        """See `Gate`. Once in `FRESH_S` somebody has to ask in full."""
        if authorization is None:
            return Standing(holds=lambda: True, tell=lambda: None)
        key = _digest(authorization)
        admitted = self._fresh(key)
        if admitted is None or admitted.grant.caller is not caller:
            # The table was read again meanwhile: what it says now is not what this request was let in by.
            return None

        def holds() -> bool:
            row = self._fresh(key)
            return row is not None and row.grant == admitted.grant and _flaw(row) is None

        return Standing(holds, self._tell_again)

    def _tell_again(self) -> None:
        self._telemetry.emit(events.AUTH_CACHE, {"count": 1}, {"result": "hit"})
        self._telemetry.emit(events.AUTHORIZED, {"count": 1}, {"method": "token"})

    async def readable(self, authorization: bytes, projects: Iterable[str]) -> set[str]:
        """See `Gate`."""
        return self._row_of(authorization).grant.readable(projects)

    def _row_of(self, authorization: bytes) -> _Row:
        """The row of who knows the secret. Raises `UnauthenticatedError`."""
        key = _digest(authorization)
        row = self._fresh(key)
        self._telemetry.emit(events.AUTH_CACHE, {"count": 1}, {"result": "miss" if row is None else "hit"})
        if row is None:
            row = self._verified(token_of(authorization))
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            self._known[key] = (time.monotonic(), row)
        if (flaw := _flaw(row)) is not None:
            raise UnauthenticatedError(flaw)
        return row

    def _fresh(self, key: bytes) -> _Row | None:
        """What the table said a moment ago of who sent a credential with this digest."""
        known = self._known.get(key)
        return known[1] if known is not None and time.monotonic() - known[0] <= FRESH_S else None

    def _verified(self, token: Token) -> _Row:
        found = self._database.find(SELECT, token.id)
        expected = _NOBODY if found is None else found[0]
        if not hmac.compare_digest(_hash(token.secret), expected) or found is None:
            raise UnauthenticatedError("the token is unknown to this node: check what is configured")
        secret_sha256, name, projects, reads, writes, scope, expires_at, revoked_at = found
        grant = Grant(Caller(name, scope, token.id), tuple(json.loads(projects)), bool(reads), bool(writes))
        return _Row(secret_sha256, grant, expires_at, revoked_at)


def _flaw(row: _Row) -> str | None:
    """Why a token lets nobody in. Only who knows the secret gets as far as hearing this."""
    if row.revoked_at is not None:
        return f"token {row.grant.caller.name} was revoked"
    if row.expires_at is not None and now_us() >= row.expires_at:
        expired = datetime.fromtimestamp(row.expires_at / 1_000_000, UTC)
        return f"token {row.grant.caller.name} expired on {expired:%Y-%m-%d %H:%M} UTC"
    return None


def _digest(authorization: bytes) -> bytes:
    """What a credential is remembered by, so that no secret stays in memory."""
    return hashlib.blake2b(authorization, digest_size=16).digest()


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


INSERT = """
INSERT INTO tokens
    (id, name, secret_sha256, projects, may_read, may_write, scope, created_at, expires_at)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING RETURNING id
"""

LIST = """
SELECT id, name, projects, may_read, may_write, scope, created_at, expires_at, revoked_at
FROM tokens ORDER BY created_at, id
"""

ANY_VALID = """
SELECT 1 FROM tokens WHERE revoked_at IS NULL AND (expires_at IS NULL OR expires_at > ?) LIMIT 1
"""

REVOKE = "UPDATE tokens SET revoked_at = ? WHERE revoked_at IS NULL AND (name = ? OR id = ?)"

SELECT = """
SELECT secret_sha256, name, projects, may_read, may_write, scope, expires_at, revoked_at
FROM tokens WHERE id = ?
"""
