"""Servers that somebody else has started: how the command line names them, and who is asked beside them."""

import argparse
import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import dialects, servers
from benchmarks.loading import Target, place_of

NODE_SPEAKS = {"static": "webdav"}
"""What the node is asked in where it has no such dialect: plain GET and PUT as well."""


@dataclass
class Other:
    """One of them."""

    url: str
    dialect: str = "static"
    header: list[str] = field(default_factory=list)
    pid: int | None = None

    def target(self) -> Target:
        """How it is loaded."""
        headers = dict(line.split(":", 1) for line in self.header)
        place = place_of(self.url, self.dialect, headers)
        return Target(f"{self.url}, {self.dialect}", place, self.pid)


class _OfTheLastUrl(argparse.Action):
    """Tells something of the `--url` before it: each server has its own dialect, headers and process."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        given: argparse.Namespace,
        value: Any,
        option: str | None = None,
    ) -> None:
        if self.dest == "url":
            given.others = [*given.others, Other(value)]
        elif not given.others:
            parser.error(f"{option} belongs to the --url before it, and there is none")
        elif self.dest == "header":
            given.others[-1].header.append(value)
        else:
            setattr(given.others[-1], self.dest, value)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """They come back as `others` and `alone`."""
    parser.set_defaults(others=[])

    def add(option: str, **more: Any) -> None:
        parser.add_argument(option, action=_OfTheLastUrl, default=argparse.SUPPRESS, **more)

    add("--url", help="another server's base URL, as its build tool would be given it; may be repeated")
    add("--dialect", choices=dialects.FOREIGN, help="how the --url before is spoken to [static]")
    add("--header", help="'Name: value' for each request to the --url before; may be repeated")
    add("--pid", type=int, help="process of the --url before, to count its processor time")
    parser.add_argument("--alone", action="store_true", help="the servers of --url without node and nginx")


@contextlib.contextmanager
def compared(
    others: list[Other], folder: Path, settings: dict[str, str], *, alone: bool
) -> Iterator[dict[str, list[Target]]]:
    """By dialect, who is asked the same: the node and nginx, in the dialect of the others, and these.

    One node and one nginx serve all the dialects.
    """
    groups: dict[str, list[Target]] = {one.dialect: [] for one in others}
    with contextlib.ExitStack() as stack:
        if not alone:
            node = stack.enter_context(servers.node(folder / "node", settings=settings))
            for dialect, targets in groups.items():
                spoken = NODE_SPEAKS.get(dialect, dialect)
                target = Target.of(node, spoken, dialects.DIALECTS[spoken].home)
                targets.append(Target(f"node, {spoken}", target.place, target.pid))
        if not alone and shutil.which("nginx"):
            nginx = stack.enter_context(servers.nginx(folder / "nginx"))
            for dialect, targets in groups.items():
                target = Target.of(nginx, dialect)
                targets.append(Target(f"nginx, {dialect}", target.place, target.pid))
        for one in others:
            groups[one.dialect].append(one.target())
        yield groups
