"""Tokens in Authorization headers."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from undercroft.auth.credentials import Token, new_token, password_of, token_of
from undercroft.errors import UnauthenticatedError

TOKEN = Token("0123456789ab", "s" * 43)


def basic(text: str, scheme: bytes = b"Basic") -> bytes:
    return scheme + b" " + base64.b64encode(text.encode())


@pytest.mark.parametrize(
    "header",
    [
        b"Bearer " + TOKEN.text.encode(),
        b"bearer  " + TOKEN.text.encode() + b" ",
        basic(f"anybody:{TOKEN.text}"),
        basic(f":{TOKEN.text}", b"BASIC"),
        basic(TOKEN.text),
        basic(f"{TOKEN.text}:"),
    ],
)
def test_a_token_is_found_wherever_clients_put_it(header: bytes) -> None:
    assert token_of(header) == TOKEN


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"Bearer",
        b"Bearer ",
        b"Bearer secret-of-another-service",
        b"Digest username=x",
        TOKEN.text.encode(),
        b"Basic not base64!",
        b"Basic " + base64.b64encode(b"\xff\xfe:\xff"),
        basic(f"{TOKEN.text}:another password"),
        b"Bearer " + TOKEN.text.encode() + b"\xe9",
        b"Bearer uct_0123456789AB_" + b"s" * 43,
        b"Bearer uct_0123456789ab_short",
    ],
)
def test_anything_else_is_refused_without_repeating_it(header: bytes) -> None:
    with pytest.raises(UnauthenticatedError) as caught:
        token_of(header)
    shown = str(caught.value)
    assert "secret-of-another-service" not in shown
    assert TOKEN.secret not in shown
    assert caught.value.__cause__ is None


@given(st.binary(max_size=300))
def test_whatever_is_sent_is_a_password_or_refused(header: bytes) -> None:
    try:
        assert isinstance(password_of(header), str)
    except UnauthenticatedError:
        return


def test_new_tokens_are_new_and_readable() -> None:
    made = {new_token() for _ in range(100)}
    assert len({token.id for token in made}) == len({token.secret for token in made}) == 100
    assert {token_of(b"Bearer " + token.text.encode()) for token in made} == made
