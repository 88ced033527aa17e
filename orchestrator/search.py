"""The search: Tune runs light trials, a searcher of ours asks Optuna, the ledger remembers.

A trial is in the journal before it starts, and in the ledger before Optuna is told. Whatever the
moment of a crash, the next run finds either a trial that was asked and not finished, which it
adopts (same number, same parameters), or one that is whole. With one worker, a search that was
killed asks exactly what it would have asked.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.search import Searcher

from orchestrator.ledger import Ledger, Record
from orchestrator.memory import DENSE, Memory
from orchestrator.pool import Pool
from orchestrator.stages import Outcome
from orchestrator.store import Store
from orchestrator.tables import Tables, evaluations
from orchestrator.trial import Trial, owner_of
from search_spaces.study import Stage, Study, params_of

TRIAL_CPUS = 0.001  # none, in effect; Tune refuses a trial without any resource

Heard = Callable[[Record], None]


class Halted(RuntimeError):  # noqa: N818 - the search cannot go on; nothing is lost
    """Nothing can run any more, for a reason that no trial is to blame for."""

    is_expected = True
    goes_on = True  # with the same command


class Asker(Searcher):  # type: ignore[misc]  # Ray ships no types
    """Tune's side of the search: what to run next, and what came of it."""

    def __init__(
        self,
        memory: Memory,
        ledger: Ledger,
        digest: str,
        trials: int,
        workers: int,
        heard: Heard,
        tables: Tables | None = None,
    ) -> None:
        super().__init__()
        self.tables = tables
        self.memory, self.ledger, self.digest = memory, ledger, digest
        self.study = memory.study
        self.trials, self.workers, self.heard = trials, workers, heard
        self.halted: str | None = None
        self.running: dict[str, tuple[int, Stage]] = {}
        self.again = self._unfinished()

    def _unfinished(self) -> list[int]:
        """Return the trials to adopt: not in the ledger, of other code, or without all stages."""
        records = self.ledger.trials()
        self.memory.rebuild(records)
        numbers = range(len(self.memory))
        again = [n for n in numbers if n not in records or not self._is_current(records[n])]
        self.memory.reopen(again)
        return again

    def _is_current(self, record: Record) -> bool:
        """Whether a trial's stages would be the same now; one that failed in a stage has fewer."""
        plan = self.study.plan(self.memory.chosen(record.trial))
        return record.stage_keys == [stage.key(self.digest) for stage in plan.chain()]

    @property
    def left(self) -> int:
        """How many trials are still to run."""
        return len(self.again) + max(self.trials - len(self.memory), 0)

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Give Tune its next trial; None while all workers have one."""
        if self.halted is not None or (self.left == 0 and not self.running):
            return str(Searcher.FINISHED)
        if self.left == 0 or len(self.running) >= self.workers or self._waits_for_dense():
            return None
        number = self.again.pop(0) if self.again else self.memory.ask()
        plan = self.study.plan(self.memory.chosen(number))
        self.running[trial_id] = number, plan
        return {"number": number, "plan": plan}

    def _waits_for_dense(self) -> bool:
        """Whether the others are compared with the dense model, and it still runs."""
        return self.compares and any(number == DENSE for number, _ in self.running.values())

    @property
    def compares(self) -> bool:
        """Whether trials are compared with the dense model clip by clip: if nothing is trained."""
        return self.tables is not None and not self.study.trains

    def compared(self, outcome: Outcome, number: int | None = None) -> Outcome:
        """Return an outcome with its agreement with the dense model, if trials are compared.

        Args:
            outcome: of a trial, or of a control.
            number: of the trial.
        """
        if self.tables is None or not self.compares:
            return outcome
        dense = self.ledger.trials().get(DENSE)
        if number == DENSE or dense is None:
            return self.tables.compared(outcome, evaluations(outcome.stages))
        return self.tables.compared(outcome, evaluations(dense.stages))

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Write down how a trial ended, tell the sampler, and say so."""
        if trial_id not in self.running:
            return
        number, plan = self.running.pop(trial_id)
        result = result or {"state": "failed", "reason": "the process of the trial died"}
        if result["state"] in ("fatal", "cancelled", "running"):
            self.halted = self.halted or str(result.get("reason", "the search was stopped"))
            return
        chosen = self.memory.chosen(number)
        outcome = Outcome(**json.loads(result["outcome"])) if result["state"] == "done" else None
        if outcome is not None:
            outcome = self.compared(outcome, number)
        record = record_of(self.study, plan, chosen, outcome, str(result.get("reason", "")))
        self.note(replace(record, trial=number, asked=self.memory.asked(number)))

    def note(self, record: Record) -> None:
        """Put a trial that ended into the ledger, and tell of it."""
        self.ledger.append(record)
        self.memory.tell(record)
        self.heard(record)

    def __getstate__(self) -> dict[str, Any]:
        """Leave nothing to Tune, which wants to write its searcher down."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the journal and the ledger are the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing; see `save`."""


def record_of(
    study: Study, plan: Stage, chosen: Mapping[str, Any], outcome: Outcome | None, reason: str
) -> Record:
    """Return the ledger's record of a plan that ended, numbered 0."""
    values: dict[str, float] = {}
    if outcome is not None:
        values = {o.name: outcome.metrics.get(o.metric, math.nan) for o in study.objectives}
        strange = [name for name, value in values.items() if not math.isfinite(value)]
        if strange:
            reason, values = f"{', '.join(strange)} is no finite number", {}
    finite = {k: v for k, v in outcome.metrics.items() if math.isfinite(v)} if outcome else {}
    return Record(
        trial=0,
        role="trial",
        params=params_of(plan, chosen),
        values=values,
        state="complete" if values else "failed",
        stage_keys=outcome.keys if outcome else [],
        metrics=finite,
        stages=outcome.stages if outcome else [],
        reason=reason,
    )


def search(asker: Asker, pool: Pool, store: Store, scratch: Path) -> None:
    """Run all trials that are left.

    Raises:
        Halted: nothing can run any more.
    """
    trainable = tune.with_parameters(
        Trial, board=pool.board, store=str(store.root), manifest_digest=asker.digest
    )
    tuner = tune.Tuner(
        tune.with_resources(trainable, {"cpu": TRIAL_CPUS}),
        tune_config=tune.TuneConfig(
            search_alg=asker, num_samples=-1, reuse_actors=True, max_concurrent_trials=None
        ),
        run_config=tune.RunConfig(
            name="trials",
            storage_path=str(scratch),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=2),
            callbacks=[_Release(asker, pool)],
        ),
    )
    tuner.fit()
    if asker.halted is not None:
        raise Halted(asker.halted)


class _Release(tune.Callback):  # type: ignore[misc]  # Ray ships no types
    """Takes off the board what a trial that was stopped no longer waits for."""

    def __init__(self, asker: Asker, pool: Pool) -> None:
        self.asker, self.pool = asker, pool

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        ray.get(self.pool.board.release.remote(owner_of(trial.config)))

    on_trial_error = on_trial_complete
