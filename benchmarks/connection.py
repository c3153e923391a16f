"""One connection of the load generator: a request, its answer, and whether it is what it must be."""

import re
import socket

from benchmarks.traffic import Entry

RECEIVE_BYTES = 256 << 10
START_BYTES = 16
"""Of a body, compared in every answer; whole bodies only in a sample."""

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)

_buffer = bytearray(RECEIVE_BYTES)
_view = memoryview(_buffer)


class BrokenConnectionError(Exception):
    """The server closed it in the middle, or said something that is no HTTP."""


class Connection:
    """A socket that never blocks. `status` is 0 until the head of the answer is there."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._address = address
        self.socket = self._opened()
        self.entry: Entry | None = None
        self.due = 0.0
        self.sent_at = 0.0
        self.status = 0
        self.wrong = False
        """The body was not what had been stored."""
        self.received = 0
        """Bytes of the body so far."""
        self.closing = False
        self._expected: memoryview | None = None
        self._unsent: list[memoryview] = []
        self._head = b""
        self._left = 0
        self._chunks: _Chunks | None = None

    def _opened(self) -> socket.socket:
        opened = socket.create_connection(self._address)
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        opened.setblocking(False)
        return opened

    def reopen(self) -> None:
        """A new socket in place of one that is closed."""
        self.socket.close()
        self.socket = self._opened()
        self.closing = False

    def fetch(self, entry: Entry, due: float, now: float, *, compare: bool) -> bool:
        """Asks for the entry; answers whether everything could be sent."""
        self._begin(entry, due, now)
        self._expected = entry.answer() if compare else None
        return self._send([memoryview(entry.fetch)])

    def store(self, entry: Entry, due: float, now: float) -> bool:
        """Stores the entry; answers whether everything could be sent, else `send_more` has to be called."""
        self._begin(entry, due, now)
        self._expected = None
        return self._send([memoryview(entry.store), entry.body()])

    def _begin(self, entry: Entry, due: float, now: float) -> None:
        self.entry, self.due, self.sent_at = entry, due, now
        self.status = self.received = self._left = 0
        self.wrong = False
        self._head = b""
        self._chunks = None

    def send_more(self) -> bool:
        """Goes on where the socket was full; answers whether everything is sent."""
        return self._send(self._unsent)

    def _send(self, pieces: list[memoryview]) -> bool:
        try:
            count = self.socket.sendmsg(pieces)
        except BlockingIOError:
            count = 0
        while pieces and count >= len(pieces[0]):
            count -= len(pieces[0])
            pieces = pieces[1:]
        if count:
            pieces = [pieces[0][count:], *pieces[1:]]
        self._unsent = pieces
        return not pieces

    def receive(self) -> bool:
        """Reads what is there; answers whether the answer is complete. Raises `BrokenConnectionError`."""
        try:
            count = self.socket.recv_into(_buffer)
        except BlockingIOError:
            return False
        except OSError as error:
            raise BrokenConnectionError from error
        if count == 0 or self.entry is None:
            raise BrokenConnectionError
        return self._body(_view[:count]) if self.status else self._read_head(count)

    def _read_head(self, count: int) -> bool:
        data = self._head + _buffer[:count]
        end = data.find(b"\r\n\r\n")
        if end < 0:
            self._head = data
            return False
        try:
            self.status = int(data[9:12])
        except ValueError as error:
            raise BrokenConnectionError from error
        self._read_framing(bytes(data[:end]))
        body = memoryview(data)[end + 4 :]
        if self._left == 0 and self._chunks is None:
            return True
        return self._body(body) if body else False

    def _read_framing(self, head: bytes) -> None:
        length = _LENGTH.search(head)
        if length is not None:
            self._left = int(length.group(1))
        elif _CHUNKED.search(head):
            self._chunks = _Chunks()
        elif self.status != 204:
            raise BrokenConnectionError
        self.closing = _CLOSE.search(head) is not None

    def _body(self, data: memoryview) -> bool:
        if self._chunks is None:
            self._left -= len(data)
            self._look_at(data)
            return self._left <= 0
        for piece in self._chunks.feed(data):
            self._look_at(piece)
        return self._chunks.ended

    def _look_at(self, data: memoryview) -> None:
        if self.status == 200 and self.entry is not None:
            start = self.received
            if self._expected is not None:
                self.wrong |= bytes(data) != bytes(self._expected[start : start + len(data)])
            elif start == 0 and self.entry.dialect.name != "key_values":
                first = data[:START_BYTES]
                self.wrong |= bytes(first) != bytes(self.entry.body()[: len(first)])
        self.received += len(data)


class _Chunks:
    """Takes a chunked body apart."""

    def __init__(self) -> None:
        self.ended = False
        self._line = b""
        self._left = 0
        self._after = False
        """The end of a chunk's data is still to come."""
        self._last = False

    def feed(self, data: memoryview) -> list[memoryview]:
        """The pieces of the body in what has arrived."""
        pieces = []
        while data and not self.ended:
            if self._left:
                piece, data = data[: self._left], data[self._left :]
                self._left -= len(piece)
                pieces.append(piece)
            else:
                data = self._read_line(data)
        return pieces

    def _read_line(self, data: memoryview) -> memoryview:
        plain = bytes(data[:64])
        end = plain.find(b"\n")
        if end < 0:
            self._line += plain
            return data[len(plain) :]
        line, self._line = (self._line + plain[:end]).strip(), b""
        if line:
            self._left = int(line.split(b";")[0], 16)
            self._last = self._left == 0
        elif self._last:
            self.ended = True
        return data[end + 1 :]
