"""How large frames are kept, and that stages know it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from toys import SPACE, toy

from orchestrator import data
from search_spaces import demo
from search_spaces.space import Space
from workloads import clips
from workloads.datasets import Clip, Manifest
from workloads.knobs import Int


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
