"""Timing: two sides in turns, medians and quartiles, memory that grows with the batch."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from movies import movies
from safetensors.torch import save_file

from workloads import clips, evaluate, finetune, timing
from workloads.mistakes import Mistake
from workloads.models import videomae
from workloads.reducers import drop, rlt
from workloads.stage import Input, Quiet, Result

TRAINING = finetune.Config(
    model=videomae.Config(dim=32, depth=2, heads=2, patch=4, frames=8, size=32),
    clip=clips.Config(frames=8, stride=1.0, size=32),
    steps=1,
    batch=2,
)
DENSE = evaluate.Config(clip=TRAINING.clip, split="test")
CONFIG = timing.Config(clip=TRAINING.clip, dense=DENSE, batch=4, singles=5, repeats=3)
CLIPS = movies(val=2, test=6)


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """One core: two of a machine that is busy wait for each other more than they work."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Input:
    """A model that was built and never trained: as fast as any other."""
    path = tmp_path_factory.mktemp("stage") / "weights.safetensors"
    save_file(TRAINING.model.build(len(CLIPS.classes)).state_dict(), path)
    return Input(TRAINING, path)


def timed(weights: Input, report: Any = None, **changes: Any) -> Result:
    inputs = {"weights": weights, "dense": weights}
    return timing.run(replace(CONFIG, **changes), CLIPS, inputs, report or Quiet())


class Heard(Quiet):
    """Remembers how far a stage said that it was."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, int]] = []

    def step(self, done: int, total: int, *more: Any) -> None:
        self.steps.append((done, total))


def test_each_turn_times_both_and_each_is_first_in_turn(weights: Input) -> None:
    heard = Heard()
    table = timed(weights, heard).clips
    assert table is not None
    sides = table["side"].to_pylist()
    assert [sides[i] for i in range(0, 10, 2)] == ["point", "dense", "point", "dense", "point"]
    assert Counter(zip(sides, table["batch"].to_pylist(), strict=True)) == {
        (side, batch): times for side in timing.SIDES for batch, times in ((1, 5), (4, 3))
    }
    assert heard.steps == [(done, 8) for done in range(1, 9)]


def test_medians_and_quartiles_are_those_of_the_rows(weights: Input) -> None:
    result = timed(weights)
    metrics, table = result.metrics, result.clips
    assert table is not None
    assert all(np.isfinite(value) for value in metrics.values())
    rows = [row for row in table.to_pylist() if row["side"] == "dense"]
    seconds = {size: [r["seconds"] for r in rows if r["batch"] == size] for size in (1, 4)}
    assert metrics["timing/dense_latency_ms"] == pytest.approx(1e3 * np.median(seconds[1]))
    assert metrics["timing/dense_clips_per_s"] == pytest.approx(4 / np.median(seconds[4]))
    low, high = metrics["timing/dense_latency_low_ms"], metrics["timing/dense_latency_high_ms"]
    assert low <= metrics["timing/dense_latency_ms"] <= high
    rates = [metrics[f"timing/clips_per_s{side}"] for side in ("_low", "", "_high")]
    assert rates == sorted(rates)
    ratio = metrics["timing/clips_per_s"] / metrics["timing/dense_clips_per_s"]
    assert metrics["timing/speedup"] == pytest.approx(ratio)


def test_fewer_tokens_take_less_time_and_name_their_attention(weights: Input) -> None:
    few = timed(weights, reducers=(drop.Config(keep=0.1),), batch=9, repeats=7).metrics
    assert few["timing/speedup"] > 1.5  # of more than ten times fewer MACs
    assert few["timing/batch"] == 6  # there are no more
    table = timed(weights, reducers=(rlt.Config(tau=0.1),)).clips
    assert table is not None
    kernels = {
        side: {r["kernel"] for r in table.to_pylist() if r["side"] == side and r["batch"] > 1}
        for side in timing.SIDES
    }
    assert kernels == {"point": {"sdpa-loop"}, "dense": {"sdpa-dense"}}


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux alone says")
def test_memory_rises_with_the_clips_at_once(weights: Input) -> None:
    shown = {"dim": 128, "patch": 2}
    training = replace(TRAINING, model=replace(TRAINING.model, **shown))
    path = weights.weights.with_name("large.safetensors")
    save_file(training.model.build(len(CLIPS.classes)).state_dict(), path)
    one, six = (
        timed(Input(training, path), batch=batch, singles=1, repeats=1).metrics for batch in (1, 6)
    )
    least = sum(p.numel() * 4 for p in training.model.build(2).parameters()) / 2**20
    assert least < one["timing/peak_mb"]
    assert 3 * (one["timing/peak_mb"] - least) < six["timing/peak_mb"] - least


def test_all_cores_are_used_and_given_back(weights: Input, monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    assert timed(weights, singles=1, repeats=1).metrics["timing/threads"] == 1
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2})
    with timing.all_cores() as cores:
        assert torch.get_num_threads() == cores == 3
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("name", ["batch", "singles", "repeats"])
def test_none_of_anything_is_refused(name: str) -> None:
    with pytest.raises(Mistake, match=f"{name}=0"):
        replace(CONFIG, **{name: 0})
