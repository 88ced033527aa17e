"""A set of clips in memory: two classes that any small model can learn in a few steps."""

from __future__ import annotations

import numpy as np

from workloads.clips import ClipSet

SIDE, FRAMES = 16, 12


def movie(clip_id: int) -> np.ndarray:
    """Return frames (T, H, W, C): a bright square crosses a still ground, high up (class 0) or low
    down (class 1). Each clip has a ground of its own.
    """
    rng = np.random.default_rng(clip_id)
    ground_HWC = rng.integers(40, 120, (SIDE, SIDE, 3), np.uint8)
    frames_THWC = np.repeat(ground_HWC[None], FRAMES, axis=0)
    top = 2 if clip_id % 2 == 0 else 10
    for t in range(FRAMES):
        frames_THWC[t, top : top + 4, t : t + 4] = 250
    return frames_THWC


def movies(train: int = 12, val: int = 6, test: int = 4) -> ClipSet:
    """Return clips of both classes in turn, in three splits."""
    total = train + val + test
    return ClipSet(
        names=tuple(f"clip{i}" for i in range(total)),
        labels=tuple(i % 2 for i in range(total)),
        classes=("high", "low"),
        splits={
            "train": tuple(range(train)),
            "val": tuple(range(train, train + val)),
            "test": tuple(range(train + val, total)),
        },
        frames_of=movie,
    )
