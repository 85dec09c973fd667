"""A fuzz input as a script: settings, and what peer and backend do, one step after the other.

Two bytes of settings, then what the peer sends first. Each further step begins with 0xFF and a
letter; any other letter than these is the peer's, so every input is a script:

    P  the peer sends, in one piece          B  the backend sends, in one piece
    p  the peer sends byte by byte           b  the backend sends byte by byte
    R  the peer sends this over and over     A  the backend sends this over and over
    E  the backend closes                    L  the peer leaves, and the script ends
"""

from __future__ import annotations

from dataclasses import dataclass

MARK = b"\xff"
# Enough to come over each of the gate's limits once; more would only take time.
_REPEATED = {"R": 150_000, "A": 300_000}
_PIECE = 64 * 1024
_LETTERS = frozenset("PpBbEL")
_CUT = {"P": "p", "B": "b"}
_MOST_CUT = 4096


@dataclass(frozen=True, slots=True)
class Settings:
    """What the configuration, the policy and the moment would say."""

    max_head_bytes: int = 16384
    max_body_bytes: int = 1 << 20
    trusted_proxy: bool = False
    drop_origin: bool = False
    keeps_host: bool = False
    closes: bool = False  # each answer is the last one of its connection
    cors: bool = False
    response_headers: bool = False
    backend_closes_at_end: bool = False

    @classmethod
    def parse(cls, first: int, second: int) -> Settings:
        """Take the settings from two bytes."""
        return cls(
            max_head_bytes=(16384, 1024, 256, 60)[second & 3],
            max_body_bytes=(1 << 20, 1000, 16, 0)[first >> 6],
            trusted_proxy=bool(first & 1),
            drop_origin=bool(first & 2),
            cors=bool(first & 2),
            response_headers=bool(first & 4),
            keeps_host=bool(first & 8),
            closes=first & 0x30 == 0x30,
            backend_closes_at_end=bool(first & 16),
        )


@dataclass(frozen=True, slots=True)
class Step:
    """What one side does."""

    letter: str
    data: bytes = b""


@dataclass(frozen=True, slots=True)
class Script:
    """One conversation."""

    settings: Settings
    steps: tuple[Step, ...]

    @classmethod
    def parse(cls, data: bytes) -> Script:
        """Read a script; there are no bytes that are none."""
        settings = Settings.parse(*(data[:2] + b"AA")[:2])
        first, *others = data[2:].split(MARK)
        steps, room = [Step("P", first)], dict(_REPEATED)
        for other in others:
            letter = other[:1].decode("latin-1")
            steps += _repeated(letter, other[1:], room) if letter in room else _step(letter, other)
        return cls(settings, tuple(steps))

    def byte_by_byte(self) -> Script:
        """Give the same bytes, one at a time."""
        return Script(self.settings, tuple(_cut(step) for step in self.steps))


def _step(letter: str, data: bytes) -> list[Step]:
    return [Step(letter if letter in _LETTERS else "P", data[1:])]


def _repeated(letter: str, data: bytes, room: dict[str, int]) -> list[Step]:
    """The first byte tells how often: up to 2 ** 15 times."""
    whole = (data[1:] * (1 << (data[0] & 15)))[: room[letter]] if data else b""
    room[letter] -= len(whole)
    pieces = [whole[at : at + _PIECE] for at in range(0, len(whole), _PIECE)]
    return [Step("P" if letter == "R" else "B", piece) for piece in pieces]


def _cut(step: Step) -> Step:
    """What is repeated stays as it is: one byte after the other it would take seconds."""
    if step.letter not in _CUT or len(step.data) > _MOST_CUT:
        return step
    return Step(_CUT[step.letter], step.data)
