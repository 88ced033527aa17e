"""Pictures that carry their number as bars, black or white, which survive any codec.

    [barcode(n) for n in range(90)]     ->     numbers_of(frames_THWC) == [0, 1, ..., 89]

Legend: T H W C frames, uint8 RGB.
"""

from __future__ import annotations

import numpy as np

BITS = 8
BLACK, GREY, WHITE = 20, 128, 235


def barcode(number: int, height: int = 64, width: int = 96) -> np.ndarray:
    """Return a frame (H, W, C) that shows a number below 256."""
    frame_HWC = np.full((height, width, 3), GREY, np.uint8)
    for bit in range(BITS):
        bar = slice(bit * width // BITS, (bit + 1) * width // BITS)
        frame_HWC[height // 4 :, bar] = WHITE if number >> bit & 1 else BLACK
    return frame_HWC


def numbers_of(frames_THWC: np.ndarray) -> list[int]:
    """Return the numbers that frames show."""
    width = frames_THWC.shape[2]
    middles = [(2 * bit + 1) * width // (2 * BITS) for bit in range(BITS)]
    bars_TB = frames_THWC[:, frames_THWC.shape[1] // 2][:, middles].mean(axis=2) > GREY
    return [sum(1 << bit for bit in range(BITS) if bars[bit]) for bars in bars_TB]
