"""Paths of requests, keys, and where artifacts lie."""

import os
import unicodedata
import xml.etree.ElementTree as ET
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from tests.fuzz.target import Target
from tests.support.percent import percent_decoded
from undercroft.api import webdav
from undercroft.api.request import Request
from undercroft.api.routing import Router, decoded
from undercroft.api.webdav_xml import Resource, multistatus
from undercroft.config import Settings
from undercroft.errors import InvalidKeyError
from undercroft.node import Node
from undercroft.storage.collections import Name, group_of
from undercroft.storage.layout import (
    artifact_key,
    artifact_path,
    key_value_key,
    kind_of,
    module_key,
    safe_component,
    scoped_key,
)

ROOT = Path("/data/artifacts")
ROUTES = Node(Settings(data_dir=Path("never made")))._routes()
ROUTER = Router(ROUTES)
METHODS = sorted({route.method for route in ROUTES})


# --- components and keys ------------------------------------------------------------------------------


def is_safe(text: str) -> bool:
    """The contract's words, character by character."""
    unsafe = [one for one in text if one in "/\\" or unicodedata.category(one) in ("Cc", "Cs")]
    return text not in ("", ".", "..") and not unsafe and len(text.encode()) <= 255


def layout(data: bytes) -> None:
    """Safe components make keys that lie below the root, each at its own place; others make none."""
    parts = data.decode(errors="surrogateescape").split("\n")
    for part in parts:
        try:
            assert safe_component(part, "part") == part
            assert is_safe(part), part
        except InvalidKeyError:
            assert not is_safe(part), part
    safe = [part for part in parts if is_safe(part)]
    for one in safe:
        keys = [_artifact_key(one), _module_key(one, one), scoped_key(_artifact_key(one), "pr")]
        for key in keys:
            _check_place(key)
    for one, other in pairwise(safe):
        _check_apart(one, other)


def _artifact_key(identifier: str) -> str:
    key = artifact_key("acc", "proj", "xcode", identifier)
    assert key.split("/", 5)[5] == identifier
    assert kind_of(scoped_key(key, "pr")) == kind_of(key) == "xcode"
    return key


def _module_key(category: str, name: str) -> str:
    key = module_key("acc", "proj", category, "hash", name)
    assert key.split("/") == ["acc", "proj", "module", category, "ha", "sh", "hash", name]
    return key


def _check_place(key: str) -> None:
    path = artifact_path(ROOT, key)
    assert os.path.normpath(path) == path
    assert path.startswith(f"{ROOT}/acc/proj/")
    assert all(0 < len(part.encode()) <= 255 for part in key.split("/"))


def _check_apart(one: str, other: str) -> None:
    """Two names never share a place, nor does one need a directory where the other is a file."""
    for make in (_artifact_key, lambda name: _module_key(name, "x"), lambda name: _module_key("x", name)):
        first, second = make(one), make(other)
        assert (first == second) == (one == other)
        assert not f"{second}/".startswith(f"{first}/") or one == other
    rows = {key_value_key(one, other, "k"), key_value_key(other, one, "k")}
    assert len(rows) == (1 if one == other else 2)
    if len(one) + len(other) < 60:
        groups = {group_of([one, other]), group_of([other, one]), group_of([one]), group_of([other])}
        assert len(groups) == (2 if one == other else 4)
        assert [unquote(part) for part in group_of([one, other])[1:].split("+")] == [one, other]


# --- routes -------------------------------------------------------------------------------------------


def routing(data: bytes) -> None:
    """The router finds what the table of routes says, and its parameters are decoded after splitting."""
    path = b"/" + data
    for method in METHODS:
        route, parameters, _ = ROUTER.find(method, path)
        matching = {one.path for one in ROUTES if one.method == method and _matches(one.path, path)}
        assert (route is None) == (not matching), matching
        if route is not None:
            assert route.path in matching
            assert parameters == _parameters(route.path, path)
    for part in path.split(b"/"):
        try:
            assert decoded(part).encode() == percent_decoded(part)
        except InvalidKeyError:
            assert not _is_utf8(percent_decoded(part))


def _parameters(template: str, path: bytes) -> list[bytes]:
    wanted, given = template.split("/"), path.split(b"/")
    return [part for at, part in enumerate(given) if at >= len(wanted) or wanted[at].startswith("{")]


def _matches(template: str, path: bytes) -> bool:
    wanted, given = template.encode().split(b"/"), path.split(b"/")
    if wanted[-1].endswith(b"...}"):
        given, wanted = given[: len(wanted)], [*wanted[:-1], b"{}"]
    pairs = zip(wanted, given, strict=False)
    return len(wanted) == len(given) and all(one == two or one[:1] == b"{" for one, two in pairs)


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


# --- WebDAV's answers ---------------------------------------------------------------------------------


async def _nothing(*_: Any) -> Any:
    raise AssertionError


def webdav_href(data: bytes) -> None:
    """The path in an answer of PROPFIND is well-formed XML and leads back to what was asked for."""
    parts = [part.decode(errors="surrogateescape") for part in data.split(b"/")]
    request = Request({"method": "PROPFIND", "headers": [], "query_string": b""}, _nothing, _nothing)
    request.parameters = ["acc", "proj", *parts]
    try:
        place = webdav._place(request)
    except InvalidKeyError:
        assert not all(map(is_safe, parts[:-1])) or not is_safe(parts[-1] or "a")
        return
    for name in (None, Name("n"), Name("n", 1)):
        xml = multistatus([Resource(place.href(name), None if name is None else name.size, 1.5)])
        href = ET.fromstring(xml).findtext("*/{DAV:}href")
        assert href is not None
        shown = [*parts[:-1], parts[-1]] if name is None else [*parts[:-1], "n", *([] if name.size else [""])]
        assert [unquote(part) for part in href.split("/")] == ["", "webdav", "acc", "proj", *shown]


TARGETS = (
    Target(
        "layout",
        layout,
        [
            b"a\nb\n...\n.\n..\n\n.a.b",
            "\n".join(chr(code) for code in range(0xA1)).encode(),
            "é\ne\u0301\nÅ\nÅ\nﬁ\nfi".encode(),
            b"a" * 255 + b"\n" + b"b" * 256,
            b"%2F\na+b\n@a\n~pr\n~\na:b\n%3A",
            b"\xff\xed\xa0\x80\n\xc2\x85\n\x7f\n\\",
            b"0e5751c026e543b2e8ab2eb06099daa1d1e5df47778f7787faab45cdf12fe3a8",
        ],
        600,
    ),
    Target(
        "routing",
        routing,
        [
            b"api/cache/keyvalue/0~abc",
            b"api/cache/module/start",
            b"gradle/acc/proj/a%2Fb",
            b"bazel/acc/status",
            b"bazel/acc/proj/inst/ac/" + b"0" * 64,
            b"webdav/acc/proj/a/../%2e%2e//b/",
            b"turborepo/acc/proj/v8/artifacts/events",
            b"nx/%ff/%c0%af/v1/cache/%E9",
            b"/up/",
            b"metrics",
        ],
        512,
    ),
    Target(
        "webdav_href",
        webdav_href,
        [b"a/b/c", b"", b"a/", b"<&>'\"]]>/%/ /\xc3\xa9", b"../x", b"a//b", b"\xef\xbf\xbe/\xef\xbf\xbf"],
        512,
    ),
)
