"""What a person has at hand -> peer, method and path: a `curl` command, or a line of our log.

Gets pasted text, runs nothing and connects to nothing. A command is read as curl reads it, as far
as method and path go; an option that is not known takes no value. Not part of `explain` because
that one needs only the three values.
"""

from __future__ import annotations

import ast
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from sidecar.core.policy_explained import Request

# Options of curl that take a value; of those with a short name only the ones that matter here
# are written with their long name as well.
_SHORT_WITH_VALUE = frozenset("AbcCdDeEFHKmoPQrtTuUwxXyYz")
_LONG_NAMES = {"X": "request", "d": "data", "F": "form", "T": "upload-file"} | {
    "G": "get",
    "I": "head",
    "g": "globoff",
    ":": "next",
}
_LONG_WITH_VALUE_TEXT = """
    abstract-unix-socket alt-svc aws-sigv4 cacert capath cert cert-type ciphers config
    connect-timeout connect-to continue-at cookie cookie-jar create-file-mode crlfile curves data
    data-ascii data-binary data-raw data-urlencode delegation dns-interface dns-ipv4-addr
    dns-ipv6-addr dns-servers doh-url dump-header ech egd-file engine etag-compare etag-save
    expect100-timeout form form-string ftp-account ftp-alternative-to-user ftp-method ftp-port
    ftp-ssl-ccc-mode happy-eyeballs-timeout-ms haproxy-clientip header hostpubmd5 hostpubsha256
    hsts interface ip-tos ipfs-gateway json keepalive-cnt keepalive-time key key-type krb libcurl
    limit-rate local-port login-options mail-auth mail-from mail-rcpt max-filesize max-redirs
    max-time netrc-file noproxy oauth2-bearer output output-dir parallel-max parallel-max-host
    pass pinnedpubkey preproxy proto proto-default proto-redir proxy proxy-cacert proxy-capath
    proxy-cert proxy-cert-type proxy-ciphers proxy-crlfile proxy-header proxy-key proxy-key-type
    proxy-pass proxy-pinnedpubkey proxy-service-name proxy-tls13-ciphers proxy-tlsauthtype
    proxy-tlspassword proxy-tlsuser proxy-user proxy1.0 pubkey quote random-file range rate
    referer request request-target resolve retry retry-delay retry-max-time sasl-authzid
    service-name sigalgs socks4 socks4a socks5 socks5-gssapi-service socks5-hostname speed-limit
    speed-time stderr telnet-option tftp-blksize time-cond tls-max tls13-ciphers tlsauthtype
    tlspassword tlsuser trace trace-ascii trace-config unix-socket upload-file upload-flags url
    url-query user user-agent variable vlan-priority write-out
"""
_LONG_WITH_VALUE = frozenset(_LONG_WITH_VALUE_TEXT.split())
_URL = re.compile(r"(?:(?P<scheme>[a-z][a-z0-9+.-]*)://)?(?P<host>[^/?#]*)(?P<path>[^?#]*)", re.I)
# What browsers copy: $'...' with the escapes of C. Only a word that begins so is one.
_C_QUOTED = re.compile(r"(?<!\S)\$'((?:[^'\\]|\\.)*)'", re.DOTALL)
_SHELL_GOES_ON = re.compile(r"[|&;#].*|\d*[<>].*", re.DOTALL)
_LOGGED = re.compile(r"""(\w+)=('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|\S*)""")


@dataclass(frozen=True, slots=True)
class Logged:
    """What a line of the log tells of one request, or of one peer."""

    peer: str
    request: Request | None


def read_curl(text: str) -> Request:
    """Give the request that a `curl` command makes, or raise `ValueError`."""
    options, urls = _options(_words(text))
    if "next" in options:
        raise ValueError("expected one request, found --next")
    urls += [options["url"]] if "url" in options else []
    if len(urls) != 1:
        raise ValueError(f"expected one URL in the curl command, found {len(urls)}")
    path = _path(urls[0], is_plain="globoff" in options)
    if "path-as-is" not in options:
        path = _without_dots(path)
    path = options.get("request-target", path)
    return Request(_method(options), re.split(r"[?#]", path)[0])


def read_log_line(text: str) -> Logged:
    """Give what a line of our log tells, JSON or console, or raise `ValueError`."""
    try:
        # What is in front of the brace is a journal's.
        found = json.loads(text[max(0, text.find("{")) :])
    except ValueError:
        found = {name: _value(value) for name, value in reversed(_LOGGED.findall(text))}
    fields = found if isinstance(found, dict) else {}
    peer, method, path = (fields.get(name) for name in ("peer", "method", "path"))
    request = Request(method, path) if isinstance(method, str) and isinstance(path, str) else None
    if not isinstance(peer, str):
        raise ValueError("expected a line of the log that tells of a peer")
    return Logged(peer, request)


def _words(text: str) -> Iterator[str]:
    """Give what stands behind `curl`, as a shell would give it."""
    text = text.replace("\r\n", "\n").replace("\\\n", " ")
    text = _C_QUOTED.sub(lambda quoted: shlex.quote(quoted[1]), text)
    try:
        words = shlex.split(text)
    except ValueError as exc:
        raise ValueError(f"expected a curl command: {str(exc).lower()}") from exc
    names = [word.rpartition("/")[2] for word in words]
    if "curl" not in names:
        raise ValueError("expected a curl command")
    return iter(words[names.index("curl") + 1 :])


def _options(words: Iterator[str]) -> tuple[dict[str, str], list[str]]:
    """Give the options by their long names, and the URLs."""
    options: dict[str, str] = {}
    urls = []
    for word in words:
        if _SHELL_GOES_ON.fullmatch(word):
            break
        if word.startswith("--"):
            name = word[2:]
            if "=" in name:
                raise ValueError(f"expected the value of a curl option behind a space: {word!r}")
            options[name] = _next(words, word) if name in _LONG_WITH_VALUE else ""
        elif word.startswith("-"):
            for at, letter in enumerate(word[1:], start=2):
                name = _LONG_NAMES.get(letter, letter)
                options[name] = word[at:]
                if letter in _SHORT_WITH_VALUE:
                    options[name] = word[at:] or _next(words, f"-{letter}")
                    break
        else:
            urls.append(word)
    return options, urls


def _next(words: Iterator[str], option: str) -> str:
    value = next(words, None)
    if value is None:
        raise ValueError(f"expected a value behind {option} in the curl command")
    return value


def _method(options: dict[str, str]) -> str:
    if "request" in options:
        return options["request"]
    if "head" in options:
        return "HEAD"
    if "get" in options:
        return "GET"
    if any(name.startswith(("data", "form", "json")) for name in options):
        return "POST"
    return "PUT" if "upload-file" in options else "GET"


def _path(url: str, *, is_plain: bool) -> str:
    match = _URL.fullmatch(url.partition("#")[0].partition("?")[0])
    if match is None or (match["scheme"] or "http").lower() not in ("http", "https"):
        raise ValueError("expected an http or https URL in the curl command")
    if not match["host"] or (match["host"].startswith("$") and not match["path"]):
        raise ValueError(f"expected a URL with a host in the curl command, found {url!r}")
    if not is_plain and re.search(r"[\[\]{}]", match["path"]):
        raise ValueError("expected one path: curl makes several of [] and {} without --globoff")
    if not match["path"].isprintable() or " " in match["path"]:
        raise ValueError("expected a URL without spaces in the curl command")
    # What is not ASCII curl encodes itself; the rest it sends as it stands.
    encoded = (f"%{byte:02x}" if byte > 127 else chr(byte) for byte in match["path"].encode())
    return "".join(encoded) or "/"


def _without_dots(path: str) -> str:
    """Take `.` and `..` out as curl does before it sends (RFC 3986 5.2.4)."""
    kept: list[str] = []
    parts = path.split("/")[1:]
    for at, part in enumerate(parts):
        if part == "..":
            kept = kept[:-1]
        if part not in (".", ".."):
            kept.append(part)
        elif at == len(parts) - 1:
            kept.append("")
    return "/" + "/".join(kept)


def _value(text: str) -> str:
    if text[:1] not in ("'", '"'):
        return text
    try:
        return str(ast.literal_eval(text))
    except (ValueError, SyntaxError):
        return text
