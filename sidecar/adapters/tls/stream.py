"""The encrypted side of one connection, after its handshake."""

from __future__ import annotations

import fcntl
import socket
import struct
import termios
from datetime import datetime

from cryptography.hazmat.primitives import hashes
from OpenSSL import SSL

from sidecar.adapters.tls.identity import ServerIdentity
from sidecar.adapters.tls.judgement import above, without_anchor
from sidecar.core.spiffe_id import SpiffeId
from sidecar.core.svid import serial_text

RECORD_BYTES = 16384  # RFC 8446 5.1 (Record Layer): the most that one TLS record holds
# Of a record, beside its payload; with more than it is, the end of TCP is met a call later.
_RECORD_OVERHEAD = 32
_NO_CLOSE_NOTIFY = "ended without close_notify"


class TlsStream:
    """The encrypted side of one connection; reads and writes never block and never wait."""

    def __init__(
        self,
        connection: SSL.Connection,
        sock: socket.socket,
        peer: SpiffeId,
        identity: ServerIdentity,
    ) -> None:
        self._connection = connection
        self.sock = sock
        self.peer = peer
        self.identity = identity  # that the handshake was made with
        leaf = connection.get_peer_certificate(as_cryptography=True)
        assert leaf is not None
        self.serial = serial_text(leaf)
        self.not_before = leaf.not_valid_before_utc
        self.not_after = leaf.not_valid_after_utc
        self.fingerprint = leaf.fingerprint(hashes.SHA256()).hex()
        # An end that was met behind bytes, which are to be delivered first.
        self._broke: tuple[type[Exception], str] | None = None
        self._unsent = ""  # why sending failed

    def prove_again(self, identity: ServerIdentity, now: datetime) -> None:
        """Judge the peer by another identity's bundles, or raise `PeerError`.

        For connections that are older than the bundles of the moment: an authority that has left
        its bundle speaks for nobody any more.
        """
        leaf = self._connection.get_peer_certificate(as_cryptography=True)
        assert leaf is not None
        chain = above(leaf, self._connection.get_peer_cert_chain() or [])
        identity.verifier.verify(without_anchor(chain), now)

    def drain(self, buffer: memoryview) -> tuple[int, bool]:
        """Read what is there, as far as `buffer` has room; give the count and "it has ended".

        The end (close_notify) may come with the last bytes. An end of TCP without it is `EOFError`,
        a connection that broke `ConnectionError`, each of them raised only after all bytes before
        it were given; `BlockingIOError` means that reading has to write first.
        """
        self._raise_broken()
        left = self._ciphertext_left()
        count = 0
        while count + RECORD_BYTES <= len(buffer):
            try:
                got = self._connection.recv_into(buffer[count:], RECORD_BYTES)
            except SSL.WantReadError:
                break
            except SSL.ZeroReturnError:
                return count, True
            except SSL.WantWriteError:
                if count:
                    break
                raise BlockingIOError from None
            except SSL.Error as exc:
                kind = EOFError if _is_end_of_tcp(exc) else ConnectionError
                # As values: an exception that is kept would keep its frames.
                self._broke = kind, openssl_reason(exc)
                if count:
                    break
                raise kind(openssl_reason(exc)) from exc
            count += got
            left -= got + _RECORD_OVERHEAD
            if got < RECORD_BYTES or left <= 0:
                break  # a short record, or the last one: asking once more would mostly be in vain
        return count, False

    def _ciphertext_left(self) -> int:
        """Return how many bytes wait in the socket; raise as `drain` at their end.

        OpenSSL is not shown an end of TCP: without close_notify that is an error to it, after which
        it sends an alert and encrypts no more, and the peer may still read.
        """
        try:
            answer = fcntl.ioctl(self.sock, termios.FIONREAD, struct.pack("i", 0))
            left: int = struct.unpack("i", answer)[0]
            if not left and not self.sock.recv(1, socket.MSG_PEEK):
                # Of a reset the kernel tells once; where sending met it, reading sees an end.
                kind = ConnectionError if self._unsent else EOFError
                self._broke = kind, self._unsent or _NO_CLOSE_NOTIFY
        except BlockingIOError:
            return 0  # nothing yet, or reading has to write first
        except OSError as exc:
            self._broke = ConnectionError, exc.strerror or type(exc).__name__
        self._raise_broken()
        return left

    def _raise_broken(self) -> None:
        if self._broke is not None:
            kind, reason = self._broke
            raise kind(reason)

    def send(self, data: memoryview | bytes) -> int:
        """Encrypt and send what fits; give the count, 0 when the socket is full."""
        sent = 0
        view = memoryview(data)
        while sent < len(view):
            try:
                sent += self._connection.send(view[sent : sent + RECORD_BYTES])
            except SSL.WantWriteError:
                break
            except SSL.Error as exc:
                self._unsent = openssl_reason(exc)
                raise ConnectionError(self._unsent) from exc
        return sent

    def send_end(self) -> bool:
        """Send close_notify (no more bytes from us); False when the socket is full.

        What the peer still sends can be read afterwards: a half-close, as with TCP.
        """
        try:
            self._connection.shutdown()
        except SSL.WantWriteError:
            return False
        except SSL.Error as exc:
            raise ConnectionError(openssl_reason(exc)) from exc
        return True


def _is_end_of_tcp(exc: SSL.Error) -> bool:
    """Tell whether TCP ended where TLS had not."""
    return isinstance(exc, SSL.SysCallError) and exc.args[0] == -1


def openssl_words(exc: SSL.Error) -> list[str]:
    """Give OpenSSL's own words; none where the connection broke."""
    if isinstance(exc, SSL.SysCallError):
        return []
    return [entry[-1] for entry in exc.args[0]] if exc.args else []


def openssl_reason(exc: SSL.Error, ended: str = _NO_CLOSE_NOTIFY) -> str:
    """Give OpenSSL's reason as a person would say it; `ended` is what an end of TCP means."""
    if isinstance(exc, SSL.SysCallError):
        return ended if _is_end_of_tcp(exc) else str(exc.args[1])
    reasons = openssl_words(exc)
    if "peer did not return a certificate" in reasons:
        return "no certificate presented"
    return "; ".join(reasons) or type(exc).__name__
