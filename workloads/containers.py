"""What the first bytes of a video file tell without decoding it."""

from __future__ import annotations

from pathlib import Path

HEAD = 512  # bytes that say it
# Opened as a video, these would read other files, of whoever wrote the list.
PLAYLISTS = frozenset({"concat", "hls", "dash", "imf", "webm_dash_manifest"})
# Where the sync bytes of three packets lie in a transport stream, with and without time codes.
PACKETS = ((0, 188, 376), (4, 196, 388))
SYNC = 0x47
EBML, SEGMENT = bytes.fromhex("1a45dfa3"), bytes.fromhex("18538067")


def is_transport_stream(path: Path) -> bool:
    """Say whether a file is an MPEG transport stream, whatever its name.

    In those decord loses the first GOP and shifts the others into its place.
    """
    head = _head(path)
    return any(
        len(head) > places[-1] and all(head[place] == SYNC for place in places)
        for places in PACKETS
    )


def whole_bytes(path: Path) -> int:
    """Return how long a Matroska file (or WebM) says that it is; 0 where it does not say.

    Its demuxer takes the end of a file for the end of the video, and says nothing.
    """
    head = _head(path)
    if head[:4] != EBML:
        return 0
    length, place = _number(head, len(EBML))
    place += length
    if head[place : place + 4] != SEGMENT:
        return 0
    length, place = _number(head, place + len(SEGMENT))
    return place + length if length else 0


def _number(head: bytes, place: int) -> tuple[int, int]:
    """Return a number of variable length and the place behind it; 0 is unknown."""
    first = head[place] if place < len(head) else 0
    size = 9 - first.bit_length()  # leading zeros tell how many bytes follow
    known = (1 << 7 * size) - 1
    number = int.from_bytes(head[place : place + size], "big") & known
    return (number if number != known else 0), place + size


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(HEAD)
