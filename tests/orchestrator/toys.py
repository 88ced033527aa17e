"""A search whose trials take no time: what a trial measures follows from what it chose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from orchestrator.ledger import Record
from orchestrator.memory import Memory
from orchestrator.search import record_of
from orchestrator.stages import Outcome
from search_spaces import demo
from search_spaces.space import Space, either, fix, narrow
from search_spaces.study import Study
from workloads.knobs import Choice, Float, Int
from workloads.reducers import drop, flux, mats, rlt, tome, vid_tldr

DIGEST = "digest of some clips"
SCHEDULES = ("constant", "decreasing")
SPACE = Space(
    {
        "finetune.reducers": either(none=fix(), rlt=fix(rlt.Config(tau=0.1))),
        "evaluate.clip.frames": Int(8, 16, step=4),
        "evaluate.reducers": either(
            dense=fix(),
            rlt=narrow(rlt.Config, tau=Float(0.02, 0.4, log=True)),
            tome=narrow(tome.Config, r=Int(2, 11, step=3), schedule=Choice(SCHEDULES)),
        ),
    }
)
LEFT: dict[type, Callable[[Any], float]] = {
    rlt.Config: lambda config: 1 - config.tau,
    tome.Config: lambda config: 1 - config.r / 20,
    drop.Config: lambda config: config.keep,
    flux.Config: lambda config: 1 - 1 / config.budget,
    vid_tldr.Config: lambda config: 1 - config.ratio,
    mats.Config: lambda config: config.keep,
}


def toy(**changes: Any) -> Study:
    return replace(demo.study(), **{"space": SPACE, "trials": 12, **changes})


def measured(chosen: dict[str, Any]) -> dict[str, float]:
    """Return the metrics of a choice: the fewer tokens, the cheaper and the worse."""
    share = chosen.get("evaluate.clip.frames", 16) / 16
    for config in chosen.get("evaluate.reducers", ()):
        share *= LEFT[type(config)](config)
    return {"val/top1": 0.9 * share**0.3, "cost/gmacs": 2 * share}


def outcome_of(memory: Memory, number: int, **strange: float) -> Outcome:
    """Return what a trial comes to, with some metrics instead of those that it measures."""
    chosen = memory.chosen(number)
    keys = [stage.key(DIGEST) for stage in memory.study.plan(chosen).chain()]
    return Outcome(metrics=measured(chosen) | strange, keys=keys)


def ended(memory: Memory, number: int) -> Record:
    """Return the record of a trial."""
    chosen = memory.chosen(number)
    outcome = outcome_of(memory, number)
    record = record_of(memory.study, memory.study.plan(chosen), chosen, outcome, "")
    return replace(record, trial=number, asked=memory.asked(number))


def failed(memory: Memory, number: int) -> Record:
    """Return the record of a trial of which a stage failed."""
    chosen = memory.chosen(number)
    record = record_of(memory.study, memory.study.plan(chosen), chosen, None, "out of memory")
    return replace(record, trial=number, asked=memory.asked(number))


def go_on(memory: Memory, trials: int) -> dict[int, Record]:
    """Ask and tell so many trials, one after the other; return their records by number."""
    records = {}
    for _ in range(trials):
        number = memory.ask()
        records[number] = ended(memory, number)
        memory.tell(records[number])
    return records
