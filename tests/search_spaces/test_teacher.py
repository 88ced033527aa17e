"""A dense model teaches a reduced one: two trainings in a row, the second reads the first."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from variants import DIGEST, MEASURE, STUDY, TRAIN, measuring, training

from orchestrator import stages
from orchestrator.store import Store
from search_spaces import demo, mats_keep
from search_spaces.space import Space
from search_spaces.study import Stage, Study, params_of
from workloads.branches import Distil
from workloads.clips import ClipSet
from workloads.knobs import Float
from workloads.mistakes import Mistake
from workloads.models import fluxvit
from workloads.reducers import drop, inti, mats

HALF = training(reducers=(drop.Config(keep=0.5),), distil=Distil(weight=1.0, layers=2))
STUDENT = replace(HALF, inputs=(("teacher", TRAIN),))


def taught() -> Study:
    chain = (TRAIN, STUDENT, measuring(drop.Config(keep=0.5), of=STUDENT))
    return replace(STUDY, stages=chain, space=Space({}))


def noise() -> ClipSet:
    """Return a few clips of nothing, of the classes of the demo."""
    frames_THWC = np.random.default_rng(0).integers(0, 255, (8, 32, 32, 3), np.uint8)
    return ClipSet(
        names=tuple("abcdefgh"),
        labels=tuple(range(8)),
        classes=tuple("abcdefgh"),
        splits={"train": tuple(range(8)), "val": tuple(range(8))},
        frames_of=lambda clip_id: frames_THWC,
    )


def test_the_teacher_is_trained_first_and_arrives(tmp_path: Path) -> None:
    """Card 4.4a: a student without its teacher would be refused."""
    study, store = taught().smoke(), Store.open(tmp_path / "store")
    study.check()
    launch = stages.in_process(noise(), DIGEST, store)
    took = stages.run(study.plan({}), DIGEST, store, launch).stages
    assert [stage["kind"] for stage in took] == ["finetune", "finetune", "evaluate"]


def test_what_is_searched_is_the_student() -> None:
    chosen = {"finetune.reducers": (drop.Config(keep=0.25),), "finetune.steps": 7}
    plan = taught().plan(chosen)
    teacher, student, _ = plan.chain()
    assert teacher == TRAIN
    assert (student.config.reducers, student.config.steps) == (chosen["finetune.reducers"], 7)
    assert params_of(plan, chosen)["finetune.keep"] == 0.25


def test_another_teacher_is_another_student() -> None:
    other = replace(HALF, inputs=(("teacher", training(seed=1)),))
    alone = training(reducers=HALF.config.reducers)
    assert len({stage.key(DIGEST) for stage in (STUDENT, other, alone)}) == 3


def test_a_student_without_a_teacher_is_refused_when_written() -> None:
    with pytest.raises(Mistake, match=r"distil.weight above 0 and no teacher"):
        replace(STUDY, stages=(HALF, measuring(of=HALF)), space=Space({}))


def test_what_measures_cannot_teach() -> None:
    student = replace(HALF, inputs=(("teacher", MEASURE),))
    with pytest.raises(Mistake, match="a stage of kind 'evaluate' cannot teach"):
        replace(STUDY, stages=(TRAIN, MEASURE, student, measuring(of=student)), space=Space({}))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": replace(demo.MODEL, dim=32)}, "teacher: dim=64, that of the model 32"),
        ({"model": replace(demo.MODEL, mean=(0.5,) * 3)}, r"teacher: mean=\(0.485, .*\(0.5"),
        ({"model": replace(demo.MODEL, std=(0.5,) * 3)}, r"teacher: std=\(0.229"),
        ({"distil": Distil(weight=1.0, layers=4)}, "layers=4 of depths 3 and 3"),
        ({"reducers": (mats.Config(alpha=2.0),)}, r"a grid of \(4, 5, 5\) has no tokens in common"),
        ({"reducers": (inti.Config(halve_after=(1,)),)}, r"a grid of \(4, 5, 5\) has no tokens"),
    ],
)
def test_a_teacher_that_cannot_be_compared_with_is_refused_before_it_is_trained(
    changes: dict[str, Any], words: str
) -> None:
    student = replace(STUDENT, config=replace(STUDENT.config, **changes))
    with pytest.raises(Mistake, match=words):
        replace(STUDY, stages=(TRAIN, student, measuring(of=student)), space=Space({})).check()


def test_other_features_are_no_features_of_the_model() -> None:
    """A pool of another kind has vectors of another width."""
    host = fluxvit.Config(dim=32, depth=2, heads=2, patch=8, size=40, pool_heads=2, features=24)
    wide = training(model=host)
    student = training(model=replace(host, features=48), distil=Distil(weight=1.0))
    student = replace(student, inputs=(("teacher", wide),))
    with pytest.raises(Mistake, match="features of width 24, those of the model 48"):
        replace(STUDY, stages=(wide, student, measuring(of=student)), space=Space({})).check()


def test_features_alone_may_be_compared_where_tokens_cannot() -> None:
    reducers = (inti.Config(halve_after=(1,)),)
    config = replace(STUDENT.config, reducers=reducers, distil=Distil(weight=1.0, layers=0))
    student = replace(STUDENT, config=config)
    replace(STUDY, stages=(TRAIN, student, measuring(of=student)), space=Space({})).check()


def test_a_search_that_comes_to_a_student_without_a_teacher_is_refused() -> None:
    space = Space({"finetune.distil.weight": Float(0.1, 1.0)})
    with pytest.raises(Mistake, match=r"distil.weight above 0 and no teacher"):
        replace(STUDY, space=space).check()


LEARN, TUNE, LAST = mats_keep.study().stages
EVALUATION = LAST.config


def pretrained(teacher: Stage = TUNE, **changes: Any) -> Study:
    """Return a study in which a trained model teaches the pre-training of another one."""
    scratch = replace(teacher, inputs=())
    config = replace(LEARN.config, **{"distil": Distil(weight=1.0)} | changes)
    learn = replace(LEARN, config=config, inputs=(("teacher", scratch),))
    tune = replace(TUNE, inputs=(("weights", learn),))
    measure = replace(MEASURE, config=EVALUATION, inputs=(("weights", tune),))
    return replace(STUDY, stages=(scratch, learn, tune, measure), space=Space({}))


def test_a_pretraining_learns_from_a_teacher(tmp_path: Path) -> None:
    """Card 4.4: stage by stage, in tiny."""
    study, store = pretrained().smoke(), Store.open(tmp_path / "store")
    study.check()
    launch = stages.in_process(noise(), DIGEST, store)
    took = stages.run(study.plan({}), DIGEST, store, launch).stages
    assert [s["kind"] for s in took] == ["finetune", "pretrain", "finetune", "evaluate"]


def test_a_pretraining_compares_tokens_of_the_same_clip() -> None:
    with pytest.raises(Mistake, match=r"distil.layers=0 compares pooled features"):
        pretrained(distil=Distil(weight=1.0, layers=0))
    with pytest.raises(Mistake, match="has no tokens in common"):
        pretrained(reducers=(mats.Config(keep=0.5, alpha=2.0),)).check()


def test_an_evaluation_has_no_teacher() -> None:
    taught = replace(MEASURE, inputs=(*MEASURE.inputs, ("teacher", TRAIN)))
    with pytest.raises(Mistake, match="an evaluation has no teacher"):
        replace(STUDY, stages=(TRAIN, taught), space=Space({}))
