"""JSON Web Tokens of a Tuist server, read with the key it shares: most callers need no question then."""

import math
import warnings
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

import jwt
import msgspec
import structlog
from jwt.warnings import InsecureKeyLengthWarning

from undercroft.auth.grants import Caller
from undercroft.errors import ForbiddenError, ReadOnlyError, SettingsError, UnauthenticatedError

log = structlog.get_logger(__name__)

# One algorithm, named here and never taken from the token: what is signed in another way, or not at all,
# is no credential.
ALGORITHM = "HS512"
ISSUER = "tuist"

# RFC 7518 asks for a key as long as the hash.
KEY_BYTES = 64

# Who a token is for, by the first of these that can be shown to people.
NAMES = ("sub", "email", "preferred_username")
MAX_NAME_CHARACTERS = 100
NAMELESS = "tuist"

# A clock that is a little ahead of ours is no reason to refuse a token that was made just now.
NOT_BEFORE_LEEWAY_S = 60

_OPTIONS: Any = {
    "require": ["exp", "iss"],
    # These by the clock that is handed in.
    "verify_exp": False,
    "verify_nbf": False,
    # Of these nothing follows here.
    "verify_iat": False,
    "verify_aud": False,
    "verify_sub": False,
    "verify_jti": False,
}


class _Lists(msgspec.Struct):
    read: list[str] = []
    write: list[str] = []


class _Grants(msgspec.Struct):
    project: _Lists = msgspec.field(default_factory=_Lists)


class _Claims(msgspec.Struct):
    # The last second something is allowed in, at a time that can be shown.
    exp: float
    nbf: float = 0
    projects: list[str] | None = None
    cache_grants: _Grants | None = None


class TuistToken(NamedTuple):
    """What a verified token says."""

    caller: Caller
    expires_at: float
    """Seconds since the epoch."""
    reads: frozenset[str] | None
    """Where the caller may read, as `account/project` in lower case; None: the server has to be asked."""
    writes: frozenset[str]

    def check(self, project: str, *, write: bool) -> None:
        """Raises `ForbiddenError`, or `ReadOnlyError` for a write by who may only read."""
        if project in self.writes:
            return
        if self.reads is None or project not in self.reads:
            raise ForbiddenError(f"the JWT of {self.caller.name} gives no access to the project {project}")
        if write:
            raise ReadOnlyError(f"the JWT of {self.caller.name} only gives reading in {project}")


class TuistTokens:
    """Verifies tokens."""

    def __init__(self, secret: str) -> None:
        """Raises `SettingsError` for a secret that is no key for this algorithm."""
        self._secret = secret.encode()
        try:
            jwt.get_algorithm_by_name(ALGORITHM).prepare_key(self._secret)
        except jwt.InvalidKeyError:
            raise SettingsError(
                "auth.tuist_jwt_secret is a key of another kind: it must be the secret that the Tuist server "
                f"signs with by {ALGORITHM}"
            ) from None
        if len(self._secret) < KEY_BYTES:
            # Said once, here; the library would say it for every token.
            warnings.filterwarnings("ignore", category=InsecureKeyLengthWarning)
            log.warning("short_tuist_jwt_secret", bytes=len(self._secret), should_have=KEY_BYTES)

    def read(self, text: str, now: float) -> TuistToken | None:
        """None for what is no JWT. `now` in seconds since the epoch.

        Raises `UnauthenticatedError` for one that is signed wrongly, not valid now, or not to be understood;
        never repeats it.
        """
        try:
            jwt.get_unverified_header(text)
        except jwt.DecodeError:
            return None
        except jwt.InvalidTokenError:
            raise UnauthenticatedError("the header of the JWT cannot be understood") from None
        try:
            payload = jwt.decode(text, self._secret, algorithms=[ALGORITHM], issuer=ISSUER, options=_OPTIONS)
            claims = msgspec.convert(payload, _Claims)
        except jwt.PyJWTError as error:
            raise UnauthenticatedError(f"the JWT {_reason(error)}") from None
        except (msgspec.ValidationError, UnicodeEncodeError):  # half a surrogate pair has no UTF-8
            raise UnauthenticatedError("the claims of the JWT cannot be understood") from None
        _check_times(claims, now)
        return _token(claims, payload)


def _reason(error: jwt.PyJWTError) -> str:
    if isinstance(error, jwt.InvalidAlgorithmError):
        return f"is not signed by {ALGORITHM}"
    if isinstance(error, jwt.InvalidSignatureError):
        return "is signed by somebody else than the Tuist server"
    if isinstance(error, jwt.MissingRequiredClaimError):
        return "does not say who issued it and when it expires (iss, exp)"
    if isinstance(error, jwt.InvalidIssuerError):
        return f"was not issued by {ISSUER}"
    return "cannot be understood"


def _check_times(claims: _Claims, now: float) -> None:
    if not (math.isfinite(claims.exp) and math.isfinite(claims.nbf)):
        raise UnauthenticatedError("the times of the JWT are no numbers")
    if claims.exp <= now:
        raise UnauthenticatedError(f"the JWT expired on {_shown(claims.exp)}")
    if claims.nbf > now + NOT_BEFORE_LEEWAY_S:
        raise UnauthenticatedError(f"the JWT is not valid before {_shown(claims.nbf)}")


def _shown(at: float) -> str:
    try:
        return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S} UTC"
    except (ValueError, OverflowError, OSError):
        return f"{at:.0f} s"


def _token(claims: _Claims, payload: Mapping[str, Any]) -> TuistToken:
    """Grants are complete: with them the list of projects says nothing more."""
    caller = Caller(_name_in(payload))
    if claims.cache_grants is not None:
        granted = claims.cache_grants.project
        return TuistToken(caller, claims.exp, _lower(granted.read), _lower(granted.write))
    if claims.projects is not None:
        listed = _lower(claims.projects)
        return TuistToken(caller, claims.exp, listed, listed)
    return TuistToken(caller, claims.exp, None, frozenset())


def _lower(names: list[str]) -> frozenset[str]:
    return frozenset(name.lower() for name in names)


def _name_in(payload: Mapping[str, Any]) -> str:
    for claim in NAMES:
        name = payload.get(claim)
        if isinstance(name, str) and name.isprintable() and 0 < len(name) <= MAX_NAME_CHARACTERS:
            return name
    return NAMELESS
