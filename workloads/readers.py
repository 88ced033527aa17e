"""Video files to frames: decord and PyAV behind one function.

    frames_THWC = read(path)                  # every frame, uint8 RGB
    frames_THWC = read(path, (30, 10, 20))    # these frames, in this order

The truth is what PyAV decodes from the first frame on; decord gets there with less CPU time.
Neither is asked to seek: decord's seeks give wrong frames, without a word, for open GOPs and edit
lists. Read in order, and forbidden to fill holes with neighbours, decord 0.6 gives PyAV's frames
bit for bit (8-bit video) or gives up, and then `auto` asks PyAV. The frame count in a file's header
is never read. NOTE: damaged bytes can pass for a picture; PyAV flags most of them, decord none.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from workloads import containers

Decoder = Literal["auto", "decord", "pyav"]
Frames = Iterator[Callable[[], np.ndarray]]  # a frame becomes an array only when it is called
Shrink = Callable[[np.ndarray], np.ndarray]  # of one frame, uint8 H W C
MODULES: dict[Decoder, str] = {"decord": "decord", "pyav": "av"}  # the first to ask first
# What the machine may refuse for a while. Damaged files cause others: EIO, ENOMEM, EINVAL, ENOENT.
PASSING = frozenset({errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.ETIMEDOUT})
FAULT_TOLERANCE = 1e-6  # share of holes that decord may fill; its 0 would mean any
MISTAKEN_WIDTH = "decord mistakes its width"  # 16, 24, 48, 72: padding taken for pixels


class UnreadableVideo(ValueError):  # noqa: N818 - the file's, not an error of ours
    """A video that cannot be read, with the reason in a few words.

    Args:
        passing: whether the reason lies outside of the file's content, so that it may go away.
    """

    def __init__(self, path: Path, reason: str, passing: bool = False) -> None:
        super().__init__(f"{path}: {reason}")
        self.path, self.reason, self.passing = path, reason, passing

    def __reduce__(self) -> tuple[type[UnreadableVideo], tuple[Path, str, bool]]:
        """Survive the way through other processes with all parts."""
        return type(self), (self.path, self.reason, self.passing)


def read(
    path: Path,
    indices: Sequence[int] | None = None,
    *,
    limit: int = 0,
    decoder: Decoder = "auto",
    shrink: Shrink | None = None,
) -> np.ndarray:
    """Decode frames of a video, on one thread, as uint8 (T, H, W, C) RGB, or raise UnreadableVideo.

    Args:
        indices: frames from 0, in any order and repeated at will; None is every frame in order.
        limit: with `indices=None`, stop after so many frames; 0 is all of them.
        decoder: one by name; `auto` is decord where it is installed and can be trusted, else PyAV.
        shrink: makes each frame smaller as soon as it is there, so that a whole video of large
            frames is never in memory.
    """
    if indices is not None and (len(indices) == 0 or min(indices) < 0):
        raise ValueError(f"{indices=} must be one or more frame numbers from 0")
    check(path)
    *others, last = _trusted(path) if decoder == "auto" else [decoder]
    for name in others:
        with suppress(UnreadableVideo):  # the last one knows better, or says why nobody can
            return _read(path, indices, limit, name, shrink)
    return _read(path, indices, limit, last, shrink)


def counted(
    path: Path, limit: int, *, decoder: Decoder = "pyav", shrink: Shrink | None = None
) -> tuple[np.ndarray, int]:
    """Decode a whole video; return its first `limit` frames, and how many it has. See `read`."""
    check(path)
    try:
        frames = _frames(path, decoder, shrink)
        taken = [frame() for frame in islice(frames, limit)]
        count = len(taken) + sum(1 for _ in frames)
        check_end(path)
    except failures(decoder) as error:
        raise undecodable(path, error) from error
    if not taken:
        raise UnreadableVideo(path, "no frames")
    return np.stack(taken), count


def check(path: Path) -> None:
    """Raise UnreadableVideo where there is no file, nothing in it, or no leave to read it."""
    try:
        if not path.is_file():
            what = "a link to no file" if path.is_symlink() else "no such file"
            raise UnreadableVideo(path, "not a file" if path.exists() else what, passing=True)
        with path.open("rb") as file:
            is_empty = not file.read(1)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UnreadableVideo(path, reason, passing=True) from error
    if is_empty:
        raise UnreadableVideo(path, "empty file")


def frames_of(path: Path, decoder: Decoder) -> Iterator[np.ndarray]:
    """Yield the frames of a video in order, uint8 (H, W, C), or raise UnreadableVideo."""
    frames = _decord_frames(path) if decoder == "decord" else _pyav_frames(path)
    try:
        for frame in frames:
            yield frame()
    except failures(decoder) as error:
        raise undecodable(path, error) from error


def sought(path: Path, indices: Sequence[int]) -> Iterator[np.ndarray]:
    """Yield frames in the asked order as decord's seeks give them, be they right or wrong."""
    import decord

    try:
        reader = decord.VideoReader(os.path.abspath(path), num_threads=1, fault_tol=FAULT_TOLERANCE)
        for index in indices:
            yield reader[index].asnumpy()
    except failures("decord") as error:
        raise undecodable(path, error) from error


@cache
def versions() -> dict[Decoder, str]:
    """Return the version of each installed decoder; decord has no wheel for some machines."""
    installed = {name: module for name, module in MODULES.items() if find_spec(module)}
    return {name: import_module(module).__version__ for name, module in installed.items()}


def _trusted(path: Path) -> list[Decoder]:
    wrong = "decord" if containers.is_transport_stream(path) else None
    return [name for name in versions() if name != wrong] or ["pyav"]


def _read(
    path: Path, indices: Sequence[int] | None, limit: int, name: Decoder, shrink: Shrink | None
) -> np.ndarray:
    try:
        frames = _frames(path, name, shrink)
        head = (frame() for frame in islice(frames, limit or None))
        taken = list(head) if indices is None else _pick(path, frames, indices)
    except failures(name) as error:
        raise undecodable(path, error) from error
    if not taken:
        raise UnreadableVideo(path, "no frames")
    return np.stack(taken)


def _frames(path: Path, name: Decoder, shrink: Shrink | None) -> Frames:
    frames = _decord_frames(path) if name == "decord" else _pyav_frames(path)
    return (partial(_shrunk, frame, shrink) for frame in frames) if shrink else frames


def _pick(path: Path, frames: Frames, indices: Sequence[int]) -> list[np.ndarray]:
    """Take the asked frames out of one pass that ends at the last of them."""
    wanted, count, taken = set(indices), 0, {}
    for count, frame in enumerate(islice(frames, max(wanted) + 1), start=1):
        if count - 1 in wanted:
            taken[count - 1] = frame()
    if count <= max(wanted):
        raise UnreadableVideo(path, f"frame {max(wanted)} was asked for, it has only {count}")
    return [taken[index] for index in indices]


def _shrunk(frame: Callable[[], np.ndarray], shrink: Shrink) -> np.ndarray:
    return shrink(frame())


def _decord_frames(path: Path) -> Frames:
    import decord

    # Frame by frame: batches are no faster in order, and fail at the widths refused here.
    reader = decord.VideoReader(os.path.abspath(path), num_threads=1, fault_tol=FAULT_TOLERANCE)
    with suppress(StopIteration):
        while True:
            frame = reader.next()
            if frame.shape[2] != 3:
                raise UnreadableVideo(path, MISTAKEN_WIDTH)
            yield frame.asnumpy


def _pyav_frames(path: Path) -> Frames:
    from av.video.reformatter import VideoReformatter

    # One for all frames, on this thread: to set one up takes as long as to use it.
    reformatter = VideoReformatter()
    with opened(path) as (container, stream):
        size = None
        for number, frame in enumerate(decoded(path, container, stream)):
            if size not in (None, (frame.width, frame.height)):
                raise UnreadableVideo(path, f"its resolution changes at frame {number}")
            size = frame.width, frame.height
            yield partial(upright, frame, reformatter)


@contextmanager
def opened(path: Path) -> Iterator[tuple[Any, Any]]:  # Any: of PyAV, which may be absent
    """Give an open container and the stream to read, or raise what PyAV does, or UnreadableVideo.

    The path is made absolute, as "12:30.mp4" would be a protocol; a title may be no UTF-8.
    """
    import av

    with av.open(os.path.abspath(path), metadata_errors="ignore") as container:
        if set(container.format.name.split(",")) & containers.PLAYLISTS:
            what = f"a list of other files ({container.format.name}), no video"
            raise UnreadableVideo(path, what)
        yield container, main_stream(path, container)


def decoded(
    path: Path, container: Any, stream: Any, note: Callable[[Any], None] = lambda packet: None
) -> Iterator[Any]:  # Any: of PyAV
    """Yield all frames in order, none of them damaged as far as PyAV knows.

    Args:
        note: hears of each packet before it is decoded.
    """
    is_cut_anywhere = "mpegts" in container.format.name  # begins and ends with half a packet
    count = 0
    for number, packet in enumerate(container.demux(stream)):
        if packet.size:  # the last one is empty: it drains the codec
            note(packet)
        if packet.is_corrupt and not is_cut_anywhere:
            raise UnreadableVideo(path, f"packet {number} is damaged")
        for frame in packet.decode():
            if frame.is_corrupt:
                raise UnreadableVideo(path, f"frame {count} is corrupt")
            count += 1
            yield frame


def check_end(path: Path) -> None:
    """Raise UnreadableVideo for a file that ends before it should and decodes all the same."""
    size, whole = path.stat().st_size, containers.whole_bytes(path)
    if size < whole:
        raise UnreadableVideo(path, f"breaks off: {size} of {whole} bytes are there")


def main_stream(path: Path, container: Any) -> Any:  # Any: of PyAV, which may be absent
    """Return the largest video stream of an open file, set to one thread; no cover picture."""
    from av.stream import Disposition

    streams = [
        stream
        for stream in container.streams.video
        if not stream.disposition & Disposition.attached_pic
    ]
    if not streams:
        raise UnreadableVideo(path, "no video stream")
    stream = max(streams, key=lambda stream: stream.width * stream.height)
    stream.codec_context.thread_count = 1
    return stream


def upright(frame: Any, reformatter: Any = None) -> np.ndarray:  # Any: of PyAV, if it is there
    """Convert a frame to RGB, turned as its display matrix says: phones store frames lying."""
    if reformatter is None:
        from av.video.reformatter import VideoReformatter

        reformatter = VideoReformatter()
    converted = reformatter.reformat(frame, format="rgb24", threads=1)
    return np.rot90(converted.to_ndarray(), k=round(frame.rotation / 90))


def undecodable(path: Path, error: Exception) -> UnreadableVideo:
    """Return what a decoder says of a video, on one line."""
    first_line = (getattr(error, "strerror", None) or str(error)).partition("\n")[0]
    passing = getattr(error, "errno", None) in PASSING or not os.access(path, os.R_OK)
    return UnreadableVideo(path, f"cannot be decoded: {first_line[:160]}", passing)


def failures(name: Decoder) -> tuple[type[Exception], ...]:
    """Return what a decoder raises over a bad file; decord's own errors have no base class."""
    module = import_module(MODULES[name])
    if name == "pyav":
        return (module.FFmpegError,)
    own = module.DECORDError, module.DECORDLimitReachedError
    # UnicodeEncodeError: a name that is no UTF-8; PyAV takes it.
    return *own, RuntimeError, AssertionError, IndexError, UnicodeEncodeError
