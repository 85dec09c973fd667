"""What the log looks like, and how it leaves the process: one event a line, on stderr or to a file.

Not part of `cli` because it outlives a command's arguments. Control characters in values are
escaped, so that no text from outside can begin a line of its own. Lines are written by a
thread: a reader that stalls, a full disk or a closed pipe must cost lines and never a stream.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import sys
import threading
import time
import warnings
from collections.abc import Callable, MutableMapping
from typing import Any

import structlog

from sidecar.core.flood import Flood, host_of
from sidecar.log_file import LogFile

_MAX_LINES_WAITING = 10_000
_MAX_LINES_AT_ONCE = 1_000  # or who writes faster than they are gathered would have no limit
# Lines are written together: a thread that wakes for each of them takes the interpreter from the
# streams, thousands of times a second.
_GATHER_SECONDS = 0.02
# How often the log says how many lines were left out, and the event of that line.
_SUMMARY_SECONDS = 10.0
_SUMMARY = "lines left out"
_ENCODER = json.JSONEncoder(default=repr)


class LogWriter:
    """Takes lines without ever waiting; what cannot be kept is counted, and the count is logged.

    They go to the file if there is one, and to the descriptor what the file does not take.
    """

    def __init__(
        self,
        descriptor: int,
        tell: Callable[[float], None] = lambda _: None,
        file: LogFile | None = None,
    ) -> None:
        self._descriptor = descriptor
        self._file = file
        self._trouble: str | None = None  # of the file, as far as it has been told
        self._tell = tell  # what was left out, after so many seconds
        self._lines: queue.Queue[str | None] = queue.Queue(_MAX_LINES_WAITING)
        self._own: list[str] = []  # what the thread itself has to say, until it could be written
        self._lost = 0
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def write(self, line: str) -> None:
        """Take one line."""
        if threading.current_thread() is self._thread:
            self._own.append(line)
            return
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self._lost += 1

    def flush(self) -> None:
        """Do nothing: the thread is not waited for."""

    def close(self, seconds: float) -> None:
        """Write what is waiting, for `seconds` at most."""
        self._tell(0.0)
        try:
            self._lines.put(None, timeout=seconds)
        except queue.Full:
            return
        self._thread.join(seconds)

    def _run(self) -> None:
        ended = False
        while not ended:
            lines = self._gathered()
            ended = None in lines
            self._write_all([line for line in lines if line is not None])
            self._tell_trouble()
            self._write_own()

    def _gathered(self) -> list[str | None]:
        """Wait for lines, for a second at most."""
        try:
            lines = [self._lines.get(timeout=1.0)]
        except queue.Empty:
            return []
        if lines[0] is not None:
            time.sleep(_GATHER_SECONDS)
        while len(lines) < _MAX_LINES_AT_ONCE and not self._lines.empty():
            lines.append(self._lines.get())
        return lines

    def _write_all(self, lines: list[str]) -> None:
        try:
            self._write_whole("".join(lines))
        except OSError:
            self._lost += len(lines)

    def _tell_trouble(self) -> None:
        """Say once that the file is not written, or that it is again."""
        if self._file is None or self._file.trouble == self._trouble:
            return
        self._trouble, log = self._file.trouble, structlog.get_logger()
        if self._trouble is None:
            log.warning("log file written again", file=str(self._file.path))
            return
        hint = "the log is on standard error until the file can be written"
        log.error(
            "log file not written", file=str(self._file.path), reason=self._trouble, hint=hint
        )

    def _write_own(self) -> None:
        """Say what was left out and what was lost; nothing new before the last could be said.

        So no count is lost on a disk that is full for a while.
        """
        if not self._own:
            self._tell(_SUMMARY_SECONDS)
            if lost := self._lost:
                structlog.get_logger().error("log lines lost", lines=lost)
                self._lost -= lost
        try:
            while self._own:
                self._write_whole(self._own[0])
                del self._own[0]
        except OSError:
            return  # it is said when it can be

    def _write_whole(self, line: str) -> None:
        data = line.encode("utf-8", "backslashreplace")
        if self._file is not None and data:
            data = self._file.write(data)
        while data:
            data = data[os.write(self._descriptor, data) :]


class FloodLimit:
    """Leaves out lines of which there are too many, and says how many; a processor of structlog.

    Limited is every line but those of level "info", which say that something went as it should
    and are the record of who was served. No event is named here: a line that is written at a new
    place is limited like the others.
    """

    def __init__(self, per_second: float, level: str = "warning") -> None:
        self._flood = Flood(per_second)
        self._summary_level = "error" if level == "error" else "warning"
        self._lock = threading.Lock()

    def __call__(
        self, _logger: object, method: str, event: MutableMapping[str, Any]
    ) -> MutableMapping[str, Any]:
        """Return the line, or drop it."""
        if method == "info" or event["event"] == _SUMMARY:
            return event
        # Proven or not, what names the other side; lines without either concern none.
        party = str(event.get("peer") or host_of(str(event.get("address", ""))))
        is_traceback = bool(event.get("exc_info"))
        with self._lock:
            now = time.monotonic()
            if not self._flood.admits(event["event"], party, now, is_traceback=is_traceback):
                raise structlog.DropEvent
        return event

    def tell(self, seconds: float) -> None:
        """Log what was left out in one line, `seconds` after that began."""
        with self._lock:
            left_out = self._flood.summary(time.monotonic(), seconds)
        if left_out:
            say = getattr(structlog.get_logger(), self._summary_level)
            of = ", ".join(f"{event}: {lines}" for event, lines in sorted(left_out.items()))
            say(_SUMMARY, lines=sum(left_out.values()), of=of)


def configure_logs(
    style: str, level: str, refusals_per_second: float = 0, file: LogFile | None = None
) -> LogWriter:
    """Set up structlog for the process; `style` is "console" or "json"."""
    renderer: structlog.types.Processor = _json_line
    if style == "console":
        renderer = _console_line
    # Standard error is the log: what a library warns of (a peer's odd certificate, say) is no
    # line of it, and a peer must not be able to write one.
    warnings.simplefilter("ignore")
    limit = FloodLimit(refusals_per_second, level)
    writer = LogWriter(sys.stderr.fileno(), limit.tell, file)
    structlog.configure(
        processors=[
            limit,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.WriteLoggerFactory(file=writer),  # type: ignore[arg-type]
        cache_logger_on_first_use=True,
    )
    return writer


def _json_line(_logger: object, _method: str, event: MutableMapping[str, Any]) -> str:
    return _ENCODER.encode(event)


def _console_line(_logger: object, _method: str, event: MutableMapping[str, Any]) -> str:
    """Give `time level event key=value ...`; a traceback follows on its own lines."""
    time, level = event.pop("timestamp"), event.pop("level")
    words = [time, f"{level:<7}", str(event.pop("event"))]
    trace = event.pop("exception", None)
    words += [f"{key}={_shown(value)}" for key, value in event.items() if value is not None]
    return " ".join(words) + (f"\n{trace}" if trace else "")


def _shown(value: object) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return text if text.isprintable() and " " not in text and text else repr(text)
