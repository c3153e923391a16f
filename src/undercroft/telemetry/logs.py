"""Structured logs on standard error: an event name and its values, one line each."""

import logging
import sys
from typing import Literal, TextIO, cast

import structlog
from structlog.processors import ExceptionRenderer, JSONRenderer
from structlog.tracebacks import ExceptionDictTransformer

from undercroft.telemetry.recent_warnings import RECENT


class Outlet:
    """Where lines go. Whoever read them may be gone, which must not stop whoever writes them."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.lost = 0
        """Lines that nobody took."""

    def write(self, text: str) -> None:
        """Writes a line, or loses it."""
        try:
            self._stream.write(text)
        except (OSError, ValueError):  # a pipe without a reader, a full disk; closed by the interpreter
            self.lost += 1

    def flush(self) -> None:
        """Hands on what is buffered, or loses it."""
        try:
            self._stream.flush()
        except (OSError, ValueError):
            self.lost += 1


def configure(
    level: Literal["debug", "info", "warning", "error"],
    form: Literal["auto", "json", "console"],
    *,
    worker: int | None = None,
) -> None:
    """Sets up logging for the process; `auto` is for people on a terminal and JSON elsewhere.

    Of several processes each says with every line which `worker` it is.
    """
    for_people = form == "console" or (form == "auto" and sys.stderr.isatty())
    renderer: list[structlog.typing.Processor] = (
        [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
        if for_people
        # Without local variables: among them are requests with their credentials.
        else [ExceptionRenderer(ExceptionDictTransformer(show_locals=False)), JSONRenderer()]
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            *([] if worker is None else [_said_by(worker)]),
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            RECENT,
            *renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.WriteLoggerFactory(cast("TextIO", Outlet(sys.stderr))),
        cache_logger_on_first_use=True,
    )


def _said_by(worker: int) -> structlog.typing.Processor:
    # Not by a context variable: threads begin without.
    def add(
        _logger: structlog.typing.WrappedLogger, _name: str, record: structlog.typing.EventDict
    ) -> structlog.typing.EventDict:
        record.setdefault("worker", worker)
        return record

    return add
