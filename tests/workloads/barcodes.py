"""Videos whose frames carry their number as a barcode: bars, black or white, survive any codec."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

BITS = 8


def barcode(number: int, height: int = 64, width: int = 96) -> np.ndarray:
    frame = np.full((height, width, 3), 128, np.uint8)
    for bit in range(BITS):
        bar = slice(bit * width // BITS, (bit + 1) * width // BITS)
        frame[height // 4 :, bar] = 235 if number >> bit & 1 else 20
    return frame


def numbers_of(frames_THWC: np.ndarray) -> list[int]:
    width = frames_THWC.shape[2]
    middles = [(2 * bit + 1) * width // (2 * BITS) for bit in range(BITS)]
    bars_TB = frames_THWC[:, frames_THWC.shape[1] // 2][:, middles].mean(axis=2) > 128
    return [sum(1 << bit for bit in range(BITS) if bars[bit]) for bars in bars_TB]


def write(
    path: Path,
    frames: Iterable[np.ndarray],
    codec: str = "libx264",
    pixels: str = "yuv420p",
    **options: str,
) -> Path:
    import av

    with av.open(str(path), "w") as container:
        stream = None
        for frame in frames:
            if stream is None:
                stream = container.add_stream(codec, rate=25, options=options)
                stream.height, stream.width = frame.shape[:2]
                stream.pix_fmt = pixels
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path
