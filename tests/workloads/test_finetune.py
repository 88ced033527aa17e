"""Training: it learns, it resumes to the same bits, and every number comes from its config."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from movies import movie, movies
from torch import Tensor

from workloads import augment, clips, finetune, optim
from workloads.mistakes import Mistake
from workloads.models import videomae
from workloads.reducers import drop, rlt, tome
from workloads.stage import Cancelled, Quiet, Result, State

CONFIG = finetune.Config(
    model=videomae.Config(dim=16, depth=2, heads=2, patch=4, frames=4, size=16),
    clip=clips.Config(frames=4, stride=2.0, size=16),
    optim=optim.Config(lr=1e-2),
    steps=6,
    batch=4,
)


class Diary(Quiet):
    """A report that begins at a state, keeps every later one, and may cancel."""

    def __init__(self, start: State | None = None, cancel_at: int = 0) -> None:
        self.start, self.cancel_at = start, cancel_at
        self.states: list[State] = []
        self.losses: list[float] = []

    def resume(self) -> State | None:
        return self.start

    def step(self, done: int, total: int, metrics: Any, state: Any = None) -> None:
        self.states.append(copy.deepcopy(state()))
        self.losses.append(metrics()["train/loss"])
        if done == self.cancel_at:
            raise Cancelled


def train(config: finetune.Config, report: Quiet | None = None) -> Result:
    return finetune.run(config, movies(), {}, report or Quiet())


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


BUSY = replace(
    CONFIG,
    reducers=(rlt.Config(encode_length=True),),
    augment=augment.Config(crop=0.7, shift=2, flip=0.5, erase=0.5, mix="cutmix"),
    label_smoothing=0.1,
)
CONFIGS = {
    "dense": CONFIG,
    "busy": BUSY,
    "drop": replace(CONFIG, reducers=(drop.Config(),)),
    "tome": replace(CONFIG, reducers=(tome.Config(r=10),)),
    "half": replace(CONFIG, precision="bfloat16"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_resuming_after_any_step_ends_with_the_same_bits(name: str) -> None:
    """Dropping draws, augmentation draws, RLT learns: all of it must be where it was."""
    whole = Diary()
    expected = train(CONFIGS[name], whole)
    assert len(whole.states) == 6
    for state in whole.states[:-1]:
        rest = Diary(copy.deepcopy(state))
        result = train(CONFIGS[name], rest)
        assert same(result.weights, expected.weights)
        assert result.metrics == expected.metrics
        assert rest.losses == whole.losses[state["done"] :]


def test_a_finished_state_trains_no_further() -> None:
    whole = Diary()
    expected = train(CONFIG, whole)
    again = Diary(whole.states[-1])
    assert same(train(CONFIG, again).weights, expected.weights)
    assert not again.states


def test_loss_falls_and_the_tiny_set_is_learned() -> None:
    config = replace(CONFIG, steps=60, batch=6)
    diary = Diary()
    result = train(config, diary)
    assert np.mean(diary.losses[-5:]) < 0.5 * np.mean(diary.losses[:5])
    model = config.model.build(2)
    model.load_state_dict(result.weights)
    clip_set = movies()
    ids = clip_set.splits["train"]
    pixels = augment.normalise(
        clip_set.load(ids, config.clip, [0.5] * len(ids)), config.model.mean, config.model.std
    )
    assert torch.equal(model(pixels).argmax(dim=1), clip_set.labels_of(ids))


def test_two_epochs_show_each_training_clip_twice_and_no_other() -> None:
    seen: Counter[int] = Counter()

    def watched(clip_id: int) -> np.ndarray:
        seen[clip_id] += 1
        return movie(clip_id)

    finetune.run(CONFIG, replace(movies(), frames_of=watched), {}, Quiet())  # 6 x 4 of 12 clips
    assert seen == dict.fromkeys(range(12), 2)


def test_seeds_and_only_they_change_an_equal_training() -> None:
    first, again, other = (train(replace(CONFIG, seed=s)).weights for s in (0, 0, 1))
    assert same(first, again)
    assert not same(first, other)


def test_the_chain_of_the_config_is_trained_with() -> None:
    dense, reduced = (train(CONFIGS[name]).weights for name in ("dense", "drop"))
    assert dense.keys() == reduced.keys()
    assert not same(dense, reduced)
    assert "learned.rlt.length_embed" in train(BUSY).weights


@pytest.mark.parametrize(
    ("config", "lengths"),
    [(augment.Config(shift=2, flip=0.5), {2}), (augment.Config(erase=1.0), {1, 2})],
    ids=["shift-flip", "erase"],
)
def test_reducers_see_the_pixels_after_augmentation(
    config: augment.Config, lengths: set[int]
) -> None:
    """Clips that stand still are one run of two tubelets, unless a box comes or goes. Only the rows
    of run lengths that occurred are moved by training, as nothing decays here.
    """
    spec = replace(
        BUSY, augment=config, optim=optim.Config(weight_decay=0.0), steps=1, label_smoothing=0.0
    )
    clip_set = replace(movies(), frames_of=lambda clip_id: movie(clip_id)[:1].repeat(12, axis=0))
    name = "learned.rlt.length_embed"
    before = spec.model.build(2, spec.reducers).state_dict()[name][0]
    after = finetune.run(spec, clip_set, {}, Quiet()).weights[name][0]
    moved_L = (after != before).any(dim=1)
    assert {length for length, moved in enumerate(moved_L.tolist(), start=1) if moved} == lengths


def test_metrics_are_of_the_training() -> None:
    diary = Diary()
    result = train(CONFIG, diary)
    assert result.metrics == {"train/loss": diary.losses[-1], "train/steps": 6}
    assert result.clips is None
    assert all(weight.device.type == "cpu" for weight in result.weights.values())


def test_the_reported_loss_is_a_running_mean() -> None:
    diary = Diary()
    train(replace(CONFIG, steps=2), diary)
    second = (diary.losses[1] - 0.95 * diary.losses[0]) / 0.05
    alone = Diary(diary.states[0])
    alone.start["loss"] = torch.zeros(())
    train(replace(CONFIG, steps=2), alone)
    assert alone.losses[0] / 0.05 == pytest.approx(second, rel=1e-3)  # small differences of floats


def test_a_cancelled_training_stops_there() -> None:
    diary = Diary(cancel_at=2)
    with pytest.raises(Cancelled):
        train(CONFIG, diary)
    assert len(diary.states) == 2


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"batch": 0}])
def test_trainings_of_nothing_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(Mistake, match="must be 1 or more"):
        replace(CONFIG, **wrong)


def test_mixing_an_odd_batch_is_refused() -> None:
    config = replace(CONFIG, batch=3, augment=augment.Config(mix="mixup"))
    with pytest.raises(Mistake, match="3 clips are odd"):
        train(config)
