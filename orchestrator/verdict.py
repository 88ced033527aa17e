"""What a person reads of a confirmation: its table, its files, and its records for MLflow.

All of it is made from the one object that `confirm --json` prints.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path

from orchestrator.confirmed import TIMES, Confirmed, Entry
from orchestrator.files import write_bytes, write_json
from orchestrator.ledger import Record
from orchestrator.report import fill, here
from orchestrator.summary import CONFIRMED, Summary
from orchestrator.words import MISSING, Axes, digits, duration, label, method, percent

CSV = "confirm.csv"
QUIET = 1.5  # between the quartiles of one and the same work
Row = tuple[tuple[str, ...], str]


def table(found: Confirmed, made: Summary) -> str:
    """Return the confirmation as plain text of at most 100 columns.

    Args:
        found: the confirmation.
        made: the summary of the study, whose figures it repeats.
    """
    axes = Axes.of(made)
    heads: tuple[str, ...] = (label(axes.gain), "95 %", "spread", "searched", "diff")
    heads += (label(axes.cost), "ms", "clips/s", "MB")
    rows: list[Row] = [(heads, "method")]
    rows += [(_cells(entry, axes), _words(entry, found)) for entry in _shown(found)]
    widths = [max(map(len, column)) for column in zip(*(cells for cells, _ in rows), strict=True)]
    lines = [fill(_heading(found)), fill(_timing(found))]
    for cells, words in rows:
        numbers = [cell.rjust(width) for cell, width in zip(cells, widths, strict=True)]
        lines.append(fill(words, "  ".join(["", *numbers, ""])))
    return "\n".join([*lines, *map(fill, _advice(found))])


def _shown(found: Confirmed) -> list[Entry]:
    """Return the points from dear to cheap, and the dense model where it is none of them."""
    points = found["points"][::-1]
    dense = found["dense"]
    is_among = dense is None or dense["trial"] in {point["trial"] for point in points}
    return points if is_among else [*points, dense]


def _heading(found: Confirmed) -> str:
    seeds, clips = len(found["seeds"]), found["clips"]
    on = f"{seeds} further seed{'s' * (seeds > 1)}, {clips} {found['split']} clips"
    return f"confirmation of {found['study']} ({on}, {duration(found['call']['wall_s'])})"


def _timing(found: Confirmed) -> str:
    timed = found["timing"]
    if timed is None:
        return "nothing was timed"
    batch = f"one clip (ms, median), batches of {timed['batch']} (clips/s, MB)"
    return f"timed alone on {timed['device']}, {timed['threads']} threads: {batch}"


def _cells(entry: Entry, axes: Axes) -> tuple[str, ...]:
    searched = percent(entry["searched"].get(axes.gain, float("nan")))
    if entry["state"] != "complete":
        return (MISSING, MISSING, MISSING, searched, *(MISSING,) * 5)
    low, high = entry["intervals"][axes.gain]
    by_seed = entry["by_seed"].values()
    times = [entry.get(name, {}).get("median") for name in TIMES]
    return (
        percent(entry["values"][axes.gain]),
        f"{100 * low:.1f}-{100 * high:.1f}",
        f"{100 * (max(by_seed) - min(by_seed)):.1f}" if len(by_seed) > 1 else MISSING,
        searched,
        f"{entry['difference']:+.1f}",
        axes.cost_text(entry["values"][axes.cost]),
        *map(digits, times),
        digits(entry.get("peak_mb")),
    )


def _words(entry: Entry, found: Confirmed) -> str:
    """Say what a point is; `?` marks one whose place on the front is not certain."""
    words = method(entry["params"])
    if entry["state"] != "complete":
        return f"{words}   not confirmed: {entry['reason']}"
    if entry is found["dense"]:
        return f"{words} (reference)"
    return words if entry["is_certain"] else f"{words}   ? {percent(entry['on_front'], digits=0)}"


def _advice(found: Confirmed) -> list[str]:
    over = "clips and seeds" if found["varies"] else "clips alone"
    lines = [f"95 %: over {over}. In points: spread, best less worst seed; diff, less searched"]
    unsure = [point for point in found["points"] if not point.get("is_certain", True)]
    if unsure:
        lines.append("?: on the front in so many of the draws, fewer than 95 %: not certain")
    noise = _noise(found["dense"])
    if noise > QUIET:
        lines.append(
            f"times: the dense model's own quartiles lie a factor {noise:.1f} apart, so other work "
            "ran beside it and they say little"
        )
    return lines


def _noise(dense: Entry | None) -> float:
    """Return by what factor the quartiles of a model with equal clips lie apart."""
    shown = [dense[name] for name in TIMES if name in dense] if dense else []
    return max((one["high"] / one["low"] for one in shown), default=1.0)


def markdown(found: Confirmed, made: Summary) -> str:
    """Return the table as Markdown."""
    return f"```\n{table(found, made)}\n```"


def footer(found: Confirmed, made: Summary) -> str:
    """Say where the files and the runs are, and what to do next."""
    folder, name = Path(made["store"]) / "latest" / made["study"], made["study"]
    return (
        f"files    {folder / CONFIRMED}   {CSV}   front.html\n"
        f"compare  mlflow ui --backend-store-uri {found['tracking']['uri']}\n"
        f"next     paretoken export {name} --at knee --out FOLDER{here(made)}"
    )


# Files.


def write(found: Confirmed, folder: Path) -> dict[str, Path]:
    """Write `confirm.json` and `confirm.csv`; return their paths by name."""
    write_bytes(folder / CSV, _csv(found).encode())
    write_json(folder / CONFIRMED, found)  # last: what is there is whole
    return {name: folder / name for name in (CONFIRMED, CSV)}


def _csv(found: Confirmed) -> str:
    """Return a line a point; what it lacks is empty."""
    lines = [dict(_flat(entry)) for entry in _shown(found)]
    text = io.StringIO()
    columns = dict.fromkeys(name for line in lines for name in line)
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _flat(entry: Entry) -> list[tuple[str, object]]:
    """Return the fields of an entry, one below another joined with a dot."""
    cells: list[tuple[str, object]] = []
    for name, value in entry.items():
        if isinstance(value, dict):
            cells += [(f"{name}.{below}", one) for below, one in _flat(value)]
        elif name in ("stage_keys", "searched_keys"):
            cells.append((name, " ".join(value)))
        elif isinstance(value, list):
            cells += [
                (f"{name}.{side}", one) for side, one in zip(("low", "high"), value, strict=True)
            ]
        else:
            cells.append((name, value))
    return cells


def records_of(found: Confirmed) -> list[Record]:
    """Return a record a point, as MLflow shows it."""
    return [_record(entry) for entry in _shown(found)]


def _record(entry: Entry) -> Record:
    skipped = ("params", "trial", "reason", "stage_keys", "searched_keys", "state")
    facts = {name: value for name, value in entry.items() if name not in skipped}
    numbers = {n: float(v) for n, v in _flat(facts) if isinstance(v, int | float)}
    return Record(
        trial=entry["trial"],
        role="confirm",
        params=entry["params"],
        values=entry["values"],
        state=entry["state"],
        stage_keys=entry["stage_keys"],
        metrics={name.replace(".", "/"): value for name, value in numbers.items()},
        reason=entry.get("reason", ""),
    )
