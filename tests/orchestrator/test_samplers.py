"""Samplers: each runs, stays in the space, follows its seed, and learns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from toys import SCHEDULES, SPACE, go_on, toy

from orchestrator import samplers
from orchestrator.memory import DENSE, Memory
from orchestrator.samplers import SAMPLERS
from search_spaces.space import Space, either, fix, narrow
from search_spaces.study import Study
from workloads.knobs import Choice
from workloads.mistakes import Mistake
from workloads.reducers import rlt, tome


def choices(study: Study, folder: Path, trials: int) -> list[dict[str, Any]]:
    """Return what the trials of a search chose."""
    memory = Memory(study, folder / f"{study.sampler}-{study.seed}")
    go_on(memory, trials)
    return [memory.chosen(number) for number in range(trials)]


def is_in_space(chosen: dict[str, Any]) -> bool:
    match chosen["evaluate.reducers"]:
        case (rlt.Config(tau=tau),):
            fits = 0.02 <= tau <= 0.4
        case (tome.Config(r=r, schedule=schedule),):
            fits = r in (2, 5, 8, 11) and schedule in SCHEDULES
        case chain:
            fits = chain == ()
    trained = chosen["finetune.reducers"] in ((), (rlt.Config(tau=0.1),))
    return fits and trained and chosen["evaluate.clip.frames"] in (8, 12, 16)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_five_trials_run_and_stay_in_the_space(sampler: str, tmp_path: Path) -> None:
    dense, *others = choices(toy(sampler=sampler, trials=5), tmp_path, 5)
    assert dense == {}
    assert [chosen for chosen in others if not is_in_space(chosen)] == []


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_longer_search_meets_every_option_and_stays_in_the_space(
    sampler: str, tmp_path: Path
) -> None:
    _, *others = choices(toy(sampler=sampler, trials=40), tmp_path, 40)
    assert [chosen for chosen in others if not is_in_space(chosen)] == []
    chains = [chosen["evaluate.reducers"] for chosen in others]
    assert {type(chain[0]) if chain else None for chain in chains} == {
        None,
        rlt.Config,
        tome.Config,
    }


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_seed_decides_what_is_asked_first(sampler: str) -> None:
    def first(seed: int) -> dict[str, Any]:
        study = optuna.create_study(
            directions=["maximize", "minimize"], sampler=samplers.load(sampler)(seed, 12)
        )
        trial = study.ask()
        SPACE.suggest(trial)
        return trial.params

    assert first(3) == first(3)
    assert len({str(first(seed)) for seed in range(8)}) > 4


@pytest.mark.parametrize("sampler", ["tpe", "nsga2"])
def test_a_sampler_that_learns_asks_other_trials_than_blind_search(
    sampler: str, tmp_path: Path
) -> None:
    blind, learning = (
        choices(toy(sampler=name, trials=16), tmp_path, 16) for name in ("random", sampler)
    )
    assert learning[12:] != blind[12:]


def test_genetic_search_crosses_what_all_options_share_and_never_the_dense_trial(
    tmp_path: Path,
) -> None:
    memory = Memory(toy(sampler="nsga2", trials=24), tmp_path / "journal")
    go_on(memory, 8)
    number = memory.ask()
    sampler, mirror = memory.mirror.sampler, memory.mirror
    assert isinstance(sampler, optuna.samplers.NSGAIISampler)
    crossed = sampler.infer_relative_search_space(mirror, mirror.trials[number])
    assert {*crossed} >= {path for path, _ in SPACE.domains}
    parents = sampler.get_parent_population(mirror, 1)
    assert len(parents) > 1
    assert all(parent.number != DENSE for parent in parents)


def test_genetic_search_goes_on_without_its_journal(tmp_path: Path) -> None:
    study = toy(sampler="nsga2", trials=24)
    records = go_on(Memory(study, tmp_path / "lost"), 12)
    memory = Memory(study, tmp_path / "new")
    memory.rebuild(records)
    go_on(memory, 12)
    assert all(is_in_space(memory.chosen(number)) for number in range(12, 24))


def test_even_search_takes_every_combination_of_options_once_before_any_twice(
    tmp_path: Path,
) -> None:
    reducers = either(none=fix(), tome=narrow(tome.Config, schedule=Choice(SCHEDULES)))
    space = Space({"evaluate.reducers": reducers, "evaluate.clip.frames": Choice((8, 16))})
    study = replace(toy(sampler="even", trials=17), space=space)
    _, *others = choices(study, tmp_path, 17)
    # Options of the first question alike often, those of the next ones alike often among them.
    assert [chosen["evaluate.reducers"] for chosen in others].count(()) == 8
    merging = [str(chosen) for chosen in others if chosen["evaluate.reducers"]]
    assert len({*merging[: 2 * len(SCHEDULES)]}) == 2 * len(SCHEDULES)


def test_an_unknown_sampler_is_refused_with_those_that_exist(tmp_path: Path) -> None:
    with pytest.raises(Mistake) as refused:
        Memory(toy(sampler="oracle"), tmp_path / "journal")
    assert str(refused.value) == (
        f"study: sampler='oracle' does not exist\n  choose from {', '.join(SAMPLERS)}"
    )
    assert not (tmp_path / "journal").exists()


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_race_asks_no_sampler_that_would_have_to_learn(sampler: str) -> None:
    if sampler in samplers.BLIND:
        samplers.refuse_rungs(sampler)
    else:
        with pytest.raises(Mistake, match="nothing to learn from"):
            samplers.refuse_rungs(sampler)


@pytest.mark.parametrize("sampler", samplers.BLIND)
def test_what_is_blind_asks_the_same_before_anything_ended(sampler: str, tmp_path: Path) -> None:
    """A race asks for all trials first; one after the other they are the same."""
    one_by_one = choices(toy(sampler=sampler), tmp_path / "one", 8)
    memory = Memory(toy(sampler=sampler), tmp_path / "all")
    for _ in range(8):
        memory.ask()
    assert [memory.chosen(number) for number in range(8)] == one_by_one
