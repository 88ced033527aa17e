"""Token Optimization: what the space of the study holds, and what it cannot come to."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from optuna.trial import FixedTrial

from orchestrator.words import recipe
from search_spaces import equal, flux_budget
from search_spaces.flux_budget import BUDGETS, CLIP, MODEL, SEARCHED, TRAINED
from search_spaces.study import params_of
from workloads.mistakes import Mistake
from workloads.reducers import flux

STUDY = flux_budget.study()
HEADS = {MODEL.head_for(budget): budget for budget in BUDGETS}


@cache
def evaluations() -> dict[int, list[Any]]:
    """Return every evaluation that the search may come to, by budget."""
    found: dict[int, list[Any]] = defaultdict(list)
    for chosen in STUDY.space.examples():
        config = STUDY.plan(chosen).config
        found[HEADS[config.head]].append(config)
    return found


def tokens_of(config: Any) -> int:
    return config.clip.frames * (config.clip.size // MODEL.patch) ** 2


def test_every_budget_has_a_head_and_grids_of_its_own() -> None:
    found = evaluations()
    assert found.keys() == {*BUDGETS}
    assert all(len({*configs}) >= 8 for configs in found.values())


def test_no_evaluation_is_illegal_and_none_exceeds_its_budget() -> None:
    """Card 11: b <= T (R / p)^2 <= cap; T = 4 only where nothing is left out."""
    STUDY.check()
    for budget, configs in evaluations().items():
        for config in configs:
            assert budget <= tokens_of(config) <= SEARCHED.most
            if config.reducers:
                assert config.reducers == (flux.Config(budget=budget),)
                assert config.clip.frames != 4
            else:
                assert tokens_of(config) == budget


def test_each_budget_may_choose_the_clip_that_is_no_optimization() -> None:
    """P15: all tokens of budget / 16 frames of the usual size are among the grids, so the best of
    a budget cannot be below them on the clips that it is selected on.
    """
    for budget, configs in evaluations().items():
        plain = [c for c in configs if not c.reducers and c.clip.size == CLIP.size]
        assert {c.clip.frames for c in plain} == {budget // (CLIP.size // MODEL.patch) ** 2}


def test_a_point_is_called_by_its_budget_and_its_grid() -> None:
    chosen = {"evaluate": "b64", "evaluate.b64": "12x40"}
    paths = STUDY.space.suggest(FixedTrial(chosen))
    assert recipe(params_of(STUDY.plan(paths), paths)) == "flux budget=64 head=1, 12 frames, 40 px"


def test_the_search_trains_nothing_anew() -> None:
    """Card 11: evaluation only, on one checkpoint."""
    plans = [STUDY.plan(chosen) for chosen in STUDY.space.examples()]
    assert len({plan.inputs for plan in plans}) == 1
    assert all(config.split == "val" for configs in evaluations().values() for config in configs)


def test_the_same_grid_is_a_control_with_random_tokens_and_with_all_of_them() -> None:
    """9.9."""
    assert {"drop", "grid", "frames"} <= {*STUDY.controls}
    config = next(c for c in evaluations()[64] if c.reducers and c.clip.frames == 16)
    others = equal.others(config, MODEL, 64)
    assert others["grid"] == {"evaluate.reducers": ()}
    assert others["drop"].keys() == {"evaluate.reducers"}  # frames, side and head stay


def test_training_draws_grids_that_fit_all_budgets() -> None:
    assert min(TRAINED.frames) >= 6
    train = STUDY.stages[0].config
    assert {clip.frames for clip, _ in train.cases()} == {*TRAINED.frames}
    for clip, reducers in train.cases():
        for one in reducers:
            assert one.budget < clip.frames * (clip.size // MODEL.patch) ** 2


@pytest.mark.parametrize("head", [-1, 3])
def test_a_head_that_is_not_there_is_refused_before_any_work(head: int) -> None:
    measure = STUDY.stages[-1]
    wrong = replace(measure, config=replace(measure.config, head=head))
    with pytest.raises(Mistake, match=f"head={head} of a model with 3"):
        replace(STUDY, stages=(STUDY.stages[0], wrong)).check()
