"""What the sampler knows: Optuna's journal on the disk, and its mirror in memory.

A trial enters the journal in one line, with all of its parameters, before it starts: it is sampled
in the mirror first, so a crash between two parameters leaves nothing behind. The sampler's
randomness is made anew for each trial from the study's seed and the trial's number.
"""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FixedTrial, FrozenTrial, TrialState, create_trial

from orchestrator import samplers
from orchestrator.ledger import Record
from search_spaces.study import Study

log = logging.getLogger(__name__)

DENSE = 0  # the number of the trial that chooses nothing
STATES = {
    "complete": TrialState.COMPLETE,
    "failed": TrialState.FAIL,
    "pruned": TrialState.PRUNED,
}
_DIRECTION = {"max": StudyDirection.MAXIMIZE, "min": StudyDirection.MINIMIZE}


class Memory:
    """The journal of one study and its mirror; the driver alone writes it."""

    def __init__(self, study: Study, path: Path) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        warnings.simplefilter("ignore", ExperimentalWarning)  # of TPE's `group`, pinned in the lock
        self.study = study
        self.make = samplers.load(study.sampler)
        self.path = path
        self.directions = [_DIRECTION[objective.direction] for objective in study.objectives]
        _mend(path)
        self._open()

    def _open(self) -> None:
        self.journal = self._journal_in(self.path)
        self.mirror = optuna.create_study(directions=self.directions)
        self.mirror.add_trials(self.journal.trials)

    def _journal_in(self, path: Path) -> optuna.Study:
        backend = JournalStorage(JournalFileBackend(str(path)))
        known = optuna.get_all_study_names(backend)
        if known:  # creating it "if it is not there" would write a line each time
            return optuna.load_study(study_name=known[0], storage=backend)
        return optuna.create_study(storage=backend, directions=self.directions)

    def __len__(self) -> int:
        return len(self.mirror.trials)

    def ask(self) -> int:
        """Choose the next trial and write it down; return its number. The first one is dense."""
        number = len(self)
        digest = hashlib.sha256(f"{self.study.seed}/{number}".encode()).digest()
        seed = int.from_bytes(digest[:4], "big")
        self.mirror.sampler = self.make(seed, self.study.trials)
        if DENSE < number <= len(self.study.first):
            self.mirror.enqueue_trial(dict(self.study.first[number - 1]))
        trial = self.mirror.ask()
        if number != DENSE:
            self.study.space.suggest(trial)
        self.journal.add_trial(self.mirror.trials[number])
        return number

    def tell(self, record: Record) -> None:
        """Hear how a trial ended; one with a value that is no number counts as failed."""
        values = [record.values[o.name] for o in self.study.objectives] if record.values else None
        state = STATES[record.state]
        for side in (self.journal, self.mirror):
            if not side.trials[record.trial].state.is_finished():
                side.tell(record.trial, values if state == TrialState.COMPLETE else None, state)

    def chosen(self, number: int) -> dict[str, Any]:
        """Return what a trial chose, by path; {} for the dense one."""
        return choice_of(self.study, number, self.asked(number))

    def asked(self, number: int) -> dict[str, Any]:
        """Return the sampler's own parameters of a trial."""
        return self.mirror.trials[number].params

    def rebuild(self, records: Mapping[int, Record]) -> None:
        """Write into the journal what only the ledger knows, and tell it what it was not told.

        A number that neither knows, as it was still running, is chosen anew.
        """
        for number in range(len(self), max(records, default=-1) + 1):
            if number in records:
                trial = self._from_ledger(records[number])
                self.journal.add_trial(trial)
                self.mirror.add_trial(trial)
            else:
                self.ask()
        for record in records.values():
            self.tell(record)

    def reopen(self, numbers: Sequence[int]) -> None:
        """Let trials that ended run again; Optuna takes no second answer, so a new journal does."""
        ended = [n for n in numbers if self.mirror.trials[n].state.is_finished()]
        if not ended:
            return
        log.warning("event=trials_run_again trials=%s", ",".join(map(str, ended)))
        fresh = self.path.with_suffix(".new")
        fresh.unlink(missing_ok=True)
        journal = self._journal_in(fresh)
        for trial in self.mirror.trials:
            journal.add_trial(_running(trial) if trial.number in ended else trial)
        fresh.replace(self.path)
        self._open()

    def _from_ledger(self, record: Record) -> FrozenTrial:
        asked = FixedTrial(record.asked)
        if record.trial != DENSE:
            self.study.space.suggest(asked)
        return create_trial(
            state=TrialState.RUNNING, params=record.asked, distributions=asked.distributions
        )


def choice_of(study: Study, number: int, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a trial of a study chose, by path, from the sampler's own parameters of it."""
    return {} if number == DENSE else study.space.suggest(FixedTrial(dict(asked)))


def _running(trial: FrozenTrial) -> FrozenTrial:
    return create_trial(
        state=TrialState.RUNNING, params=trial.params, distributions=trial.distributions
    )


def _mend(path: Path) -> None:
    """Take away a line that a crash cut short, and the lock of a writer that is gone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Path(f"{path}.lock").unlink(missing_ok=True)  # this driver is the only one: it holds the study
    if path.exists():
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            log.warning("event=torn_line path=%s", path)
            path.write_bytes(whole)
