"""JWTs of a Tuist server."""

import base64
import json
from typing import Any

import jwt
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from tests.support.tuist_upstream import TuistUpstream
from undercroft.auth.grants import Caller, Right
from undercroft.auth.tuist_jwt import TuistToken, TuistTokens
from undercroft.errors import (
    AccessUnknownError,
    BadRequestError,
    ForbiddenError,
    ReadOnlyError,
    SettingsError,
    UnauthenticatedError,
)

from .conftest import GateRig, OpenGate, asked

SECRET = "0123456789abcdef" * 4
NOW = 1_800_000_000.0
CLAIMS: dict[str, Any] = {"iss": "tuist", "exp": NOW + 300, "sub": "user-7", "projects": ["Acme/App"]}
ALL = frozenset({"acme/app"})
LIB, OTHER = ("acme", "lib"), ("other", "app")


def signed(*without: str, key: Any = SECRET, algorithm: str = "HS512", **claims: Any) -> str:
    """A token with `CLAIMS`, but for some of them."""
    payload = {name: value for name, value in (CLAIMS | claims).items() if name not in without}
    return jwt.encode(payload, key, algorithm=algorithm)


def segment(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


def read(text: str) -> TuistToken | None:
    return TuistTokens(SECRET).read(text, NOW)


@pytest.fixture
def rig(open_gate: OpenGate) -> GateRig:
    return open_gate(SECRET)


# --- which tokens count ---------------------------------------------------------------------------


def test_a_good_token() -> None:
    assert read(signed()) == TuistToken(Caller("user-7"), NOW + 300, ALL, ALL)


@pytest.mark.parametrize("extra", [{"aud": "tuist"}, {"iat": NOW + 30}, {"nbf": NOW + 30}, {"jti": 7}])
def test_what_else_a_token_says_is_no_obstacle(extra: dict[str, Any]) -> None:
    assert read(signed(**extra)) is not None


REFUSED = {
    "another key": (signed(key="x" * 64), "signed by somebody else"),
    "HS256": (signed(algorithm="HS256"), "not signed by HS512"),
    "HS384": (signed(algorithm="HS384"), "not signed by HS512"),
    "none": (signed(key=None, algorithm="none"), "not signed by HS512"),
    "None": (f"{segment({'alg': 'None'})}.{segment(CLAIMS)}.", "not signed by HS512"),
    "no algorithm": (f"{segment({'typ': 'JWT'})}.{segment(CLAIMS)}.", "not signed by HS512"),
    "asymmetric": (f"{segment({'alg': 'RS512'})}.{segment(CLAIMS)}.AAAA", "not signed by HS512"),
    "no signature": (signed().rpartition(".")[0] + ".", "signed by somebody else"),
    "changed": (
        ".".join([signed().split(".")[0], segment(CLAIMS | {"sub": "root"}), signed().split(".")[2]]),
        "signed by somebody else",
    ),
    "another issuer": (signed(iss="tuist.example"), "was not issued by tuist"),
    "issuers": (signed(iss="tuis"), "was not issued by tuist"),
    "no issuer": (signed("iss"), "iss, exp"),
    "no expiry": (signed("exp"), "iss, exp"),
    "expired": (signed(exp=NOW - 1), "expired on 2027-01-15 07:59:59 UTC"),
    "expired now": (signed(exp=NOW), "expired on"),
    "expired long ago": (signed(exp=-1e300), "expired on"),
    "not yet": (signed(nbf=NOW + 100), "not valid before 2027-01-15 08:01:40 UTC"),
    "expiry is text": (signed(exp=str(NOW + 300)), "cannot be understood"),
    "expiry is half a surrogate pair": (signed(exp="\ud800"), "cannot be understood"),
    "expiry is true": (signed(exp=True), "cannot be understood"),
    "expiry is null": (signed(exp=None), "iss, exp"),
    "never": (signed(exp=float("inf")), "no numbers"),
    "no number": (signed(exp=float("nan")), "no numbers"),
    "projects is text": (signed(projects="acme/app"), "cannot be understood"),
    "projects has numbers": (signed(projects=["acme/app", 1]), "cannot be understood"),
    "grants is a list": (signed(cache_grants=["acme/app"]), "cannot be understood"),
    "grants of text": (signed(cache_grants={"project": {"read": "acme/app"}}), "cannot be understood"),
    "key id": (f"{segment({'alg': 'HS512', 'kid': 7})}.{segment(CLAIMS)}.AAAA", "cannot be understood"),
    "no claims": (jwt.PyJWS().encode(b"[1]", SECRET, "HS512"), "cannot be understood"),
}


@pytest.mark.parametrize("kind", REFUSED)
async def test_what_does_not_count_is_refused_without_asking(
    rig: GateRig, upstream: TuistUpstream, kind: str
) -> None:
    text, says = REFUSED[kind]
    for right in ("read", "write", "any"):
        with pytest.raises(UnauthenticatedError, match=says) as caught:
            await rig.admit(text, right)
        assert text.split(".")[1] not in str(caught.value)
        assert caught.value.__cause__ is None
    assert upstream.requests == []


@pytest.mark.parametrize(
    "text", ["secret-1", "a.b.c", "tuist_1.2", f"{segment([])}.e30.AAAA", "...", "é.é.é"]
)
async def test_what_is_no_jwt_is_the_servers_business(
    rig: GateRig, upstream: TuistUpstream, text: str
) -> None:
    question = asked()._replace(authorization=b"Bearer " + text.encode("latin-1"))
    assert (await rig.gate.admit(question)).name == "tuist"
    assert len(upstream.requests) == 1


async def test_without_the_key_every_token_is_the_servers_business(
    open_gate: OpenGate, upstream: TuistUpstream
) -> None:
    rig = open_gate()
    assert await rig.admit(REFUSED["another key"][0]) == "tuist"
    assert len(upstream.requests) == 1


@given(st.text(alphabet=st.characters(max_codepoint=255)))
def test_whatever_is_sent_is_no_jwt_or_refused(text: str) -> None:
    for sent in (text, f"{segment({'alg': 'HS512'})}.{text}.AAAA"):
        try:
            assert read(sent) is None
        except UnauthenticatedError:
            continue


@given(
    st.dictionaries(
        st.sampled_from(["projects", "cache_grants", "exp", "nbf", "sub"]),
        st.none()
        | st.text()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.lists(st.integers()),
    )
)
def test_whatever_claims_are_signed_are_understood_or_refused(claims: dict[str, Any]) -> None:
    try:
        read(signed(**claims))
    except UnauthenticatedError:
        return


# --- what they allow ------------------------------------------------------------------------------


async def test_listed_projects_are_allowed_in_whatever_case(rig: GateRig, upstream: TuistUpstream) -> None:
    text = signed()
    for right in ("read", "write", "clean"):
        assert await rig.admit(text, right) == "user-7"
    with pytest.raises(ForbiddenError, match="user-7 gives no access to the project other/app"):
        await rig.admit(text, project=OTHER)
    assert upstream.requests == []
    assert rig.told["authorized jwt"] == 3
    assert rig.told["refused forbidden"] == 1


async def test_an_empty_list_is_a_list(rig: GateRig, upstream: TuistUpstream) -> None:
    with pytest.raises(ForbiddenError):
        await rig.admit(signed(projects=[]))
    assert upstream.requests == []


@pytest.mark.parametrize("token", [signed("projects"), signed(projects=None, cache_grants=None)])
async def test_without_a_list_the_server_is_asked(rig: GateRig, upstream: TuistUpstream, token: str) -> None:
    assert await rig.admit(token) == "user-7"
    with pytest.raises(ForbiddenError):
        await rig.admit(token, project=OTHER)
    assert len(upstream.requests) == 2
    assert rig.told["authorized server"] == 1
    upstream.answers(500)
    with pytest.raises(AccessUnknownError):
        await rig.admit(token, project=LIB)


GRANTS = {"project": {"read": ["Acme/App", "acme/both"], "write": ["Acme/LIB", "acme/both"]}}


@pytest.mark.parametrize(
    ("project", "right", "error"),
    [
        ("app", "read", None),
        ("app", "write", ReadOnlyError),
        ("app", "clean", ReadOnlyError),
        ("lib", "read", None),
        ("lib", "write", None),
        ("lib", "clean", None),
        ("both", "read", None),
        ("both", "write", None),
        ("none", "read", ForbiddenError),
        ("none", "write", ForbiddenError),
        ("none", "clean", ForbiddenError),
    ],
)
async def test_grants(
    rig: GateRig, upstream: TuistUpstream, project: str, right: Right, error: type[Exception] | None
) -> None:
    # The list does not add to them.
    text = signed(cache_grants=GRANTS, projects=["acme/none", "acme/app"])
    if error is None:
        assert await rig.admit(text, right, ("acme", project)) == "user-7"
    else:
        with pytest.raises(error) as caught:
            await rig.admit(text, right, ("acme", project))
        assert type(caught.value) is error
    assert upstream.requests == []


@pytest.mark.parametrize("grants", [{}, {"project": {}}, {"account": {"read": ["acme"]}}])
async def test_grants_are_complete(rig: GateRig, upstream: TuistUpstream, grants: dict[str, Any]) -> None:
    with pytest.raises(ForbiddenError):
        await rig.admit(signed(cache_grants=grants))
    assert upstream.requests == []


async def test_any_good_token_is_a_credential(rig: GateRig, upstream: TuistUpstream) -> None:
    for text in (signed(), signed("projects"), signed(cache_grants={})):
        assert await rig.admit(text, "any") == "user-7"
    with pytest.raises(BadRequestError):
        await rig.admit(signed(), project=BadRequestError("no project"))
    with pytest.raises(UnauthenticatedError):
        await rig.admit(signed(exp=1), project=BadRequestError("no project"))
    assert upstream.requests == []


async def test_a_token_as_password_of_basic(rig: GateRig, upstream: TuistUpstream) -> None:
    header = b"Basic " + base64.b64encode(f"ci:{signed()}".encode())
    assert (await rig.gate.admit(asked()._replace(authorization=header))).name == "user-7"
    assert upstream.requests == []


# --- for how long ---------------------------------------------------------------------------------


@pytest.mark.parametrize("without", [(), ("projects",)])
async def test_a_remembered_token_expires_all_the_same(
    rig: GateRig, upstream: TuistUpstream, without: tuple[str, ...]
) -> None:
    text = signed(*without)
    await rig.admit(text)
    rig.times.pass_by(299.9)
    assert await rig.admit(text) == "user-7"
    assert rig.told["cache hit"] == 1
    rig.times.pass_by(0.1)
    with pytest.raises(UnauthenticatedError, match="expired"):
        await rig.admit(text)
    assert len(upstream.requests) == len(without)


async def test_expiry_is_by_the_wall_clock(rig: GateRig) -> None:
    await rig.admit(signed())
    rig.times.wall += 300
    with pytest.raises(UnauthenticatedError, match="expired"):
        await rig.admit(signed())


async def test_a_long_lived_token_is_remembered_for_ten_minutes_at_most(
    rig: GateRig, upstream: TuistUpstream
) -> None:
    text = signed("projects", exp=NOW + 1_000_000)
    await rig.admit(text)
    rig.times.pass_by(599.9)
    await rig.admit(text)
    assert len(upstream.requests) == 1
    rig.times.pass_by(0.1)
    await rig.admit(text)
    assert len(upstream.requests) == 2


async def test_a_short_lived_token_is_forgotten_with_it(rig: GateRig) -> None:
    await rig.admit(signed(exp=NOW + 5))
    # The wall clock stands still, the other one does not.
    rig.times.monotonic += 5
    await rig.admit(signed(exp=NOW + 5))
    assert rig.told["cache miss"] == 2


# --- who it is ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("claims", "name"),
    [
        ({}, "user-7"),
        ({"sub": 7, "email": "ci@example.com"}, "ci@example.com"),
        ({"sub": "", "email": None, "preferred_username": "ci"}, "ci"),
        ({"sub": "x" * 101, "email": "line\nbreak", "preferred_username": "\x1b[2J"}, "tuist"),
        ({"sub": None}, "tuist"),
        ({"sub": "x" * 100}, "x" * 100),
    ],
)
def test_the_name_of_the_caller(claims: dict[str, Any], name: str) -> None:
    token = read(signed(**claims))
    assert token is not None
    assert token.caller == Caller(name)


# --- the key --------------------------------------------------------------------------------------


def test_a_key_of_another_kind_is_a_problem_of_the_settings() -> None:
    pem = "-----BEGIN PUBLIC KEY-----\nMFww\n-----END PUBLIC KEY-----\n"
    with pytest.raises(SettingsError, match=r"auth\.tuist_jwt_secret") as caught:
        TuistTokens(pem)
    assert "MFww" not in str(caught.value)


def test_a_short_key_is_warned_of_once() -> None:
    with structlog.testing.capture_logs() as logged:
        tokens = TuistTokens("short")
    assert [record["event"] for record in logged] == ["short_tuist_jwt_secret"]
    with pytest.raises(UnauthenticatedError):
        tokens.read(signed(), NOW)


async def test_readable_projects_are_those_in_the_jwt(open_gate: OpenGate, upstream: TuistUpstream) -> None:
    rig = open_gate(SECRET)
    header = f"Bearer {signed()}".encode()
    assert await rig.gate.readable(header, {"acme/app", "acme/lib"}) == {"acme/app"}
    assert upstream.requests == []
