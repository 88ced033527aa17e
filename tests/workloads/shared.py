"""Where videos lie that are no part of the project; tests of them collect nothing elsewhere."""

from __future__ import annotations

from pathlib import Path

from workloads.datasets.folders import SUFFIXES

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


def videos(folder: str) -> list[Path]:
    """Return the videos of a folder of them; none where it is absent."""
    return sorted(path for path in (DATA / folder).rglob("*") if path.suffix in SUFFIXES)
