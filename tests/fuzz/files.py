"""Files that the node reads: settings, and rows that a stop could not commit."""

import ipaddress
import os
import tempfile
import tomllib
from functools import cache, reduce
from pathlib import Path
from typing import Any
from unittest.mock import patch

import msgspec

from tests.fuzz.target import Target
from undercroft.buffers import Batch
from undercroft.buffers.cache_artifacts import CacheArtifactsBuffer
from undercroft.buffers.key_values import WRITES, KeyValueBuffer, KeyValueWrite
from undercroft.buffers.s3_transfers import S3TransfersBuffer
from undercroft.buffers.spill import FORMAT, UNSEALED_FORMAT, read_spill, write_spill
from undercroft.config import Settings, environment_name, every_setting, load
from undercroft.errors import SettingsError, UndercroftError

TYPES: dict[str, type[msgspec.Struct]] = {
    **KeyValueBuffer.entry_types,
    **CacheArtifactsBuffer.entry_types,
    **S3TransfersBuffer.entry_types,
}


@cache
def _folder(_pid: int) -> tempfile.TemporaryDirectory[str]:
    """A folder of the process, which goes with it."""
    return tempfile.TemporaryDirectory(prefix="undercroft-fuzz-")


NAMES = sorted(name for name, _ in every_setting())
SECRETS = ("auth.tuist_jwt_secret", "object_store.secret_access_key", "object_store.session_token")


def _file(data: bytes) -> Path:
    """A file with these bytes."""
    path = Path(_folder(os.getpid()).name) / "file"
    path.write_bytes(data)
    return path


def settings(data: bytes) -> None:
    """Settings, or one error that says all that is wrong, and no secret."""
    try:
        loaded = load({}, _file(data))
    except SettingsError as error:
        assert str(error).startswith(("1 wrong setting: ", *(f"{n} wrong settings: " for n in range(2, 200))))
        for secret in _secrets(data):
            assert secret not in str(error)
        return
    assert Settings.model_validate(loaded.model_dump()) == loaded
    if loaded.auth.mode == "none" and not loaded.allow_unauthenticated:
        assert loaded.host == "localhost" or ipaddress.ip_address(loaded.host).is_loopback
    assert "\0" not in str(loaded.data_dir)


def environment(data: bytes) -> None:
    """The first byte says which setting, the rest is its value: a setting, or one error that names it."""
    name, text = NAMES[data[0] % len(NAMES)] if data else NAMES[0], os.fsdecode(data[1:].replace(b"\0", b""))
    with patch.dict(os.environ, {environment_name(name): text}):
        try:
            loaded = load({})
        except SettingsError as error:
            told = str(error)
            assert told.startswith("1 wrong setting: ")
            is_secret = name in SECRETS
            assert not (is_secret and len(text) >= 12 and text in told)
            return
    section, _, last = name.rpartition(".")
    holder = reduce(getattr, section.split("."), loaded) if section else loaded
    assert last in holder.model_fields_set


def _secrets(data: bytes) -> list[str]:
    try:
        read: dict[str, Any] = tomllib.loads(data.decode())
    except (ValueError, RecursionError):
        return []
    named = [name.split(".") for name in SECRETS]
    sections = [(read.get(section), name) for section, name in named]
    found = [section.get(name) for section, name in sections if isinstance(section, dict)]
    # Also where somebody wrote a list.
    texts = [text for secret in found for text in (secret if isinstance(secret, list) else [secret])]
    return [text for text in texts if isinstance(text, str) and len(text) >= 12]


def spill(data: bytes) -> None:
    """Batches, or an error that says what to do; a sealed file only as it was written."""
    head, unsealed = (msgspec.json.encode(form) + b"\n" for form in (FORMAT, UNSEALED_FORMAT))
    for content in (data, unsealed + data, head + data):
        found = _batches(content)
        if found is not None:
            # Nobody finds a seal by chance.
            assert content.startswith(unsealed.rstrip()) or content in SEALED
            assert _batches(_written(found)) == found


def _batches(content: bytes) -> list[Batch] | None:
    try:
        return read_spill(_file(content), TYPES)
    except UndercroftError as error:
        assert "move it away to start without them" in str(error)
    return None


def _written(batches: list[Batch]) -> bytes:
    path = _file(b"")
    write_spill(path, batches)
    return path.read_bytes()


ROW = KeyValueWrite("k", "[1]")
SEALED = {_written([Batch(WRITES, [ROW]), Batch(WRITES, [ROW, ROW])])}

TARGETS = (
    Target(
        "settings",
        settings,
        [
            b'port=4001\nack="buffered"\n[buffers]\nshutdown_ms = 9\n[buffers.key_values]\nmax_batch_size=1',
            b'host = "0.0.0.0"\n[auth]\nmode = "tuist"\ntuist_server_url = "https://u:p@[::1]:0/x?y"\n',
            b'[auth]\nmode="tuist"\ntuist_jwt_secret="secret of letters"\n[uploads]\ncas_max_bytes="1e9GiB"',
            b'[object_store]\nurl="s3://b"\nsecret_access_key=["another secret"]\nconcurrency=0\nregion=[]',
            b"port=0xffffffffffffffffffffffff\nallow_unauthenticated=nan\n[log]\nlevel=1979-05-27\n",
            b'data_dir="a\\u0000b"\n[disk]\n"a.b"={x=[{}]}\n',
            b"x=" + b"[" * 2_000,
        ],
    ),
    Target(
        "environment",
        environment,
        [
            bytes([number]) + text
            for number, name in enumerate(NAMES)
            for text in (b"1", b"true", name.encode())
        ],
        200,
    ),
    Target(
        "spill",
        spill,
        [
            *SEALED,
            b'["key_values",[["k","[1]"],["l",""]]]\n["cas_deletes",[["k"]]]\n',
            b'["cas_accesses",[["k",1,2,null,true]]]\n["s3_deletes",[["id"]]]\n',
            b'["key_values",[["\\ud800","x"]]]\n["nothing",[]]\n[1]\n\n',
            b"[" * 3_000,
        ],
    ),
)
