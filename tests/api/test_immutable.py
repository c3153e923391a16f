"""`uploads.immutable`: what is stored stays, as long as it is whole."""

from pathlib import Path

import pytest

from tests.support.action_results import output_file, sha256
from tests.support.tiers import directory_store

from .conftest import OpenNode
from .dialects import REPLACING, DialectCase


@pytest.mark.parametrize("dialect", REPLACING, ids=lambda dialect: dialect.name)
async def test_what_is_stored_stays_and_what_is_damaged_is_healed(
    open_node: OpenNode, dialect: DialectCase
) -> None:
    served = await open_node(uploads={"immutable": True})
    path = dialect.path("0" * 64)

    async def put(content: bytes) -> int:
        return (await served.client.request(dialect.method, path, content=content)).status_code

    assert await put(b"first") == dialect.created
    # The client is told what it takes for success: the cache has the entry.
    assert await put(b"second") == dialect.again
    assert (await served.client.get(path)).content == b"first"
    (file,) = (served.folder / "artifacts").rglob("0" * 64)
    file.write_bytes(b"fir")
    assert (await served.client.get(path)).status_code == 404
    assert await put(b"third") == dialect.created
    assert (await served.client.get(path)).content == b"third"


async def test_an_action_result_is_replaced_once_a_blob_of_it_is_gone(open_node: OpenNode) -> None:
    """Else the action would run again in every build to come."""
    served = await open_node(uploads={"immutable": True})
    path, gone = f"/bazel/acc/proj/ac/{'0' * 64}", sha256(b"gone")
    for blob in (b"gone", b"here"):
        await served.client.put(f"/bazel/acc/proj/cas/{sha256(blob)}", content=blob)
    await served.client.put(path, content=output_file(b"gone"))
    await served.client.put(path, content=output_file(b"here"))
    assert (await served.client.get(path)).content == output_file(b"gone")
    await served.node.artifacts.evict(f"acc/proj/bazel_cas/{gone[:2]}/{gone[2:4]}/{gone}")
    assert (await served.client.put(path, content=output_file(b"here"))).status_code == 200
    assert (await served.client.get(path)).content == output_file(b"here")


async def test_a_turborepo_file_without_labels_is_replaced_and_one_of_another_signature_stays(
    open_node: OpenNode, tmp_path: Path
) -> None:
    path, name = "/turborepo/acc/proj/v8/artifacts/", "0123456789abcdef"
    store = directory_store(tmp_path / "bucket")
    object_file = tmp_path / "bucket/acc/proj/turborepo/01/23" / name
    object_file.parent.mkdir(parents=True)
    object_file.write_bytes(b"without labels")
    served = await open_node(uploads={"immutable": True}, object_store=store)
    # Now it lies on the disk.
    assert (await served.client.get(path + name)).status_code == 404
    for tag in ("first", "second"):
        put = await served.client.put(path + name, content=b"archive", headers={"x-artifact-tag": tag})
        assert put.status_code == 202
        got = await served.client.get(path + name)
        assert (got.content, got.headers["x-artifact-tag"]) == (b"archive", "first")
