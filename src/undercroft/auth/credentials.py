"""Tokens as clients send them: Bearer, or Basic with the token as password (RFC 6750, RFC 7617)."""

import base64
import binascii
import re
import secrets
from typing import NamedTuple

from undercroft.errors import UnauthenticatedError

# What a client is told: how to log in. Two challenges in two headers, because clients parse lists badly.
CHALLENGES = [
    (b"www-authenticate", b'Bearer realm="undercroft"'),
    (b"www-authenticate", b'Basic realm="undercroft", charset="UTF-8"'),
]

# 256 random bits, so that one round of SHA-256 is enough to keep: nobody guesses them from the hash.
SECRET_BYTES = 32

_TOKEN = re.compile(r"uct_([0-9a-f]{12})_([A-Za-z0-9_-]{20,200})")


class Token(NamedTuple):
    """A token in its two parts: the id is no secret, and finds the row."""

    id: str
    secret: str

    @property
    def text(self) -> str:
        """What the client sends."""
        return f"uct_{self.id}_{self.secret}"


def new_token() -> Token:
    """A token that nobody else has."""
    return Token(secrets.token_hex(6), secrets.token_urlsafe(SECRET_BYTES))


def token_of(authorization: bytes) -> Token:
    """The token in an Authorization header. Raises `UnauthenticatedError`; never repeats what was sent."""
    match = _TOKEN.fullmatch(password_of(authorization))
    if match is None:
        raise UnauthenticatedError(
            "the credential is no token of this node (uct_...): check what is configured"
        )
    return Token(*match.groups())


def password_of(authorization: bytes) -> str:
    """The Bearer token, the password of Basic, or its user where there is no password.

    Raises `UnauthenticatedError`.
    """
    scheme, _, value = authorization.strip().partition(b" ")
    if scheme.lower() == b"bearer":
        return value.strip().decode("latin-1")
    if scheme.lower() != b"basic":
        raise UnauthenticatedError("the Authorization header is neither Bearer nor Basic")
    try:
        user, _, password = base64.b64decode(value.strip(), validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        # Without its cause: that would repeat the credential.
        raise UnauthenticatedError("the Basic credential is not base64 of user:password") from None
    return password or user
