"""What a confirmation found: the object of `confirm --json`.

All figures are made from what the stages left: clip by clip from the evaluations, forward by
forward from the timings. Accuracies of a point that was confirmed on several seeds are means.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from orchestrator import front, intervals
from orchestrator.intervals import Answers, Estimate, Interval, Measured
from orchestrator.ledger import Record
from orchestrator.stages import Outcome
from orchestrator.store import Store
from search_spaces.objectives import Objective
from workloads.mistakes import Mistake

Confirmed = dict[str, Any]  # Any: JSON, as is an entry of it
Entry = dict[str, Any]

TIMES = ("latency_ms", "clips_per_s")


@dataclass
class Point:
    """A point of the front, or the dense model, and what came of it."""

    record: Record
    """As it was searched."""
    seeds: tuple[int, ...]
    """On top of those that it was searched with; one if others would change nothing."""
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    """By seed."""
    timed: Outcome | None = None
    reason: str = ""
    """Why it could not be confirmed."""

    @property
    def is_whole(self) -> bool:
        """Whether all of its seeds are there."""
        return self.outcomes.keys() == {*self.seeds}

    def stage_keys(self) -> list[str]:
        """Return the stages of its confirmation, in order."""
        all_of_it = [*self.outcomes.values(), *([self.timed] if self.timed else [])]
        return list(dict.fromkeys(key for outcome in all_of_it for key in outcome.keys))


def answers_of(outcome: Outcome, store: Store) -> Answers:
    """Return what an evaluation left of each clip."""
    done = store.find(outcome.keys[-1])
    assert done is not None, "read a moment ago"
    table = pq.read_table(done.folder / "clips.parquet")
    columns = {name: table[name].to_numpy() for name in ("label", "gmacs")}
    return {**columns, "logits": np.stack(table["logits"].to_numpy())}


def values_of(
    answers: Answers, dense: Answers | None, objectives: Sequence[Objective]
) -> tuple[np.ndarray, np.ndarray]:
    """Return gain and cost of each clip, (N,) each.

    Args:
        answers: of a point.
        dense: of the dense model; None if it failed.
        objectives: of the study.

    Raises:
        Mistake: the gain needs labels, and the clips have none.
    """
    gain, cost = front.gain_and_cost(objectives)
    if gain.name == "top1" and (answers["label"] < 0).any():
        raise Mistake("--data: the test clips have no labels", "top1 cannot be confirmed on them")
    if gain.name != "top1" and dense is None:
        raise Mistake(f"{gain.name}: the dense model failed", "there is nothing to compare with")
    return intervals.GAINS[gain.name](answers, dense or answers), answers[cost.name]


def reference(dense: Point | None, seed: int, store: Store) -> Answers | None:
    """Return the dense model's answers under a seed, or under its only one; None if it failed."""
    if dense is None or not dense.outcomes:
        return None
    outcome = dense.outcomes.get(seed, next(iter(dense.outcomes.values())))
    return answers_of(outcome, store)


def estimates(
    points: Iterable[Point], dense: Point | None, objectives: Sequence[Objective], store: Store
) -> list[Estimate]:
    """Return what is known of each point, all of them whole."""
    measured = []
    for point in points:
        pairs = [
            values_of(answers_of(outcome, store), reference(dense, seed, store), objectives)
            for seed, outcome in point.outcomes.items()
        ]
        gains, costs = zip(*pairs, strict=True)
        measured.append(Measured(np.stack(gains), np.stack(costs)))
    return intervals.estimate(measured) if measured else []


def of(
    points: Sequence[Point],
    dense: Point | None,
    objectives: Sequence[Objective],
    store: Store,
) -> Confirmed:
    """Return what was found of a front: the part of the object that figures make up.

    Args:
        points: from cheap to dear.
        dense: the dense model, one of them or beside them; None if it failed in the search.
        objectives: of the study.
        store: where what the stages left lies.
    """
    everyone = {point.record.trial: point for point in [*([dense] if dense else []), *points]}
    whole = {trial: point for trial, point in everyone.items() if point.is_whole}
    known = dict(zip(whole, estimates(whole.values(), dense, objectives, store), strict=True))
    entries = {
        trial: entry_of(point, known.get(trial), objectives, store)
        for trial, point in everyone.items()
    }
    timing = next((_setting(p.timed, store) for p in everyone.values() if p.timed), None)
    return {
        "objectives": [objective.name for objective in objectives],
        "varies": any(len(point.seeds) > 1 for point in everyone.values()),
        "device": timing["device"] if timing else None,
        "timing": timing,
        "dense": entries[dense.record.trial] if dense else None,
        "points": [entries[point.record.trial] for point in points],
    }


def _setting(timed: Outcome, store: Store) -> dict[str, Any]:
    """Return where points were timed, and with how many clips at once."""
    numbers = {name: int(timed.metrics[f"timing/{name}"]) for name in ("threads", "batch")}
    return {"device": _timed_table(timed, store)["device"][0], **numbers}


def _timed_table(timed: Outcome, store: Store) -> dict[str, list[Any]]:
    done = store.find(timed.keys[-1])
    assert done is not None, "read a moment ago"
    found: dict[str, list[Any]] = pq.read_table(done.folder / "clips.parquet").to_pydict()
    return found


def entry_of(
    point: Point, known: Estimate | None, objectives: Sequence[Objective], store: Store
) -> Entry:
    """Return what is shown of a point; without an estimate, that it could not be confirmed."""
    gain, cost = front.gain_and_cost(objectives)
    record = point.record
    entry: Entry = {
        "trial": record.trial,
        "params": record.params,
        "state": "complete" if known else "failed",
        "searched": record.values,
        "searched_keys": record.stage_keys,
        "stage_keys": point.stage_keys(),
    }
    if known is None:
        return {**entry, "values": {}, "reason": point.reason.partition("\n")[0]}
    tokens = [outcome.metrics["cost/tokens"] for outcome in point.outcomes.values()]
    return {
        **entry,
        "values": {gain.name: known.gain.mean, cost.name: known.cost.mean},
        "intervals": {gain.name: _ends(known.gain), cost.name: _ends(known.cost)},
        "by_seed": dict(zip(map(str, point.seeds), known.by_seed, strict=True)),
        "difference": 100 * (known.gain.mean - record.values[gain.name]),
        "on_front": known.on_front,
        "is_certain": known.is_certain,
        "tokens": sum(tokens) / len(tokens),
        **(_times(point.timed, store) if point.timed else {}),
    }


def _ends(interval: Interval) -> list[float]:
    return [interval.low, interval.high]


def _times(timed: Outcome, store: Store) -> Entry:
    """Return what a timing found, without its prefix; a median has its quartiles beside it."""
    found = {name.partition("/")[2]: value for name, value in timed.metrics.items()}
    times = {
        name: {"median": found[name], "low": found[_side(name, "low")]}
        | {"high": found[_side(name, "high")]}
        for name in TIMES
    }
    others = ("speedup", "latency_speedup", "peak_mb")
    rows = _timed_table(timed, store)
    used = {k for k, side in zip(rows["kernel"], rows["side"], strict=True) if side == "point"}
    shown = {name: found[name] for name in others if name in found}
    return {**times, **shown, "attention": ", ".join(sorted(used))}


def _side(name: str, side: str) -> str:
    """Return the metric of a quartile: `latency_ms` -> `latency_low_ms`."""
    return name.replace("_ms", f"_{side}_ms") if name.endswith("_ms") else f"{name}_{side}"
