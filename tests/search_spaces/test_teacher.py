"""A dense model teaches a reduced one: two trainings in a row, the second reads the first."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from variants import DIGEST, MEASURE, STUDY, TRAIN, measuring, training

from orchestrator import stages
from orchestrator.store import Store
from search_spaces.space import Space
from search_spaces.study import Study
from workloads.branches import Distil
from workloads.clips import ClipSet
from workloads.mistakes import Mistake
from workloads.reducers import drop

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
