"""Bad input, dialect by dialect: the contract's status, a JSON message, nothing stored."""

from collections.abc import AsyncIterator

import pytest

from tests.support.served_node import Answer, ServedNode

from .conftest import OpenNode
from .dialects import DIALECTS, FREE_NAMES, QUERY, TUIST_CAS, DialectCase, malformed, message_of

KEY_VALUE = f"/api/cache/keyvalue{QUERY}"

every_dialect = pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)

BODY = b"some bytes of a body"


def head(method: str, path: str, *headers: str) -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "host: x", *headers, "", ""]).encode("latin-1")


def message(answer: Answer) -> str:
    return message_of(answer.headers["content-type"], answer.body)


# --- key values --------------------------------------------------------------------------------------

MALFORMED = {
    "nothing": b"",
    "no JSON": b"no json",
    "cut": b'{"cas_id": "k", "entries": [{"value": "v"}',
    "not UTF-8": b'{"cas_id": "\xff", "entries": [{"value": "v"}]}',
    "half a surrogate pair": b'{"cas_id": "\\ud800", "entries": [{"value": "v"}]}',
    "two documents": b'{"cas_id": "k", "entries": [{"value": "v"}]}{}',
    "null": b"null",
    "array": b"[]",
    "string": b'"k"',
    "no fields": b"{}",
    "no cas_id": b'{"entries": [{"value": "v"}]}',
    "no entries": b'{"cas_id": "k"}',
    "cas_id a number": b'{"cas_id": 1, "entries": [{"value": "v"}]}',
    "cas_id null": b'{"cas_id": null, "entries": [{"value": "v"}]}',
    "entries null": b'{"cas_id": "k", "entries": null}',
    "entries an object": b'{"cas_id": "k", "entries": {"value": "v"}}',
    "entries empty": b'{"cas_id": "k", "entries": []}',
    "entry a string": b'{"cas_id": "k", "entries": ["v"]}',
    "entry without value": b'{"cas_id": "k", "entries": [{"value": "v"}, {}]}',
    "value a number": b'{"cas_id": "k", "entries": [{"value": 1}]}',
    "value null": b'{"cas_id": "k", "entries": [{"value": null}]}',
    "very deep": b'{"x": ' + b"[" * 200_000,
    "cas_id empty": b'{"cas_id": "", "entries": [{"value": "v"}]}',
    "cas_id traversal": b'{"cas_id": "../../x", "entries": [{"value": "v"}]}',
    "cas_id dots": b'{"cas_id": "..", "entries": [{"value": "v"}]}',
    "cas_id NUL": b'{"cas_id": "a\\u0000", "entries": [{"value": "v"}]}',
    "cas_id backslash": b'{"cas_id": "a\\\\b", "entries": [{"value": "v"}]}',
    "cas_id 256 bytes": b'{"cas_id": "%s", "entries": [{"value": "v"}]}' % (b"a" * 256),
}


async def test_key_value_body(served: ServedNode) -> None:
    for what, body in MALFORMED.items():
        answer, usable = await served.raw(head("PUT", KEY_VALUE, f"content-length: {len(body)}"), body)
        assert answer.status == 400, what
        message(answer)
        assert usable, what
    await served.assert_nothing_stored()


QUERIES = {
    "none": "",
    "empty": "?",
    "no project": "?account_handle=acc",
    "no account": "?project_handle=proj",
    "account empty": "?account_handle=&project_handle=proj",
    "project empty": "?account_handle=acc&project_handle=",
    "dots": "?account_handle=..&project_handle=proj",
    "encoded dots": "?account_handle=acc&project_handle=%2e%2e",
    "slash": "?account_handle=a/b&project_handle=proj",
    "encoded slash": "?account_handle=acc&project_handle=..%2f..%2fx",
    "backslash": "?account_handle=a%5Cb&project_handle=proj",
    "NUL": "?account_handle=acc&project_handle=p%00",
    "256 bytes": f"?account_handle={'a' * 256}&project_handle=proj",
    "not UTF-8": "?account_handle=acc&project_handle=%ff",
    "long and bad": f"?account_handle=..&project_handle=proj&x={'x' * 2_000}",
}
TUIST_PATHS = [
    ("GET", "keyvalue/k"),
    ("PUT", "keyvalue"),
    ("GET", "cas/k"),
    ("POST", "cas/k"),
    ("PUT", "gradle/k"),
    ("GET", "module/k"),
    ("POST", "module/start"),
    ("POST", "module/part"),
    ("POST", "module/complete"),
]


@pytest.mark.parametrize(("method", "path"), TUIST_PATHS)
async def test_tuist_handles(served: ServedNode, method: str, path: str) -> None:
    body = b'{"cas_id": "k", "entries": [{"value": "v"}]}'
    for what, query in QUERIES.items():
        request = head(method, f"/api/cache/{path}{query}", f"content-length: {len(body)}")
        answer, usable = await served.raw(request, body)
        assert answer.status == 400, what
        message(answer)
        assert usable, what
    await served.assert_nothing_stored()


# --- path components ---------------------------------------------------------------------------------

UNSAFE = {
    "dot": ".",
    "dots": "..",
    "encoded dots": "%2e%2e",
    "mixed dots": ".%2E",
    "encoded slash": "a%2Fb",
    "encoded traversal": "..%2f..%2f..%2fetc%2fpasswd",
    "backslash": "a%5cb",
    "backslash traversal": "..%5C..%5Cx",
    "raw backslash": "..\\x",
    "NUL": "a%00",
    "newline": "a%0A",
    "escape": "%1b",
    "DEL": "%7F",
    "C1": "%C2%85",
    "256 bytes": "a" * 256,
    "256 encoded bytes": "%C3%A9" * 128,
    "not UTF-8": "%ff",
    "overlong slash": "%c0%af",
    "encoded surrogate": "%ed%a0%80",
    "empty": "",
}
COMPONENTS = [
    ("GET", "/api/cache/keyvalue/{bad}" + QUERY),
    ("PUT", "/api/cache/keyvalue/{bad}" + QUERY),
    *((method, dialect.path("{bad}")) for dialect in DIALECTS for method in ("GET", dialect.method)),
    *(
        (method, f"/{tool}/{place}")
        for tool, rest in (
            ("gradle", "k"),
            ("ccache", "k"),
            ("bazel", f"ac/{'0' * 64}"),
            ("webdav", "k"),
            ("nx", "v1/cache/1"),
            ("turborepo", f"v8/artifacts/{'0' * 16}"),
        )
        for place in (f"{{bad}}/proj/{rest}", f"acc/{{bad}}/{rest}")
        for method in ("GET", "PUT")
    ),
    ("PUT", f"/bazel/acc/proj/{{bad}}/ac/{'0' * 64}"),
    ("PUT", f"/bazel/acc/proj/{{bad}}/cas/{'0' * 64}"),
    ("PUT", "/bazel/acc/proj/{bad}/" + "0" * 64),
    ("DELETE", "/ccache/acc/proj/{bad}"),
    ("PUT", "/ccache/acc/proj/ab/{bad}"),
    ("PUT", "/ccache/acc/proj/{bad}/ab"),
    *((method, "/webdav/acc/proj/a/{bad}/b") for method in ("GET", "PUT", "DELETE", "PROPFIND", "MKCOL")),
    *((method, "/webdav/{bad}/proj/a/b") for method in ("PROPFIND", "MKCOL")),
]


@pytest.mark.parametrize(("method", "template"), COMPONENTS)
async def test_unsafe_component_in_every_place(served: ServedNode, method: str, template: str) -> None:
    for what, bad in UNSAFE.items():
        path = template.replace("{bad}", bad)
        request = head(method, path, "depth: 1", f"content-length: {len(BODY)}")
        answer, usable = await served.raw(request, BODY)
        assert answer.status == malformed(method, path), what
        message(answer)
        assert usable, what
    await served.assert_nothing_stored()
    assert sorted(path.name for path in served.folder.parent.iterdir()) == ["data"]


@pytest.mark.parametrize("name", [b"a\x00b", b"a\x01b", b"a b"])
async def test_raw_control_character_is_no_request(served: ServedNode, name: bytes) -> None:
    async with served.connection() as connection:
        await connection.send(
            b"PUT /gradle/acc/proj/" + name + b" HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\n\r\nx"
        )
        assert (await connection.rest()).startswith(b"HTTP/1.1 400 ")
    await served.assert_nothing_stored()


async def test_raw_utf8_in_a_path_is_no_request(served: ServedNode) -> None:
    async with served.connection() as connection:
        await connection.send(
            "PUT /gradle/acc/proj/grün HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\n\r\nx".encode()
        )
        rest = await connection.rest()
    assert rest.startswith(b"HTTP/1.1 400 ")
    assert b"percent-encode" in rest
    await served.assert_nothing_stored()


@pytest.mark.parametrize(
    "target", ["*", "foo", "//", "/page", "", "http://host/nothing", "/api", "/api/cache/cas"]
)
async def test_odd_target_is_404_or_no_request(served: ServedNode, target: str) -> None:
    async with served.connection() as connection:
        await connection.send(head("GET", target, "connection: close"))
        assert (await connection.rest()).split()[1] in (b"404", b"400")


# --- length of bodies --------------------------------------------------------------------------------


@every_dialect
async def test_body_shorter_than_declared_and_then_the_end(served: ServedNode, dialect: DialectCase) -> None:
    async with served.connection() as connection:
        await connection.send(head(dialect.method, dialect.path_for(BODY), "content-length: 100"), BODY)
        connection.end_sending()
        rest = await connection.rest()
        # Who only stopped sending may still read; nobody is owed an answer.
        assert rest == b"" or rest.startswith(b"HTTP/1.1 %d " % dialect.malformed)
    await served.assert_nothing_stored()


@every_dialect
async def test_client_that_goes_away_inside_its_body(served: ServedNode, dialect: DialectCase) -> None:
    async with served.connection() as connection:
        await connection.send(
            head(dialect.method, dialect.path_for(BODY), "content-length: 900000"), b"x" * 500_000
        )
        await served.upload_begun()
    await served.assert_nothing_stored()


@every_dialect
async def test_client_that_stops_inside_its_body(open_node: OpenNode, dialect: DialectCase) -> None:
    served = await open_node(uploads={"read_timeout_ms": 20})
    async with served.connection() as connection:
        await connection.send(head(dialect.method, dialect.path_for(BODY), "content-length: 100"), BODY)
        answer = await connection.answer()
        assert answer.status == dialect.too_slow
        assert "20 of 100 bytes" in message(answer)
        assert await connection.rest() == b""
    await served.assert_nothing_stored()


@every_dialect
async def test_client_that_stops_inside_a_chunked_body(open_node: OpenNode, dialect: DialectCase) -> None:
    served = await open_node(uploads={"read_timeout_ms": 20})
    async with served.connection() as connection:
        request = head(dialect.method, dialect.path_for(BODY), "transfer-encoding: chunked")
        await connection.send(request, b"14\r\n" + BODY + b"\r\n")
        answer = await connection.answer()
        assert answer.status == dialect.too_slow
        message(answer)
        assert await connection.rest() == b""
    await served.assert_nothing_stored()


async def test_key_value_client_that_stops_or_leaves(open_node: OpenNode) -> None:
    served = await open_node(uploads={"read_timeout_ms": 20})
    async with served.connection() as connection:
        await connection.send(head("PUT", KEY_VALUE, "content-length: 100"), b'{"cas_id"')
        answer = await connection.answer()
        assert answer.status == 408
        message(answer)
    async with served.connection() as connection:
        await connection.send(head("PUT", KEY_VALUE, "content-length: 100"), b'{"cas_id"')
    await served.assert_nothing_stored()


@every_dialect
async def test_body_longer_than_declared_is_the_next_request(
    served: ServedNode, dialect: DialectCase
) -> None:
    path = dialect.path_for(BODY)
    async with served.connection() as connection:
        request = head(dialect.method, path, f"content-length: {len(BODY)}")
        await connection.send(request, BODY, b"and more\r\n\r\n")
        assert (await connection.answer()).status == dialect.created
        # What follows is no request, and the connection ends with it.
        assert (await connection.rest()).startswith(b"HTTP/1.1 400 ")
    assert (await served.client.get(path)).content == BODY


@every_dialect
async def test_length_that_is_no_number(served: ServedNode, dialect: DialectCase) -> None:
    for length in ("-1", "+3", "abc", "", "3, 4", "9" * 30, "0x3"):
        async with served.connection() as connection:
            request = head(dialect.method, dialect.path_for(b"abc"), f"content-length: {length}")
            await connection.send(request, b"abc")
            assert (await connection.rest()).startswith(b"HTTP/1.1 400 "), length
    await served.assert_nothing_stored()


@every_dialect
async def test_two_lengths(served: ServedNode, dialect: DialectCase) -> None:
    lengths = ("content-length: 3", "content-length: 4")
    async with served.connection() as connection:
        await connection.send(head(dialect.method, dialect.path_for(b"abc"), *lengths), b"abcd")
        assert (await connection.rest()).startswith(b"HTTP/1.1 400 ")
    await served.assert_nothing_stored()


@every_dialect
async def test_a_length_beside_chunks_is_no_request(served: ServedNode, dialect: DialectCase) -> None:
    # Two ideas of where the body ends are how a request is smuggled past a proxy (RFC 9112, 6.3).
    headers = ("content-length: 3", "transfer-encoding: chunked")
    async with served.connection() as connection:
        request = head(dialect.method, dialect.path_for(BODY), *headers)
        await connection.send(request, b"14\r\n" + BODY + b"\r\n0\r\n\r\n")
        assert (await connection.rest()).startswith(b"HTTP/1.1 400 ")
    await served.assert_nothing_stored()


@every_dialect
@pytest.mark.parametrize("garbage", [b"ZZ\r\n", b"14\r\nshort\r\n0\r\n\r\n"])
async def test_malformed_chunks(served: ServedNode, dialect: DialectCase, garbage: bytes) -> None:
    async with served.connection() as connection:
        request = head(dialect.method, dialect.path_for(BODY), "transfer-encoding: chunked")
        await connection.send(request, b"3\r\nabc\r\n", garbage)
        connection.end_sending()
        rest = await connection.rest()
        assert rest == b"" or rest.split()[1] in (b"400", b"%d" % dialect.malformed)
    await served.assert_nothing_stored()


# --- over the limits ---------------------------------------------------------------------------------


async def chunks(count: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield b"x" * 100


@every_dialect
async def test_over_the_limit_declared(open_node: OpenNode, dialect: DialectCase) -> None:
    served = await open_node(uploads={dialect.limit: 1_000})
    async with served.connection() as connection:
        # Answered before a byte of it was sent.
        await connection.send(head(dialect.method, dialect.path("0" * 64), "content-length: 1001"))
        answer = await connection.answer()
        assert answer.status == dialect.too_large
        assert "1001" in message(answer)
        # And the body that comes all the same does not harm the connection.
        await connection.send(b"x" * 1_001)
        assert await connection.is_usable()
    await served.assert_nothing_stored()


@every_dialect
async def test_over_the_limit_chunked(open_node: OpenNode, dialect: DialectCase) -> None:
    served = await open_node(uploads={dialect.limit: 1_000})
    refused = await served.client.request(dialect.method, dialect.path("0" * 64), content=chunks(11))
    assert refused.status_code == dialect.too_large
    assert message_of(refused.headers["content-type"], refused.content)
    await served.assert_nothing_stored()


@every_dialect
async def test_at_the_limit(open_node: OpenNode, dialect: DialectCase) -> None:
    served = await open_node(uploads={dialect.limit: 1_000})
    stored = await served.client.request(dialect.method, dialect.path_for(b"x" * 1_000), content=chunks(10))
    assert stored.status_code == dialect.created


async def test_key_value_over_the_limit(open_node: OpenNode) -> None:
    served = await open_node(uploads={"key_value_max_bytes": 1_000})
    assert (await served.client.put(KEY_VALUE, content=chunks(11))).status_code == 413
    answer, usable = await served.raw(head("PUT", KEY_VALUE, "content-length: 1001"), b"x" * 1_001)
    assert (answer.status, usable) == (413, True)
    message(answer)
    await served.assert_nothing_stored()


async def test_refused_body_of_many_megabytes_is_read_so_that_the_answer_is_seen(open_node: OpenNode) -> None:
    served = await open_node(uploads={"cas_max_bytes": 1_000})
    size = 20 << 20
    # The whole body is sent before the answer is read, as some clients do.
    request = head("POST", TUIST_CAS.path("k"), f"content-length: {size}")
    answer, usable = await served.raw(request, b"x" * size)
    assert (answer.status, usable) == (413, True)
    await served.assert_nothing_stored()


async def test_refused_body_beyond_all_reason_is_cut_off(served: ServedNode) -> None:
    async with served.connection() as connection:
        await connection.send(head("POST", TUIST_CAS.path("k"), f"content-length: {1 << 40}"))
        assert (await connection.answer()).status == 413
        assert await connection.rest() == b""
    await served.assert_nothing_stored()


@pytest.mark.parametrize("dialect", FREE_NAMES, ids=lambda dialect: dialect.name)
async def test_body_without_any_length_is_empty(served: ServedNode, dialect: DialectCase) -> None:
    answer, usable = await served.raw(head(dialect.method, dialect.path("k")))
    assert (answer.status, usable) == (dialect.created, True)
    assert (await served.client.get(dialect.path("k"))).content == b""


async def test_endless_headers_are_refused(served: ServedNode) -> None:
    async with served.connection() as connection:
        await connection.send(head("GET", "/up", f"x: {'x' * 200_000}"))
        assert (await connection.rest()).startswith(b"HTTP/1.1 431 ")
