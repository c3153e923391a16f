"""Under which names objects are stored: reversible, and the same at every provider.

Letters and digits of any alphabet, `-`, `_` and `.` stand for themselves, so ordinary keys are stored
under their own name. Everything else is percent-encoded: providers, file systems and clients each treat
some character in a way of their own (`?` in URLs, `#1` in temporary names of directories, U+FFFE in XML),
and Azure drops a dot at the end of a component.
"""

from urllib.parse import unquote


def object_name(key: str) -> str:
    """The name an object with this key has below the prefix.

    A component grows to at most three times its bytes. What is then too long for the provider (names
    over 255 bytes in a directory, keys over 1024 bytes in S3) is refused by it, not here.
    """
    return "/".join(map(_encoded, key.split("/")))


def key_of(name: str) -> str | None:
    """The key of an object of that name; None if `object_name` gives the name to no key."""
    try:
        key = unquote(name, errors="strict")
    except UnicodeDecodeError:
        return None
    return key if object_name(key) == name else None


def _encoded(component: str) -> str:
    encoded = "".join(
        character if character.isalnum() or character in "-_." else _escaped(character)
        for character in component
    )
    return f"{encoded[:-1]}%2E" if encoded.endswith(".") else encoded


def _escaped(character: str) -> str:
    return "".join(f"%{byte:02X}" for byte in character.encode())
