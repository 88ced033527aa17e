"""What a figure of a study shows, decided once for `front.png` and `front.html`.

A method has one colour and one marker, so that either alone tells it from the others (past six
methods colours come back, with another marker). The front is a staircase: between two of its points
nothing was measured, so no more than the cheaper one is claimed there. Costs are on a logarithmic
axis, marked at shares of the dense cost: what matters is by how much a method is cheaper.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from orchestrator.words import (
    Axes,
    Entry,
    Summary,
    caveat,
    confirmed_of,
    covered,
    heading,
    label,
    method,
    value_of,
)

Kind = Literal["front", "confirmed", "dense", "control", "dominated", "lost"]

DENSE = "dense"
SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.15, 0.1, 0.07, 0.05, 0.03, 0.02, 0.01)
MIN_TICK_DISTANCE = 0.1  # of the axis between the cheapest front point and the dense model
INK, GREY = "#222222", "#777777"
FAINT = 0.4
# Okabe and Ito's, without black (ours is dense and the front) and yellow (pale on white).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9")
# Plotly's and matplotlib's names; the star is the dense model's.
MARKERS = (
    ("circle", "o"),
    ("square", "s"),
    ("triangle-up", "^"),
    ("diamond", "D"),
    ("triangle-down", "v"),
    ("cross", "P"),
    ("pentagon", "p"),
    ("x", "X"),
)


@dataclass(frozen=True, kw_only=True)
class Style:
    """How the points of one method look."""

    colour: str
    symbol: str
    """Marker in plotly."""
    marker: str
    """The same in matplotlib."""


@dataclass(frozen=True, kw_only=True)
class Mark:
    """One trial or control: where it lies and what there is to say about it."""

    trial: int
    """Of a control: the trial that it belongs to."""
    kind: Kind
    """`dense`: the dense model where it is not on the front; `confirmed`: a point measured again;
    `lost`: no values, so no place."""
    standing: str
    """The kind in words, such as `knee` or `control of 12`."""
    family: str
    """What it shares colour and marker with: its reducers, or what a control varies."""
    method: str
    cost: float
    gain: float
    """In percent."""
    cells: tuple[str, ...]
    """Its numbers as they are written, under the headings of the chart."""
    params: Mapping[str, Any]
    stage_keys: tuple[str, ...]
    bar: tuple[float, float] | None = None
    """Interval of the gain in percent, of a point that was confirmed."""

    @property
    def is_certain(self) -> bool:
        """Whether nothing speaks against its standing."""
        return not self.standing.endswith("?")


@dataclass(frozen=True, kw_only=True)
class Chart:
    """All that a figure of a study shows."""

    title: str
    subtitle: str
    caveat: str
    headings: tuple[str, ...]
    axis_titles: tuple[str, str]
    """Of cost and of gain."""
    chance: float
    """What a guess reaches, in percent; NaN if unknown."""
    dense_cost: float
    """NaN if the dense model failed."""
    ticks: tuple[tuple[float, str, str], ...]
    """Costs to mark on the axis, the same in words, and as shares of the dense cost."""
    marks: tuple[Mark, ...]
    """By kind, and each kind from cheap to dear."""

    def of_kind(self, kind: Kind) -> list[Mark]:
        """Return the marks of one kind."""
        return [m for m in self.marks if m.kind == kind]

    def window(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Return the range of costs, with room for the labels left of the front, and of gains."""
        costs, gains = [m.cost for m in self.placed()], [m.gain for m in self.placed()]
        gains += [end for m in self.placed() for end in m.bar or ()]
        room = (max(costs) / min(costs)) ** 0.35
        span = max(1, max(gains) - min(gains))
        low, high = min(gains) - 0.1 * span, max(gains) + 0.14 * span
        return (min(costs) / room, max(costs) * 1.1), (low, high)

    def placed(self) -> list[Mark]:
        """Return the marks that have a place."""
        return [m for m in self.marks if m.kind != "lost"]

    def groups(self) -> dict[tuple[str, Kind], list[Mark]]:
        """Return the marks that have a place by family and kind: those that look the same."""
        groups: dict[tuple[str, Kind], list[Mark]] = {}
        for mark in self.placed():
            groups.setdefault((mark.family, mark.kind), []).append(mark)
        return groups

    def knee(self) -> Mark:
        """Return the knee."""
        (mark,) = (m for m in self.marks if m.standing == "knee")
        return mark

    def ties(self) -> tuple[list[float], list[float]]:
        """Return cost and gain from each control to its point, with NaN between two such lines."""
        points = {m.trial: m for m in self.marks if m.kind not in ("control", "confirmed")}
        costs: list[float] = []
        gains: list[float] = []
        for control in self.of_kind("control"):
            costs += [control.cost, points[control.trial].cost, math.nan]
            gains += [control.gain, points[control.trial].gain, math.nan]
        return costs, gains

    def staircase(self) -> tuple[list[float], list[float]]:
        """Return cost and gain along the front, up to the cost of the dense model."""
        front = self.of_kind("front")
        costs, gains = [m.cost for m in front], [m.gain for m in front]
        if self.dense_cost > costs[-1]:
            return [*costs, self.dense_cost], [*gains, gains[-1]]
        return costs, gains

    def styles(self) -> dict[str, Style]:
        """Return how each family looks, by name; the dense model's comes first."""
        styles = {DENSE: Style(colour=INK, symbol="star", marker="*")}
        leading = {m.family for m in self.of_kind("front")}  # these get the strongest colours
        others = {m.family for m in self.marks} - {DENSE}
        for i, family in enumerate(sorted(others, key=lambda f: (f not in leading, f))):
            symbol, marker = MARKERS[i % len(MARKERS)]
            styles[family] = Style(colour=COLOURS[i % len(COLOURS)], symbol=symbol, marker=marker)
        return styles


def chart_of(summary: Summary) -> Chart:
    """Make the chart of a summary."""
    axes = Axes.of(summary)
    marks = [*_points(summary, axes), *_controls(summary, axes), *_confirmed(summary, axes)]
    marks.sort(key=lambda m: (get_args(Kind).index(m.kind), m.cost))
    return Chart(
        title=summary.get("question", summary["study"]),
        subtitle=f"{heading(summary)}, {covered(summary)}",
        caveat=caveat(summary),
        headings=axes.headings,
        axis_titles=(f"{label(axes.cost)} per clip and share of dense", f"{label(axes.gain)} (%)"),
        chance=100 * summary.get("chance", math.nan),
        dense_cost=axes.dense_cost,
        ticks=_ticks(axes, [m.cost for m in marks if m.kind == "front"]),
        marks=tuple(marks),
    )


def _ticks(axes: Axes, front: list[float]) -> tuple[tuple[float, str, str], ...]:
    """Return round shares of the dense cost that stand well apart on a logarithmic axis."""
    whole = max(front) if math.isnan(axes.dense_cost) else axes.dense_cost
    apart = (whole / min(front)) ** MIN_TICK_DISTANCE
    ticks: list[tuple[float, str, str]] = []
    for share in SHARES:
        cost = share * whole
        if cost * 1.3 > min(front) and (not ticks or ticks[-1][0] / cost >= apart):
            ticks.append((cost, axes.cost_text(cost, spare=1), axes.share_text(cost)))
    return tuple(ticks)


def _points(summary: Summary, axes: Axes) -> list[Mark]:
    """Return a mark for every trial."""
    front = {point["trial"]: point for point in summary["front"]}
    dense = summary["dense"]["trial"] if summary["dense"] else None
    marks = []
    for point in summary["points"]:
        trial = point["trial"]
        kind: Kind = "front" if trial in front else "dense" if trial == dense else "dominated"
        standing = "knee" if trial == summary["knee"] else kind
        standing = standing if point["state"] == "complete" else point["state"]
        marks.append(_mark(axes, {**point, **front.get(trial, {})}, kind, standing))
    return marks


def _controls(summary: Summary, axes: Axes) -> list[Mark]:
    """Return a mark for every control."""
    return [
        _mark(axes, {"trial": entry["of"], **entry}, "control", f"control of {entry['of']}")
        for entry in summary["controls"]
    ]


def _confirmed(summary: Summary, axes: Axes) -> list[Mark]:
    """Return a mark with a bar for every point that was confirmed, the dense model included."""
    trials = {entry["trial"] for entry in [*summary["front"], summary["dense"]] if entry}
    found = [confirmed_of(summary, trial) for trial in sorted(trials)]
    front = {point["trial"] for point in summary["front"]}
    marks = []
    for entry in filter(None, found):
        unsure = entry["trial"] in front and not entry["is_certain"]
        mark = _mark(axes, entry, "confirmed", "confirmed ?" if unsure else "confirmed")
        low, high = entry["intervals"][axes.gain]
        marks.append(replace(mark, bar=(100 * low, 100 * high)))
    return marks


def _mark(axes: Axes, entry: Entry, kind: Kind, standing: str) -> Mark:
    params = entry["params"]
    family = params.get("control", params["reducer"])
    cost, gain = value_of(entry, axes.cost), 100 * value_of(entry, axes.gain)
    return Mark(
        trial=entry["trial"],
        kind="lost" if math.isnan(cost + gain) else kind,
        standing=standing,
        family=DENSE if family == "none" else family,
        method=method(params),
        cost=cost,
        gain=gain,
        cells=axes.cells(entry),
        params=params,
        stage_keys=tuple(entry.get("stage_keys", ())),
    )
