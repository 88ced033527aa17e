"""Which controls a point has, and at which tokens."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from toys import DIGEST, ended, toy

from orchestrator.controls import Control, Controls
from orchestrator.ledger import Ledger
from orchestrator.memory import Memory
from orchestrator.store import Store
from search_spaces import demo, flux_budget
from search_spaces.space import Space, fix
from search_spaces.study import Stage
from workloads import finetune, pretrain
from workloads.branches import Branch
from workloads.reducers import drop, flux, mats, rlt, vid_tldr
from workloads.stage import Result

CELLS, DEPTH, TRAINED = 200, 3, {"finetune.reducers": rlt.Config(tau=0.1)}


def controls_of(
    tmp_path: Path, reducer: Any, tokens: float, keep: float | None = None, **train: Any
) -> dict[str, Control]:
    """Return the controls of the one point of a search, by kind."""
    domains = {path: fix(config) for path, config in train.items()}
    study = toy(space=Space({**domains, "evaluate.reducers": fix(reducer)}))
    memory = Memory(study, tmp_path / "journal")
    memory.ask()
    point = replace(ended(memory, memory.ask()), metrics={"cost/tokens": tokens})
    controls = Controls(memory, Ledger(tmp_path / "ledger"), DIGEST, Store(tmp_path))
    return {control.kind: control for control in controls.of(point, keep)}


def test_a_training_free_point_has_its_own_checkpoint(tmp_path: Path) -> None:
    controls = controls_of(tmp_path, rlt.Config(tau=0.2), tokens=130)
    assert controls.keys() == {"drop", "frames", "resolution", "tome"}
    training = {control.plan.inputs for control in controls.values()}
    assert len(training) == 1


def test_random_drop_keeps_the_tokens_of_its_point(tmp_path: Path) -> None:
    (config,) = controls_of(tmp_path, rlt.Config(tau=0.2), tokens=50)["drop"].plan.config.reducers
    assert config == drop.Config(keep=drop.keep_for(CELLS, 50))
    assert config.keep == pytest.approx(0.25, abs=0.01)


def test_fewer_frames_see_the_same_seconds(tmp_path: Path) -> None:
    clip = controls_of(tmp_path, rlt.Config(tau=0.2), tokens=50)["frames"].plan.config.clip
    assert (clip.frames, clip.stride, clip.size) == (4, 4.0, 40)


def test_a_lower_resolution_has_about_as_many_tokens(tmp_path: Path) -> None:
    clip = controls_of(tmp_path, rlt.Config(tau=0.2), tokens=70)["resolution"].plan.config.clip
    assert (clip.frames, clip.stride, clip.size) == (16, 1.0, 24)


def test_tome_merges_down_to_as_many_tokens_on_average(tmp_path: Path) -> None:
    (config,) = controls_of(tmp_path, rlt.Config(tau=0.2), tokens=170)["tome"].plan.config.reducers
    left = [CELLS - layer * config.r for layer in range(DEPTH)]
    assert sum(left) / DEPTH == pytest.approx(170, abs=1)


def test_tome_that_cannot_merge_as_far_is_no_control(tmp_path: Path) -> None:
    """Half of 200, half of that: no fewer than 117 tokens enter a block on average."""
    assert "tome" not in controls_of(tmp_path, rlt.Config(tau=0.2), tokens=100)


def test_tome_at_the_schedule_of_a_point_that_merges(tmp_path: Path) -> None:
    point = vid_tldr.Config(ratio=0.3, layers=1)
    controls = controls_of(tmp_path, point, tokens=160)
    (same,) = controls["tome_schedule"].plan.config.reducers
    assert same.asked(DEPTH) == (0.3, 0.0, 0.0)
    assert "tome_schedule" not in controls_of(tmp_path / "drop", drop.Config(keep=0.5), tokens=100)


def test_random_drop_is_its_own_control(tmp_path: Path) -> None:
    assert "drop" not in controls_of(tmp_path, drop.Config(keep=0.25), tokens=50)


@pytest.mark.parametrize(("keep", "rounded"), [(0.26, 0.25), (0.283, 0.3), (0.01, 0.05)])
def test_a_trained_point_has_one_that_was_trained_with_random_drop(
    keep: float, rounded: float, tmp_path: Path
) -> None:
    controls = controls_of(tmp_path, rlt.Config(tau=0.2), tokens=50, keep=keep, **TRAINED)
    assert controls.keys() == {"drop"}
    ((_, training),) = controls["drop"].plan.inputs
    assert training.config.reducers == (drop.Config(keep=rounded),)


def test_a_point_that_reduces_nothing_has_none(tmp_path: Path) -> None:
    assert not controls_of(tmp_path, rlt.Config(tau=0.0), tokens=CELLS)


def test_a_training_whose_tokens_could_not_be_measured_has_none(tmp_path: Path) -> None:
    assert not controls_of(tmp_path, rlt.Config(), tokens=50, keep=math.nan, **TRAINED)


# A model that was pre-trained on selected tokens.

SELECTED = pretrain.Config(
    model=demo.MODEL, clip=demo.CLIP, reducers=(mats.Config(keep=0.3),), steps=1
)


def pretrained(tmp_path: Path, tokens: float, *reducers: Any) -> dict[str, Control]:
    """Return the controls of a point behind a pre-training that left 60 tokens of 200."""
    first = Stage(kind="pretrain", config=replace(SELECTED, reducers=reducers))
    train, measure = demo.study().stages
    train = replace(train, inputs=(("weights", first),))
    measure = replace(measure, inputs=(("weights", train),))
    space = Space({"evaluate.reducers": fix(mats.Config(keep=0.5))})
    memory = Memory(toy(stages=(first, train, measure), space=space), tmp_path / "journal")
    memory.ask()
    point = replace(ended(memory, memory.ask()), metrics={"cost/tokens": tokens})
    store = Store.open(tmp_path / "store")
    facts = {"seconds": 1.0, "device": "cpu", "kind": "pretrain"}
    result = Result(None, {"cost/tokens": 60.0}, None)
    store.attempt(first.key(DIGEST)).publish(result, {}, facts)
    controls = Controls(memory, Ledger(tmp_path / "ledger"), DIGEST, store)
    return {control.kind: control for control in controls.of(point, None)}


def test_random_masks_in_pretraining_are_a_control_of_their_own(tmp_path: Path) -> None:
    """As many tokens as the selection left; all behind it as in the point."""
    controls = pretrained(tmp_path, 130, *SELECTED.reducers)
    assert controls.keys() == {"drop", "frames", "resolution", "tome", "masking"}
    first, train, measure = controls["masking"].plan.chain()
    (config,) = first.config.reducers
    assert config == drop.Config(keep=drop.keep_for(CELLS, 60))
    assert replace(first.config, reducers=SELECTED.reducers) == SELECTED
    assert train.config == demo.TRAIN
    assert measure.config.reducers == (mats.Config(keep=0.5),)


def test_the_other_controls_keep_the_pretraining_of_their_point(tmp_path: Path) -> None:
    controls = pretrained(tmp_path, 130, *SELECTED.reducers)
    others = [controls[kind] for kind in controls.keys() - {"masking"}]
    assert {next(control.plan.chain()).config for control in others} == {SELECTED}


def test_a_point_that_reduces_nothing_still_has_that_one(tmp_path: Path) -> None:
    assert pretrained(tmp_path, CELLS, *SELECTED.reducers).keys() == {"masking"}


@pytest.mark.parametrize("reducers", [(), (drop.Config(keep=0.3),)])
def test_random_masks_are_their_own_control(reducers: Any, tmp_path: Path) -> None:
    assert "masking" not in pretrained(tmp_path, 100, *reducers)


# A model that was taught along several branches.


def of_flux(tmp_path: Path, **changes: Any) -> Control:
    """Return the control by random drop of a point of 32 tokens in 8 x 32 px."""
    study = flux_budget.study()
    train, measure = study.stages
    train = replace(train, config=replace(flux_budget.TRAIN, **changes))
    measure = replace(measure, inputs=(("weights", train),))
    point = {"reducers": fix(flux.Config(budget=32)), "head": fix(2), "clip.frames": fix(8)}
    space = Space({f"evaluate.{path}": domain for path, domain in point.items()})
    memory = Memory(replace(study, stages=(train, measure), space=space), tmp_path / "journal")
    memory.ask()
    metrics = {"val/top1": 0.9, "cost/gmacs": 0.1, "cost/tokens": 32.0}
    record = replace(ended(memory, memory.ask()), metrics=metrics)
    controls = Controls(memory, Ledger(tmp_path / "ledger"), DIGEST, Store(tmp_path))
    return {control.kind: control for control in controls.of(record, None)}["drop"]


def test_a_model_of_budgets_is_compared_with_one_taught_on_random_tokens(tmp_path: Path) -> None:
    control = of_flux(tmp_path)
    train, measure = control.plan.chain()
    assert isinstance(train.config, finetune.Config)
    chains = [branch.reducers for branch in train.config.branches]
    assert chains == [(drop.Config(budget=budget),) for budget in flux_budget.BUDGETS]
    assert replace(train.config, branches=flux_budget.TRAIN.branches) == flux_budget.TRAIN
    assert measure.config.reducers == (drop.Config(keep=drop.keep_for(128, 32)),)
    assert measure.config.head == 2


def test_branches_that_are_not_as_many_in_each_clip_have_the_control_of_their_checkpoint(
    tmp_path: Path,
) -> None:
    taught = (Branch(), Branch(reducers=(rlt.Config(),), head=1))
    train, _ = of_flux(tmp_path, branches=taught).plan.chain()
    assert train.config.branches == taught
