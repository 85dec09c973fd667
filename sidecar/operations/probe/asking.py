"""One request to a proven peer, and its answer as it comes; or nothing but a moment's wait.

Gets an open connection and gives nothing: what was seen is in the record. Raises `FaultError`
with the hop that the answer, or its absence, tells of.
"""

from __future__ import annotations

import secrets
from contextlib import suppress
from typing import NoReturn

import trio

from sidecar.adapters.tls.client import alert_words
from sidecar.adapters.tls.client_stream import ClientStream, EndedError
from sidecar.core.probe import faults
from sidecar.core.probe.answer import Ends, answer_fault
from sidecar.core.probe.http import AnswerError, AnswerReader, request_bytes
from sidecar.core.probe.report import Answer, FaultError, ProbeRequest
from sidecar.operations.probe.record import Record
from sidecar.operations.probe.words import said_of_answer


async def settle(record: Record, stream: ClientStream, ends: Ends) -> None:
    """Give the peer time to refuse us: under TLS 1.3 it does so after our handshake."""
    with record.phase("settled") as says:
        with trio.move_on_after(record.request.settle_seconds), suppress(trio.TooSlowError):
            try:
                await stream.receive()
            except EndedError as exc:
                _refused(exc, record, ends)
        says.append("the peer keeps the connection: it has taken our SVID")
    stream.close()


async def ask(record: Record, stream: ClientStream, ends: Ends) -> None:
    """Send the request, and take the answer."""
    request_id = _request_id(record.request)
    await _send(record, stream, request_bytes(record.request, request_id))
    answering = _Answering(record, stream, ends, AnswerReader(record.request.method, request_id))
    try:
        answer = await answering.whole()
    finally:
        record.know(answer=answering.reader.answer())
    stream.close()
    fault = answer_fault(answer, answering.reader.body_start, record.request, ends)
    if fault is not None:
        raise FaultError(fault)


async def _send(record: Record, stream: ClientStream, data: bytes) -> None:
    request = record.request
    with record.phase("request") as says:
        try:
            await stream.send(data)
        except trio.TooSlowError:
            fault = faults.request_stuck(request.silence_seconds, stream.sent, len(data))
            raise FaultError(fault) from None
        says.append(f"{request.method} {request.target.shown_path}, {len(data)} bytes")
        if stream.sent < len(data):
            says.append(f"the peer took {stream.sent} of them")


class _Answering:
    """One answer that is on its way."""

    def __init__(
        self, record: Record, stream: ClientStream, ends: Ends, reader: AnswerReader
    ) -> None:
        self._record, self._stream, self._ends = record, stream, ends
        self.reader = reader

    async def whole(self) -> Answer:
        """Take all of it."""
        reader, early = self.reader, b""
        with self._record.phase("first byte") as says:
            while (answer := reader.answer()) is None:
                early += await self._more()
            says.append(f"{answer.status} {answer.reason}")
        with self._record.phase("answer") as says:
            self._give(early)
            while not reader.complete:
                self._give(await self._more())
            answer = reader.answer() or answer
            says.extend(said_of_answer(answer))
        return answer

    def _give(self, payload: bytes) -> None:
        if payload:
            self._record.on_body(payload)

    async def _more(self) -> bytes:
        """Take the next bytes, and give the payload in them."""
        reader, request = self.reader, self._record.request
        try:
            return reader.feed(await self._stream.receive(), trio.current_time())
        except trio.TooSlowError:
            known = reader.answer()
            size = known.size if known else None
            raise FaultError(faults.silent(request.silence_seconds, size)) from None
        except AnswerError as exc:
            raise FaultError(faults.not_http(request.target, str(exc))) from exc
        except EndedError as exc:
            self._end(exc)
            return b""

    def _end(self, exc: EndedError) -> None:
        """Take the end for the end of the answer, or raise."""
        if not self.reader.has_begun:
            _refused(exc, self._record, self._ends)
        # Only close_notify tells that an answer without a length was not cut (RFC 9112 9.8).
        if not (exc.announced and self.reader.end()):
            known = self.reader.answer()
            raise FaultError(faults.broke_off(exc.reason, known.size if known else 0)) from exc


def _refused(exc: EndedError, record: Record, ends: Ends) -> NoReturn:
    """Raise the fault of a connection that ended before any answer."""
    if " alert " in exc.reason:
        raise FaultError(faults.own_svid_refused(ends.own, alert_words(exc.reason))) from exc
    handshake = record.report.handshake
    asked = handshake is None or handshake.asked
    raise FaultError(faults.closed_after_handshake(exc.reason, ends.own, asked=asked)) from exc


def _request_id(request: ProbeRequest) -> str:
    """Give the ID by which the request is found in the sidecar's log."""
    given = (value for name, value in request.headers if name.lower() == "x-request-id")
    return next(given, None) or f"probe-{secrets.token_hex(8)}"
