"""Headers and queries that the node reads."""

import base64
import hashlib
import hmac
import json
from contextlib import suppress
from typing import Any
from urllib.parse import urlencode

from tests.fuzz.target import Target
from tests.support.percent import percent_decoded
from tests.support.range_model import asked_by, tags_in
from undercroft.api import responses, tuist_module
from undercroft.api.request import Request, parse_query
from undercroft.api.responses import Span, parse_range
from undercroft.api.tuist import checksum
from undercroft.api.tuist_project import project_in
from undercroft.api.turborepo_labels import labels_of, preamble
from undercroft.auth.credentials import new_token, password_of, token_of
from undercroft.auth.tuist_jwt import TuistToken, TuistTokens
from undercroft.errors import BadRequestError, InvalidKeyError, UnauthenticatedError

NOW = 1_800_000_000.0
KEY = "k" * 64
TOKENS = TuistTokens(KEY)
TOKEN = new_token()


async def _nothing(*_: Any) -> Any:
    raise AssertionError


def request(query: bytes = b"", headers: list[tuple[bytes, bytes]] | None = None) -> Request:
    scope = {"method": "GET", "headers": headers or [], "query_string": query}
    return Request(scope, _nothing, _nothing)


# --- ranges and conditions ----------------------------------------------------------------------------


def byte_range(data: bytes) -> None:
    """The first byte is the size of a file, the rest a header; compared with RFC 9110 byte by byte."""
    size, header = (data[0], data[1:]) if data else (0, b"")
    found, asked = parse_range(header, size), asked_by(header)
    assert (found is None) == (asked is None)
    if found is not None and asked is not None:
        assert list(range(size))[found.start : found.end] == list(asked.positions(size))
        assert found.end <= size
        assert isinstance(found, Span)


def entity_tags(data: bytes) -> None:
    """Of a list of entity tags the node finds its own, and no other."""
    tag = b'"%s"' % (b"0" * 64)
    for header in (data, data + tag, data + b"," + tag):
        tags = tags_in(header)
        if tags is not None:
            assert responses._has_tag(header, tag) == (tag in tags)


# --- credentials --------------------------------------------------------------------------------------


def credentials(data: bytes) -> None:
    """A password or a refusal that does not repeat it; what a client packs is unpacked."""
    for header in (data, b"Bearer " + data, b"Basic " + data):
        with suppress(UnauthenticatedError):
            assert isinstance(password_of(header), str)
        try:
            token_of(header)
        except UnauthenticatedError as error:
            assert error.__cause__ is None
            assert len(data) < 8 or data.decode("latin-1") not in str(error)
    with suppress(UnicodeDecodeError):
        text = data.decode()
        packed = b"Basic " + base64.b64encode(f"user:{text}".encode())
        assert password_of(packed) == (text or "user")
        assert (
            token_of(b"Basic " + base64.b64encode(f"{text.replace(':', '')}:{TOKEN.text}".encode())) == TOKEN
        )


def segment(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def signed(header: bytes, payload: bytes, algorithm: str = "sha512") -> str:
    unsigned = f"{segment(header)}.{segment(payload)}"
    return f"{unsigned}.{segment(hmac.digest(KEY.encode(), unsigned.encode(), algorithm))}"


def read(text: str) -> TuistToken | None:
    with suppress(UnauthenticatedError):
        return TOKENS.read(text, NOW)
    return None


def jwt(data: bytes) -> None:
    """Nobody is let in who has not the key, whatever the header says; who has it only by valid claims."""
    good = json.dumps({"iss": "tuist", "exp": NOW + 60, "projects": ["acc/proj"]}).encode()
    assert read(data.decode("latin-1")) is None
    for signature in (b"", data, hashlib.sha512(data).digest()):
        assert read(f"{segment(data)}.{segment(good)}.{segment(signature)}") is None
    assert read(f'{segment(b"""{"alg":"HS512"}""")}.{segment(data)}.{segment(data)}') is None
    assert read(signed(data, good, "sha256")) is None
    if (token := read(signed(data, good))) is not None:
        assert json.loads(data)["alg"] == "HS512"
        assert token.reads == token.writes == {"acc/proj"}
    if (token := read(signed(b'{"alg":"HS512"}', data))) is not None:
        claims = json.loads(data)
        assert claims["iss"] == "tuist"
        assert float(claims["exp"]) == token.expires_at > NOW
        granted = claims.get("projects") or claims.get("cache_grants")
        assert granted or not token.reads | token.writes if token.reads is not None else not token.writes


# --- what else comes with a request -------------------------------------------------------------------


def query(data: bytes) -> None:
    """A query is read or refused; what was read, written again, is the same."""
    try:
        found = parse_query(data)
    except BadRequestError:
        return
    assert parse_query(urlencode(found).encode()) == found
    pairs = (field.partition(b"=")[::2] for field in data.split(b"&") if field)
    assert found == {_form_decoded(name): _form_decoded(value) for name, value in pairs}
    with suppress(BadRequestError):
        assert 1 <= tuist_module._part_number(found) <= tuist_module.MAX_PART_NUMBER
    with suppress(BadRequestError, InvalidKeyError):
        account, project = project_in(request(data))
        assert (account, project) == (found["account_handle"].lower(), found["project_handle"].lower())


def _form_decoded(text: bytes) -> str:
    return percent_decoded(text.replace(b"+", b" ")).decode()


def checksums(data: bytes) -> None:
    """64 hex digits in any case, and nothing else."""
    text = data.decode("latin-1")
    is_one = len(text) == 64 and set(text) <= set("0123456789abcdefABCDEF")
    try:
        assert checksum(text, "it") == text.lower()
        assert is_one
    except BadRequestError:
        assert not is_one


def label_headers(data: bytes) -> None:
    """What is taken as a label is sent again as a header: visible ASCII within its bound."""
    for name, most in ((b"duration", 16), (b"tag", 600), (b"sha", 256), (b"dirty-hash", 256)):
        try:
            labels = labels_of(request(headers=[(b"x-artifact-" + name, data)]))
        except BadRequestError:
            continue
        kept = getattr(labels, name.decode().replace("-", "_")).encode()
        assert kept == data
        assert 0 < len(data) <= most
        assert all(0x21 <= byte <= 0x7E for byte in data)
        assert len(preamble(labels)) < 4_096


TARGETS = (
    Target(
        "range",
        byte_range,
        [
            b"\x10bytes=0-3",
            b"\x10bytes=-5",
            b"\x10bytes=5-",
            b"\x10bytes=5-4",
            b"\x00bytes=-0",
            b"\xffBYTES=200-999999999999999999999",
            b"\x10 bytes=1-2\t",
            b"\x10bytes=0-1,3-4",
            b"\x10lines=0-1",
        ],
        64,
    ),
    Target(
        "entity_tags",
        entity_tags,
        [
            b"*",
            b'W/"a", "b"',
            b'W/"' + b"0" * 64 + b'"',
            b'"a,b" ,',
            b',"",\t"x"',
            b'"' + b"0" * 64 + b'"',
            b'"unclosed',
        ],
        256,
    ),
    Target(
        "credentials",
        credentials,
        [
            b"",
            b"Bearer x",
            b"Basic dTpw",
            b"basic dTpw=",
            b"uct_0123456789ab_" + b"s" * 43,
            b"Digest a=b",
            b"\xff:\xfe",
        ],
        512,
    ),
    Target(
        "jwt",
        jwt,
        [
            b'{"alg":"none"}',
            b'{"alg":"HS256","typ":"JWT"}',
            b'{"alg":"RS256","jwk":{"kty":"oct","k":""},"crit":["b64"],"b64":false}',
            b'{"alg":["HS512"],"kid":"../../x"}',
            b'{"iss":"tuist","exp":1800000060,"projects":["Acc/Proj"]}',
            b'{"iss":"tuist","exp":1e400,"nbf":"x"}',
            b'{"iss":["tuist"],"exp":1800000060,"cache_grants":{"project":{"read":["a/b"],"write":[]}}}',
            b'{"iss":"tuist","exp":18000000600000000000000000000000000000000,"sub":"\\ud800"}',
            b"a.b.c",
        ],
        2_048,
    ),
    Target(
        "query",
        query,
        [
            b"account_handle=acc&project_handle=proj&hash=h&name=n",
            b"upload_id=x&part_number=10000",
            b"part_number=%31&part_number=00001",
            b"account_handle=a%2Fb&project_handle=%ff",
            b"a=b;c=d&&=&%00=+%2B",
        ],
        1_024,
    ),
    Target("checksum", checksums, [b"0" * 64, b"Ab" * 32, b"0" * 63 + b"\n", b"\xb2" * 64], 128),
    Target(
        "label_headers", label_headers, [b"1234", b"9007199254740993", b"tag==", b"a b", b"x\r\ny: z"], 1_024
    ),
)
