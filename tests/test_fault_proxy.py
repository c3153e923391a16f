"""The proxy that breaks things leaves nothing broken behind itself."""

import gc
import socket
import sys
from contextlib import closing
from typing import Any

import pytest

from tests.support.fault_proxy import FaultProxy

HEAD = b"PUT / HTTP/1.1\r\nhost: store\r\ncontent-length: 20000000\r\n\r\n"


def test_bytes_that_the_store_does_not_take_end_with_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a client sent still waits for a store that reads nothing."""
    unraisable: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
    with closing(socket.create_server(("127.0.0.1", 0))) as store:
        with (
            FaultProxy(store.getsockname()[1]) as proxy,
            closing(socket.create_connection(("127.0.0.1", proxy.port), timeout=1)) as client,
        ):
            client.sendall(HEAD)
            # Nobody takes any more: the proxy has what it will ever have.
            with pytest.raises(TimeoutError):
                client.sendall(bytes(15_000_000))
        gc.collect()
    assert unraisable == []
