"""Costs against published figures, against torch's own counter, and by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from packing import draw
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from workloads import cost
from workloads.models import videomae
from workloads.reducers import drop, mats, rlt, tome
from workloads.vit import VideoTransformer

DIM, HIDDEN, DEPTH, CLASSES = 24, 96, 3, 5
TUBELET_VALUES = 3 * 2 * 4**2
CHAINS: dict[str, tuple[Any, ...]] = {
    "dense": (),
    "rlt": (rlt.Config(tau=0.1),),
    "tome": (tome.Config(r=7),),
    "drop+tome": (drop.Config(keep=0.4), tome.Config(r=3)),
}


def host_of(**changes: Any) -> videomae.Config:
    return videomae.Config(
        **{"dim": DIM, "depth": DEPTH, "heads": 2, "patch": 4, "frames": 8, "size": 16} | changes
    )


def model_of(**changes: Any) -> VideoTransformer:
    return host_of(**changes).build(CLASSES)


@pytest.fixture(name="clip_BCTHW")
def unequal_clips() -> Tensor:
    """Three clips; one stands still, one freezes half-way."""
    clip = draw(3, 3, 8, 16, 16)
    clip[0] = clip[0, :, :1]
    clip[1, :, 4:] = clip[1, :, 3:4]
    return clip


def by_hand(lengths: list[int], num_embedded: int) -> float:
    """Count one clip by the table in the module, from the tokens that enter each block."""
    total = num_embedded * DIM * TUBELET_VALUES
    for n in lengths:
        total += 4 * n * DIM**2 + 2 * n**2 * DIM + 2 * n * DIM * HIDDEN
    return total + lengths[-1] * DIM + DIM * CLASSES


@pytest.mark.parametrize("name", CHAINS)
def test_costs_are_those_of_torchs_own_counter(name: str, clip_BCTHW: Tensor) -> None:
    """It counts products of matrices, two FLOPs a MAC; what `select` costs is none."""
    model = model_of(pool="attention")
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        model(clip_BCTHW, CHAINS[name])
    macs = cost.macs(model, clip_BCTHW, CHAINS[name])
    assert counter.get_total_flops() == 2 * 3 * (macs["total"] - macs["select"])


def test_dense_cost_is_the_formula(clip_BCTHW: Tensor) -> None:
    assert cost.macs(model_of(), clip_BCTHW)["total"] == by_hand([64] * DEPTH, 64)


def test_cost_is_taken_by_clip_and_then_averaged(clip_BCTHW: Tensor) -> None:
    """Attention is quadratic: the cost of the mean number of tokens would be less."""
    model, chain = model_of(), CHAINS["rlt"]
    _, trace = model.traced(clip_BCTHW, chain)
    lengths = trace.left
    assert lengths[0] == 16 < lengths[1] < lengths[2] == 64
    alone = [by_hand([n] * DEPTH, n) for n in lengths]
    macs = cost.macs(model, clip_BCTHW, chain)
    assert macs["total"] - macs["select"] == pytest.approx(np.mean(alone), rel=1e-12)
    mean = sum(lengths) / 3
    assert macs["total"] - macs["select"] > by_hand([mean] * DEPTH, mean)


@pytest.mark.parametrize("name", CHAINS)
def test_parts_add_up_to_the_total_and_clips_to_the_mean(name: str, clip_BCTHW: Tensor) -> None:
    model, chain = model_of(), CHAINS[name]
    macs = cost.macs(model, clip_BCTHW, chain)
    assert macs.keys() == {"total", *cost.PARTS}
    assert macs["total"] == pytest.approx(sum(macs[part] for part in cost.PARTS), rel=1e-12)
    _, trace = model.traced(clip_BCTHW, chain)
    by_clip = cost.macs_by_clip(trace)
    for part in cost.PARTS:
        assert by_clip[part].shape == (3,)
        assert by_clip[part].mean() == pytest.approx(macs[part], rel=1e-12)


@pytest.mark.parametrize("name", CHAINS)
def test_what_is_foreseen_is_what_happens(name: str, clip_BCTHW: Tensor) -> None:
    config = host_of()
    _, measured = config.build(CLASSES).traced(clip_BCTHW, CHAINS[name])
    foreseen = cost.foresee(config, clip_BCTHW, CHAINS[name])
    seen = [
        [
            (v.part, v.layer, v.lengths, v.clips, v.price(7))
            for v in trace.visits
            if v.part != "head"
        ]
        for trace in (measured, foreseen)
    ]
    assert seen[0] == seen[1]


def test_a_choice_of_frames_is_foreseen_from_clips_that_lie_elsewhere(clip_BCTHW: Tensor) -> None:
    chain = (mats.Config(keep=0.5, alpha=2.0),)
    foreseen = cost.foresee(host_of(), clip_BCTHW, chain)
    _, measured = host_of().build(CLASSES).traced(clip_BCTHW, chain)
    assert foreseen.left == measured.left


def test_only_what_acts_costs_something(clip_BCTHW: Tensor) -> None:
    costs = {name: cost.macs(model_of(), clip_BCTHW, chain) for name, chain in CHAINS.items()}
    assert {name for name, macs in costs.items() if macs["select"]} == {"rlt"}  # a draw is free
    assert {name for name, macs in costs.items() if macs["match"]} == {"tome", "drop+tome"}
    one_frame_of_each_tubelet = 3 * 4 * 16 * 16  # colours, tubelets, pixels
    assert costs["rlt"]["select"] == one_frame_of_each_tubelet


def test_unselected_tokens_are_not_embedded(clip_BCTHW: Tensor) -> None:
    macs = cost.macs(model_of(), clip_BCTHW, (drop.Config(keep=0.25),))
    assert macs["embed"] == 16 * DIM * TUBELET_VALUES


def test_tokens_are_a_mean_over_blocks_and_stay_apart_by_clip(clip_BCTHW: Tensor) -> None:
    model = model_of()
    _, trace = model.traced(clip_BCTHW, CHAINS["tome"])
    assert cost.tokens_by_clip(trace).tolist() == [(64 + 57 + 50) / 3] * 3
    _, trace = model.traced(clip_BCTHW, CHAINS["rlt"])
    assert cost.tokens_by_clip(trace).tolist() == [float(n) for n in trace.left]
