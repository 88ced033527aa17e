"""The sampler's memory: dense first, a line an ask, the same trials however often it was killed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState
from toys import ended, failed, go_on, toy

from orchestrator.ledger import Ledger, Record
from orchestrator.memory import DENSE, Memory
from orchestrator.samplers import SAMPLERS

TRIALS = 9


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "study" / "journal.log"


def known(memory: Memory) -> list[tuple[dict[str, Any], list[float] | None, TrialState]]:
    """Return what a memory knows, which must be the same on its two sides."""
    here, there = (
        [(trial.params, trial.values, trial.state) for trial in side.trials]
        for side in (memory.mirror, memory.journal)
    )
    assert here == there
    return here


def choices(memory: Memory) -> list[dict[str, Any]]:
    return [memory.chosen(number) for number in range(len(memory))]


def test_the_first_trial_is_dense(journal: Path) -> None:
    memory = Memory(toy(), journal)
    assert len(memory) == 0
    assert memory.ask() == DENSE == 0
    assert memory.chosen(DENSE) == memory.asked(DENSE) == {}
    assert memory.study.plan(memory.chosen(DENSE)) == memory.study.stages[-1]


def test_the_second_one_chooses_for_every_path(journal: Path) -> None:
    memory = Memory(toy(), journal)
    assert [memory.ask(), memory.ask()] == [0, 1]
    assert memory.chosen(1).keys() == {path for path, _ in memory.study.space.domains}


def test_each_ask_writes_one_line_with_all_that_was_chosen(journal: Path) -> None:
    memory = Memory(toy(), journal)
    for number in range(TRIALS):
        before = journal.read_bytes().splitlines()
        memory.ask()
        *same, line = journal.read_bytes().splitlines()
        assert same == before
        assert json.loads(line)["params"].keys() == memory.asked(number).keys()
        memory.tell(ended(memory, number))


def test_opening_a_journal_writes_nothing(journal: Path) -> None:
    go_on(Memory(toy(), journal), 3)
    before = journal.read_bytes()
    assert len(Memory(toy(), journal)) == 3
    assert journal.read_bytes() == before


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_same_study_asks_the_same_and_another_seed_does_not(
    sampler: str, tmp_path: Path
) -> None:
    studies = (toy(sampler=sampler), toy(sampler=sampler), toy(sampler=sampler, seed=1))
    memories = [Memory(study, tmp_path / str(i)) for i, study in enumerate(studies)]
    for memory in memories:
        go_on(memory, TRIALS)
    one, same, other = map(choices, memories)
    assert one == same
    assert one[1:] != other[1:]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_search_that_was_killed_between_all_steps_asks_what_it_would_have_asked(
    sampler: str, tmp_path: Path
) -> None:
    study = toy(sampler=sampler)
    undisturbed = Memory(study, tmp_path / "undisturbed")
    go_on(undisturbed, TRIALS)
    for number in range(TRIALS):
        assert Memory(study, tmp_path / "killed").ask() == number
        adopted = Memory(study, tmp_path / "killed")
        assert known(adopted)[number][2] == TrialState.RUNNING
        assert adopted.asked(number) == undisturbed.asked(number)
        adopted.tell(ended(adopted, number))
    assert known(Memory(study, tmp_path / "killed")) == known(undisturbed)


def test_trials_may_end_in_any_order(journal: Path) -> None:
    memory = Memory(toy(), journal)
    for _ in range(4):
        memory.ask()
    for number in (2, 0, 3, 1):
        memory.tell(ended(memory, number))
    told = [tuple(trial.values) for trial in Memory(toy(), journal).journal.trials]
    assert told == [tuple(ended(memory, number).values.values()) for number in range(4)]


def test_a_failed_trial_is_told_as_failed(journal: Path) -> None:
    memory = Memory(toy(), journal)
    go_on(memory, 2)
    record = failed(memory, memory.ask())
    assert (record.state, record.reason, record.values) == ("failed", "out of memory", {})
    memory.tell(record)
    assert known(Memory(toy(), journal))[2][1:] == (None, TrialState.FAIL)
    assert memory.ask() == 3


def test_telling_a_second_time_changes_nothing(journal: Path) -> None:
    memory = Memory(toy(), journal)
    (record,) = go_on(memory, 1).values()
    before = known(memory), journal.read_bytes()
    memory.tell(record)
    assert (known(memory), journal.read_bytes()) == before


# A journal that was lost, in part or whole, and the ledger that knows better.


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_lost_journal_is_made_again_from_the_ledger(sampler: str, tmp_path: Path) -> None:
    memory, ledger = Memory(toy(sampler=sampler), tmp_path / "journal"), Ledger(tmp_path / "ledger")
    for record in go_on(memory, TRIALS).values():
        ledger.append(record)
    lost = Memory(memory.study, tmp_path / "lost")
    lost.rebuild(Ledger(ledger.path).trials())
    assert known(lost) == known(memory)
    assert lost.ask() == memory.ask() == TRIALS
    assert lost.asked(TRIALS) == memory.asked(TRIALS)


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> tuple[Memory, Path, dict[int, Record]]:
    """A search of five trials, one of which failed, its journal, and the records of its ledger."""
    journal = tmp_path_factory.mktemp("story") / "journal.log"
    memory = Memory(toy(), journal)
    records = go_on(memory, 3)
    records[3] = failed(memory, memory.ask())
    memory.tell(records[3])
    return memory, journal, records | go_on(memory, 1)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("line", range(11))
def test_a_journal_torn_anywhere_is_mended(
    line: int, share: float, story: tuple[Memory, Path, dict[int, Record]], journal: Path
) -> None:
    """Of one line nothing is left, or half, or all but its end; of those after it nothing."""
    memory, whole, records = story
    lines = whole.read_bytes().splitlines()
    assert len(lines) == 11, "one for the study, two for each trial"
    journal.parent.mkdir()
    left = int(share * len(lines[line]))
    journal.write_bytes(b"".join(text + b"\n" for text in lines[:line]) + lines[line][:left])
    torn = Memory(memory.study, journal)
    torn.rebuild(records)
    assert known(torn) == known(memory)
    assert known(Memory(memory.study, journal)) == known(memory)


def test_a_journal_that_is_ahead_of_the_ledger_keeps_its_running_trial(journal: Path) -> None:
    memory = Memory(toy(), journal)
    records = go_on(memory, 2)
    memory.ask()
    before = known(memory)
    again = Memory(toy(), journal)
    again.rebuild(records)
    assert known(again) == before
