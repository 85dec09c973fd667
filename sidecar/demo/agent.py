"""A Workload API on a Unix socket: the real gRPC protocol, answers that somebody sets.

For the demonstration and the tests, and it says so: it attests nobody. Gets one answer at a
time and gives it to every stream, at once and whenever it changes. Runs in gRPC's threads.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import grpc
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from spiffe._proto import workload_pb2

from sidecar.core.svid import Chain, TrustBundle, X509Svid

_MAX_STREAMS = 32


@dataclass(frozen=True, slots=True)
class Answer:
    """What a stream gets: a message, or a status that ends it, or (with neither) silence."""

    message: bytes | None = None
    status: grpc.StatusCode | None = None
    details: str = ""


SILENCE = Answer()


class EmbeddedAgent:
    """Serves `FetchX509SVID` at `path` between `start` and `stop`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._changed = threading.Condition()
        self._answer = SILENCE
        self._version = 0
        self._stopping = False
        self._server: grpc.Server | None = None
        self.calls = 0

    def start(self) -> None:
        """Begin to serve; a socket that an earlier agent left behind is replaced."""
        self._path.unlink(missing_ok=True)
        server = grpc.server(ThreadPoolExecutor(_MAX_STREAMS, thread_name_prefix="agent"))
        # Bytes pass through as they are, so that an answer can also be one that is malformed.
        handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_stream_rpc_method_handler(
            self._fetch_x509_svid
        )
        methods = {"FetchX509SVID": handler}
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("SpiffeWorkloadAPI", methods),)
        )
        server.add_insecure_port(f"unix:{self._path}")
        server.start()
        self._server, self._stopping = server, False

    def stop(self) -> None:
        """End all streams and remove the socket."""
        assert self._server is not None
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._server.stop(grace=0).wait()
        self._path.unlink(missing_ok=True)

    def set_answer(self, answer: Answer) -> None:
        """Answer all streams with this from now on."""
        with self._changed:
            self._answer = answer
            self._version += 1
            self._changed.notify_all()

    def _fetch_x509_svid(self, _request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        metadata = dict(context.invocation_metadata() or ())
        if metadata.get("workload.spiffe.io") != "true":
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "security header missing from request")
        with self._changed:
            self.calls += 1
        context.add_callback(self._wake)
        seen = -1
        while True:
            with self._changed:
                while self._version == seen and not self._stopping and context.is_active():
                    self._changed.wait()
                if self._stopping or not context.is_active():
                    return
                seen, answer = self._version, self._answer
            if answer.status is grpc.StatusCode.OK:
                return
            if answer.status is not None:
                context.abort(answer.status, answer.details)
            if answer.message is not None:
                yield answer.message

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()


def x509_svid_response(
    svids: Sequence[X509Svid],
    bundles: Sequence[TrustBundle],
    federated: Sequence[TrustBundle] = (),
) -> bytes:
    """Encode one `X509SVIDResponse`; `bundles` holds one bundle for each SVID."""
    response = workload_pb2.X509SVIDResponse()
    for svid, bundle in zip(svids, bundles, strict=True):
        response.svids.add(
            spiffe_id=str(svid.spiffe_id),
            x509_svid=der(svid.chain),
            x509_svid_key=svid.private_key.private_bytes(
                Encoding.DER, PrivateFormat.PKCS8, NoEncryption()
            ),
            bundle=der(bundle.authorities),
            hint=svid.hint,
        )
    for bundle in federated:
        response.federated_bundles[f"spiffe://{bundle.trust_domain}"] = der(bundle.authorities)
    return response.SerializeToString()


def der(chain: Chain) -> bytes:
    """Concatenate certificates as the Workload API does."""
    return b"".join(certificate.public_bytes(Encoding.DER) for certificate in chain)
