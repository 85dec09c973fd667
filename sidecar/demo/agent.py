"""A Workload API on a Unix socket: the real gRPC protocol, answers that somebody sets.

For the demonstration and the tests, and it says so: it attests nobody. Gets one answer at a
time for each method and gives it to every stream, at once and whenever it changes, and to every
call. Runs in gRPC's threads.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import grpc
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from spiffe._proto import workload_pb2

from sidecar.core.svid import Chain, TrustBundle, X509Svid
from sidecar.demo.jwt_issuer import JwtIssuer

_MAX_STREAMS = 32


@dataclass(frozen=True, slots=True)
class Answer:
    """What a call gets: a message, or a status that ends it, or (with neither) silence."""

    message: bytes | None = None
    status: grpc.StatusCode | None = None
    details: str = ""


SILENCE = Answer()
NO_IDENTITY = Answer(status=grpc.StatusCode.PERMISSION_DENIED, details="no identity issued")


@dataclass(frozen=True, slots=True)
class JwtEntry:
    """An ID for which JWT-SVIDs are issued, to every caller."""

    spiffe_id: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class JwtAnswer:
    """What FetchJWTSVID gets: tokens of `issuer`, one for each entry, for the audiences asked for.

    Without an issuer it is what `fixed` says, whatever was asked for.
    """

    issuer: JwtIssuer | None = None
    entries: tuple[JwtEntry, ...] = ()
    life: timedelta = timedelta(minutes=5)
    fixed: Answer = NO_IDENTITY

    def to(self, request: bytes) -> Answer:
        """Answer one request."""
        if self.issuer is None:
            return self.fixed
        asked = workload_pb2.JWTSVIDRequest.FromString(request)
        response = workload_pb2.JWTSVIDResponse()
        for entry in self.entries:
            if asked.spiffe_id in ("", entry.spiffe_id):
                token = self.issuer.token(entry.spiffe_id, asked.audience, self.life)
                response.svids.add(spiffe_id=entry.spiffe_id, svid=token, hint=entry.hint)
        return Answer(response.SerializeToString()) if response.svids else NO_IDENTITY


class EmbeddedAgent:
    """Serves the Workload API at `path` between `start` and `stop`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._changed = threading.Condition()
        self._answer = _Current(SILENCE)
        self._bundles = _Current(NO_IDENTITY)
        self._jwt = JwtAnswer()
        self._stopping = False
        self._server: grpc.Server | None = None
        self.jwt_requests: list[bytes] = []

    @property
    def calls(self) -> int:
        """Give how many FetchX509SVID streams were opened."""
        return self._answer.calls

    @property
    def bundle_calls(self) -> int:
        """Give how many FetchJWTBundles streams were opened."""
        return self._bundles.calls

    def start(self) -> None:
        """Begin to serve; a socket that an earlier agent left behind is replaced."""
        self._path.unlink(missing_ok=True)
        server = grpc.server(ThreadPoolExecutor(_MAX_STREAMS, thread_name_prefix="agent"))
        # Bytes pass through as they are, so that an answer can also be one that is malformed.
        handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
            "FetchX509SVID": grpc.unary_stream_rpc_method_handler(
                lambda _request, context: self._stream(self._answer, context)
            ),
            "FetchJWTSVID": grpc.unary_unary_rpc_method_handler(self._fetch_jwt_svid),
            "FetchJWTBundles": grpc.unary_stream_rpc_method_handler(
                lambda _request, context: self._stream(self._bundles, context)
            ),
        }
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("SpiffeWorkloadAPI", handlers),)
        )
        server.add_insecure_port(f"unix:{self._path}")
        server.start()
        self._server, self._stopping = server, False

    def stop(self) -> None:
        """End all calls and remove the socket."""
        assert self._server is not None
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._server.stop(grace=0).wait()
        self._path.unlink(missing_ok=True)

    def set_answer(self, answer: Answer) -> None:
        """Answer all FetchX509SVID streams with this from now on."""
        with self._changed:
            self._answer.replace(answer)
            self._changed.notify_all()

    def set_bundles(self, answer: Answer) -> None:
        """Answer all FetchJWTBundles streams with this from now on."""
        with self._changed:
            self._bundles.replace(answer)
            self._changed.notify_all()

    def set_jwt_svids(self, answer: JwtAnswer) -> None:
        """Answer each FetchJWTSVID call with this from now on."""
        with self._changed:
            self._jwt = answer

    def forget_calls(self) -> None:
        """Count from here."""
        with self._changed:
            self._answer.calls = self._bundles.calls = 0
            self.jwt_requests.clear()

    def _fetch_jwt_svid(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        _check_header(context)
        with self._changed:
            self.jwt_requests.append(request)
            answer = self._jwt.to(request)
            if answer == SILENCE:
                context.add_callback(self._wake)
                self._changed.wait_for(lambda: self._stopping or not context.is_active())
        if answer.status is not None:
            context.abort(answer.status, answer.details)
        return answer.message or b""

    def _stream(self, current: _Current, context: grpc.ServicerContext) -> Iterator[bytes]:
        _check_header(context)
        with self._changed:
            current.calls += 1
        context.add_callback(self._wake)
        seen = -1
        while True:
            with self._changed:
                while current.version == seen and not self._stopping and context.is_active():
                    self._changed.wait()
                if self._stopping or not context.is_active():
                    return
                seen, answer = current.version, current.answer
            if answer.message is not None:
                yield answer.message
            if answer.status is grpc.StatusCode.OK:
                return
            if answer.status is not None:
                context.abort(answer.status, answer.details)

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()


@dataclass(slots=True)
class _Current:
    """What the streams of one method get now, and how many of them were opened."""

    answer: Answer
    version: int = 0
    calls: int = 0

    def replace(self, answer: Answer) -> None:
        self.answer = answer
        self.version += 1


def _check_header(context: grpc.ServicerContext) -> None:
    metadata = dict(context.invocation_metadata() or ())
    if metadata.get("workload.spiffe.io") != "true":
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, "security header missing from request")


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


def jwt_bundles_response(bundles: Mapping[str, bytes]) -> bytes:
    """Encode one `JWTBundlesResponse`: JWK Sets by the ID of their trust domain."""
    return workload_pb2.JWTBundlesResponse(bundles=bundles).SerializeToString()


def der(chain: Chain) -> bytes:
    """Concatenate certificates as the Workload API does."""
    return b"".join(certificate.public_bytes(Encoding.DER) for certificate in chain)
