"""The search of a study with rungs: all its trials are asked at the start and race each other.

The dense model goes first and in full. Then rung after rung: whoever is still in the race is
evaluated on the next stretch of the clips, each stretch a stage of its own, and only when all have
been is it decided who stops (`race`). So the outcome depends on what was measured alone: on neither
the number of workers nor the moment of a kill. A later run decides all rungs again, from the tables
in the store, with those that ended held to how they ended; it comes to the same.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from ray.tune.search import Searcher
from torch import Tensor

from orchestrator import race
from orchestrator.ledger import Ledger, Record
from orchestrator.memory import DENSE, Memory
from orchestrator.race import Entrant
from orchestrator.search import Asker, Heard, record_of
from orchestrator.stages import Outcome
from orchestrator.store import Done
from orchestrator.tables import Tables, evaluations
from search_spaces.objectives import AGREEMENT
from search_spaces.study import Stage
from workloads import evaluate, metrics
from workloads.evaluate import Columns

Told = Callable[[int, int, int], None]
"""Hears which rung begins, of how many, and how many trials are in the race."""


@dataclass
class Lap:
    """What a trial has done so far, by stretch."""

    outcomes: dict[int, Outcome] = field(default_factory=dict)
    parts: dict[int, Entrant] = field(default_factory=dict)


class Racer(Asker):
    """Tune's side of a race: what to run next, and what came of it."""

    def __init__(
        self,
        memory: Memory,
        ledger: Ledger,
        digest: str,
        trials: int,
        workers: int,
        heard: Heard,
        tables: Tables,
        num_clips: int,
        told: Told = lambda rung, rungs, running: None,
    ) -> None:
        ends = (0.0, *race.usable(memory.study.rungs, num_clips), 1.0)
        self.stretches = list(pairwise(ends))
        self.told = told
        self.laps: dict[int, Lap] = {}
        self.answers: dict[int, Tensor] = {}  # of the dense model, by stretch
        self.jobs: deque[tuple[int, int]] = deque()
        self.rung = -1  # none: the dense model runs alone
        self.begun = False
        self.known: dict[str, Done] = {}
        super().__init__(memory, ledger, digest, trials, workers, heard, tables)
        self.ended = self.ledger.trials().keys() - set(self.again)

    def _plans(self, number: int) -> list[Stage]:
        """Return the evaluations of a trial, stretch by stretch."""
        plan = self.study.plan(self.memory.chosen(number))
        assert isinstance(plan.config, evaluate.Config)
        shares = [replace(plan.config, share=share) for share in self.stretches]
        return [replace(plan, config=config) for config in shares]

    def _is_current(self, record: Record) -> bool:
        keys = [s.key(self.digest) for plan in self._plans(record.trial) for s in plan.chain()]
        keys = list(dict.fromkeys(keys))
        if record.state == "pruned":
            return bool(record.stage_keys) and record.stage_keys == keys[: len(record.stage_keys)]
        return record.stage_keys == keys

    @property
    def left(self) -> int:
        """How many trials have not ended."""
        return max(self.trials, len(self.memory)) - len(self.ended)

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Give Tune the next stretch of a trial; None while all workers have one."""
        if self.halted is None and not self.begun:
            self._begin()
        while self.halted is None and not self.jobs and not self.running and self._goes_on():
            pass
        if self.halted is not None or (not self.jobs and not self.running):
            return str(Searcher.FINISHED)
        if not self.jobs or len(self.running) >= self.workers:
            return None
        number, rung = self.jobs.popleft()
        plan = self._plans(number)[rung]
        self.running[trial_id] = number, plan
        return {"number": number, "rung": rung, "plan": plan}

    def _begin(self) -> None:
        """Ask for all trials, and find what those that ended have left."""
        self.begun = True
        while len(self.memory) < self.trials:
            self.memory.ask()
        self.laps = {number: Lap() for number in range(len(self.memory))}
        if DENSE in self.ended:
            self._remember(self.ledger.trials()[DENSE])
        self._post([(DENSE, rung) for rung in range(len(self.stretches))])

    def _remember(self, record: Record) -> None:
        """Read again what a trial that ended has measured; it competes without what is gone."""
        for key in evaluations(record.stages):
            columns = self._tables.columns([key])
            if columns is None:
                return
            parts = self.laps[record.trial].parts
            parts[len(parts)] = self._part(columns, len(parts))

    @property
    def _tables(self) -> Tables:
        assert self.tables is not None, "a race needs them"
        return self.tables

    def _post(self, jobs: Sequence[tuple[int, int]]) -> None:
        """Put up what is to be measured, but for what the store has already."""
        for number, rung in jobs:
            if number in self.ended:
                continue
            found = self._found(self._plans(number)[rung])
            if found is None:
                self.jobs.append((number, rung))
            else:
                self._take(number, rung, found)

    def _found(self, plan: Stage) -> Outcome | None:
        """Return what a plan came to, if all of its stages are in the store."""
        outcome = Outcome()
        for stage in plan.chain():
            key = stage.key(self.digest)
            done = self.known.get(key) or self._tables.store.find(key)
            if done is None:
                return None
            if stage.kind != "evaluate":
                self.known[key] = done  # large files, whose hashes need be looked at once
            if key not in outcome.keys:
                took = {"key": key, "kind": stage.kind, "reused": True}
                outcome.stages.append(took | {"seconds": done.seconds, "device": done.device})
                outcome.keys.append(key)
        return outcome

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Take down what a stretch has shown."""
        if trial_id not in self.running:
            return
        number, plan = self.running.pop(trial_id)
        result = result or {"state": "failed", "reason": "the process of the trial died"}
        if result["state"] == "done":
            rung = self._plans(number).index(plan)
            self._take(number, rung, Outcome(**json.loads(result["outcome"])))
        elif result["state"] == "failed":
            self._fail(number, plan, str(result.get("reason", "")))
        else:
            self.halted = self.halted or str(result.get("reason", "the search was stopped"))

    def _fail(self, number: int, plan: Stage, reason: str) -> None:
        self.jobs = deque(job for job in self.jobs if job[0] != number)
        self.laps[number].parts.clear()  # the others need not stand in for it
        if number not in self.ended:  # of the dense model several stretches may fail
            self._end(number, plan, None, reason)

    def _take(self, number: int, rung: int, outcome: Outcome) -> None:
        """Add a stretch to what a trial has done; the last one ends it."""
        if number in self.ended:
            return
        columns = self._tables.columns(evaluations(outcome.stages))
        if columns is None:
            self._fail(number, self._plans(number)[-1], "the table of its clips is gone")
            return
        lap = self.laps[number]
        lap.outcomes[rung], lap.parts[rung] = outcome, self._part(columns, rung)
        if len(lap.parts) == len(self.stretches):
            self._finish(number, "")

    def _finish(self, number: int, reason: str) -> None:
        """End a trial with what was measured of it: complete, or, for a reason, pruned."""
        whole = Outcome()
        for _, outcome in sorted(self.laps[number].outcomes.items()):
            new = [took for took in outcome.stages if took["key"] not in whole.keys]
            whole.stages += new
            whole.keys += [took["key"] for took in new]
        plan = self._plans(number)[-1]
        assert isinstance(plan.config, evaluate.Config)
        columns = self._tables.columns(evaluations(whole.stages))
        assert columns is not None, "each was read before"
        whole.metrics = evaluate.metrics_of(columns, plan.config.split)
        self._end(number, plan, self.compared(whole, number), reason)

    def _end(self, number: int, plan: Stage, outcome: Outcome | None, reason: str) -> None:
        record = record_of(self.study, plan, self.memory.chosen(number), outcome, reason)
        if record.state == "complete" and reason:
            record = replace(record, state="pruned")
        self.ended.add(number)
        self.note(replace(record, trial=number, asked=self.memory.asked(number)))

    def _goes_on(self) -> bool:
        """Decide who stops at the rung that is whole, and begin the next; False at the end."""
        if self.rung + 1 == len(self.stretches):
            return False
        if self.rung >= 0:
            self._stop_some()
        else:
            for number in sorted(self.ended - {DENSE}):
                self._remember(self.ledger.trials()[number])
        self.rung += 1
        running = [number for number in self.laps if number not in self.ended]
        if running:
            self.told(self.rung + 1, len(self.stretches), len(running))
        self._post([(number, self.rung) for number in running])
        return True

    def _stop_some(self) -> None:
        """Stop those whom others make superfluous, by all that is known at this rung."""
        dense = self.laps[DENSE].parts
        if len(dense) < len(self.stretches):  # it failed, and with it every comparison
            return
        seen = {number: self._entrant(number) for number, lap in self.laps.items() if lap.parts}
        may_stop = {number for number in seen if number not in self.ended}
        stay = {n for n in seen if n == DENSE or len(self.laps[n].parts) > self.rung + 1}
        for number, by in race.stopped(seen, may_stop, stay, seen[DENSE]).items():
            clips = f"{len(seen[number].hit_C)} of {len(seen[DENSE].hit_C)} clips"
            self._finish(number, f"stopped after {clips}: trial {by} will do")

    def _entrant(self, number: int) -> Entrant:
        """Return what a trial has shown up to this rung; the dense model all."""
        parts = sorted(self.laps[number].parts.items())
        shown = [part for rung, part in parts if number == DENSE or rung <= self.rung]
        return Entrant(*(np.concatenate(columns) for columns in zip(*shown, strict=True)))

    def _part(self, columns: Columns, rung: int) -> Entrant:
        """Return what a stretch has shown: beside labels, or beside the dense model's answers."""
        logits_BK = torch.from_numpy(columns["logits"])
        right_B = torch.from_numpy(columns["label"])
        if AGREEMENT in self.study.objectives:
            right_B = self.answers.setdefault(rung, logits_BK.argmax(dim=1))  # dense comes first
        hit_B = (logits_BK.argmax(dim=1) == right_B) & ~logits_BK.isnan().any(dim=1)
        margin_B = metrics.margin(logits_BK, right_B)
        return Entrant(hit_B.numpy(), margin_B.numpy(), columns["macs"].sum(axis=1))
