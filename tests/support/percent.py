"""Percent-encoding, taken away character by character (RFC 3986, 2.1)."""

HEX = set(b"0123456789abcdefABCDEF")


def percent_decoded(part: bytes) -> bytes:
    """The bytes that are meant; a percent sign without two hex digits stands for itself."""
    decoded_part, at = b"", 0
    while at < len(part):
        digits = part[at + 1 : at + 3]
        if part[at : at + 1] == b"%" and len(digits) == 2 and set(digits) <= HEX:
            decoded_part, at = decoded_part + bytes([int(digits, 16)]), at + 3
        else:
            decoded_part, at = decoded_part + part[at : at + 1], at + 1
    return decoded_part
