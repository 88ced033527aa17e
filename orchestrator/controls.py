"""Controls: what each point of a front is worth beyond having fewer tokens.

Derived after the search, at the tokens that the point achieved; never on the front. A training-free
point is compared on its own checkpoint with what `search_spaces.equal` lists: random drop, fewer
frames, lower resolution, ToMe at a constant r and, if it merges, at its own schedule. For a
trained point one model is trained with random drop at the mean keep ratio of its training (in steps
of 0.05, shared by all points of that checkpoint), and evaluated with random drop at the point's
tokens. A point whose model was pre-trained on selected tokens also has the same without that
choice: pre-trained on random tokens, as many (`masking`; the mean number, where a selection leaves
some clips more than others), and all else as the point. So each control takes away one choice, and
the others stay.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from orchestrator import stages
from orchestrator.crew import Crew
from orchestrator.ledger import Ledger, Record
from orchestrator.memory import DENSE, Memory
from orchestrator.search import Halted, Heard, record_of
from orchestrator.stages import Launch, Outcome, StageFailed
from orchestrator.store import Store
from search_spaces import equal
from search_spaces.study import Stage
from workloads import finetune, load, pretrain
from workloads.branches import Branch
from workloads.reducers import drop

log = logging.getLogger(__name__)

KEEP_STEP = 0.05
BRANCHES = "finetune.branches"

Chosen = dict[str, Any]  # Any: as a trial chooses, a value for each path


@dataclass(frozen=True)
class Control:
    """What a control is called, whose it is, and what it chooses."""

    kind: str
    of: int
    chosen: Chosen
    plan: Stage


class Controls:
    """Derives the controls of a front and runs those that the ledger does not have yet."""

    def __init__(
        self,
        memory: Memory,
        ledger: Ledger,
        digest: str,
        store: Store,
        compared: Callable[[Outcome], Outcome] = lambda outcome: outcome,
    ) -> None:
        self.compared = compared
        self.memory, self.ledger, self.digest, self.store = memory, ledger, digest, store
        self.study = memory.study

    def run(self, front: Sequence[Record], crew: Crew, heard: Heard) -> None:
        """Run the controls of some points.

        Raises:
            Halted: nothing can run any more.
        """
        points = [record for record in front if record.trial != DENSE]
        threads = ThreadPoolExecutor(max_workers=crew.workers)
        try:
            self._call(crew, [p for p in map(self._as_trained, points) if p.config.reducers])
            keeps = list(threads.map(lambda point: self._trained_keep(point, crew.launch), points))
            wanted = [c for p, keep in zip(points, keeps, strict=True) for c in self.of(p, keep)]
            missing = [control for control in wanted if not self._is_known(control)]
            self._call(crew, [control.plan for control in missing])
            for record in threads.map(lambda c: self._measure(c, crew.launch), missing):
                self.ledger.append(record)
                heard(record)
        finally:  # after an interrupt, nobody waits for what still runs
            threads.shutdown(wait=False, cancel_futures=True)

    def _call(self, crew: Crew, plans: Sequence[Stage]) -> None:
        """Have the groups ready, before several threads ask for them, if they will be needed."""
        if any(self.store.find(plan.key(self.digest)) is None for plan in plans):
            crew.pool()

    def of(self, point: Record, trained_keep: float | None) -> Iterator[Control]:
        """Yield the controls of a point.

        Args:
            point: a complete trial.
            trained_keep: share of the tokens that its model was trained on; see `_trained_keep`.
        """
        if trained_keep is not None and math.isnan(trained_keep):
            return
        chosen = self.memory.chosen(point.trial)
        plan = self.study.plan(chosen)
        model, tokens = _source(plan).model, point.metrics["cost/tokens"]
        if trained_keep is not None:
            keep = max(round(trained_keep / KEEP_STEP), 1) * KEEP_STEP
            training = {"finetune.reducers": (drop.Config(keep=round(keep, 2)),)}
            changes = {"drop": training | equal.dropped(plan.config, model, tokens)}
        else:
            changes = equal.others(plan.config, model, tokens)
            changes |= self._taught_blindly(plan, tokens)
        if tokens >= equal.cells_of(plan.config, model):
            changes = {}
        changes |= self._masked(plan)
        for kind in self.study.controls:
            if kind in changes:
                other = chosen | changes[kind]
                yield Control(kind, point.trial, other, self.study.plan(other))

    def _taught_blindly(self, plan: Stage, tokens: float) -> dict[str, Chosen]:
        """Return random drop on a model that learned from random tokens, where a model of several
        branches learned from chosen ones: on its own checkpoint random tokens are of a new kind.
        """
        branches = _branches(plan)
        blind = equal.blind(branches)
        if blind is None or blind == branches:
            return {}
        dropped = equal.dropped(plan.config, _source(plan).model, tokens)
        return {"drop": {BRANCHES: blind, **dropped}}

    def _masked(self, plan: Stage) -> dict[str, Chosen]:
        """Return random masks in place of the selection of a pre-training, if there is any."""
        for stage in plan.chain():
            config = stage.config
            if not isinstance(config, pretrain.Config):
                continue
            done = self.store.find(stage.key(self.digest))
            if done is not None and not {*map(type, config.reducers)} <= {drop.Config}:
                cells = equal.cells_of(config, config.model)
                keep = drop.keep_for(cells, done.metrics["cost/tokens"])
                return {"masking": {f"{stage.label}.reducers": (drop.Config(keep=keep),)}}
        return {}

    def _as_trained(self, point: Record) -> Stage:
        """Return the evaluation of a point's model under the chain that it was trained with."""
        chosen = self.memory.chosen(point.trial)
        source = _source(self.study.plan(chosen))
        # What a model from outside was trained with is not known: it counts as dense.
        reducers = source.reducers if isinstance(source, finetune.Config) else ()
        return self.study.plan(chosen | {"evaluate.reducers": reducers})

    def _trained_keep(self, point: Record, launch: Launch) -> float | None:
        """Return the share of tokens that a point's model was trained on, measured on val.

        None if on all; NaN where it could not be measured, and then no control can be derived.
        """
        plan = self._as_trained(point)
        if not plan.config.reducers:
            return None
        try:
            outcome = stages.run(plan, self.digest, self.store, launch)
        except StageFailed as error:
            if error.state != "failed":
                raise Halted(str(error)) from error
            log.warning("event=no_controls trial=%d reason=%s", point.trial, error)
            return math.nan
        return outcome.metrics["cost/tokens"] / equal.cells_of(plan.config, _source(plan).model)

    def _is_known(self, control: Control) -> bool:
        keys = [stage.key(self.digest) for stage in control.plan.chain()]
        return any(
            (record.trial, record.params["control"], record.stage_keys)
            == (control.of, control.kind, keys)
            for record in self.ledger.controls()
        )

    def _measure(self, control: Control, launch: Launch) -> Record:
        outcome, reason = None, ""
        try:
            outcome = self.compared(stages.run(control.plan, self.digest, self.store, launch))
        except StageFailed as error:
            if error.state != "failed":
                raise Halted(str(error)) from error
            reason = str(error)
        # The stride of fewer frames follows from their number.
        hidden = {"evaluate.clip.stride", BRANCHES} - self.memory.chosen(control.of).keys()
        shown = {path: value for path, value in control.chosen.items() if path not in hidden}
        record = record_of(self.study, control.plan, shown, outcome, reason)
        params = {**record.params, "control": control.kind}
        if BRANCHES in control.chosen.keys() - self.memory.chosen(control.of).keys():
            params["finetune.reducer"] = "drop"
        return replace(record, trial=control.of, role="control", params=params)


def _source(plan: Stage) -> finetune.Config | load.Config:
    """Return the config of the training that a plan evaluates, or of the model from outside."""
    config = dict(plan.inputs)["weights"].config
    assert isinstance(config, finetune.Config | load.Config)
    return config


def _branches(plan: Stage) -> tuple[Branch, ...]:
    return getattr(_source(plan), "branches", ())
