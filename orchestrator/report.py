"""What a person reads of a study: the final table, the same as Markdown, and the files `front.*`.

All of it is made from one summary, the JSON object that `run` and `front` print, and from nothing
else. A study without one complete trial has no front, and nothing here to report.
"""

from __future__ import annotations

import csv
import io
import json
import math
import shlex
import textwrap
from html import escape
from pathlib import Path

from orchestrator.chart import chart_of
from orchestrator.figure import png
from orchestrator.files import write_bytes
from orchestrator.page import html
from orchestrator.words import (
    Axes,
    Entry,
    Summary,
    caveat,
    covered,
    heading,
    knee_of,
    method,
    recipe,
    value_of,
)

WIDTH = 100


def table(summary: Summary) -> str:
    """Return the final table, plain text of at most 100 columns."""
    axes = Axes.of(summary)
    rows = [(axes.headings, "method"), *_rows(summary, axes)]
    widths = [max(map(len, column)) for column in zip(*(cells for cells, _ in rows), strict=True)]
    lines = _heading(summary)
    for cells, words in rows:
        numbers = [cell.rjust(width) for cell, width in zip(cells, widths, strict=True)]
        lines.append(fill(words, "  " + "   ".join([*numbers, ""])))
    return "\n".join([*lines, *map(fill, _advice(summary))])


def line(summary: Summary, point: Entry) -> str:
    """Return one point of the front on a line."""
    axes = Axes.of(summary)
    numbers = zip(axes.headings, axes.cells(point), strict=True)
    shown = "   ".join(f"{name} {number}" for name, number in numbers)
    return f"{method(point['params'])}   {shown}   (trial {point['trial']})"


def footer(summary: Summary) -> str:
    """Say where the figure and the runs are, and what to do next."""
    name = summary["study"]
    if name == "demo":
        others = " | paretoken run rlt_tau --data YOUR_VIDEOS"
    else:
        others = f" | paretoken export {name} --at knee --out DIR{here(summary)}"
    confirm = "" if summary.get("confirmed") else f"paretoken confirm {name}{here(summary)} | "
    return (
        f"{_cost(summary)}"
        f"figure   {Path(summary['store']) / 'latest' / name / 'front.html'}\n"
        f"compare  mlflow ui --backend-store-uri {summary['tracking']['uri']}\n"
        f"next     {confirm}paretoken front {name} --at knee{here(summary)}{others}"
    )


def _cost(summary: Summary) -> str:
    """Say what a race has spared; nothing where each trial was evaluated in full."""
    if not summary["trials"]["pruned"]:
        return ""
    total = sum(summary["trials"].values())
    return f"cost     {total} configurations for {summary['passes']:.1f} dense passes\n"


def here(summary: Summary) -> str:
    """Return the flag for another store than the usual one."""
    store = Path(summary["store"])
    usual = store == Path("paretoken-store").resolve()
    return "" if usual else f" --store {shlex.quote(str(store))}"


def _heading(summary: Summary) -> list[str]:
    """Return both halves of the heading, on one line if they fit."""
    left, right = heading(summary), covered(summary)
    if len(left) + 3 + len(right) <= WIDTH:
        return [left + right.rjust(WIDTH - len(left))]
    return [fill(left), right]


def fill(words: str, before: str = "") -> str:
    """Put words behind what comes before; what does not fit goes on below the first of them."""
    indent = " " * len(before)
    return textwrap.fill(words, WIDTH, initial_indent=before, subsequent_indent=indent)


def markdown(summary: Summary) -> str:
    """Return the question and the final table as Markdown, for a run's description or a README."""
    axes = Axes.of(summary)
    rows = [(axes.headings, "method"), (("--:",) * 4, ":--"), *_rows(summary, axes)]
    lines = [f"| {' | '.join(map(_escaped, [*cells, words]))} |" for cells, words in rows]
    question = [_escaped(summary["question"]), ""] if "question" in summary else []
    below = [f"{heading(summary)}, {covered(summary)}", *_advice(summary)]
    return "\n".join([*question, *lines, "", ". ".join(map(_escaped, below))])


def _rows(summary: Summary, axes: Axes) -> list[tuple[tuple[str, ...], str]]:
    """Return numbers and words of each line: the front, dense, the controls of the knee."""
    dense, knee = summary["dense"], knee_of(summary)
    rows = []
    for point in sorted(summary["front"], key=lambda p: value_of(p, axes.cost), reverse=True):
        words = method(point["params"])
        words += " (reference)" if dense and point["trial"] == dense["trial"] else ""
        rows.append((axes.cells(point), words + ("   <- knee" if point is knee else "")))
    if dense and dense["trial"] not in {point["trial"] for point in summary["front"]}:
        rows.append((axes.cells(dense), "dense (reference)"))
    controls = [c for c in summary["controls"] if c["of"] == knee["trial"] and c["values"]]
    return rows + [(axes.cells(c), _against(axes, c, knee)) for c in controls]


def _against(axes: Axes, control: Entry, knee: Entry) -> str:
    """Say what a control of the knee is and how far it lies from the knee."""
    name = recipe(control["params"])
    trained = "" if method(control["params"]) == name else "trained "
    if control["params"].get("control") == "masking":  # evaluated as the knee itself
        trained = "pretrained on random tokens, "
    points = 100 * (value_of(control, axes.gain) - value_of(knee, axes.gain))
    return f"{name} ({trained}control of the knee: {points:+.1f} points)"


def _advice(summary: Summary) -> list[str]:
    """Say how far the table can be trusted."""
    return [caveat(summary)]


def _escaped(words: str) -> str:
    """Keep a user's words from being read as Markdown's table or as HTML."""
    return escape(words, quote=False).replace("|", "\\|")


def write(summary: Summary, folder: Path) -> dict[str, Path]:
    """Write `front.json`, `front.csv`, `front.html` and `front.png`; return their paths by name.

    A file is replaced as a whole: who reads while a study goes on sees the old or the new one.
    """
    chart = chart_of(summary)
    contents = {
        "front.json": json.dumps(summary, indent=1, allow_nan=False).encode(),
        "front.csv": _csv(summary).encode(),
        "front.html": html(chart).encode(),
        "front.png": png(chart),
    }
    for name, content in contents.items():
        write_bytes(folder / name, content)
    return {name: folder / name for name in contents}


def _csv(summary: Summary) -> str:
    """Return the front as CSV, a line a point from cheap to dear; a knob it lacks is empty."""
    axes = Axes.of(summary)
    lines = [_csv_line(summary, axes, point) for point in summary["front"]]
    columns = dict.fromkeys(name for line in lines for name in line)
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _csv_line(summary: Summary, axes: Axes, point: Entry) -> dict[str, object]:
    cost = value_of(point, axes.cost)
    return {
        "trial": point["trial"],
        "method": method(point["params"]),
        "is_knee": point["trial"] == summary["knee"],
        axes.gain: value_of(point, axes.gain),
        axes.cost: cost,
        f"{axes.cost}_share": "" if math.isnan(axes.dense_cost) else cost / axes.dense_cost,
        "tokens": point.get("tokens", ""),
        "stage_keys": " ".join(point["stage_keys"]),
        **{f"params.{name}": value for name, value in point["params"].items()},
    }
