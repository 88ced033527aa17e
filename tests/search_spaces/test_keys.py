"""Keys: equal work has an equal one, over processes and builds, and other work another one."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
from variants import DIGEST, MEASURE, STUDY, TRAIN, measuring, training

from search_spaces import demo
from search_spaces.objectives import GMACS, TOP1
from search_spaces.space import Space, narrow
from search_spaces.study import Stage
from workloads import (
    attention,
    augment,
    clips,
    cost,
    evaluate,
    finetune,
    frames,
    merging,
    metrics,
    optim,
    parts,
    tokens,
    vit,
)
from workloads.branches import Branch
from workloads.knobs import Float
from workloads.models import videomae
from workloads.reducers import base, drop, rlt, tome

OTHER_STAGES = {
    "clip": training(clip=replace(demo.CLIP, stride=2.0)),
    "model": training(model=replace(demo.MODEL, depth=2)),
    "chain": training(reducers=(rlt.Config(),)),
    "knob of the chain": training(reducers=(rlt.Config(tau=0.2),)),
    "optimiser": training(optim=optim.Config(lr=1e-3)),
    "augmentation": training(augment=augment.Config()),
    "seed": training(seed=1),
    "kind": MEASURE,
    "input": measuring(of=training(seed=1)),
    "role of the input": replace(MEASURE, inputs=(("teacher", TRAIN),)),
    "evaluated chain": measuring(rlt.Config()),
    "split": measuring(split="test"),
}


def test_equal_stages_have_equal_keys_and_all_others_other_ones() -> None:
    keys = {stage.key(DIGEST) for stage in (TRAIN, *OTHER_STAGES.values())}
    assert len(keys) == 1 + len(OTHER_STAGES)
    again = demo.study().stages
    assert [stage.key(DIGEST) for stage in again] == [s.key(DIGEST) for s in STUDY.stages]


def test_other_clips_are_other_work() -> None:
    assert all(stage.key("another") != stage.key(DIGEST) for stage in STUDY.stages)
    assert STUDY.key("another") != STUDY.key(DIGEST)


@pytest.mark.parametrize(
    "module",
    [finetune, videomae, clips, augment, optim, vit, parts, frames, attention, tokens, rlt],
)
def test_a_module_that_gives_other_numbers_renames_what_goes_through_it(
    module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = (training(reducers=(rlt.Config(),)), measuring(of=training(reducers=(rlt.Config(),))))
    before = [stage.key(DIGEST) for stage in stages]
    monkeypatch.setattr(module, "REVISION", module.REVISION + 1)
    assert all(stage.key(DIGEST) != key for stage, key in zip(stages, before, strict=True))


@pytest.mark.parametrize("module", [evaluate, cost, metrics])
def test_a_module_of_measuring_renames_the_measurement_alone(
    module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = [stage.key(DIGEST) for stage in (TRAIN, MEASURE)]
    monkeypatch.setattr(module, "REVISION", module.REVISION + 1)
    assert TRAIN.key(DIGEST) == before[0]
    assert MEASURE.key(DIGEST) != before[1]


def test_what_merges_renames_stages_with_reducers(monkeypatch: pytest.MonkeyPatch) -> None:
    stages = (TRAIN, measuring(tome.Config()))
    before = [stage.key(DIGEST) for stage in stages]
    monkeypatch.setattr(merging, "REVISION", merging.REVISION + 1)
    assert [s.key(DIGEST) == key for s, key in zip(stages, before, strict=True)] == [True, False]


@pytest.mark.parametrize("module", [base, merging, tome])
def test_what_acts_in_a_branch_renames_its_training(
    module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = training(branches=(Branch(reducers=(tome.Config(),)),))
    before = stage.key(DIGEST)
    monkeypatch.setattr(module, "REVISION", module.REVISION + 1)
    assert stage.key(DIGEST) != before


@pytest.mark.parametrize(
    ("module", "stage"),
    [
        *((module, TRAIN) for module in (vit, parts, clips, frames, attention, tokens)),
        *((module, TRAIN) for module in (finetune, augment, optim)),
        *((module, MEASURE) for module in (evaluate, augment, cost, metrics)),
        (merging, measuring(tome.Config())),
    ],
)
def test_no_module_on_the_way_goes_without_a_revision(
    module: ModuleType, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(module.REVISION, int)
    monkeypatch.delattr(module, "REVISION")
    with pytest.raises(AttributeError, match="REVISION"):
        stage.key(DIGEST)


@pytest.mark.parametrize("module", [evaluate, cost, metrics, merging, tome, drop])
def test_a_module_that_a_stage_does_not_use_does_not_rename_it(
    module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = TRAIN.key(DIGEST)
    monkeypatch.setattr(module, "REVISION", module.REVISION + 1)
    assert TRAIN.key(DIGEST) == before


def test_a_key_knows_the_version_of_torch_but_not_its_build(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keys = []
    for version in ("2.13.0", "2.13.0+cpu", "2.13.0+cu130", "2.14.0"):
        monkeypatch.setattr(torch, "__version__", version)
        keys.append(TRAIN.key(DIGEST))
    assert keys[0] == keys[1] == keys[2] != keys[3]


def test_keys_are_the_same_in_another_process() -> None:
    code = (
        "from search_spaces import demo; s = demo.study();"
        f"print(s.key({DIGEST!r}), *(stage.key({DIGEST!r}) for stage in s.stages))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == [STUDY.key(DIGEST), *(s.key(DIGEST) for s in STUDY.stages)]


@pytest.mark.parametrize(
    "changes",
    [{"name": "x"}, {"question": "?"}, {"trials": 99}, {"data": None}],
    ids=str,
)
def test_wording_and_length_do_not_make_another_study(changes: dict[str, Any]) -> None:
    assert replace(STUDY, **changes).key(DIGEST) == STUDY.key(DIGEST)


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"sampler": "random"},
        {"objectives": (GMACS, TOP1)},
        {"controls": ()},
        {"space": Space({"evaluate.reducers": narrow(rlt.Config, tau=Float(0.02, 0.4))})},
        {"space": Space(dict(reversed(STUDY.space.domains)))},
        {"stages": (training(seed=1), measuring(of=training(seed=1)))},
    ],
)
def test_whatever_decides_the_answer_makes_another_study(changes: dict[str, Any]) -> None:
    other = replace(STUDY, **changes)
    assert other.key(DIGEST) != STUDY.key(DIGEST)
    if "stages" not in changes:
        work = [s.key(DIGEST) for s in other.stages]
        assert work == [s.key(DIGEST) for s in STUDY.stages], "its stages are the same work"
