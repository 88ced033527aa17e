"""The shelf gives what the clips give, prepares nothing twice, and keeps within its room."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from movies import movies

from workloads import clips, shelf
from workloads.clips import ClipSet, View
from workloads.shelf import Shelf

CONFIG = clips.Config(frames=4, stride=2.0, size=16)
VIEWS = [View(0, 1)]
BYTES = 4 * 16 * 16 * 3  # of a clip


@pytest.fixture
def counted() -> tuple[ClipSet, Counter[int]]:
    """Clips that count how often each is read."""
    reads: Counter[int] = Counter()
    whole = movies(val=7, test=4)

    def frames_of(clip_id: int) -> np.ndarray:
        reads[clip_id] += 1
        return whole.frames_of(clip_id)

    return replace(whole, frames_of=frames_of), reads


def walk(one: Shelf, ids: range, name: str = "a", config: clips.Config = CONFIG) -> None:
    for clip_id in ids:
        one.load([clip_id], config, VIEWS, name)


def test_what_it_gives_is_what_the_clips_give(counted: tuple[ClipSet, Counter[int]]) -> None:
    clip_set, reads = counted
    one = Shelf(clip_set)
    for _ in range(2):
        found = one.load([1, 3], CONFIG, VIEWS * 2, "a")
        assert torch.equal(found, clip_set.load([1, 3], CONFIG, VIEWS * 2))
    assert reads[1] == 1 + 2, "once for the shelf"


@pytest.mark.parametrize(
    "change",
    [
        lambda one: one.load([2], CONFIG, VIEWS, "a"),
        lambda one: one.load([1], replace(CONFIG, size=8), VIEWS, "a"),
        lambda one: one.load([1], CONFIG, [View(1, 2)], "a"),
    ],
)
def test_other_clips_configs_and_views_are_others(
    change: Callable[[Shelf], Any], counted: tuple[ClipSet, Counter[int]]
) -> None:
    clip_set, reads = counted
    one = Shelf(clip_set)
    one.load([1], CONFIG, VIEWS, "a")
    change(one)
    assert sum(reads.values()) == 2


def test_a_pass_over_more_than_fits_finds_what_it_kept(
    counted: tuple[ClipSet, Counter[int]],
) -> None:
    clip_set, reads = counted
    one = Shelf(clip_set, room_bytes=3 * BYTES)
    walk(one, range(5))
    walk(one, range(5))
    assert [reads[i] for i in range(5)] == [1, 1, 1, 2, 2]


def test_the_pass_that_rested_longest_makes_way(counted: tuple[ClipSet, Counter[int]]) -> None:
    clip_set, reads = counted
    one = Shelf(clip_set, room_bytes=3 * BYTES)
    walk(one, range(1), "a")
    walk(one, range(1, 2), "b")
    walk(one, range(1), "a")
    walk(one, range(2, 4), "c")
    assert [reads[i] for i in range(4)] == [1] * 4
    walk(one, range(1), "a")
    assert reads[0] == 1
    walk(one, range(1, 2), "b")
    assert reads[1] == 2


def test_a_process_keeps_clips_of_one_set() -> None:
    first, second = movies(val=2, test=1), movies(val=2, test=1)
    kept = shelf.of(first)
    assert shelf.of(first) is kept
    assert shelf.of(second) is not kept
    assert shelf.of(first) is not kept
