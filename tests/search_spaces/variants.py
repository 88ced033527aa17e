"""Stages and studies that differ from the demo in what a test names."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from search_spaces import demo
from search_spaces.space import Space
from search_spaces.study import Stage, Study
from workloads import evaluate, finetune

DIGEST = "digest of some clips"
STUDY = demo.study()
TRAIN, MEASURE = STUDY.stages


def training(**changes: Any) -> Stage:
    assert isinstance(TRAIN.config, finetune.Config)
    return replace(TRAIN, config=replace(TRAIN.config, **changes))


def measuring(*reducers: Any, of: Stage = TRAIN, **changes: Any) -> Stage:
    assert isinstance(MEASURE.config, evaluate.Config)
    config = replace(MEASURE.config, reducers=reducers, **changes)
    return Stage(kind="evaluate", config=config, inputs=(("weights", of),))


def study_of(train: Stage = TRAIN, *reducers: Any, **changes: Any) -> Study:
    """Return the demo with other stages (`changes` of the evaluation) and nothing to search."""
    stages = (train, measuring(*reducers, of=train, **changes))
    return replace(STUDY, stages=stages, space=Space({}))
