"""How large frames are kept, that stages know it, and what is said of the cache."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from toys import SPACE, toy

from orchestrator import data, summary
from orchestrator.__main__ import parser
from orchestrator.room import Room
from search_spaces import demo
from search_spaces.space import Space
from workloads import cache, clips
from workloads.datasets import Clip, Manifest
from workloads.knobs import Int
from workloads.mistakes import Mistake


@pytest.mark.parametrize(
    ("searched", "side"), [(None, 64), (Int(24, 64, step=8), 64), (Int(24, 72, step=8), 128)]
)
def test_frames_are_kept_large_enough_for_whatever_may_be_searched(
    searched: Int | None, side: int
) -> None:
    sizes = {} if searched is None else {"evaluate.clip.size": searched}
    assert data.short_side(toy(space=Space({**dict(SPACE.domains), **sizes}))) == side


def test_frames_are_kept_large_enough_for_every_grid_of_a_training() -> None:
    train, measure = demo.study().stages
    grids = clips.Grids(frames=(8, 16), sizes=(40, 72), least=100, most=1000)
    wide = replace(train, config=replace(train.config, grids=grids))
    chain = (wide, replace(measure, inputs=(("weights", wide),)))
    assert data.short_side(toy(stages=chain)) == 128


def test_frames_kept_smaller_make_other_stages() -> None:
    manifest = Manifest(root=Path(), clips=(Clip("a.mp4", "a"),), digest="0")
    assert data.digest_of(manifest, 64) == data.digest_of(manifest, 64)
    assert data.digest_of(manifest, 64) != data.digest_of(manifest, 128)


def test_the_limit_of_the_cache_is_a_number_of_gib() -> None:
    asked = parser().parse_args
    assert asked(["run", "demo"]).cache is None
    assert asked(["run", "demo", "--cache", "0"]).cache == 0
    assert asked(["run", "demo", "--cache", "0.5"]).cache == 0.5
    for wrong in ("-1", "nan", "inf", "much"):
        with pytest.raises(Mistake, match=f"--cache.*'{wrong}' must be a number of GiB, 0 or more"):
            asked(["run", "demo", f"--cache={wrong}"])


def test_a_cache_that_is_too_small_is_told() -> None:
    clips_ = tuple(Clip(f"{i}.mp4", "a") for i in range(5))
    manifest = Manifest(root=Path(), clips=clips_, digest="0")
    room = Room(Path(), 3 * 2**29)
    bad = [cache.Entry(4, "4.mp4", 0, "val", reason="empty file")]
    assert data.told_full(data.Filled(bad, 5, 4), manifest, room) == ""
    assert data.told_full(data.Filled(bad, 5, 3), manifest, room) == (
        "cache  3 of 4 clips fit into 1.5 GiB; the others are decoded again"
    )


def test_videos_that_are_too_long_for_the_cache_are_told(tmp_path: Path) -> None:
    short = cache.Entry(0, "0.mp4", 0, "val", frames=600)
    long = replace(short, clip=1, frames=601)
    cache.publish(tmp_path, [short], ("a",))
    assert data.told_long(tmp_path) == ""
    cache.publish(tmp_path, [short, long], ("a",))
    told = "1 of 2 videos have more than 600 frames: they are decoded for each clip"
    assert data.told_long(tmp_path) == f"{told}; faster after `paretoken ingest`"
    cache.publish(tmp_path, [short, replace(long, seeks=True)], ("a",))
    assert data.told_long(tmp_path) == told


def test_the_time_that_stages_waited_for_clips_is_told() -> None:
    call = {"busy_s": 80.0, "data_wait_s": 12.04, "decoded": 411}
    assert summary.told_of_waiting(call) == (
        "clips   waited for 12.0 of 80.0 s in stages (15%); 411 videos were decoded"
    )
    assert summary.told_of_waiting({}) == ""
