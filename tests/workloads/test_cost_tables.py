"""The papers' own tables of cost, out of our model of cost, counted as each paper counts."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from workloads import cost, decoder, mae
from workloads.cost import COUNTINGS
from workloads.models import clip, fluxvit, videomae
from workloads.reducers import flux, inti, mats, tome, vid_tldr
from workloads.reducers.mats import keep_of

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


@pytest.mark.parametrize(
    ("size", "published"),
    [("small", 29.0), ("base", 97.97), ("large", 329.8), ("huge", 666.9)],
)
def test_everest_fine_tuning_at_keep_06(size: str, published: float) -> None:
    chain = (mats.Config(keep=0.6),)
    assert gmacs(VIDEOMAE[size], CLIP, chain, "mats") == pytest.approx(published, abs=0.06)


# Schedules and figures of the official commands; blocks that are not listed merge nothing.
TLDR = {
    "base": {
        (600, 200, 100): (178.0, 1452),
        (450, 250, 200): (181.3, 1452),
        (500,): (227.6, 1852),
        (250, 150, 150, 150): (212.8, 1652),
        (400, 150, 150): (206.2, 1652),
        (200, 200, 200, 100): (212.9, 1652),
        (400, 300): (203.7, 1652),
        (600, 200): (188.5, 1552),
    },
    "large": {
        (550, 400): (543.4, 1402),
        (600, 200, 100, 100): (528.6, 1352),
        (600, 300): (563.1, 1452),
        (800, 100): (559.0, 1452),
        (250, 250, 200, 200): (583.7, 1452),
        (450, 250, 100): (610.9, 1552),
        (350, 300, 100, 50): (615.7, 1552),
        (400, 400, 100): (569.8, 1452),
    },
}


@pytest.mark.parametrize(
    ("size", "counts", "published", "left"),
    [(size, counts, *row) for size, rows in TLDR.items() for counts, row in rows.items()],
)
def test_vid_tldr_on_umt(size: str, counts: tuple[float, ...], published: float, left: int) -> None:
    chain, shape = (vid_tldr.Config(counts=counts),), (1, 3, 12, 224, 224)
    assert gmacs(UMT[size], shape, chain, "vid_tldr") == pytest.approx(published, abs=0.06)
    assert cost.foresee(UMT[size], torch.zeros(shape), chain).left == (left,)


def test_vid_tldr_and_umt_to_the_digits_of_the_authors_counter() -> None:
    shape = (1, 3, 12, 224, 224)
    assert round(gmacs(UMT["base"], shape, (), "vid_tldr"), 3) == 303.343
    chain = (vid_tldr.Config(counts=(600, 200, 100)),)
    assert round(gmacs(UMT["base"], shape, chain, "vid_tldr"), 3) == 177.984


BUDGETS = (3072, 2048, 1024, 512)


@pytest.mark.parametrize(
    ("size", "budget", "computed", "published"),
    [
        ("small", *row)
        for row in zip(BUDGETS, (153.9, 83.3, 32.0, 13.6), (154, 83, 32, 13), strict=True)
    ]
    + [
        ("base", *row)
        for row in zip(BUDGETS, (440.1, 254.8, 108.1, 49.3), (440, 255, 108, 49), strict=True)
    ],
)
def test_fluxvit_at_a_budget(size: str, budget: int, computed: float, published: int) -> None:
    """The same from any grid: embedding what is not selected is not counted there, and is here."""
    config = fluxvit.Config(**fluxvit.SIZES[size])
    chain = (flux.Config(budget=budget),)
    for shape in ((1, 3, 16, 224, 224), (1, 3, 24, 252, 252)):
        counted = gmacs(config, shape, chain, "flux")
        assert counted == pytest.approx(computed, abs=0.06)
        assert counted == pytest.approx(published, abs=0.7)
    trace = cost.foresee(config, torch.zeros(1, 3, 24, 252, 252), chain)
    embedded = cost.macs_by_clip(trace)["embed"][0]
    assert embedded == 24 * 18 * 18 * 588 * config.dim


# Width and heads of the decoder that the papers take for each size.
DECODERS = {"small": (192, 3), "base": (384, 6), "large": (512, 8), "huge": (640, 8)}


@pytest.mark.parametrize(
    ("size", "keep", "published"),
    [
        ("small", 0.3, 5.74),
        ("base", 0.3, 19.78),
        ("large", 0.3, 57.92),
        ("huge", 0.3, 114.0),
        ("small", 1.0, 11.54),
        ("base", 1.0, 35.44),
        ("large", 1.0, 83.03),
        ("huge", 1.0, 150.8),
    ],
)
def test_masked_pre_training_with_everest_and_without(
    size: str, keep: float, published: float
) -> None:
    """A tenth of the tokens is visible; without selection (VideoMAE) all others are decoded.

    VideoMAE's tubes leave 20 of 196 tokens a frame visible, which is 4 more than a tenth of 1 568.
    """
    visible_keep = keep_of(0.9) if keep < 1 else 160.5 / 1568
    config, (dim, heads) = VIDEOMAE[size], DECODERS[size]
    shape = decoder.Config(dim=dim, heads=heads)
    with torch.device("meta"):
        model = mae.build(config, (mats.Config(keep=keep),), shape, visible_keep)
    _, trace = model.traced(torch.zeros(CLIP))
    counted = cost.by_paper(trace, COUNTINGS["mats"], config.dim) / 1e9
    assert counted == pytest.approx(published, rel=1e-3)


@pytest.mark.parametrize(
    ("depth", "halve_after"),
    [
        (12, (3,)),
        (24, (6,)),
        (12, (4, 10)),
        (12, (5, 8)),
        (12, (6, 6)),
        (24, (8, 20)),
        (24, (9, 18)),
        (24, (10, 16)),
        (24, (12, 12)),
    ],
)
def test_inti_saves_three_eighths_of_the_blocks(depth: int, halve_after: tuple[int, ...]) -> None:
    size = clip.SIZES["base16" if depth == 12 else "large14"]
    config, shape = clip.Config(**size), (1, 3, 8, 224, 224)
    chain = (inti.Config(halve_after=halve_after),)
    dense = gmacs(config, shape, (), "inti")
    assert 1 - gmacs(config, shape, chain, "inti") / dense == pytest.approx(0.375, abs=1e-12)
