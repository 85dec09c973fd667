"""The admin listener: health, status and metrics over HTTP, for this host alone.

Gets pages as callables and serves them to whoever asks; knows nothing of what is on them. Speaks
HTTP/1.1 in plain text on loopback or a Unix socket, never anywhere else. Takes no bodies and
changes nothing. Whatever visitors do, it costs little: few at a time, short heads, short times.
"""

from sidecar.adapters.admin.bound import bind_admin
from sidecar.adapters.admin.server import Page, Pages, serve_admin

__all__ = ["Page", "Pages", "bind_admin", "serve_admin"]
