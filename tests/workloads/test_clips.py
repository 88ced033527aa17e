"""Frames to clips: indices by hand, the one resize, the order of training, seeds."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from barcodes import barcode, numbers_of, write
from movies import movie, movies

from workloads import cache, clips, frames
from workloads.clips import Order, frame_indices, seed_of, view_start
from workloads.mistakes import Mistake


@pytest.mark.parametrize(
    ("num_frames", "spec", "start", "expected"),
    [
        (20, {"frames": 4, "stride": 4.0}, 0.0, [0, 4, 8, 12]),
        (20, {"frames": 4, "stride": 4.0}, 1.0, [7, 11, 15, 19]),
        (21, {"frames": 4, "stride": 4.0}, 0.5, [4, 8, 12, 16]),  # half of 8 spare frames
        (20, {"frames": 4, "stride": 2.5}, 0.0, [0, 2, 5, 7]),
        (10, {"frames": 4, "stride": 4.0}, 0.7, [0, 4, 8, 9]),  # too short: the last one repeats
        (1, {"frames": 3, "stride": 1.0}, 0.5, [0, 0, 0]),
        (8, {"frames": 8, "stride": 1.0}, 1.0, [0, 1, 2, 3, 4, 5, 6, 7]),
        (5, {"frames": 4, "stride": 0.5}, 0.0, [0, 0, 1, 1]),
    ],
)
def test_frame_indices_are_those_found_by_hand(
    num_frames: int, spec: dict[str, Any], start: float, expected: list[int]
) -> None:
    assert frame_indices(num_frames, clips.Config(**spec), start) == expected


def test_training_may_start_at_every_frame_that_leaves_room() -> None:
    rng, spec = np.random.default_rng(0), clips.Config(frames=8, stride=1.0)
    firsts = Counter(frame_indices(10, spec, rng.random())[0] for _ in range(300))
    assert firsts.keys() == {0, 1, 2}


def test_views_start_in_the_middle_of_equal_parts() -> None:
    assert [view_start(view, 1) for view in range(1)] == [0.5]
    assert [view_start(view, 4) for view in range(4)] == [0.125, 0.375, 0.625, 0.875]


def test_resize_is_the_identity_at_equal_size() -> None:
    frames_THWC = movie(0)
    assert frames.resize(frames_THWC, 16, 16) is frames_THWC


def test_resize_averages_where_it_shrinks() -> None:
    """A checkerboard becomes grey: without antialiasing each pixel would be one of its fields."""
    board_HW = np.indices((15, 15)).sum(axis=0) % 2 * 200
    frames_THWC = np.repeat(board_HW[None, :, :, None], 3, axis=3).astype(np.uint8)
    small = frames.resize(frames_THWC, 5, 5)
    assert small.dtype == np.uint8
    assert small.shape == (1, 5, 5, 3)
    assert np.abs(small.astype(int) - 100).max() <= 40


def test_squash_shows_the_whole_frame_and_crop_its_middle() -> None:
    wide_THWC = np.zeros((2, 8, 24, 3), np.uint8)
    wide_THWC[:, :, 8:16] = 200  # the middle third
    crop = clips.fit(wide_THWC, clips.Config(size=8, fit="crop"))
    assert crop.shape == (2, 8, 8, 3)
    assert (crop == 200).all()
    squashed = clips.fit(wide_THWC, clips.Config(size=8, fit="squash"))
    assert squashed.shape == (2, 8, 8, 3)
    assert squashed[0, 0, :, 0][[0, 4, 7]].tolist() == [0, 200, 0]


@pytest.mark.parametrize("wrong", [{"frames": 0}, {"stride": 0.0}, {"size": 0}])
def test_clips_of_nothing_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(Mistake, match="must be above 0"):
        clips.Config(**wrong)


def test_loaded_clips_are_frames_read_by_hand() -> None:
    spec = clips.Config(frames=3, stride=2.0, size=16)
    batch_BCTHW = movies().load((4, 1), spec, (0.0, 1.0))
    assert batch_BCTHW.dtype == torch.uint8
    assert batch_BCTHW.shape == (2, 3, 3, 16, 16)
    for clip_CTHW, clip_id, chosen in zip(
        batch_BCTHW, (4, 1), ([0, 2, 4], [7, 9, 11]), strict=True
    ):
        expected = torch.from_numpy(movie(clip_id)[chosen]).permute(3, 0, 1, 2)
        assert torch.equal(clip_CTHW, expected)
    assert movies().labels_of((4, 1)).tolist() == [0, 1]


def test_a_clip_does_not_depend_on_its_batch() -> None:
    spec = clips.Config(frames=4, stride=1.5, size=12)
    together = movies().load((0, 5, 3), spec, (0.2, 0.4, 0.9))
    assert torch.equal(together[1:2], movies().load((5,), spec, (0.4,)))


def test_clips_of_a_cache_are_those_of_the_videos(tmp_path: Path) -> None:
    for name, first in (("a.mp4", 0), ("b.mp4", 100)):
        write(tmp_path / name, (barcode(first + i) for i in range(10)))
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    rows = [("a.mp4", 0, "train"), ("broken.mp4", 1, "train"), ("b.mp4", 1, "val")]
    wanted = [cache.Entry(i, *row) for i, row in enumerate(rows)]
    cache.publish(tmp_path, cache.write_shard(tmp_path, tmp_path, wanted, 64), ("x", "y"))
    clip_set = clips.open_clips(tmp_path)
    assert clip_set.names == ("a.mp4", "broken.mp4", "b.mp4")
    assert clip_set.labels == (0, 1, 1)
    assert clip_set.classes == ("x", "y")
    assert clip_set.splits == {"train": (0,), "val": (2,)}  # unreadable clips are in no split
    assert numbers_of(clip_set.frames_of(2)) == list(range(100, 110))


def test_seeds_differ_by_every_part_and_by_order_and_fit_torch() -> None:
    parts = [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (2, 1, 0), (0, 1, 2)]
    seeds = {part: seed_of(*part) for part in parts}
    assert len({*seeds.values()}) == len(parts)
    assert seeds == {part: seed_of(*part) for part in parts}
    assert all(0 <= seed < 2**63 for seed in seeds.values())


# The order of training.

ORDER = Order(ids=tuple(range(100, 110)), batch=4, seed=3)


def test_each_epoch_shows_each_clip_once_in_an_order_of_its_own() -> None:
    places = [place for step in range(10) for place in ORDER.at(step)]  # 40: four epochs
    epochs = [[clip for epoch, clip in places if epoch == e] for e in range(4)]
    assert [epoch for epoch, _ in places] == [0] * 10 + [1] * 10 + [2] * 10 + [3] * 10
    assert all(sorted(epoch) == list(ORDER.ids) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert ORDER.at(0) != replace(ORDER, seed=4).at(0)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_ranks_share_the_batch_in_runs_whatever_their_number(world: int) -> None:
    for step in (0, 2, 7):  # the third batch lies in two epochs
        shares = [ORDER.at(step, rank, world) for rank in range(world)]
        assert [place for share in shares for place in share] == ORDER.at(step)


def test_a_step_can_be_asked_for_without_those_before() -> None:
    assert Order(ORDER.ids, 4, 3).at(7) == ORDER.at(7)


def test_batches_may_be_larger_than_the_set() -> None:
    places = replace(ORDER, batch=25).at(0)
    assert Counter(epoch for epoch, _ in places) == {0: 10, 1: 10, 2: 5}
