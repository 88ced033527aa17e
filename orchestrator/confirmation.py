"""A confirmation: which stages it consists of, and running those that are not in the store yet.

Each point is planned anew with other seeds in all of its stages and with the test split in its
evaluation. A timing names the machine that it is for: another machine, or this one after a restart,
takes its own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Literal

from orchestrator import confirmed, front, stages, summary
from orchestrator.confirmed import Confirmed, Point
from orchestrator.ledger import Ledger, Record
from orchestrator.memory import DENSE, choice_of
from orchestrator.search import Halted
from orchestrator.stages import Launch, Outcome, StageFailed
from orchestrator.store import Store
from orchestrator.summary import Summary
from search_spaces.fit import Learner, Source
from search_spaces.study import Stage, Study
from workloads import evaluate, timing
from workloads.reducers import base

log = logging.getLogger(__name__)

SEED_STEP = 1000  # between two confirmations of a seed: nobody searches so many
SPLIT: Literal["test"] = "test"
SHARED = ("clip", "reducers", "head", "split", "batch", "precision", "seed")

Heard = Callable[[Record, int, int], None]
"""Hears of each record, how many are done, and of how many."""


class Confirmation:
    """Runs what the confirmation of a front still lacks.

    Args:
        study: as it was run.
        ledger: of the study; gets a record a point and seed.
        digest: of the clips, for the keys of stages.
        store: where the stages lie.
    """

    def __init__(self, study: Study, ledger: Ledger, digest: str, store: Store) -> None:
        self.study, self.ledger, self.digest, self.store = study, ledger, digest, store
        self.seeds = tuple(SEED_STEP * (i + 1) for i in range(study.confirm_seeds))
        trials = ledger.trials()
        on_front = summary.front_records(list(trials.values()), study.objectives)
        self.points = [Point(record, self.seeds_of(record)) for record in on_front]
        self.dense = self._dense(trials)

    def _dense(self, trials: dict[int, Record]) -> Point | None:
        """Return the dense model, on the front or beside it; None if it failed."""
        record = trials.get(DENSE)
        if record is None or record.state != "complete":
            return None
        among = (point for point in self.points if point.record.trial == DENSE)
        return next(among, Point(record, self.seeds_of(record)))

    @property
    def all(self) -> list[Point]:
        """The dense model first, then the other points."""
        others = [point for point in self.points if point is not self.dense]
        return [self.dense, *others] if self.dense else others

    def plan(self, record: Record, seed: int) -> Stage:
        """Return the evaluation of a point under another seed, on clips that were not searched."""
        plan = self.study.plan(choice_of(self.study, record.trial, record.asked)).reseeded(seed)
        return replace(plan, config=replace(_evaluation(plan), split=SPLIT))

    def seeds_of(self, record: Record) -> tuple[int, ...]:
        """Return the seeds that a point needs: one where others would give the same logits."""
        plan = self.plan(record, 0)
        source = _source(plan).config
        assert isinstance(source, Source), "checked when the study is written"
        draws = base.chain_of(plan.config.reducers, source.model.host(source.reducers)).draws
        learns = any(isinstance(stage.config, Learner) for stage in plan.chain())
        return self.seeds if draws or learns else self.seeds[:1]

    def timing(self, point: Point, machine: str) -> Stage:
        """Return the timing of a point beside the dense model, or itself without its chain."""
        plan = self.plan(point.record, point.seeds[0])
        there = self.dense if self.dense and not self.dense.reason else None
        dense = self.plan(there.record, there.seeds[0]) if there else plan
        config = _evaluation(dense) if there else replace(_evaluation(plan), reducers=())
        shown = {name: getattr(plan.config, name) for name in SHARED}
        return Stage(
            kind="timing",
            config=timing.Config(**shown, dense=config, machine=machine),
            inputs=(("weights", _source(plan)), ("dense", _source(dense))),
        )

    def lacks(self, machine: str) -> bool:
        """Tell whether any stage is not in the store."""
        plans = [self.plan(p.record, seed) for p in self.all for seed in p.seeds]
        plans += [self.timing(point, machine) for point in self.all]
        keys = {stage.key(self.digest) for plan in plans for stage in plan.chain()}
        return any(self.store.find(key) is None for key in keys)

    def run(self, launch: Launch, workers: int, heard: Heard) -> None:
        """Train and evaluate every point under each of its seeds; so many stages at once.

        Raises:
            Halted: nothing can run any more.
        """
        jobs = [(p, seed, self.plan(p.record, seed)) for p in self.all for seed in p.seeds]
        sources = list(dict.fromkeys(_source(plan) for *_, plan in jobs))
        threads = ThreadPoolExecutor(max_workers=workers)
        try:
            # First of all what many evaluations wait for; those that share it would stand in line.
            ends = threads.map(lambda stage: self._tried(stage, launch), sources)
            lost = {s: why for s, (_, why) in zip(sources, ends, strict=True) if why}
            plans = [plan for *_, plan in jobs]
            ends = threads.map(
                lambda plan: (
                    (None, lost[_source(plan)])
                    if _source(plan) in lost
                    else self._tried(plan, launch)
                ),
                plans,
            )
            for done, ((point, seed, _), end) in enumerate(zip(jobs, ends, strict=True), start=1):
                heard(self._noted(point, seed, *end), done, len(jobs))
        finally:  # after an interrupt, nobody waits for what still runs
            threads.shutdown(wait=False, cancel_futures=True)

    def time(self, point: Point, machine: str, launch: Launch) -> None:
        """Time a point; nothing else may run beside it.

        Raises:
            Halted: nothing can run any more.
        """
        if point.is_whole:
            point.timed, reason = self._tried(self.timing(point, machine), launch)
            if reason:
                log.warning("event=not_timed trial=%d reason=%s", point.record.trial, reason)

    def _tried(self, plan: Stage, launch: Launch) -> tuple[Outcome | None, str]:
        """Return what a plan came to, or why it failed."""
        try:
            return stages.run(plan, self.digest, self.store, launch), ""
        except StageFailed as error:
            if error.state != "failed":
                raise Halted(str(error)) from error
            return None, str(error)

    def _noted(self, point: Point, seed: int, outcome: Outcome | None, reason: str) -> Record:
        """Write down what came of a point under a seed, unless that is known."""
        point.reason = point.reason or reason
        if outcome is not None:
            point.outcomes[seed] = outcome
        record = Record(
            trial=point.record.trial,
            role="confirm",
            params={**point.record.params, "seed": seed},
            values=self._values(point, seed),
            state="failed" if outcome is None else "complete",
            stage_keys=outcome.keys if outcome else [],
            metrics=outcome.metrics if outcome else {},
            stages=outcome.stages if outcome else [],
            reason=reason,
        )
        if not any(_is_same(record, known) for known in self.ledger.confirmations()):
            self.ledger.append(record)
        return record

    def _values(self, point: Point, seed: int) -> dict[str, float]:
        """Return what a point reached under a seed, by objective; {} if it failed."""
        if seed not in point.outcomes:
            return {}
        answers = confirmed.answers_of(point.outcomes[seed], self.store)
        dense = confirmed.reference(self.dense, seed, self.store)
        gain_N, cost_N = confirmed.values_of(answers, dense, self.study.objectives)
        gain, cost = front.gain_and_cost(self.study.objectives)
        return {gain.name: float(gain_N.mean()), cost.name: float(cost_N.mean())}

    def found(self, made: Summary, clips: int, call: dict[str, Any]) -> Confirmed:
        """Return the confirmation: the JSON object of `confirm`, but for MLflow.

        Args:
            made: the summary of the study.
            clips: how many the evaluations saw.
            call: what this call took.
        """
        facts = {
            "study": made["study"],
            "study_key": made["study_key"],
            "store": str(self.store.root),
            "split": SPLIT,
            "clips": clips,
            "seeds": list(self.seeds),
            "call": call,
        }
        return facts | confirmed.of(self.points, self.dense, self.study.objectives, self.store)


def _evaluation(plan: Stage) -> evaluate.Config:
    assert isinstance(plan.config, evaluate.Config), "what a study ends with"
    return plan.config


def _source(plan: Stage) -> Stage:
    """Return the stage whose model a plan evaluates."""
    return dict(plan.inputs)["weights"]


def _is_same(record: Record, known: Record) -> bool:
    def facts(one: Record) -> tuple[object, ...]:
        return one.trial, one.params, one.state, one.stage_keys

    return facts(record) == facts(known)
