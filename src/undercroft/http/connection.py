"""One connection: bytes in, requests to the application one after the other, answers out.

The parser is llhttp, by way of httptools. Everything runs on the event loop, in one task per connection.
"""

import asyncio
from collections import deque
from typing import cast

import httptools

from undercroft.http.exchange import Begun, Exchange, Headers, pieces_of, refused
from undercroft.http.limits import ANSWER_BYTES, BODY_BYTES, HEADER_BYTES, LINGER_BYTES, SLICE_BYTES
from undercroft.http.owner import Owner
from undercroft.http.parsing import RefusedRequestError, refusal_of, scope_of, without_upgrade
from undercroft.http.repeats import Answer, Asked, asked_in
from undercroft.http.writing import WritingProtocol

NOTHING = memoryview(b"")


class HttpConnection(WritingProtocol):
    """Reads no more than is being worked on: a client that sends ahead waits in the kernel."""

    def __init__(self, owner: Owner) -> None:
        super().__init__(owner)
        self._parser = httptools.HttpRequestParser(self)
        self._client: tuple[str, int] | None = None
        self._task: asyncio.Task[None] | None = None
        self._target = b""
        self._headers: Headers = []
        self._head_bytes = 0
        self._in_head = False
        self._head_comes_first = False
        """Whether the bytes that came last began with the head, or inside it."""
        self._unread = NOTHING
        """What has come, and waits for the requests before it."""
        self._receiving: Exchange | None = None
        """The request whose body is coming."""
        self._queue: deque[Exchange | Begun] = deque()
        self._next: asyncio.Future[None] | None = None
        self._current: Exchange | Begun | None = None
        """The request being answered."""
        self._refusal: RefusedRequestError | None = None
        self._paused = False
        self._eof = False
        self._closing = False
        self._lingering = 0
        self._finished = False
        """Whether nothing more is answered."""
        self.waits_since = self._loop.time()
        """Since when it has waited for the next request, or for the end of its headers."""

    # --- what the transport says ------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has connected."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=ANSWER_BYTES)
        peer = transport.get_extra_info("peername")
        self._client = (peer[0], peer[1]) if isinstance(peer, tuple) and len(peer) > 1 else None
        self._owner.opened(self)
        self._task = self._owner.start(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone, whoever ended it."""
        del exc
        self._transport = None
        for exchange in (self._current, *self._queue):
            if exchange is not None:
                exchange.lose()
        self._queue.clear()
        self._closing = True
        self.resume_writing()
        self._wake()
        self._owner.closed(self)

    def eof_received(self) -> bool:
        """The client sends no more, and may still read: what it asked for is answered."""
        self._eof = True
        self._owner.write_answers()  # what is answered is written before the connection may end
        if self._receiving is not None:
            self._receiving.lose()
        self._wake()
        return not self._finished and (not self.is_idle or self._refusal is not None)

    def data_received(self, data: bytes) -> None:
        """Bytes have come; there are none unread, or the transport would not read."""
        asked = asked_in(data) if self._is_between_requests else None
        if asked is not None and self._answers_again(asked):
            return
        self._unread = memoryview(data)
        self._go_on()
        if asked is not None and (alone := self._alone_in(asked)) and self._owner.repeats.came_before(asked):
            alone.asks_again(asked.words)

    @property
    def _is_between_requests(self) -> bool:
        """Whether what comes next begins a request that can be answered at once."""
        is_answering = self._current or self._queue or self._drain
        return not (is_answering or self._in_head or self._closing or self._refusal or self._lingering)

    def _answers_again(self, asked: Asked) -> bool:
        """Whether it was a request that came before, and is answered, or is going to be."""
        answer = self._owner.repeats.answer(asked)
        if isinstance(answer, Answer):
            self.waits_since = self._loop.time()
            self.write_soon(pieces_of(answer, self._owner.date_line))
        elif answer is not None:
            self._queue.append(Begun(self, answer))
            self._wake()
        return answer is not None

    def _alone_in(self, asked: Asked) -> Exchange | None:
        """The request that waits, if it is whole, and nothing came behind it."""
        only = self._queue[0] if len(self._queue) == 1 else None
        if not isinstance(only, Exchange) or self._receiving or self._in_head or self._refusal:
            return None
        # Not longer: line ends that the parser skips, or the sizes of chunks, are no body.
        is_body = not asked.body_at or sum(map(len, only.pieces)) == len(asked.data) - asked.body_at
        return only if is_body else None

    def _go_on(self) -> None:
        """Parses what is unread until a request has to wait, and reads on when nothing is left.

        Slices, because a read full of small requests or chunks becomes objects of twenty times its size.
        """
        while self._unread and not self._must_wait():
            if self._lingering or self._refusal is not None or (self._closing and self._receiving is None):
                self._discard(len(self._unread))
                self._unread = NOTHING
            else:
                size = max(SLICE_BYTES, self._receiving.to_come if self._receiving is not None else 0)
                piece, self._unread = self._unread[:size], self._unread[size:]
                self._parse(piece)
        self._review_reading()

    def _parse(self, data: memoryview) -> None:
        receiving = self._receiving
        had = receiving.body_bytes if receiving is not None else 0
        self._head_comes_first = receiving is None
        try:
            self._parser.feed_data(without_upgrade(bytes(data)) if receiving is None else data)
            if self._in_head:
                self._count_head(len(data) if self._head_comes_first else 0)
            elif receiving is not None and receiving is self._receiving:
                self._count_between(len(data), came=receiving.body_bytes - had)
        except httptools.HttpParserUpgrade:
            # The request is answered, and what follows it is not understood.
            self._last_of(self._receiving or (self._queue[-1] if self._queue else self._current))
        except httptools.HttpParserError as error:
            self._refuse(refusal_of(error))

    def _count_head(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > HEADER_BYTES:
            self._refuse(RefusedRequestError(431, f"the headers have more than {HEADER_BYTES} bytes"))

    def _count_between(self, size: int, *, came: int) -> None:
        """The parser keeps a trailer until it ends, so what is no body has the bound of a head."""
        if came:
            self._head_bytes = 0
        else:
            self._count_head(size)

    def _last_of(self, exchange: Exchange | Begun | None) -> None:
        if exchange is not None:
            exchange.keep_alive = False
        self._closing = True

    def _refuse(self, refusal: RefusedRequestError) -> None:
        """What is being answered is answered still; then this is said, and the connection ends."""
        self._refusal = refusal
        if self._receiving is not None:
            self._receiving.lose()
            self._receiving = None
        self._wake()

    def _discard(self, size: int) -> None:
        self._lingering += size
        if self._finished and self._lingering > LINGER_BYTES and self._transport is not None:
            self._transport.abort()

    # --- what the parser says ---------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        self._in_head = True
        self._head_bytes = 0
        self._target = b""
        self._headers = []
        if self.is_idle:
            self.waits_since = self._loop.time()

    def on_url(self, target: bytes) -> None:
        """A piece of the target."""
        self._target += target

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer, which nobody asks for."""
        if self._in_head:
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """The request may be answered."""
        self._in_head = False
        if self._closing:
            return  # what was asked before is answered, this is not
        scope = scope_of(self._parser, self._target, self._headers, self._client)
        exchange = Exchange(self, scope, keep_alive=self._parser.should_keep_alive())
        self._receiving = exchange
        self._queue.append(exchange)
        self._wake()

    def on_body(self, piece: bytes) -> None:
        """Some of the body."""
        if self._receiving is not None:
            self._receiving.add(piece)

    def on_message_complete(self) -> None:
        """All of the request."""
        self._head_comes_first = False
        if self._receiving is not None:
            self._receiving.end()
            self._receiving = None

    # --- one after the other ----------------------------------------------------------------------

    @property
    def is_idle(self) -> bool:
        """Whether nothing is being answered, nor waits to be."""
        return self._current is None and not self._queue

    @property
    def may_make_way(self) -> bool:
        """Whether it is idle, and nobody has told it to end yet."""
        return not self._closing and self.is_idle

    def slowness(self, now: float) -> float | None:
        """Bytes per second of a body that comes too slowly to keep others out; None if none does."""
        limits, body = self._owner.limits, self._receiving
        if body is None or body is not self._current or self._closing:
            return None
        rate = body.bytes_per_s(now, limits.body_grace_s)
        return rate if rate is not None and rate < limits.slow_bytes_per_s else None

    def end_body(self) -> None:
        """Reads no more of the body that comes too slowly."""
        self.stop()
        if self._receiving is not None:
            self._receiving.too_slow = True
            self._receiving.lose()

    async def serve(self) -> None:
        """Answers requests in their order until the connection ends."""
        try:
            while await self._wait_for_next():
                exchange = self._current = self._queue.popleft()
                self._owner.busy.add(self)
                self._go_on()
                await exchange.answered_by(self._owner.application)
                goes_on = self._goes_on_after(exchange)
                if goes_on and (self._queue or self._drain is not None):
                    await self._give_way()
                self._current = None
                self._owner.busy.discard(self)
                self.waits_since = self._loop.time()
                del exchange  # not kept while the connection is idle
                if not goes_on:
                    return
        except asyncio.CancelledError:
            self._abort()
            raise
        except Exception:  # noqa: BLE001  # the application has told what it was; half an answer ends here
            self._abort()
        finally:
            self._current = None
            self._owner.busy.discard(self)
            self._finish()

    async def _give_way(self) -> None:
        """Before the next of several requests others get their turn, and the client reads its answers."""
        await asyncio.sleep(0)
        await self.drained()

    async def _wait_for_next(self) -> bool:
        while not self._queue:
            if self._refusal is not None:
                self._send_refusal(self._refusal)
                return False
            if self._closing or self._eof or self._transport is None:
                return False
            self._next = self._loop.create_future()
            try:
                await self._next
            finally:
                self._next = None
        return True

    def _wake(self) -> None:
        if self._next is not None and not self._next.done():
            self._next.set_result(None)

    def _goes_on_after(self, exchange: Exchange | Begun) -> bool:
        if not exchange.answered:
            self._abort()
            return False
        if not exchange.complete:
            self._lingering = 1
            return False
        if exchange.words is not None and (repeat := exchange.repeat) is not None:
            self._owner.repeats.remember(exchange.words, repeat)
        return exchange.keep_alive

    def _send_refusal(self, refusal: RefusedRequestError) -> None:
        self.write(refused(refusal.status, str(refusal)))
        self._lingering = 1

    def _finish(self) -> None:
        """Ends the connection, at once if nothing can be lost by that."""
        self._owner.write_answers()
        self._closing = self._finished = True
        self._unread = NOTHING
        if self._transport is None or self._transport.is_closing():
            return
        if self._lingering and not self._eof and self._transport.can_write_eof():
            self.waits_since = self._loop.time()
            if self._paused:
                self._paused = False
                self._transport.resume_reading()
            self._transport.write_eof()
        else:
            self._transport.close()

    # --- for exchanges ----------------------------------------------------------------------------

    def body_taken(self) -> None:
        """Some of a body was taken by the application."""
        if self._paused:
            self._go_on()

    def _must_wait(self) -> bool:
        """Whether a request waits for the one before it, or as much of a body as is kept."""
        if self._lingering:
            return False
        ahead = len(self._queue) > (self._current is None)
        return ahead or (self._receiving is not None and self._receiving.body_bytes >= BODY_BYTES)

    def _review_reading(self) -> None:
        pause = bool(self._unread) or self._must_wait()
        if pause != self._paused and self._transport is not None and not self._transport.is_closing():
            self._paused = pause
            if pause:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    # --- for who keeps the connections ------------------------------------------------------------

    def look(self, now: float) -> None:
        """Ends it if it has waited too long for what its client does not send."""
        if not self.is_idle or self._transport is None:
            return
        limits = self._owner.limits
        waited = now - self.waits_since
        if self._lingering:
            if waited > limits.linger_s:
                self._transport.abort()
        elif self._in_head:
            if waited > limits.headers_s:
                self._refuse(RefusedRequestError(408, "the headers of the request did not come in time"))
        elif waited > limits.idle_s:
            self.stop()

    def stop(self) -> None:
        """Ends after what is being answered."""
        self._closing = True
        for exchange in (self._current, *self._queue):
            if exchange is not None:
                exchange.keep_alive = False
        self._wake()

    def cancel(self) -> None:
        """Ends in the middle of whatever it is."""
        if self._task is None or not self._task.cancel():
            self._abort()  # its last answer waits for a client that does not read
