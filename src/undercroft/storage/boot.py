"""Which boot of the machine this is: a file that is older than it may have been through a loss of power."""

import uuid
from pathlib import Path

# man 4 random: made anew by the kernel each time it boots, the same in every container.
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def boot_id(source: Path = BOOT_ID) -> str:
    """The kernel's name for this boot. Where it gives none every call is a boot of its own."""
    try:
        found = source.read_text().strip()
    except OSError:
        found = ""
    return found or uuid.uuid4().hex
