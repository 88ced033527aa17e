"""Pixels of stored frames: the one resize, for the cache and for every clip.

Decoding tasks import this without torch, whose import would be most of what they do; it is fetched
where frames really change their size.

Legend: T H W C frames from the decoder, uint8.
"""

from __future__ import annotations

import numpy as np

REVISION = 1


def resize(frames_THWC: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return uint8 frames at another size: bilinear, antialiased. The only resize there is."""
    if frames_THWC.shape[1:3] == (height, width):
        return frames_THWC
    import torch
    from torch.nn import functional as F

    # What torch takes, copied only if need be.
    ours_THWC = np.require(frames_THWC, requirements=("C", "W"))
    frames_TCHW = torch.from_numpy(ours_THWC).permute(0, 3, 1, 2)
    small = F.interpolate(frames_TCHW, size=(height, width), mode="bilinear", antialias=True)
    return small.permute(0, 2, 3, 1).contiguous().numpy()


def cap(frames_THWC: np.ndarray, short_side: int) -> np.ndarray:
    """Return frames whose short side is at most `short_side`, in their own proportions."""
    height, width = frames_THWC.shape[1:3]
    if min(height, width) <= short_side:
        return frames_THWC
    scale = short_side / min(height, width)
    return resize(frames_THWC, max(round(height * scale), 1), max(round(width * scale), 1))


def square(frames_THWC: np.ndarray, size: int) -> np.ndarray:
    """Return the middle square of frames, its side `size` pixels."""
    height, width = frames_THWC.shape[1:3]
    scale = size / min(height, width)
    frames_THWC = resize(frames_THWC, round(height * scale), round(width * scale))
    top, left = (side // 2 - size // 2 for side in frames_THWC.shape[1:3])
    return frames_THWC[:, top : top + size, left : left + size]
