"""What Tune is given to run and what becomes of it, without Tune."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState
from toys import DIGEST, ended, go_on, outcome_of, toy

from orchestrator.ledger import Ledger, Record
from orchestrator.memory import Memory
from orchestrator.search import Asker, Heard


def asker_in(
    folder: Path, workers: int = 1, heard: Heard = lambda record: None, **changes: Any
) -> Asker:
    """Return the asker of a driver that starts on what an earlier one left in a folder."""
    memory, ledger = Memory(toy(**changes), folder / "journal"), Ledger(folder / "ledger")
    return Asker(memory, ledger, DIGEST, memory.study.trials, workers, heard)


def done(asker: Asker, number: int, **strange: float) -> dict[str, str]:
    """Return what Tune hears of a trial that ended well."""
    outcome = asdict(outcome_of(asker.memory, number, **strange))
    return {"state": "done", "outcome": json.dumps(outcome)}


def next_number(asker: Asker, name: str) -> int:
    """Let Tune ask for a trial under a name; return the number of what it is given."""
    given = asker.suggest(name)
    assert isinstance(given, dict)
    number: int = given["number"]
    return number


def run(asker: Asker, trials: int) -> None:
    for name in map(str, range(trials)):
        asker.on_trial_complete(name, done(asker, next_number(asker, name)))


def state(asker: Asker, number: int) -> TrialState:
    return asker.memory.journal.trials[number].state


def test_a_trial_is_given_with_its_plan(tmp_path: Path) -> None:
    asker = asker_in(tmp_path)
    assert asker.suggest("a") == {"number": 0, "plan": asker.study.stages[-1]}


def test_there_are_never_more_trials_than_workers(tmp_path: Path) -> None:
    asker = asker_in(tmp_path, workers=2)
    assert [next_number(asker, name) for name in "ab"] == [0, 1]
    assert asker.suggest("c") is None
    asker.on_trial_complete("a", done(asker, 0))
    assert next_number(asker, "c") == 2


def test_a_search_ends_with_the_last_of_its_trials(tmp_path: Path) -> None:
    asker = asker_in(tmp_path, trials=3)
    run(asker, 2)
    assert asker.left == 1
    assert next_number(asker, "last") == 2
    assert asker.left == 0
    assert asker.suggest("more") is None, "one still runs"
    asker.on_trial_complete("last", done(asker, 2))
    assert asker.suggest("more") == Asker.FINISHED
    assert asker_in(tmp_path, trials=3).suggest("more") == Asker.FINISHED
    assert next_number(asker_in(tmp_path, trials=4), "more") == 3


def test_a_trial_that_ended_is_in_the_ledger_and_told(tmp_path: Path) -> None:
    heard: list[Record] = []
    asker = asker_in(tmp_path, heard=heard.append)
    run(asker, 2)
    assert Ledger(tmp_path / "ledger").records == [ended(asker.memory, n) for n in (0, 1)]
    assert heard == asker.ledger.records
    assert [state(asker, number) for number in (0, 1)] == [TrialState.COMPLETE] * 2


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        ({"state": "failed", "reason": "finetune: out of memory"}, "finetune: out of memory"),
        (None, "the process of the trial died"),
    ],
)
def test_a_trial_that_failed_is_data_and_the_search_goes_on(
    result: dict[str, str] | None, reason: str, tmp_path: Path
) -> None:
    asker = asker_in(tmp_path)
    run(asker, 1)
    asker.suggest("a")
    asker.on_trial_complete("a", result, error=result is None)
    record = Ledger(tmp_path / "ledger").trials()[1]
    assert (record.state, record.reason, record.values) == ("failed", reason, {})
    assert record.params["reducer"] in ("none", "rlt", "tome")
    assert state(asker, 1) == TrialState.FAIL
    assert next_number(asker, "b") == 2


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(("metric", "objective"), [("val/top1", "top1"), ("cost/gmacs", "gmacs")])
def test_a_trial_with_a_value_that_is_no_number_counts_as_failed(
    metric: str, objective: str, value: float, tmp_path: Path
) -> None:
    asker = asker_in(tmp_path)
    asker.suggest("a")
    asker.on_trial_complete("a", done(asker, 0, **{metric: value}))
    (record,) = Ledger(tmp_path / "ledger").records
    assert (record.state, record.values) == ("failed", {})
    assert record.reason == f"{objective} is no finite number"
    assert metric not in record.metrics
    assert len(record.metrics) == 1, "what could be measured stays"
    assert state(asker, 0) == TrialState.FAIL
    assert asker_in(tmp_path).again == [], "nobody tries again what would end alike"


@pytest.mark.parametrize("ending", ["fatal", "cancelled", "running"])
def test_a_trial_that_was_stopped_is_adopted_by_the_next_run(ending: str, tmp_path: Path) -> None:
    asker = asker_in(tmp_path)
    run(asker, 2)
    given = asker.suggest("a")
    asker.on_trial_complete("a", {"state": ending, "reason": "the disk is full"})
    assert asker.halted == "the disk is full"
    assert asker.suggest("b") == Asker.FINISHED
    assert len(asker.ledger.records) == 2
    after = asker_in(tmp_path)
    assert after.again == [2]
    assert after.suggest("a") == given
    assert after.left == 12 - 3


def test_all_trials_that_ran_are_adopted_in_order(tmp_path: Path) -> None:
    asker = asker_in(tmp_path, workers=3)
    given = [asker.suggest(name) for name in "abc"]
    asker.on_trial_complete("b", done(asker, 1))
    after = asker_in(tmp_path, workers=3)
    assert [after.suggest("a"), after.suggest("b")] == [given[0], given[2]]
    assert next_number(after, "c") == 3


def test_a_trial_of_other_code_is_run_again_and_its_later_record_counts(tmp_path: Path) -> None:
    memory, ledger = Memory(toy(), tmp_path / "journal"), Ledger(tmp_path / "ledger")
    for number, record in go_on(memory, 3).items():
        stale = {"stage_keys": ["of old code"], "values": {"top1": 0.1, "gmacs": 1.0}}
        ledger.append(Record(**{**asdict(record), **(stale if number == 1 else {})}))
    asker = asker_in(tmp_path)
    assert asker.again == [1]
    assert asker.left == 12 - 2
    run(asker, 1)
    assert Ledger(tmp_path / "ledger").trials()[1] == ended(memory, 1)
    after = asker_in(tmp_path)
    assert after.again == []
    assert after.memory.journal.trials[1].values == list(ended(memory, 1).values.values())


def test_a_trial_of_which_a_stage_failed_is_tried_again_by_the_next_run(tmp_path: Path) -> None:
    asker = asker_in(tmp_path)
    run(asker, 1)
    given = asker.suggest("a")
    asker.on_trial_complete("a", {"state": "failed", "reason": "killed 3 times"})
    run(asker, 1)
    after = asker_in(tmp_path)
    assert (after.again, state(after, 1)) == ([1], TrialState.RUNNING)
    assert asker_in(tmp_path).again == [1], "also when it was killed before anything came of it"
    assert after.suggest("a") == given
    after.on_trial_complete("a", done(after, 1))
    assert state(asker_in(tmp_path), 1) == TrialState.COMPLETE
    assert asker_in(tmp_path).left == 12 - 3


def test_how_many_trials_are_wanted_changes_none_of_them(tmp_path: Path) -> None:
    memory = Memory(toy(), tmp_path / "few")
    few = Asker(memory, Ledger(tmp_path / "ledger"), DIGEST, 4, 1, lambda record: None)
    run(few, 4)
    assert few.suggest("more") == Asker.FINISHED
    many = asker_in(tmp_path / "many", trials=12)
    run(many, 4)
    assert few.ledger.records == many.ledger.records


def test_a_trial_that_neither_journal_nor_ledger_knows_is_chosen_again(tmp_path: Path) -> None:
    """Of three at once the last ended first, then the driver was killed and the journal lost."""
    asker = asker_in(tmp_path, workers=3)
    for name in "abc":
        asker.suggest(name)
    asker.on_trial_complete("a", done(asker, 0))
    asker.on_trial_complete("c", done(asker, 2))
    (tmp_path / "journal").unlink()
    after = asker_in(tmp_path, workers=3)
    assert 1 in [next_number(after, name) for name in "ab"]


def test_what_tune_says_of_unknown_trials_is_not_heard(tmp_path: Path) -> None:
    asker = asker_in(tmp_path)
    asker.on_trial_complete("never", {"state": "failed"})
    assert asker.ledger.records == []
