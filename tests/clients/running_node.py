"""What the client tests ask of the `node` fixture."""

from typing import Protocol


class RunningNode(Protocol):
    """A node that listens and asks for no credentials."""

    @property
    def url(self) -> str:
        """Scheme, host and port, without a slash at the end."""
