"""Rewrite a video so that every decoder and every seek gives the same frames.

h264 in mp4: 8 bits, no frame leans on a later one, a key frame every `GOP` frames, closed GOPs, a
constant rate, no edit list, no turn left to the player. All frames are kept, in order; what was
shown at a varying rate is shown at its mean rate. Equal videos are rewritten to equal bytes.

Legend: T H W C frames, uint8 RGB.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path

import numpy as np

from workloads import frames
from workloads.datasets.synthetic import CANONICAL
from workloads.probe import MOST_PIXELS, Beat, Film, pictures

REVISION = 1  # raised when the same video would be rewritten to other bytes
GOP = 24
# No edit list: without B-frames the first frame is shown at once, so there is nothing to hide.
CONTAINER = {"movflags": "+faststart", "use_editlist": "0", "fflags": "+bitexact"}
CODEC = {"preset": "veryfast", "g": str(GOP), "bf": "0", "threads": "1", **CANONICAL}
MOST_DENOMINATOR = 1001  # 30000/1001 frames a second, and the like
# What is no fault of a video: the next one would meet the same.
REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)


@dataclass(frozen=True, kw_only=True)
class Target:
    """How videos are rewritten."""

    short_side: int = 0
    """Cap on the shorter side of the frames, pixels; 0 keeps their size."""
    quality: int = 18
    """Constant rate factor of x264: 0 (lossless) to 51; 18 is hard to tell from the original."""


def rewrite(
    path: Path,
    film: Film,
    draft: Path,
    target: Target,
    most_pixels: int = MOST_PIXELS,
    beat: Beat = lambda: None,
) -> None:
    """Write the frames of a video to `draft`, an mp4 file.

    Args:
        film: the video at `path`.
        beat: called for every frame, to show that the work goes on.

    Raises:
        UnreadableVideo: it cannot be decoded.
        OSError: the disk takes no more.
    """
    import av

    height, width = size_of(film, target)
    slowest = Fraction(1, MOST_DENOMINATOR)
    rate = max(Fraction(film.fps).limit_denominator(MOST_DENOMINATOR), slowest)
    try:
        with av.open(str(draft), "w", format="mp4", options=CONTAINER) as container:
            stream = container.add_stream(
                "libx264", rate=rate, options={**CODEC, "crf": str(target.quality)}
            )
            stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
            head = islice(pictures(path, most_pixels), film.frames)  # all of it, if it is whole
            for frame_HWC in _fitted(head, height, width):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame_HWC, format="rgb24")))
                beat()
            container.mux(stream.encode())
    except av.FFmpegError as error:
        if error.errno not in REFUSALS:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(draft)) from error


def size_of(film: Film, target: Target) -> tuple[int, int]:
    """Return height and width of the frames once rewritten: even, as the codec halves them."""
    short = min(film.height, film.width)
    scale = min(target.short_side / short, 1.0) if target.short_side else 1.0
    height, width = (max(round(side * scale), 1) for side in (film.height, film.width))
    return max(height - height % 2, 2), max(width - width % 2, 2)


def _fitted(whole: Iterator[np.ndarray], height: int, width: int) -> Iterator[np.ndarray]:
    """Bring every frame to a size: one column or row is cut off, else it is scaled."""
    for frame_HWC in whole:
        if all(0 <= a - b <= 1 for a, b in zip(frame_HWC.shape, (height, width), strict=False)):
            fitted_HWC = frame_HWC[:height, :width]
        else:
            fitted_HWC = frames.resize(frame_HWC[None], height, width)[0]
        yield np.ascontiguousarray(fitted_HWC)
