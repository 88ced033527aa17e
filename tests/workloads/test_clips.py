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
from workloads.clips import Order, View, frame_indices, seed_of, view_start
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
    wanted = [cache.Entry(i, *row, key=f"key{i}") for i, row in enumerate(rows)]
    cache.make(tmp_path, tmp_path, wanted, 64, ("x", "y"))
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


# Segments: a frame from each of equal parts of the whole video.


SEGMENTS = clips.Config(frames=4, sampling="segments")


@pytest.mark.parametrize(
    ("num_frames", "view", "expected"),
    [
        (17, View(0, 1), [2, 6, 10, 14]),  # parts of 4: their middles
        (17, View(0, 3), [1, 5, 9, 13]),
        (17, View(2, 3), [3, 7, 11, 15]),
        (11, View(0, 1), [1, 3, 6, 9]),  # 2.5 and 7.5 round to even: 2 and 8
        (2, View(0, 1), [0, 0, 0, 1]),
        (1, View(1, 2), [0, 0, 0, 0]),
    ],
)
def test_views_of_segments_are_those_found_by_hand(
    num_frames: int, view: View, expected: list[int]
) -> None:
    assert frame_indices(num_frames, SEGMENTS, view) == expected


def test_training_draws_every_frame_of_every_segment_on_its_own() -> None:
    """Card 1: from round(s i) to round(s (i + 1)), both included."""
    rng = np.random.default_rng(0)
    drawn = np.array([frame_indices(17, SEGMENTS, rng.random()) for _ in range(400)])
    for i, frames_of_part in enumerate(drawn.T):
        assert {*frames_of_part.tolist()} == {*range(4 * i, 4 * i + 5)}
    offsets = drawn - 4 * np.arange(4)
    assert len({*map(tuple, offsets.tolist())}) > 200  # not one offset for all of them
    assert frame_indices(17, SEGMENTS, 0.3) == frame_indices(17, SEGMENTS, 0.3)


def test_a_view_of_a_dense_clip_starts_in_its_share() -> None:
    spec = clips.Config(frames=4, stride=2.0)
    for view, start in enumerate((0.25, 0.75)):
        assert frame_indices(30, spec, View(view, 2)) == frame_indices(30, spec, start)


@pytest.mark.parametrize("num_frames", [1, 2, 9, 16, 17, 40])
@pytest.mark.parametrize("step", [1, 2, 4])
def test_dense_indices_step_while_a_frame_follows(num_frames: int, step: int) -> None:
    for start in range(1, num_frames + 1):
        place, expected = start, []
        for _ in range(8):
            expected.append(place - 1)
            place += step if place + step < num_frames else 0
        assert clips.dense_indices(num_frames, 8, step, start) == expected


# The flexible grid.

GRIDS = clips.Grids(frames=(6, 8, 12), sizes=(32, 48, 64), least=100, most=400)


def test_shapes_are_those_inside_the_limits() -> None:
    assert GRIDS.legal(patch=8) == (
        (6, 48, 216),
        (6, 64, 384),
        (8, 32, 128),
        (8, 48, 288),
        (12, 32, 192),
    )
    assert GRIDS.legal(patch=8, tubelet=2) == (
        (6, 48, 108),
        (6, 64, 192),
        (8, 48, 144),
        (8, 64, 256),
        (12, 48, 216),
        (12, 64, 384),
    )


def test_the_released_grid_of_flux_has_as_many_shapes_as_counted() -> None:
    """Card 1: 51, 41 and 26 legal pairs, none with 112 px."""
    released = clips.Grids(frames=tuple(range(6, 26, 2)), sizes=tuple(range(112, 364, 28)))
    for most, count in ((8192, 51), (6144, 41), (4096, 26)):
        shapes = replace(released, least=2048, most=most).legal(patch=14)
        assert len(shapes) == count
        assert all(shape.size > 112 for shape in shapes)


def test_no_shapes_inside_the_limits_is_a_mistake() -> None:
    with pytest.raises(Mistake, match="no shape has 1000 to 2000 tokens\n  these have 96 to 768"):
        replace(GRIDS, least=1000, most=2000).legal(patch=8)
    with pytest.raises(Mistake, match="no shape has"):
        clips.Grids(frames=(8,)).legal(patch=8)
    assert clips.Grids().legal(patch=8) == ()


def test_each_step_draws_a_shape_uniformly_and_the_same_wherever_asked() -> None:
    """Card 1, P13."""
    shapes = GRIDS.legal(patch=8)
    drawn = [clips.draw_shape(shapes, 3, step) for step in range(2000)]
    counts = Counter(drawn)
    assert counts.keys() == {*shapes}
    assert max(abs(count - 400) for count in counts.values()) < 90  # 5 standard deviations
    assert [clips.draw_shape(shapes, 3, step) for step in (1999, 7)] == [drawn[1999], drawn[7]]
    assert [clips.draw_shape(shapes, 4, step) for step in range(50)] != drawn[:50]


def test_more_frames_are_denser_never_longer() -> None:
    """Card 1: a shape keeps the time that a clip spans."""
    spec = clips.Config(frames=8, stride=3.0, size=64)
    for frames_ in (6, 12, 24):
        longer = clips.shaped(spec, clips.Shape(frames_, 32, 0))
        assert (longer.frames, longer.size) == (frames_, 32)
        assert longer.frames * longer.stride == spec.frames * spec.stride
