"""What `paretoken ingest` writes: the manifest, the quarantine list, and nothing left over.

The manifest (CSV and Parquet) holds what can be used, the quarantine list the rest: no video is in
neither.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Mapping, Set
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator import journal, twins
from orchestrator.files import write_bytes
from orchestrator.sources import Listing, safe
from workloads.datasets import Clip
from workloads.examine import Verdict

COLUMNS = (
    *("path", "label", "split", "group", "frames", "fps", "width", "height", "sha256"),
    *("action", "reason", "decoder", "source"),
)
BAD_COLUMNS = ("path", "label", "split", "group", "reason")
OF_A_VERDICT = ("frames", "fps", "width", "height", "sha256", "action", "reason", "decoder")
SPARE = "spare"
INTEGERS = ("frames", "width", "height")

Row = dict[str, Any]  # Any: a cell of a table


@dataclass(frozen=True)
class Inventory:
    """All videos, sorted by path."""

    out: Path
    """Where the tables lie."""
    rows: list[Row]
    """Of the manifest."""
    bad: list[Row]
    """Of the quarantine list."""
    twins: int
    """How many of those are not bad: they only show the same as one on another side."""
    ways: int = 0
    """How many of those are no videos: they only lead to what is known."""

    @property
    def csv(self) -> Path:
        """The manifest, as studies read it."""
        return self.out / "manifest.csv"

    @property
    def quarantine(self) -> Path:
        """The list of what cannot be used."""
        return self.out / "quarantine.csv"

    def count(self, action: str) -> int:
        """Return how many videos of the manifest were treated so."""
        return sum(row["action"] == action for row in self.rows)

    @property
    def share_bad(self) -> float:
        """The share of what was found that cannot be used."""
        total = len(self.rows) + len(self.bad) - self.ways
        return (len(self.bad) - self.twins - self.ways) / total if total else 0.0


def take(out: Path, found: Listing, verdicts: Mapping[str, Verdict]) -> Inventory:
    """Return the tables of what was found, by the verdict on each path."""
    clips = {source.clip.path: source.clip for source in found.sources}
    usable = [clip for path, clip in clips.items() if verdicts[path].action != "quarantined"]
    settled = twins.settle(usable, {clip.path: verdicts[clip.path].pictures for clip in usable})
    rows = [_row(clip, verdicts[clip.path], settled.notes) for clip in settled.clips]
    reasons = {path: v.reason for path, v in verdicts.items() if v.action == "quarantined"}
    bad = [
        {"path": safe(path), **_given(clips[path]), "reason": safe(reason)}
        for path, reason in {**reasons, **settled.leaving}.items()
    ]
    bad += [{"path": path, "reason": reason} for path, reason in (*found.closed, *found.twice)]
    return Inventory(
        out,
        rows=sorted(rows, key=_path),
        bad=sorted(bad, key=_path),
        twins=len(settled.leaving),
        ways=len(found.twice),
    )


def _path(row: Row) -> str:
    return str(row["path"])


def _row(clip: Clip, verdict: Verdict, notes: Mapping[str, str]) -> Row:
    reasons = [reason for reason in (verdict.reason, notes.get(clip.path)) if reason]
    return {
        **{name: getattr(verdict, name) for name in OF_A_VERDICT},
        **_given(clip),
        "path": f"videos/{verdict.path}",
        "source": safe(clip.path),
        "reason": safe("; ".join(reasons)),
    }


def _given(clip: Clip) -> Row:
    return {"label": clip.label, "split": clip.split, "group": safe(clip.group)}


def write(made: Inventory) -> None:
    """Write the tables, each whole or not at all; the one that studies read comes last."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {name: pa.int64() if name in INTEGERS else pa.string() for name in COLUMNS}
    schema = pa.schema({**types, "fps": pa.float64()})
    file = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(made.rows, schema=schema), file)
    write_bytes(made.out / "manifest.parquet", file.getvalue().to_pybytes())
    write_bytes(made.quarantine, _table(BAD_COLUMNS, made.bad))
    write_bytes(made.csv, _table(COLUMNS, made.rows))


def _table(columns: Iterable[str], rows: Iterable[Row]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), restval="")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def places(out: Path, path: str) -> tuple[Path, Path]:
    """Return where a video lies if the manifest names it, and where if it left."""
    return out / "videos" / path, out / SPARE / path


def fetch(made: Inventory) -> None:
    """Bring back videos that left the manifest once and are in it again."""
    for row in made.rows:
        place, spare = places(made.out, row["path"].removeprefix("videos/"))
        if not os.path.lexists(place) and os.path.lexists(spare):
            _move(spare, place)


def sweep(made: Inventory, known: Set[str]) -> None:
    """Remove what earlier runs made and no verdict of this one names, and half-written files.

    Args:
        known: what the verdicts name. Where the manifest does not, it leaves `videos`, but is not
            removed: the next run would have to make it again.
    """
    out, wanted = made.out, {row["path"] for row in made.rows}
    for _, verdict in journal.read(out / "journal"):
        place, spare = places(out, verdict.path)
        if not verdict.path or f"videos/{verdict.path}" in wanted:
            continue
        if verdict.path not in known:
            place.unlink(missing_ok=True)
            spare.unlink(missing_ok=True)
        elif os.path.lexists(place):
            _move(place, spare)
    for draft in (out / "videos").rglob(".*.part.mp4"):
        draft.unlink()
    for root in ("videos", SPARE):
        for folder, _, _ in os.walk(out / root, topdown=False):
            with suppress(OSError):
                os.rmdir(folder)  # if nothing is left in it


def _move(here: Path, there: Path) -> None:
    there.parent.mkdir(parents=True, exist_ok=True)
    here.replace(there)
