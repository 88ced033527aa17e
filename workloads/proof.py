"""Proof that decord gives a video's true frames: all of them in order, and some at random.

    fault(path, probe(path))      # "" or what is wrong, in a few words

Random reads are placed where seeks go wrong, around key frames, and are about as much work as the
pass in order, however far the key frames are apart.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from workloads import readers
from workloads.probe import Beat, Film, hash_of
from workloads.readers import UnreadableVideo

NEAR_A_KEY = (-1, 0, 1, 2, 3)
LEAST_READS, MOST_READS = 8, 48


def fault(path: Path, film: Film, beat: Beat = lambda: None) -> str:
    """Return how decord's frames differ from the true ones; empty if they do not.

    Args:
        film: the video at `path` as PyAV sees it.
        beat: called for every frame, to show that the work goes on.
    """
    try:
        return _in_order(path, film, beat) or _at_random(path, film, beat)
    except UnreadableVideo as error:
        is_narrow = error.reason == readers.MISTAKEN_WIDTH
        return error.reason if is_narrow else "decord cannot read it"


def _in_order(path: Path, film: Film, beat: Beat) -> str:
    count = 0
    for number, frame_HWC in enumerate(readers.frames_of(path, "decord")):
        beat()
        if number >= film.frames or hash_of(frame_HWC) != film.hashes[number]:
            return f"decord gives another frame {number}"
        count += 1
    return "" if count == film.frames else f"decord gives {count} of {film.frames} frames"


def _at_random(path: Path, film: Film, beat: Beat) -> str:
    places = _places(film)
    for number, frame_HWC in zip(places, readers.sought(path, places), strict=True):
        beat()
        if hash_of(frame_HWC) != film.hashes[number]:
            return f"decord gives another frame {number} at random"
    return ""


def _places(film: Film) -> list[int]:
    """Return frames in a seeded order, most of them close to key frames."""
    keys = film.keys or (0,)
    reads = min(max(2 * len(keys), LEAST_READS), MOST_READS)  # each decodes half a GOP, on average
    rng = np.random.default_rng(film.frames)
    near = (int(key) + step for key in rng.permutation(keys) for step in NEAR_A_KEY)
    places = [place for place in near if 0 <= place < film.frames]
    del places[min(len(places), reads - reads // 4) :]
    places += rng.integers(0, film.frames, reads - len(places)).tolist()
    return [int(place) for place in rng.permutation(places)]
