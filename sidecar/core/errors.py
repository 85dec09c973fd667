"""The error tree: each class says whose fault it is, and so who has to act.

A message tells what was found and what was expected; the hint tells what to do. Expected
outcomes (a denial, an agent without an identity for us) are values and not in here.
"""

from __future__ import annotations


class SidecarError(Exception):
    """Base of all errors that a person is meant to read; never raised itself."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class ConfigError(SidecarError):
    """The operator's: configuration or policy cannot be used. Exit status 78."""


class ListenError(SidecarError):
    """The host's: an address cannot be listened on. Exit status 1."""


class AgentProtocolError(SidecarError):
    """The agent's: an update that breaks the SPIFFE standards, discarded as a whole."""


class CertFilesError(SidecarError):
    """The disk's: a generation could not be written; the published one stays."""


class IdentityFilesError(SidecarError):
    """The writer's: files of an identity cannot be read; the identity of before stays."""


class FetchError(SidecarError):
    """The source's: no identity within the time that there was. Exit status 1."""


class HookError(SidecarError):
    """The operator's, or of a program beside us: an action after a rotation went wrong."""


class PeerError(SidecarError):
    """The peer's: what it presented is no X.509-SVID that we trust.

    `result` is the word that metrics count it by, a `HandshakeResult`.
    """

    def __init__(
        self, message: str, hint: str | None = None, *, result: str = "bad_certificate"
    ) -> None:
        super().__init__(message, hint)
        self.result = result


class BackendError(SidecarError):
    """The model server's: it cannot be connected to."""


class RegistrationError(SidecarError):
    """The platform's: the SPIRE server cannot be asked, or has not done it. Exit status 1."""


class HostError(SidecarError):
    """The host's: it forbids what cannot be done without. Nothing serves; exit status 1."""


class InvalidSpiffeIdError(SidecarError):
    """Text that is no SPIFFE ID; whoever knows where it came from translates this."""

    def __init__(self, text: str, reason: str) -> None:
        super().__init__(f"not a SPIFFE ID: {text[:256]!r}: {reason}")
        self.reason = reason


class HttpError(SidecarError):
    """The peer's: a request that is refused for its form; `status` and `code` go into the answer.

    What policy refuses is a decision and no error.
    """

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class WatchError(SidecarError):
    """The host's: a file cannot be watched; it is still read again when SIGHUP asks for it."""
