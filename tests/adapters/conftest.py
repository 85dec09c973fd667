"""Fixtures of the adapters' tests: what was opened is closed, whatever became of the test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from sidecar.adapters.tls import ServerIdentity, server_identity
from tests.ca import Authority


@pytest.fixture
def closing() -> Iterator[ExitStack]:
    """Closes at the end of a test what was entered into it."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def identity(authority: Authority, foreign: Authority) -> ServerIdentity:
    """Our identity, with the bundle of a federated trust domain beside our own."""
    bundles = {one.trust_domain: one.bundle for one in (authority, foreign)}
    return server_identity(authority.svid(), bundles, "1.3")
