"""What a video really is: one sequential pass over all of its frames with PyAV.

    film = probe(Path("a.mp4"))
    film.frames, film.fps, film.dangers

Nothing that a header says is believed: frames are counted, the rate is taken from time stamps, and
each picture leaves a hash that another decoder has to match. Dangers are what makes seeks or other
decoders go wrong: transport streams, open GOPs, edit lists, changes of resolution, key frames that
are none, time stamps that repeat. NOTE: a transport stream or FLV file whose end is cut off does
not tell, and is taken for whole.

Legend: H W C a frame, uint8 RGB.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from workloads import readers
from workloads.readers import UnreadableVideo

Beat = Callable[[], None]

MOST_PIXELS = 4096 * 4096  # of a frame
USUAL_FPS = 25.0  # where time stamps and header say nothing
MOST_FPS = 1000.0
SAME_RATE = 0.02  # time stamps are rounded: so near, the header's rate is the rate
USUAL_STEP = (0.5, 1.5)  # of the median interval between frames
MOST_ODD = 0.05  # share of other intervals: beyond, the rate varies
HASH_BYTES = 12


@dataclass(frozen=True)
class Film:
    """All frames of a video, as far as they need to be known."""

    fps: float
    """Frames a second, on average."""
    width: int
    """Of the first frame, as it is shown: turned upright."""
    height: int
    hashes: tuple[bytes, ...]
    """Of every frame, in order."""
    keys: tuple[int, ...]
    """Which frames are key frames."""
    dangers: tuple[str, ...] = ()
    """Why a decoder may give other frames than these; empty if nothing speaks for it."""
    notes: tuple[str, ...] = ()
    """What a person may want to know, and nothing is wrong with."""

    @property
    def frames(self) -> int:
        """How many frames there are."""
        return len(self.hashes)

    @property
    def digest(self) -> str:
        """Equal for videos with the same pictures in the same order, whatever the container."""
        return hashlib.sha256(b"".join(self.hashes)).hexdigest()


def probe(
    path: Path,
    most_pixels: int = MOST_PIXELS,
    beat: Beat = lambda: None,
    salvage: bool = False,
) -> Film:
    """Decode a whole video and return what it is.

    Args:
        most_pixels: that a frame may have.
        beat: called for every frame, to show that the pass goes on.
        salvage: where it breaks off, return the frames before; it is a danger then.

    Raises:
        UnreadableVideo: it cannot be decoded from its first frame to its last.
    """
    seen = Seen()
    try:
        for frame_HWC in pictures(path, most_pixels, seen):
            seen.hashes.append(hash_of(frame_HWC))
            seen.sizes.append((frame_HWC.shape[1], frame_HWC.shape[0]))
            beat()
        readers.check_end(path)
    except UnreadableVideo as error:
        if not salvage or not seen.hashes:
            raise
        seen.broken = error.reason
    if not seen.hashes:
        raise UnreadableVideo(path, "no frames")
    width, height = seen.sizes[0]
    return Film(
        fps=seen.fps(),
        width=width,
        height=height,
        hashes=tuple(seen.hashes),
        keys=tuple(seen.keys),
        dangers=tuple(seen.dangers()),
        notes=tuple(seen.notes()),
    )


def hash_of(frame_HWC: np.ndarray) -> bytes:
    """Return a hash of a frame's size and pixels."""
    digest = hashlib.blake2b(repr(frame_HWC.shape).encode(), digest_size=HASH_BYTES)
    digest.update(np.ascontiguousarray(frame_HWC).data)
    return digest.digest()


@dataclass
class Seen:
    """What a pass has seen so far; times in seconds."""

    hashes: list[bytes] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    keys: list[int] = field(default_factory=list)
    times: list[float | None] = field(default_factory=list)
    stated_fps: float = 0.0
    is_transport_stream: bool = False
    hidden: int = 0
    flagged: int = 0
    leading: int = 0
    key_time: int | None = None
    broken: str = ""
    """Why the pass did not reach the end."""

    def packet(self, packet: Any) -> None:  # Any: of PyAV, which may be absent
        """Look at a packet in the order of the file."""
        self.hidden += packet.is_discard
        self.flagged += packet.is_keyframe and not packet.is_discard
        if packet.is_keyframe:
            self.key_time = packet.pts
        elif None not in (packet.pts, self.key_time) and packet.pts < self.key_time:
            self.leading += 1  # shown before its key frame: it leans on the GOP before

    def fps(self) -> float:
        """Return the mean rate, by time stamps where they make sense."""
        stated = self.stated_fps if 0 < self.stated_fps <= MOST_FPS else 0.0
        steps = self._steps()
        if _is_steady(steps):
            steps = _usual(steps)  # without the gap that a cut leaves
        if sum(steps) <= 0:
            return stated or USUAL_FPS
        measured = min(len(steps) / sum(steps), MOST_FPS)
        is_same = abs(measured - stated) <= SAME_RATE * measured
        return stated if is_same else measured

    def dangers(self) -> Iterator[str]:
        """Name what makes decoders go wrong."""
        if self.broken:
            yield f"cut after {len(self.hashes)} frames: {self.broken}"
        if self.is_transport_stream:
            yield "transport stream"
        elif any(step <= 0 for step in self._steps()):  # decord's seeks go by them
            yield "time stamps repeat"
        if self.leading:
            yield "open GOP"
        if self.hidden:
            yield f"edit list hides {self.hidden} frames"
        if self.flagged > len(self.keys):  # pictures that are renewed bit by bit
            yield "key frames that are none"
        change = next((i for i, size in enumerate(self.sizes) if size != self.sizes[0]), None)
        if change is not None:
            width, height = self.sizes[0]
            yield f"resolution changes at frame {change}: scaled to {width}x{height}"

    def notes(self) -> Iterator[str]:
        """Name what is odd without being wrong."""
        if len(self.hashes) == 1:
            yield "short: 1 frame"
        steps = self._steps()
        if not steps and len(self.hashes) > 1:
            yield "no time stamps"
        elif steps and not _is_steady(steps):
            yield "variable rate"

    def _steps(self) -> list[float]:
        """Return the time from each frame to the next; nothing where times are missing."""
        times = [time for time in self.times if time is not None]
        if len(times) < len(self.times):
            return []
        return [late - early for early, late in pairwise(times)]


def _is_steady(steps: list[float]) -> bool:
    return len(steps) - len(_usual(steps)) <= MOST_ODD * len(steps)


def _usual(steps: list[float]) -> list[float]:
    middle = median(steps) if steps else 0.0
    return [step for step in steps if USUAL_STEP[0] * middle <= step <= USUAL_STEP[1] * middle]


def pictures(path: Path, most_pixels: int, seen: Seen | None = None) -> Iterator[np.ndarray]:
    """Yield all frames in order, upright, each as large as it is; see `probe` for what is raised.

    Args:
        seen: takes down what the file is, as far as the pass has come.
    """
    import av

    readers.check(path)
    seen = Seen() if seen is None else seen
    try:
        with readers.opened(path) as (container, stream):
            yield from _pictures(path, container, stream, most_pixels, seen)
    except av.FFmpegError as error:
        raise readers.undecodable(path, error) from error


def _pictures(
    path: Path, container: Any, stream: Any, most_pixels: int, seen: Seen
) -> Iterator[np.ndarray]:  # Any: of PyAV
    _check_pixels(path, stream.width, stream.height, most_pixels)
    stream.codec_context.options = {"max_pixels": str(most_pixels)}
    seen.is_transport_stream = "mpegts" in container.format.name
    seen.stated_fps = float(stream.guessed_rate or 0)
    for frame in readers.decoded(path, container, stream, seen.packet):
        _check_pixels(path, frame.width, frame.height, most_pixels)
        if frame.key_frame:
            seen.keys.append(len(seen.times))
        seen.times.append(frame.time)
        yield readers.upright(frame)


def _check_pixels(path: Path, width: int, height: int, most_pixels: int) -> None:
    if width * height > most_pixels:
        size, limit = f"{width} x {height} pixels a frame", f"{most_pixels / 1e6:.3g} million"
        raise UnreadableVideo(path, f"{size}, the limit is {limit} (--max-pixels)")
