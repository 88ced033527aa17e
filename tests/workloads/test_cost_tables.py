"""The papers' own tables of cost, out of our model of cost, counted as each paper counts."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from workloads import cost
from workloads.cost import COUNTINGS
from workloads.models import videomae
from workloads.reducers import tome

CLIP = (1, 3, 16, 224, 224)
VIDEOMAE = {name: videomae.Config(**size) for name, size in videomae.SIZES.items()}
# 12 frames, each a tubelet: 2 352 tokens.
UMT = {name: videomae.Config(**videomae.SIZES[name], tubelet=1) for name in ("base", "large")}


def gmacs(config: Any, shape: tuple[int, ...], chain: tuple[Any, ...], paper: str) -> float:
    trace = cost.foresee(config, torch.zeros(shape), chain)
    return cost.by_paper(trace, COUNTINGS[paper], config.dim) / 1e9


@pytest.mark.parametrize(("size", "published"), [("base", 180.3), ("large", 596.8), ("huge", 1191)])
def test_videomae_of_16_frames(size: str, published: float) -> None:
    assert gmacs(VIDEOMAE[size], CLIP, (), "mats") == pytest.approx(published, abs=0.06)


@pytest.mark.parametrize(
    ("size", "published", "left"), [("base", 128.9, 788), ("large", 280.4, 37)]
)
def test_tome_at_r_65(size: str, published: float, left: int) -> None:
    """In ViT-L the last blocks may only merge half of their tokens."""
    chain = (tome.Config(r=65),)
    assert gmacs(VIDEOMAE[size], CLIP, chain, "tome") == pytest.approx(published, abs=0.06)
    assert cost.foresee(VIDEOMAE[size], torch.zeros(CLIP), chain).left == (left,)


@pytest.mark.parametrize(("size", "published"), [("base", 303.3), ("large", 984.6)])
def test_umt_of_12_frames(size: str, published: float) -> None:
    shape = (1, 3, 12, 224, 224)
    assert gmacs(UMT[size], shape, (), "vid_tldr") == pytest.approx(published, abs=0.05)
