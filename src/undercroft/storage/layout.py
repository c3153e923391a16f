"""Keys of artifacts and where they lie: pure functions, the one place where path components are checked."""

import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from undercroft.errors import InvalidKeyError

# The longest name the file systems we know take (NAME_MAX of Linux), in bytes.
MAX_COMPONENT_BYTES = 255

# The one kind whose artifacts lie in a directory of their hash, each under a name of its own.
MODULE = "module"

# Kinds whose artifacts are named by the SHA-256 of their bytes.
NAMED_BY_DIGEST = frozenset({"bazel_cas"})

# So few characters have at most that many bytes in UTF-8.
_SURELY_SHORT = MAX_COMPONENT_BYTES // 4 + 1

# A separator of this or another system, a control character (C0, DEL, C1), or half a surrogate pair,
# which no file name can hold.
_FORBIDDEN = re.compile(r"[/\\\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def directory_identity(path: Path) -> str:
    """A name for a directory that others of the machine know it by, too. Raises OSError."""
    status = path.stat()
    return f"{status.st_dev:x}-{status.st_ino:x}"


def safe_component(value: str, what: str) -> str:
    """`value` if it may be one component of a path; `what` names it in the error.

    Everything else is allowed and kept as it is: spaces, unicode, percent signs. Raises
    `InvalidKeyError`.
    """
    if value.isalnum() and len(value) < _SURELY_SHORT:
        return value  # nearly all are hashes; this saves them the checks below
    if value in ("", ".", ".."):
        raise InvalidKeyError(f"{what} is {value!r}: it must be a name")
    if _FORBIDDEN.search(value):
        raise InvalidKeyError(f"{what} {value[:80]!r} contains a separator or a control character")
    if len(value.encode()) > MAX_COMPONENT_BYTES:
        raise InvalidKeyError(
            f"{what} has {len(value.encode())} bytes: at most {MAX_COMPONENT_BYTES} are allowed"
        )
    return value


def safe_handle(value: str, what: str) -> str:
    """An account or project handle: a safe component, compared without regard to case."""
    return safe_component(safe_component(value, what).lower(), what)


def artifact_key(account: str, project: str, kind: str, identifier: str, *, group: Sequence[str] = ()) -> str:
    """The key `{account}/{project}/{kind}/[{group}/]{aa}/{bb}/{id}` of checked components.

    `aa` and `bb` are the first two pairs of characters of the id, so that no directory holds too
    many names. Ids too short for them are filled up with `_`, which also stands for `.`: no pair is
    ever empty or `..`, and files and directories never meet at the same depth.
    """
    return "/".join((account, project, kind, *group, _pair(identifier, 0), _pair(identifier, 2), identifier))


def module_key(account: str, project: str, category: str, identifier: str, name: str) -> str:
    """The key `{account}/{project}/module/{category}/{aa}/{bb}/{hash}/{name}`: a hash has several files.

    The handles are checked already, the others are checked here. Raises `InvalidKeyError`.
    """
    group = (safe_component(category, "cache_category"),)
    folder = artifact_key(account, project, MODULE, safe_component(identifier, "hash"), group=group)
    return f"{folder}/{safe_component(name, 'name')}"


def scoped_key(key: str, scope: str | None) -> str:
    """Where a trust scope has its own entry of an artifact key: `{account}/{project}/~{scope}/...`.

    No kind begins with `~`, so scopes and trusted entries never meet. None is the trusted one.
    """
    if scope is None:
        return key
    account, project, rest = key.split("/", 2)
    return f"{account}/{project}/~{scope}/{rest}"


def project_of(key: str) -> str:
    """`{account}/{project}` of an artifact key."""
    return key[: key.index("/", key.index("/") + 1)]


def kind_of(key: str) -> str:
    """The kind in an artifact key, of whichever trust scope."""
    third, fourth = key.split("/", 4)[2:4]
    return fourth if third.startswith("~") else third


def digest_in(key: str) -> str | None:
    """The SHA-256 that an artifact must have by its name; None where the name says nothing of the bytes."""
    return key.rpartition("/")[2] if kind_of(key) in NAMED_BY_DIGEST else None


def _pair(identifier: str, start: int) -> str:
    return identifier[start : start + 2].replace(".", "_").ljust(2, "_")


def artifact_path(root: Path, key: str) -> str:
    """Where the artifact of a key made by `artifact_key` lies. A str: this is the hot path."""
    return f"{root}/{key}"


def key_value_key(account: str, project: str, cas_id: str, scope: str | None = None) -> str:
    """The row key `keyvalue:{account}:{project}:[~{scope}:]{cas_id}`.

    A colon inside a handle is percent-encoded. A trusted id that looks like one of a scope stands
    behind `~:`, which no scope has for a name.
    """
    if ":" in account or ":" in project:
        # Otherwise `a:b` + `c` and `a` + `b:c` would share their entries. The %3A it brings is upper
        # case, so that no handle, which is lower case, looks like an encoded one.
        account, project = (quote(handle, safe=" ") for handle in (account, project))
    if scope is not None or cas_id.startswith("~"):
        cas_id = f"~{scope or ''}:{cas_id}"
    return f"keyvalue:{account}:{project}:{cas_id}"
