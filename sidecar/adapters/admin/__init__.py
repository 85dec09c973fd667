"""Health, status and metrics over HTTP: for this host alone, and health for all that ask.

Gets sockets, and pages as callables; knows nothing of what is on them. Speaks HTTP/1.1 in plain
text. Takes no bodies and changes nothing. Whatever visitors do, it costs little: few at a time,
short heads, short times.
"""

from sidecar.adapters.admin.server import Page, Pages, serve_admin, serve_health

__all__ = ["Page", "Pages", "serve_admin", "serve_health"]
