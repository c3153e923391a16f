"""A C program of 28 source files that no cache has seen before.

The folder `c_sources` holds the bodies. Each is compiled several times under other names and
with other parameters, which stand as `#define` lines above the body, as does the marker. (A
marker in a header would not do: ccache's first look-up is made from the source file alone.)
"""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_BODIES = Path(__file__).parent / "c_sources"
_HEADER = "modules.h"

_MODULES: Mapping[str, Mapping[str, str]] = {
    "hash_32": {"WORD": "uint32_t", "START": "2166136261u", "FACTOR": "16777619u"},
    "hash_64": {"WORD": "uint64_t", "START": "14695981039346656037u", "FACTOR": "1099511628211u"},
    "hash_mix": {"WORD": "uint32_t", "START": "5381u", "FACTOR": "2654435761u"},
    "sort_16": {"ELEMENT": "uint16_t"},
    "sort_32": {"ELEMENT": "uint32_t"},
    "sort_64": {"ELEMENT": "uint64_t"},
    "matrix_3": {"SIZE": "3", "PRIME": "65521"},
    "matrix_5": {"SIZE": "5", "PRIME": "1000003"},
    "matrix_8": {"SIZE": "8", "PRIME": "7919"},
    "text_3": {"SHIFT": "3"},
    "text_7": {"SHIFT": "7"},
    "text_13": {"SHIFT": "13"},
    "sieve_hundred": {"LIMIT": "100", "EXPECTED": "25"},
    "sieve_thousand": {"LIMIT": "1000", "EXPECTED": "168"},
    "sieve_more": {"LIMIT": "10000", "EXPECTED": "1229"},
    "crc_ieee": {"POLYNOMIAL": "0xedb88320u", "CHECK": "0xcbf43926u"},
    "crc_castagnoli": {"POLYNOMIAL": "0x82f63b78u", "CHECK": "0xe3069283u"},
    "crc_koopman": {"POLYNOMIAL": "0xeb31d82eu", "CHECK": "0x2d3dd0aeu"},
    "ring_1": {"CAPACITY": "1"},
    "ring_8": {"CAPACITY": "8"},
    "ring_100": {"CAPACITY": "100"},
    "codec_4": {"BITS": "4"},
    "codec_5": {"BITS": "5"},
    "codec_6": {"BITS": "6"},
    "tree_small": {"NODES": "10"},
    "tree_middle": {"NODES": "200"},
    "tree_large": {"NODES": "3000"},
}


@dataclass(frozen=True)
class CProject:
    """A generated program: its folder and the names of its source files."""

    folder: Path
    sources: tuple[str, ...]


def fresh_marker() -> str:
    """Return a word that no earlier build has compiled."""
    return secrets.token_hex(8)


def write_c_project(folder: Path, marker: str | None = None) -> CProject:
    """Write the program into the new `folder`, marked with `marker` or with a fresh one."""
    folder.mkdir(parents=True)
    sources = _sources(marker or fresh_marker())
    for name, text in {**_headers(), **sources}.items():
        (folder / name).write_text(text)
    return CProject(folder, tuple(sources))


def c_project_in(folder: Path) -> CProject:
    """The program that was written into `folder` before."""
    return CProject(folder, tuple(sorted(path.name for path in folder.glob("*.c"))))


def _headers() -> dict[str, str]:
    declared = "".join(f"uint32_t {module}(uint32_t seed);\n" for module in _MODULES)
    return {_HEADER: (_BODIES / _HEADER).read_text(), "declared.h": declared}


def _sources(marker: str) -> dict[str, str]:
    sources = {f"{module}.c": _module(module, marker) for module in _MODULES}
    sources["main.c"] = _source("main", {"MARKER": f'"{marker}"', "MODULES": ", ".join(_MODULES)})
    return sources


def _module(module: str, marker: str) -> str:
    fixed = {"MARKER": f'"{marker}"', "MODULE": module}
    return _source(module.partition("_")[0], {**fixed, **_MODULES[module]})


def _source(body: str, defines: Mapping[str, str]) -> str:
    lines = "".join(f"#define {name} {value}\n" for name, value in defines.items())
    return lines + (_BODIES / f"{body}.c").read_text()
