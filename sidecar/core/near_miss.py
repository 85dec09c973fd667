"""Why a pattern does not name a peer, or an endpoint does not name a request, and how nearly.

Gets the same values that the policy decides on and gives a `Miss` for a person to read, or None
where there is a match. It never decides: whether there is a match is asked of the pattern and of
the endpoint themselves, so nothing here can let anybody in.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from fnmatch import fnmatchcase

from sidecar.core.endpoint import METHODS, Endpoint, RequestPath
from sidecar.core.policy import ANY_REST, PeerPattern
from sidecar.core.spiffe_id import SpiffeId

# Distances: of a slip of the pen, of a segment, of a method; from FAR on it is something else.
SLIP, SEGMENT, METHOD, FAR = 1, 2, 3, 5
_SIMILAR = 0.75


@dataclass(frozen=True, slots=True)
class Miss:
    """What differs; the smaller `distance`, the nearer."""

    distance: int
    text: str

    @property
    def is_near(self) -> bool:
        """Tell whether a mistake is likely."""
        return self.distance < FAR


def peer_miss(pattern: PeerPattern, peer: SpiffeId) -> Miss | None:
    """Give why `pattern` does not name `peer`; None when it does."""
    if pattern.matches(peer):
        return None
    if not peer.path:
        return Miss(FAR, "the peer's ID has no path, and no pattern names a trust domain itself")
    if pattern.trust_domain != peer.trust_domain:
        text = f"the peer's trust domain is {peer.trust_domain}, not {pattern.trust_domain}"
        same_path = replace(pattern, trust_domain=peer.trust_domain).matches(peer)
        return Miss(SLIP if same_path else FAR, text)
    given = tuple(peer.path[1:].split("/"))
    has_rest = pattern.segments[-1] == ANY_REST
    wanted = pattern.segments[:-1] if has_rest else pattern.segments
    differing = [
        at
        for at, (want, give) in enumerate(zip(wanted, given, strict=False))
        if not fnmatchcase(give, want)
    ]
    enough = len(given) > len(wanted) if has_rest else len(given) == len(wanted)
    if enough:
        return _segments_miss(wanted, given, differing, "the peer has")
    return _count_miss(pattern.segments, given, not differing)


def _count_miss(wanted: tuple[str, ...], given: tuple[str, ...], rest_is_same: bool) -> Miss:
    """Say that the numbers of segments differ, and what would take care of it."""
    text = f"the peer's path has {_segments(len(given))}, the pattern's "
    text += f"{len(wanted)} or more" if wanted[-1] == ANY_REST else str(len(wanted))
    if rest_is_same and wanted[-1] == ANY_REST:
        text += "; '**' stands for one at least"
    elif rest_is_same and len(given) > len(wanted):
        text += "; '**' at the end takes all that is below"
    is_near = rest_is_same and abs(len(given) - len(wanted)) == 1
    return Miss(SEGMENT if is_near else FAR, text)


def endpoint_miss(endpoint: Endpoint, method: str, path: RequestPath) -> Miss | None:
    """Give why `endpoint` does not name the request; None when it does."""
    if endpoint.matches(method, path):
        return None
    if method not in METHODS:
        return Miss(FAR, f"no endpoint names the method {method!r}")
    other_method = "" if method in endpoint.methods() else f"the method is {method} here"
    if endpoint.matches_path(path):
        return Miss(SLIP, other_method)
    miss = _path_miss(endpoint, path)
    if other_method:
        return Miss(miss.distance + METHOD, f"{other_method}, and {miss.text}")
    return miss


def _path_miss(endpoint: Endpoint, path: RequestPath) -> Miss:
    for slip in _one_slip(endpoint, path):
        return slip
    wanted, given = endpoint.segments, path.segments
    if len(wanted) != len(given):
        return Miss(FAR, f"the path has {_segments(len(given))} here, {len(wanted)} there")
    differing = [
        at
        for at, (want, give) in enumerate(zip(wanted, given, strict=True))
        if want != give and not (at in endpoint.captures and give)
    ]
    return _segments_miss(wanted, given, differing, "the path has")


def _one_slip(endpoint: Endpoint, path: RequestPath) -> Iterator[Miss]:
    """Give the known mistakes that explain all of the difference, the likeliest first."""
    given = path.segments
    if _takes(endpoint, given):
        yield Miss(SLIP, f"{_hidden(path)}, which only {{name}} and {{name...}} take")
    if _takes(endpoint, tuple("/".join(given).split("/"))):
        yield Miss(SLIP, f"{_hidden(path)}, which is no slash between two segments")
    if given[-1] == "" and _takes(endpoint, given[:-1]):
        yield Miss(SLIP, "the path ends in a slash here")
    if endpoint.segments[-1] == "" and _takes(endpoint, (*given, "")):
        yield Miss(SLIP, "the path ends in a slash there")
    lowered = _with_segments(endpoint, map(str.lower, endpoint.segments))
    if _takes(lowered, tuple(map(str.lower, given))):
        yield Miss(SLIP, "upper and lower case differ")
    yield from _capture_slips(endpoint, given)
    yield from _prefix_slips(endpoint, given)
    yield from _segment_slips(endpoint, given)


def _capture_slips(endpoint: Endpoint, given: tuple[str, ...]) -> Iterator[Miss]:
    *before, last = endpoint.segments
    if last.startswith("{") and not endpoint.takes_rest:
        rest = last.removesuffix("}") + "...}"
        if _takes(_with_segments(endpoint, (*before, rest)), given):
            yield Miss(SLIP, f"{last} stands for one segment; a name with slashes needs {rest}")


def _prefix_slips(endpoint: Endpoint, given: tuple[str, ...]) -> Iterator[Miss]:
    """Find what is in front of one path and not of the other: "/v1", or what a proxy adds."""
    wanted = endpoint.segments
    for count in range(1, len(wanted)):
        # A capture that begins what is left would take anything.
        literal = not endpoint.captures & set(range(count + 1))
        if literal and _takes(_with_segments(endpoint, wanted[count:]), given):
            yield Miss(SLIP, f"the path lacks {_path(wanted[:count])} in front")
    for count in range(1, len(given) if wanted[0] and 0 not in endpoint.captures else 0):
        if _takes(endpoint, given[count:]):
            yield Miss(SLIP, f"the path has {_path(given[:count])} in front here")


def _segment_slips(endpoint: Endpoint, given: tuple[str, ...]) -> Iterator[Miss]:
    """Find one segment too many or too few."""
    wanted = endpoint.segments
    for at, segment in enumerate(given):
        if _takes(endpoint, given[:at] + given[at + 1 :]):
            yield Miss(SEGMENT, f"the path has the segment {segment!r} more here")
    for at, segment in enumerate(wanted):
        left = wanted[:at] + wanted[at + 1 :]
        if at not in endpoint.captures and left and _takes(_with_segments(endpoint, left), given):
            yield Miss(SEGMENT, f"the path lacks the segment {segment!r} here")


def _segments_miss(
    wanted: tuple[str, ...], given: tuple[str, ...], differing: list[int], who: str
) -> Miss:
    """Say which segments differ; what they differ in makes it near or far."""
    pairs = [(given[at], wanted[at]) for at in differing]
    text = " and ".join(f"{give!r} in place of {want!r}" for give, want in pairs)
    if len(pairs) > 1:
        return Miss(FAR, f"{who} {text}")
    ((give, want),) = pairs
    if fnmatchcase(give.lower(), want.lower()):
        return Miss(SLIP, f"{who} {text}: upper and lower case matter")
    return Miss(SLIP if _is_similar(give, want) else SEGMENT + 1, f"{who} {text}")


def _with_segments(endpoint: Endpoint, segments: Iterator[str] | tuple[str, ...]) -> Endpoint:
    return Endpoint.parse(f"{endpoint.method} /{'/'.join(segments)}")


def _takes(endpoint: Endpoint, segments: tuple[str, ...]) -> bool:
    """Tell whether the endpoint would name the path of these segments."""
    return endpoint.matches_path(RequestPath(_path(segments), segments))


def _hidden(path: RequestPath) -> str:
    raw = path.raw.split("/")[1:]
    part = next((raw[at] for at in sorted(path.hidden)), path.raw)
    return f"the path has an escaped slash or dot in {part[:100]!r}"


def _path(segments: tuple[str, ...]) -> str:
    return "/" + "/".join(segments)


def _segments(count: int) -> str:
    return "1 segment" if count == 1 else f"{count} segments"


def _is_similar(one: str, other: str) -> bool:
    return SequenceMatcher(None, one, other, autojunk=False).ratio() >= _SIMILAR
