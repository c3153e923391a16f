"""Ranges and conditions as RFC 9110 has them, slowly and with nothing of the node in it."""

from typing import NamedTuple

DIGITS = frozenset(b"0123456789")
TAG_CHARACTERS = frozenset({0x21, *range(0x23, 0x7F), *range(0x80, 0x100)})

# Numbers of more digits the node may ignore: there is no such file.
LONGEST = 19


class Asked(NamedTuple):
    """What a Range header asks for."""

    first: int | None
    last: int | None

    def positions(self, size: int) -> range:
        """The positions of the bytes that are to be sent; none: it cannot be satisfied (14.1.2)."""
        if self.first is not None:
            return range(size)[self.first : None if self.last is None else self.last + 1]
        return range(size)[-self.last :] if self.last else range(0)


def asked_by(header: bytes) -> Asked | None:
    """The one range of bytes a header asks for; None if it is to be ignored (RFC 9110, 14.1.1, 14.2)."""
    unit, equals, ranges = header.strip(b" \t").partition(b"=")
    first, dash, last = ranges.partition(b"-")
    if unit.lower() != b"bytes" or not equals or not dash or not set(first + last) <= DIGITS:
        return None
    if not first + last or max(len(first), len(last)) > LONGEST:
        return None
    asked = Asked(int(first) if first else None, int(last) if last else None)
    if asked.first is not None and asked.last is not None and asked.last < asked.first:
        return None
    return asked


def tags_in(header: bytes) -> list[bytes] | None:
    """The opaque tags of a list of entity tags, weak or not; None for what is no such list (13.1.2)."""
    tags = []
    for element in _elements(header):
        tag = element.removeprefix(b"W/")
        quoted = len(tag) >= 2 and tag[:1] == tag[-1:] == b'"'
        if not quoted or not set(tag[1:-1]) <= TAG_CHARACTERS:
            return None
        tags.append(tag)
    return tags or None


def _elements(header: bytes) -> list[bytes]:
    """What stands between the commas that are in no tag; empty elements do not count (5.6.1.2)."""
    elements, inside = [b""], False
    for byte in header:
        inside ^= byte == 0x22
        if byte == 0x2C and not inside:
            elements.append(b"")
        else:
            elements[-1] += bytes([byte])
    return [stripped for element in elements if (stripped := element.strip(b" \t"))]
