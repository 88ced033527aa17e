"""How a point and its numbers are written, the same in the terminal, in files and in figures.

Accuracies are percent with one decimal, differences between them points; costs have at least three
digits; shares are of the dense model. A value that is not there is written `-`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Params = Mapping[str, Any]  # Any: JSON, as are the two below
Summary = Mapping[str, Any]
Entry = Mapping[str, Any]

MISSING = "-"
STAGES = ("pretrain", "finetune", "evaluate")
SIZES = {"clip.frames": "{} frames", "clip.size": "{} px"}


def method(params: Params) -> str:
    """Say in words what a point is, such as `rlt tau=0.20 (trained at 0.10)`.

    Args:
        params: `reducer` (`none` for dense) and the knobs of its evaluation; those of its training
            carry the prefix `finetune.` or `pretrain.`, and without a reducer it was trained dense.
    """
    evaluated = _of_stage(params, "evaluate")
    history = [
        f"{verb} {how}"
        for verb, stage in (("trained", "finetune"), ("pretrained", "pretrain"))
        if (how := _training(evaluated, _of_stage(params, stage)))
    ]
    return f"{recipe(params)} ({', '.join(history)})" if history else recipe(params)


def recipe(params: Params) -> str:
    """Say how a point is evaluated, however it was trained."""
    return _recipe(_of_stage(params, "evaluate"))


def _of_stage(params: Params, stage: str) -> Params:
    """Return the parameters of one stage without its prefix; those without any are evaluation's."""
    mine: dict[str, Any] = {}
    for name, value in params.items():
        kind, _, rest = name.partition(".")
        if kind not in STAGES:
            kind, rest = "evaluate", name
        if kind == stage and name != "control":  # that says why a point exists, not what it is
            mine[rest] = value
    return mine


def _recipe(params: Params) -> str:
    """Say how clips are reduced: reducer, knobs, and frames and pixels where they are set."""
    reducer = params.get("reducer", "none")
    # The stride of fewer frames follows from their number.
    idle = {"reducer", *SIZES} | ({"clip.stride"} if "clip.frames" in params else set())
    knobs = _knobs({n: v for n, v in params.items() if n not in idle})
    sizes = [form.format(params[name]) for name, form in SIZES.items() if name in params]
    if reducer == "none" and sizes and not knobs:
        return ", ".join(sizes)
    name = "dense" if reducer == "none" else reducer
    return ", ".join([f"{name} {knobs}".strip(), *sizes])


def _training(evaluated: Params, trained: Params) -> str:
    """Say how the model was trained; nothing for plain dense training."""
    reducer = trained.get("reducer", "none")
    if reducer == "none" and not trained.keys() - {"reducer"}:
        return ""
    if reducer == "none" or reducer != evaluated["reducer"]:
        return f"with {_recipe(trained)}"
    other = {name: value for name, value in trained.items() if evaluated.get(name) != value}
    if not other:
        return "with it"
    if len(other) == 1 and other.keys() | {"reducer"} == evaluated.keys():
        return f"at {_number(*other.values())}"  # the only knob needs no name
    return f"at {_knobs(other)}"


def _knobs(params: Params) -> str:
    return " ".join(f"{name}={_number(value)}" for name, value in params.items())


def _number(value: object) -> str:
    """Write a knob's value: a real one with three digits and no fewer than two decimals."""
    if not isinstance(value, float):
        return str(value)
    short = f"{value:.3g}"
    return short if "e-" in short or len(short.partition(".")[2]) > 2 else f"{value:.2f}"


def duration(seconds: float) -> str:
    """Write a time as `41 s`, `3 m 12 s` or `2 h 05 m`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} m"
    return f"{minutes} m {rest:02d} s" if minutes else f"{rest} s"


def value_of(entry: Entry, name: str) -> float:
    """Return a value of a point; NaN where it is missing, as in a failed trial."""
    value = entry["values"].get(name)
    return math.nan if value is None else float(value)


def label(objective: str) -> str:
    """Return what an objective is called in print."""
    return {"top1": "top-1", "gmacs": "GMACs"}.get(objective, objective)


def percent(share: float, digits: int = 1) -> str:
    """Write a share of 0..1."""
    return MISSING if math.isnan(share) else f"{share * 100:.{digits}f} %"


def digits(value: float | None) -> str:
    """Write a measured number with three digits; those before the point all the same."""
    if value is None or not math.isfinite(value) or value <= 0:
        return MISSING
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}"


@dataclass(frozen=True, kw_only=True)
class Axes:
    """The two objectives of a study: their names and how their numbers are written."""

    gain: str
    """The objective to raise: a share of clips, 0..1."""
    cost: str
    """The objective to lower."""
    dense_cost: float
    """What the dense model costs; NaN if it failed, and then nothing is a share of it."""
    decimals: int
    """Of every cost: as many as give the cheapest front point three digits."""

    @classmethod
    def of(cls, summary: Summary) -> Axes:
        """Read the axes off a summary."""
        names = {o["direction"]: o["name"] for o in summary["objectives"]}
        cheapest = min(value_of(point, names["min"]) for point in summary["front"])
        return cls(
            gain=names["max"],
            cost=names["min"],
            dense_cost=value_of(summary["dense"] or {"values": {}}, names["min"]),
            decimals=max(0, 2 - math.floor(math.log10(cheapest))),
        )

    @property
    def headings(self) -> tuple[str, ...]:
        """Name the numbers that `cells` writes."""
        return label(self.gain), label(self.cost), "tokens", "of dense"

    def cost_text(self, cost: float, spare: int = 0) -> str:
        """Write a cost, with `spare` decimals less than usual."""
        return MISSING if math.isnan(cost) else f"{cost:.{max(0, self.decimals - spare)}f}"

    def share_text(self, cost: float) -> str:
        """Write a cost as a share of the dense one."""
        return percent(cost / self.dense_cost, digits=0)

    def cells(self, entry: Entry) -> tuple[str, ...]:
        """Write gain, cost, tokens and share of the dense cost of a point."""
        cost = value_of(entry, self.cost)
        tokens = entry.get("tokens")
        return (
            percent(value_of(entry, self.gain)),
            self.cost_text(cost),
            MISSING if tokens is None else f"{tokens:.0f}",
            self.share_text(cost),
        )


def heading(summary: Summary) -> str:
    """Say which front this is and what it took."""
    trials = summary["trials"]
    lost = [f"{trials[state]} {state}" for state in ("failed", "pruned") if trials[state]]
    call = summary["call"]
    if call["busy_s"] > 0:
        busy = call["busy_s"] / (call["wall_s"] * summary["workers"])
        took = [duration(call["wall_s"]), f"{percent(busy, digits=0)} busy"]
    else:  # this call ran nothing: what the study took is what there is to know
        took = [f"{duration(summary['study_s'])} of stages"]
    total = f"{sum(trials.values())} trials"
    return f"front of {summary['study']} ({', '.join([total, *lost, *took])})"


def covered(summary: Summary) -> str:
    """Say how much of the box between guessing and the ideal the front covers."""
    return f"hypervolume {summary['hypervolume']:.2f} of [chance..100 %] x [0..dense]"


def caveat(summary: Summary) -> str:
    """Say how far the figures can be trusted: searched on one split with one seed."""
    clips = summary.get("split", {}).get("clips")
    if clips is None:
        return f"val split, one seed: {standing(summary)}"
    share = value_of(knee_of(summary), Axes.of(summary).gain)
    error = 100 * math.sqrt(share * (1 - share) / clips)
    return (
        f"val split ({clips} clips: standard error {error:.1f} points at the knee), "
        f"one seed: {standing(summary)}"
    )


def standing(summary: Summary) -> str:
    """Say how much of a front was confirmed, and on what."""
    found = summary.get("confirmed")
    if found is None:
        return "preliminary"
    points = {entry["trial"] for entry in found["points"] if entry["state"] == "complete"}
    seeds = f"{len(found['seeds'])} further seed{'s' * (len(found['seeds']) > 1)}"
    on = f"{seeds}, {found['clips']} {found['split']} clips"
    return f"searched; {len(points)} of {len(summary['front'])} points confirmed ({on})"


def confirmed_of(summary: Summary, trial: int) -> Entry | None:
    """Return what the confirmation of a trial found, if it was confirmed."""
    found = summary.get("confirmed") or {"points": [], "dense": None}
    entries = [*found["points"], *([found["dense"]] if found["dense"] else [])]
    return next((e for e in entries if e["trial"] == trial and e["values"]), None)


def knee_of(summary: Summary) -> Entry:
    """Return the front point that is the knee."""
    front: list[Entry] = summary["front"]
    (point,) = (p for p in front if p["trial"] == summary["knee"])
    return point
