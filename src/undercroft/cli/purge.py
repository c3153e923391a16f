"""`undercroft purge`: removes what fits a description, after it was looked at."""

import asyncio
import re
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Annotated, NamedTuple

import msgspec
import typer

from undercroft.cli.data_directory import with_data
from undercroft.cli.node_database import ConfigOption, DataDirOption, JsonOption, settings_of
from undercroft.cli.output import moment, print_json, print_table, progress, size, told
from undercroft.clock import now_us
from undercroft.database.listings import Listed, artifacts_under, count_key_values, delete_key_values
from undercroft.errors import ObjectStoreError, SettingsError
from undercroft.node import Node
from undercroft.s3.pages import pages_of
from undercroft.storage.layout import key_value_key, kind_of, project_of, safe_handle

KEY_VALUES = "key_values"
KINDS = (
    "xcode",
    "module",
    "gradle",
    "bazel_ac",
    "bazel_cas",
    "ccache",
    "webdav",
    "turborepo",
    "nx",
    KEY_VALUES,
)

EXIT_DECLINED = 1
"""The person who was asked said no."""
EXIT_INCOMPLETE = 1
"""What only the object store has could not be looked into."""

ANY_AGE = (1 << 63) - 1

# Slashes before the last part of the shortest key: account/project/kind/name.
KIND_AT = 3

# How long one page of the object store's listing may take.
ANSWER_S = 60.0

SLICE_ROWS = 1_000
AT_ONCE = 8

_SECONDS = {"m": 60, "h": 3_600, "d": 86_400, "w": 604_800}


class Description(NamedTuple):
    """What is to go: all that fits every part."""

    project: str | None
    kind: str | None
    prefix: str
    unused_since: int
    """Microseconds since the epoch, `ANY_AGE` if that does not matter."""

    @property
    def key_prefix(self) -> str:
        """What the keys of all of them begin with."""
        return f"{self.project}/{self.prefix}" if self.project else self.prefix

    @property
    def key_values_prefix(self) -> str | None:
        """The same for key values; None if none of them fits."""
        if self.kind not in (None, KEY_VALUES) or self.prefix:
            return None
        if self.project is None:
            return "keyvalue:"
        account, project = self.project.split("/")
        return key_value_key(account, project, "")

    def fits(self, row: Listed) -> bool:
        """Whether an artifact with the prefix is meant."""
        return row.last_accessed_at <= self.unused_since and self.kind in (None, kind_of(row.key))

    def fits_object(self, key: str) -> bool:
        """Whether an object is meant of which nothing is known here; when it was used nobody knows."""
        if self.unused_since != ANY_AGE or not key.startswith(self.key_prefix) or key.count("/") < KIND_AT:
            return False
        return kind_of(key) in (KINDS if self.kind is None else (self.kind,))


class Group(msgspec.Struct):
    """What fits of one kind in one project."""

    project: str
    kind: str
    artifacts: int = 0
    bytes: int = 0
    last_used_at: int = 0
    """Microseconds since the epoch."""


class Purged(msgspec.Struct):
    """The outcome."""

    artifacts: int = 0
    bytes: int = 0
    key_values: int = 0
    objects: int = 0
    """Those of which only the object store had anything."""
    complete: bool = True
    """Whether that was looked into."""


class Found(NamedTuple):
    """What fits."""

    groups: list[Group]
    key_values: int
    objects: list[str]
    """Keys of what only the object store has."""
    unseen: str
    """Why it could not be looked into; empty if it could."""

    @property
    def artifacts(self) -> int:
        """How many of them are here."""
        return sum(group.artifacts for group in self.groups)

    def as_outcome(self) -> Purged:
        """What it would be if all of that went."""
        total = sum(group.bytes for group in self.groups)
        return Purged(self.artifacts, total, self.key_values, len(self.objects), complete=not self.unseen)


def purge(  # noqa: PLR0917  # options of a command, which typer passes by name
    project: Annotated[str | None, typer.Option(help="ACCOUNT/PROJECT")] = None,
    kind: Annotated[str | None, typer.Option(help=f"One of {', '.join(KINDS)}")] = None,
    prefix: Annotated[str, typer.Option(help="What keys begin with, behind the project if given")] = "",
    unused: Annotated[str | None, typer.Option(help="Not used for so long, like 12h, 30d or 8w")] = None,
    everything: Annotated[bool, typer.Option("--everything", help="Without any of these")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask")] = False,
    data_dir: DataDirOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove artifacts and key values by project, kind, prefix and age, in the object store, too.

    The node may be running or stopped. What fits is shown first, and removed after a yes. What is stored
    under the same keys meanwhile may go, too. A running node removes the objects; a stopped one does when it
    runs again. What only the object store has goes, too, but not with --unused: nobody knows
    when it was used.
    """
    with told():
        wanted = _described(project, kind, prefix, unused, everything=everything)

        async def act(node: Node) -> None:
            found = await _look(node, wanted)
            _show(found, as_json)
            done = found.as_outcome()
            if not dry_run and any((found.artifacts, found.key_values, found.objects)):
                if not yes:
                    await _ask(as_json)
                done = await _remove(node, wanted, found)
            _tell(done, dry_run, as_json)

        with_data(settings_of(data_dir, config), act)


def _tell(done: Purged, dry_run: bool, as_json: bool) -> None:
    """Says what went. Raises `typer.Exit` if the object store could not be looked into."""
    if as_json:
        print_json({"dry_run": dry_run, **msgspec.to_builtins(done)})
    elif not dry_run:
        objects = f", {done.objects:,} objects" if done.objects else ""
        went = f"{done.artifacts:,} artifacts, {size(done.bytes)}{objects}"
        typer.echo(f"removed {went}, and {done.key_values:,} key values")
    if not done.complete:
        raise typer.Exit(EXIT_INCOMPLETE)


async def _ask(as_json: bool) -> None:
    """Returns after a yes. Raises `typer.Exit` after a no, `SettingsError` where nothing was shown."""
    if as_json:
        raise SettingsError("with --json nothing is asked: look with --dry-run, then say --yes")
    if not await asyncio.to_thread(typer.confirm, "Remove all of this?", err=True):
        raise typer.Exit(EXIT_DECLINED)


def _described(
    project: str | None, kind: str | None, prefix: str, unused: str | None, *, everything: bool
) -> Description:
    if kind is not None and kind not in KINDS:
        raise SettingsError(f"{kind!r} is no kind: there are {', '.join(KINDS)}")
    if everything == any((project, kind, prefix, unused)):
        raise SettingsError("say what is to go: --project, --kind, --prefix, --unused; or --everything alone")
    if project is not None:
        handles = project.split("/")
        if len(handles) != 2:  # account and project
            raise SettingsError(f"{project!r} is no project: write ACCOUNT/PROJECT")
        project = "/".join(safe_handle(handle, "project") for handle in handles)
    return Description(project, kind, prefix, ANY_AGE if unused is None else now_us() - _age_us(unused))


def _age_us(text: str) -> int:
    match = re.fullmatch(r"([1-9][0-9]{0,5})([mhdw])", text)
    if match is None:
        raise SettingsError(f"{text!r} is no age: write 90m, 12h, 30d or 8w")
    return int(match[1]) * _SECONDS[match[2]] * 1_000_000


async def _fitting(node: Node, wanted: Description) -> AsyncIterator[list[Listed]]:
    if wanted.kind == KEY_VALUES:
        return
    async for rows in artifacts_under(node.node_database, wanted.key_prefix, SLICE_ROWS):
        yield [row for row in rows if wanted.fits(row)]


async def _objects(node: Node, wanted: Description) -> list[str]:
    """Keys that fit of which only the object store has anything. Raises `ObjectStoreError`."""
    if node.object_store is None or wanted.kind == KEY_VALUES or wanted.unused_since != ANY_AGE:
        return []
    found: list[str] = []
    prefix = f"{wanted.project}/" if wanted.project else ""
    with progress("looking into the object store", None) as tell:
        async with aclosing(pages_of(node.object_store, prefix, ANSWER_S)) as pages:
            async for page in pages:
                keys = [one.key for one in page if wanted.fits_object(one.key)]
                found += [key for key in keys if node.artifacts.find(key) is None]
                tell(len(found))
    return found


async def _look(node: Node, wanted: Description) -> Found:
    """Everything that fits, artifacts by project and kind."""
    # First: what a node is fetching right now is then seen here or there, or in both, which does no harm.
    objects, unseen = list[str](), ""
    try:
        objects = await _objects(node, wanted)
    except ObjectStoreError as error:
        unseen = str(error)
    found: defaultdict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0, 0])
    async for rows in _fitting(node, wanted):
        for row in rows:
            sums = found[project_of(row.key), kind_of(row.key)]
            sums[:] = [sums[0] + 1, sums[1] + row.size_bytes, max(sums[2], row.last_accessed_at)]
    groups = [Group(*names, *sums) for names, sums in sorted(found.items())]
    begins, key_values = wanted.key_values_prefix, 0
    if begins is not None:
        key_values = await count_key_values(node.key_value_database, begins, wanted.unused_since)
    return Found(groups, key_values, objects, unseen)


def _show(found: Found, as_json: bool) -> None:
    if found.unseen:
        typer.echo(f"what only the object store has stays: {found.unseen}; try again later", err=True)
    if as_json:
        return
    if found.groups:
        rows = (
            (g.project, g.kind, f"{g.artifacts:,}", size(g.bytes), moment(g.last_used_at))
            for g in found.groups
        )
        print_table(("project", "kind", "artifacts", "size", "last use"), rows)
    if found.objects:
        typer.echo(
            f"{len(found.objects):,} fit that only the object store has, {found.objects[0]} among them"
        )
    typer.echo(f"{found.artifacts:,} artifacts and {found.key_values:,} key values fit")


async def _remove(node: Node, wanted: Description, found: Found) -> Purged:
    done = Purged(complete=not found.unseen)
    with progress("removing", found.artifacts + len(found.objects) + found.key_values) as tell:
        for start in range(0, len(found.objects), AT_ONCE):
            keys = found.objects[start : start + AT_ONCE]
            await asyncio.gather(*(node.artifacts.delete(key) for key in keys))
            done.objects += len(keys)
            tell(done.objects)
        async for rows in _fitting(node, wanted):
            for start in range(0, len(rows), AT_ONCE):
                chunk = rows[start : start + AT_ONCE]
                await asyncio.gather(*(node.artifacts.delete(row.key) for row in chunk))
                done.artifacts += len(chunk)
                done.bytes += sum(row.size_bytes for row in chunk)
                tell(done.objects + done.artifacts)
        begins = wanted.key_values_prefix
        while begins is not None:
            count = await delete_key_values(node.key_value_database, begins, wanted.unused_since)
            if not count:
                break
            done.key_values += count
            tell(done.objects + done.artifacts + done.key_values)
    return done
