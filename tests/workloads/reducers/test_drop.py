"""Random drop at a number of tokens."""

from __future__ import annotations

import pytest
import torch
from scenes import SEEDS, scene

from workloads.mistakes import Mistake
from workloads.models import videomae
from workloads.reducers import drop

HOST = videomae.Config(dim=24, depth=2, heads=2, patch=4, frames=8, size=16)


@torch.no_grad()
@pytest.mark.parametrize("size", [16, 24])
def test_a_budget_is_as_many_tokens_of_any_grid(size: int) -> None:
    clip_BCTHW = scene(frames=8, height=size, width=size)
    _, trace = HOST.build(3).traced(clip_BCTHW, (drop.Config(budget=20),), seeds=SEEDS)
    assert trace.left == (20,) * len(clip_BCTHW)


def test_a_budget_and_its_share_keep_the_same_tokens() -> None:
    clip_BCTHW = scene(frames=8, height=16, width=16)
    by_share = drop.Config(keep=drop.keep_for(64, 20)).build(HOST.host())
    by_number = drop.Config(budget=20).build(HOST.host())
    assert torch.equal(by_share.select(clip_BCTHW, SEEDS), by_number.select(clip_BCTHW, SEEDS))


def test_a_budget_above_the_grid_is_refused() -> None:
    with pytest.raises(Mistake, match="budget=65 is more than the 64 tokens"):
        HOST.build(3)(scene(frames=8, height=16, width=16), (drop.Config(budget=65),))
    with pytest.raises(Mistake, match="budget=-1 must be 0 or more"):
        drop.Config(budget=-1)
