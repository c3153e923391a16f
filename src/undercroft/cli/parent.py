"""The parent of several worker processes: starts them, replaces those that die, stops them.

They are forked by a process that never has a thread or an event loop, so each begins as a copy of one that
has read its settings and imported everything, and nothing in it is half-way through anything.
"""

import gc
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import NoReturn

import structlog

from undercroft.config import Settings, url_of
from undercroft.http.server import BACKLOG, bind
from undercroft.processes.directory import ParentDirectory
from undercroft.processes.listeners import listeners
from undercroft.processes.place import Place
from undercroft.storage.ledger import Entry, Ledger
from undercroft.telemetry import logs

log = structlog.get_logger(__name__)

EXIT_CRASHED = 1
EXIT_UNUSABLE = 2
"""Settings, address, data directory or databases cannot be used as they are; the line says what to do."""

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)

# A worker that lived for so long is replaced at once; one that did not waits, twice as long each time.
LIVED_S = 10.0
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 2.0

# Clients whose connections the kernel gave to a place wait for the next one in it. If that never gets as far
# as to serve, the node ends rather than to leave them waiting.
MOST_FALSE_STARTS = 5


@dataclass
class Worker:
    """A place, and the process that has it."""

    number: int
    process_id: int = 0
    """0: nobody has it now."""
    news: int = -1
    """The end of a pipe that says when the worker serves."""
    serves: bool = False
    started_at: float = 0.0
    pause_s: float = 0.0
    false_starts: int = 0
    """So many in a row died before they served."""
    due_at: float = 0.0
    """When the next one starts, monotonic."""


class Parent:
    """Runs the workers until a signal; `run` does all of it."""

    def __init__(
        self, settings: Settings, work: Callable[[Settings, Place], int], *, one_request_s: float
    ) -> None:
        """`work` is what a worker does; it answers the exit status. Signals `one_request_s` apart are two."""
        self._settings = settings
        self._work = work
        self._one_request_s = one_request_s
        self._workers = [Worker(number) for number in range(settings.workers)]
        self._selector = selectors.PollSelector()
        self._listening = False
        self._stop_asked_at: float | None = None
        self._exit_status = 0

    def run(self) -> int:
        """Answers the exit status. Raises `ListenError`."""
        first = bind(self._settings.host, self._settings.port)
        self._address = first.getsockname()
        self._listeners = listeners(first, len(self._workers), BACKLOG)
        self._directory = ParentDirectory(self._settings.data_dir)
        self._directory.open()
        self._ledger = Ledger.create(len(self._workers))
        # A worker ends when nobody can write to this any more: told to, or orphaned, even by SIGKILL.
        self._lifeline, self._hold = os.pipe()
        self._wake, self._waking = socket.socketpair()
        self._wake.setblocking(False)
        self._waking.setblocking(False)
        self._selector.register(self._wake, selectors.EVENT_READ, self._on_signals)
        for number in SIGNALS:
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(self._waking.fileno(), warn_on_full_buffer=False)
        # What there is now is never garbage. Looking for some would copy every page of it in every worker.
        gc.freeze()
        try:
            self._start(self._workers[0])
            while any(worker.process_id for worker in self._workers) or self._stop_asked_at is None:
                self._turn()
        finally:
            self._close_listeners()
            self._directory.close()
        log.info("stopped")
        return self._exit_status

    def _turn(self) -> None:
        """Waits for something to happen, and does what follows from it."""
        for key, _ in self._selector.select(self._rest_s()):
            key.data()
        self._bury()
        if self._stop_asked_at is None:
            self._start_due()
            self._tell_once()

    def _rest_s(self) -> float | None:
        now = time.monotonic()
        waiting = [w.due_at - now for w in self._workers if not w.process_id and w.due_at]
        return None if not waiting or self._stop_asked_at is not None else max(min(waiting), 0)

    def _tell_once(self) -> None:
        if not self._listening and all(worker.serves for worker in self._workers):
            self._listening = True
            settings = self._settings
            log.info(
                "listening",
                url=url_of(settings.host, self._address[1]),
                data_dir=str(settings.data_dir),
                ack=settings.ack,
                auth=settings.auth.mode,
                workers=settings.workers,
            )

    # --- signals ----------------------------------------------------------------------------------

    def _on_signals(self) -> None:
        with suppress(BlockingIOError):
            for number in self._wake.recv(1_024):
                if number != signal.SIGCHLD:
                    self._asked_to_stop(signal.Signals(number))

    def _asked_to_stop(self, number: signal.Signals) -> None:
        now = time.monotonic()
        if self._stop_asked_at is None:
            self._stop(now)
            log.info("stopping", signal=number.name)
        elif now - self._stop_asked_at >= self._one_request_s:
            # Asked twice: nothing more is written, which the data survives like a SIGKILL.
            logs.Outlet(sys.stderr).write("undercroft: stopped at once by a second signal\n")
            for worker in self._workers:
                if worker.process_id:
                    os.kill(worker.process_id, signal.SIGKILL)
            os._exit(128 + number)

    def _stop(self, now: float) -> None:
        """Lets every worker end."""
        if self._stop_asked_at is None:
            self._stop_asked_at = now
            self._close_listeners()
            os.close(self._hold)

    def _close_listeners(self) -> None:
        for listener in self._listeners:
            listener.close()

    # --- starting ---------------------------------------------------------------------------------

    def _start_due(self) -> None:
        """The first worker alone: it opens and migrates the databases, and replays what was spilled."""
        now = time.monotonic()
        if self._listening or self._workers[0].serves:
            for worker in self._workers:
                if not worker.process_id and worker.due_at <= now:
                    self._start(worker)

    def _start(self, worker: Worker) -> None:
        worker.news, telling = os.pipe()
        # A signal that came to the child before it has handlers of its own would be lost.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        process_id = os.fork()
        if process_id == 0:
            self._be(worker, telling)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        os.close(telling)
        worker.process_id, worker.started_at = process_id, time.monotonic()
        self._ledger.set(worker.number, Entry.STARTS, self._ledger.get(worker.number, Entry.STARTS) + 1)
        self._selector.register(worker.news, selectors.EVENT_READ, lambda: self._on_news(worker))
        log.info("worker_started", worker=worker.number, pid=process_id)

    def _be(self, worker: Worker, telling: int) -> NoReturn:
        """The worker's life."""
        status = EXIT_CRASHED
        try:
            signal.set_wakeup_fd(-1)
            for number in SIGNALS:
                # Of the two a terminal sends SIGINT to all: they hear of it from their parent.
                signal.signal(number, signal.SIG_IGN if number == signal.SIGINT else signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            # What is the parent's alone: above all the lifeline's other end, which would keep it alive.
            os.close(self._hold)
            self._wake.close()
            self._waking.close()
            for other in self._workers:
                if other.news >= 0:
                    os.close(other.news)
                if other is not worker:
                    self._listeners[other.number].close()
            status = self._work(self._settings, self._place(worker, telling))
        finally:
            if sys.exc_info()[0] is not None:
                sys.excepthook(*sys.exc_info())
            sys.stderr.flush()
            os._exit(status)

    def _place(self, worker: Worker, telling: int) -> Place:
        return Place(
            worker.number,
            len(self._workers),
            self._listeners[worker.number],
            self._lifeline,
            self._directory.descriptor,
            self._ledger,
            siblings_run=any(other.process_id for other in self._workers),
            serves=lambda: _tell(telling),
        )

    def _on_news(self, worker: Worker) -> None:
        """The worker serves; or the pipe has ended because it is dead, which `_bury` finds out, too."""
        worker.serves = bool(os.read(worker.news, 1))
        self._close_news(worker)

    def _close_news(self, worker: Worker) -> None:
        if worker.news >= 0:
            self._selector.unregister(worker.news)
            os.close(worker.news)
            worker.news = -1

    # --- burying ----------------------------------------------------------------------------------

    def _bury(self) -> None:
        """Takes notice of every worker that is dead."""
        for worker in self._workers:
            if not worker.process_id:
                continue
            found, status = os.waitpid(worker.process_id, os.WNOHANG)
            if found:
                self._died(worker, os.waitstatus_to_exitcode(status))

    def _died(self, worker: Worker, status: int) -> None:
        worker.false_starts = 0 if worker.serves else worker.false_starts + 1
        process_id, worker.process_id, worker.serves = worker.process_id, 0, False
        self._close_news(worker)
        self._ledger.set(worker.number, Entry.SERVES, 0)
        if self._stop_asked_at is not None:
            if status != 0:
                self._exit_status = self._exit_status or EXIT_CRASHED
                log.error("worker_failed", worker=worker.number, pid=process_id, exit_status=status)
            return
        if not self._listening or worker.false_starts >= MOST_FALSE_STARTS:
            # What is wrong at the start is wrong for all of them. Later it may pass, like a full disk.
            unusable = status == EXIT_UNUSABLE and not self._listening
            self._exit_status = EXIT_UNUSABLE if unusable else EXIT_CRASHED
            log.error("worker_cannot_start", worker=worker.number, pid=process_id, exit_status=status)
            self._stop(time.monotonic())
            return
        self._put_off(worker, time.monotonic())
        log.error(
            "worker_died",
            worker=worker.number,
            pid=process_id,
            exit_status=status,
            next_in_seconds=round(worker.due_at - time.monotonic(), 1),
        )

    def _put_off(self, worker: Worker, now: float) -> None:
        """Says when the next one starts: at once, unless they die one after the other."""
        if now - worker.started_at >= LIVED_S:
            worker.pause_s = 0.0
        worker.due_at = now + worker.pause_s
        worker.pause_s = min(max(worker.pause_s * 2, FIRST_PAUSE_S), LONGEST_PAUSE_S)


def _tell(telling: int) -> None:
    os.write(telling, b"1")
    os.close(telling)
