"""Bazel's dialect."""

import asyncio
import hashlib

import pytest

from tests.support.served_node import ServedNode

EMPTY = hashlib.sha256().hexdigest()
BLOB = b"a blob"
DIGEST = hashlib.sha256(BLOB).hexdigest()
CAS = f"/bazel/acc/proj/cas/{DIGEST}"
AC = f"/bazel/acc/proj/ac/{DIGEST}"


async def test_blob(served: ServedNode) -> None:
    assert (await served.client.get(CAS)).status_code == 404
    assert (await served.client.head(CAS)).status_code == 404
    assert (await served.client.put(CAS, content=BLOB)).status_code == 200
    got = await served.client.get(CAS)
    assert (got.status_code, got.content) == (200, BLOB)
    head = await served.client.head(CAS)
    assert (head.status_code, head.headers["content-length"]) == (200, str(len(BLOB)))


async def test_blob_sent_again(served: ServedNode) -> None:
    for _ in range(2):
        assert (await served.client.put(CAS, content=BLOB)).status_code == 200
    assert served.node.capacity.used == len(BLOB)


async def test_blob_is_verified(served: ServedNode) -> None:
    refused = await served.client.put(CAS, content=b"another blob")
    assert refused.status_code == 400
    assert "SHA-256" in refused.json()["message"]
    await served.assert_nothing_stored()


async def test_wrong_blob_does_not_hurt_the_one_that_is_there(served: ServedNode) -> None:
    await served.client.put(CAS, content=BLOB)
    assert (await served.client.put(CAS, content=b"another")).status_code == 400
    assert (await served.client.get(CAS)).content == BLOB


async def test_action_results_take_any_body_and_are_overwritten(served: ServedNode) -> None:
    for body in (b"\x0a\x00", b'{"json": true}', b""):
        assert (await served.client.put(AC, content=body)).status_code == 200
        assert (await served.client.get(AC)).content == body


async def test_actions_and_blobs_are_apart(served: ServedNode) -> None:
    await served.client.put(CAS, content=BLOB)
    assert (await served.client.get(AC)).status_code == 404


async def test_empty_blob_always_exists(served: ServedNode) -> None:
    path = f"/bazel/acc/proj/cas/{EMPTY}"
    for method in ("GET", "HEAD"):
        got = await served.client.request(method, path)
        assert (got.status_code, got.headers["content-length"], got.content) == (200, "0", b"")
    assert (await served.client.put(path, content=b"")).status_code == 200
    # moon sends it without saying how long it is.
    answer, usable = await served.raw(f"PUT {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
    assert (answer.status, usable) == (200, True)
    assert (await served.client.get(f"/bazel/acc/proj/ac/{EMPTY}")).status_code == 404


async def test_instances_have_actions_of_their_own_and_share_blobs(served: ServedNode) -> None:
    names = [
        "",
        "one/",
        "two/",
        "one/two/",
        "one+two/",
        "o%20ne/",
        "on%C3%A9/",
        "%252F/",
        "ac/",
        "cas/",
        ".../",
    ]
    for name in names:
        path = f"/bazel/acc/proj/{name}ac/{DIGEST}"
        assert (await served.client.get(path)).status_code == 404, name
        assert (await served.client.put(path, content=name.encode())).status_code == 200
    for name in names:
        assert (await served.client.get(f"/bazel/acc/proj/{name}ac/{DIGEST}")).content == name.encode()
    await served.client.put(f"/bazel/acc/proj/one/cas/{DIGEST}", content=BLOB)
    assert (await served.client.get(CAS)).content == BLOB


@pytest.mark.parametrize(
    "rest",
    [
        f"cas/{DIGEST.upper()}",
        f"cas/{DIGEST[:63]}",
        f"cas/{DIGEST}0",
        f"cas/{'g' * 64}",
        f"other/{DIGEST}",
        "cas",
        "cas/",
        f"cas/{DIGEST}/",
        f"/cas/{DIGEST}",
    ],
)
@pytest.mark.parametrize("method", ["GET", "PUT"])
async def test_what_is_no_entry_is_400(served: ServedNode, method: str, rest: str) -> None:
    refused = await served.client.request(method, f"/bazel/acc/proj/{rest}", content=BLOB)
    assert refused.status_code == 400
    assert refused.json()["message"]
    await served.assert_nothing_stored()


async def test_long_instance_name(served: ServedNode) -> None:
    assert (await served.client.put(f"/bazel/a/p/{'i' * 250}/ac/{DIGEST}", content=b"x")).status_code == 200
    assert (
        await served.client.put(f"/bazel/a/p/{'i' * 200}/{'j' * 200}/ac/{DIGEST}", content=b"x")
    ).status_code == 400


async def test_moon_asks_for_the_status(served: ServedNode) -> None:
    assert (await served.client.get("/bazel/acc/status")).status_code in (200, 404)


async def test_a_hundred_uploads_at_once(served: ServedNode) -> None:
    blobs = [b"blob %d" % number for number in range(100)]
    paths = [f"/bazel/acc/proj/cas/{hashlib.sha256(blob).hexdigest()}" for blob in blobs]
    puts = await asyncio.gather(*(served.client.put(p, content=b) for p, b in zip(paths, blobs, strict=True)))
    assert {put.status_code for put in puts} == {200}
    assert [(await served.client.get(path)).content for path in paths] == blobs


async def test_offered_compression_is_not_used(served: ServedNode) -> None:
    await served.client.put(CAS, content=BLOB)
    got = await served.client.get(CAS, headers={"accept-encoding": "zstd,gzip"})
    assert "content-encoding" not in got.headers
    assert got.content == BLOB
