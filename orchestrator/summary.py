"""The summary of a study: the one JSON object that `run` and `front` print, made from its ledger.

`study.json` in the study's folder holds what the ledger does not: the question, the objectives, the
clips. With both, `front` needs neither the study's file nor its data.
"""

from __future__ import annotations

import difflib
import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import search_spaces
from orchestrator import front
from orchestrator.files import read_json
from orchestrator.ledger import Ledger, Record
from orchestrator.memory import DENSE
from orchestrator.tracking import default_uri
from search_spaces.objectives import Objective
from workloads.mistakes import Mistake

Summary = dict[str, Any]  # Any: JSON

CONFIRMED = "confirm.json"
"""In the folder of a study: what `confirm` found last."""
NO_CALL = {
    "wall_s": 0.0,
    "busy_s": 0.0,
    "data_wait_s": 0.0,
    "decoded": 0,
    "trials_reused": 0,
    "stages_run": 0,
    "stages_reused": 0,
}


def latest(store: Path, study: str) -> Path:
    """Return the folder of a study, given by name or by file, as it was run last.

    Raises:
        Mistake: it was never run on this store, or its file is needed and cannot be read.
    """
    was_run = sorted(path.parent.name for path in store.glob("latest/[!.]*/study.json"))
    name = study if study in was_run else _name_of(study, was_run)
    if name not in was_run:
        near = difflib.get_close_matches(name, {*was_run, *search_spaces.available()} - {name}, n=1)
        hint = f'; did you mean "{near[0]}"?' if near else ""
        remedy = "paretoken studies lists all" if near else f"paretoken run {shlex.quote(study)}"
        raise Mistake(f"no study {name!r} was ever run on --store {store}{hint}", remedy)
    return (store / "latest" / name).resolve()


def _name_of(study: str, was_run: Sequence[str]) -> str:
    """Return the name that a study has in its file; without the file, that of the file may do."""
    if not study.endswith(".py") and "/" not in study:
        return study
    try:
        return search_spaces.load(study).name
    except Mistake:
        if Path(study).stem in was_run:
            return Path(study).stem
        raise


def front_records(records: Sequence[Record], objectives: Sequence[Objective]) -> list[Record]:
    """Return the trials on the front, from cheap to dear."""
    complete = [record for record in records if record.state == "complete"]
    points = [{"values": record.values} for record in complete]
    return [complete[i] for i in front.front_of(points, objectives)]


def summarise(folder: Path, ledger: Ledger, call: dict[str, Any] | None = None) -> Summary:
    """Return the summary of the study in a folder."""
    facts = read_json(folder / "study.json")
    objectives = _objectives(facts)
    trials = [record for _, record in sorted(ledger.trials().items())]
    on_front = front_records(trials, objectives)
    dense = next((r for r in trials if r.trial == DENSE and r.state == "complete"), None)
    best = front.knee([{"values": r.values} for r in on_front], objectives)
    numbers = {record.trial for record in on_front}
    made = {
        "study": facts["name"],
        "question": facts["question"],
        "study_key": facts["key"],
        "store": facts["store"],
        "workers": facts["workers"],
        "tracking": facts["tracking"],
        "objectives": [_with_reference(o, facts["chance"], dense) for o in objectives],
        "chance": facts["chance"],
        "split": {"clips": facts["val_clips"]},
        "hypervolume": _hypervolume(on_front, objectives, facts["chance"], dense),
        "trials": {s: _count(trials, s) for s in ("complete", "failed", "pruned")},
        "passes": _passes(trials, dense),
        "call": NO_CALL | (call or {}),
        "study_s": _stage_seconds([r for r in ledger.records if r.role != "confirm"]),
        "dense": None if dense is None else _entry(dense, "trial", "params", "values"),
        "knee": None if best is None else on_front[best].trial,
        "front": [_entry(r, "trial", "params", "values", "stage_keys") for r in on_front],
        "controls": [_control(r) for r in _newest_controls(ledger) if r.trial in numbers],
        "points": [_point(r) for r in trials],
    }
    found = _confirmed(folder, [*on_front, *([dense] if dense else [])])
    return made | ({"confirmed": found} if found else {})


def _confirmed(folder: Path, records: Sequence[Record]) -> dict[str, Any] | None:
    """Return what was confirmed, as far as it is of these records; None if nothing is."""
    path = folder / CONFIRMED
    if not path.exists():
        return None
    found = read_json(path)
    keys = {record.trial: record.stage_keys for record in records}
    for name in ("dense", "points"):
        entries = [found[name]] if name == "dense" else found[name]
        kept = [e for e in entries if e and e["searched_keys"] == keys.get(e["trial"])]
        found[name] = kept if name == "points" else next(iter(kept), None)
    shown = ("split", "clips", "seeds", "timing", "dense", "points")
    return {name: found[name] for name in shown} if found["points"] else None


def _objectives(facts: dict[str, Any]) -> tuple[Objective, ...]:
    return tuple(Objective(**objective) for objective in facts["objectives"])


def placed(made: Summary, store: Path) -> Summary:
    """Return a summary as of the store where it lies now, which may be a copy or have moved."""
    tracked = made["tracking"]
    if tracked["uri"] == default_uri(Path(made["store"])):
        tracked = {**tracked, "uri": default_uri(store)}
    return {**made, "store": str(store), "tracking": tracked}


def _entry(record: Record, *names: str) -> dict[str, Any]:
    entry = {name: getattr(record, name) for name in names}
    if "cost/tokens" in record.metrics:
        entry["tokens"] = record.metrics["cost/tokens"]
    return entry


def _point(record: Record) -> dict[str, Any]:
    entry = _entry(record, "trial", "params", "values", "state")
    # Its first line names the stage and the error; traceback or remedy follow.
    return entry | ({"reason": record.reason.partition("\n")[0]} if record.reason else {})


def _control(record: Record) -> dict[str, Any]:
    return {"of": record.trial, **_entry(record, "params", "values")}


def _newest_controls(ledger: Ledger) -> list[Record]:
    """Return the controls, of each kind and trial the one that was measured last."""
    newest = {(r.trial, r.params["control"]): r for r in ledger.controls()}
    return [record for record in newest.values() if record.state == "complete"]


def _count(trials: Sequence[Record], state: str) -> int:
    return sum(record.state == state for record in trials)


def _with_reference(objective: Objective, chance: float, dense: Record | None) -> dict[str, Any]:
    shown = {name: getattr(objective, name) for name in ("name", "direction", "unit")}
    return shown | {"reference": _reference(objective, chance, dense)}


def _reference(objective: Objective, chance: float, dense: Record | None) -> float | None:
    """Return the worst corner of the box on one axis; None while the dense model has none."""
    if objective.reference == "chance":
        return chance
    return None if dense is None else dense.values[objective.name]


def _hypervolume(
    on_front: Sequence[Record],
    objectives: Sequence[Objective],
    chance: float,
    dense: Record | None,
) -> float:
    if dense is None:
        return 0.0
    gain, cost = front.gain_and_cost(objectives)
    pairs = [(record.values[gain.name], record.values[cost.name]) for record in on_front]
    return front.hypervolume(pairs, (chance, dense.values[cost.name]))


def _passes(trials: Sequence[Record], dense: Record | None) -> float:
    """Return the MACs of all trials' evaluations over those of one dense pass over the clips."""
    if dense is None:
        return 0.0
    return sum(map(_macs, trials)) / _macs(dense)


def _macs(record: Record) -> float:
    """Return the 1e9 MACs of a trial's evaluation, one view of each clip; 0 if it failed."""
    return record.metrics.get("cost/gmacs", 0.0) * record.metrics.get("val/clips", 1.0)


def _stage_seconds(records: Sequence[Record]) -> float:
    """Return what all stages of the study took; one that many trials share counts once."""
    seconds = {took["key"]: took["seconds"] for record in records for took in record.stages}
    return float(sum(seconds.values()))


def choose(made: Summary, at: str) -> dict[str, Any] | None:
    """Return the front point that `at` asks for; see `front.choose`.

    Raises:
        Mistake: `at` is neither the knee nor a bound on an objective.
    """
    folder = Path(made["store"]) / "studies" / made["study_key"]
    objectives = _objectives(read_json(folder / "study.json"))
    point = front.choose(made["front"], objectives, at)
    return None if point is None else dict(point)


def progress_of(trials: Sequence[Record], objectives: Sequence[Objective], chance: float) -> str:
    """Say how good the front is so far."""
    dense = next((r for r in trials if r.trial == DENSE and r.state == "complete"), None)
    share = _hypervolume(front_records(trials, objectives), objectives, chance, dense)
    return f"hypervolume {share:.3f}"


def told_of_waiting(call: dict[str, Any]) -> str:  # Any: JSON
    """Say which share of their time the stages of a call waited for clips; nothing without any."""
    busy, waited = call.get("busy_s", 0.0), call.get("data_wait_s", 0.0)
    if not busy:
        return ""
    share = f"{waited:.1f} of {busy:.1f} s in stages ({waited / busy:.0%})"
    return f"clips   waited for {share}; {call['decoded']} videos were decoded"


def growth(trials: Sequence[Record], made: Summary) -> dict[int, float]:
    """Return the hypervolume after each complete trial."""
    corner = {o["direction"]: (o["name"], o["reference"]) for o in made["objectives"]}
    (gain, floor), (cost, limit) = corner["max"], corner["min"]
    shares: dict[int, float] = {}
    pairs: list[tuple[float, float]] = []
    for record in sorted(trials, key=lambda r: r.trial):
        if record.state == "complete" and limit is not None:
            pairs.append((record.values[gain], record.values[cost]))
            shares[record.trial] = front.hypervolume(pairs, (floor, limit))
    return shares


def point_latest(store: Path, name: str, folder: Path, say: Callable[[str], None]) -> None:
    """Make a study the one that `front NAME` shows."""
    link = store / "latest" / name
    if link.is_symlink() and link.resolve() != folder:
        say(f"another {name} was run on this store, on other clips or settings; it stays beside")
    link.parent.mkdir(exist_ok=True)
    beside = link.with_name(f".{name}.{os.getpid()}")
    beside.symlink_to(os.path.relpath(folder, link.parent))
    beside.replace(link)


def facts_of(objectives: Sequence[Objective], **facts: Any) -> dict[str, Any]:  # Any: JSON
    """Return the content of `study.json`."""
    return {"objectives": [asdict(objective) for objective in objectives], **facts}
