"""What rungs save, and what they lose: the same configurations raced, and all evaluated in full.

    python -m benchmarks.rungs --study STUDY [--data PATH] [--model DIR] [--trials N] --store DIR

STUDY has rungs; it is run as it stands, then without them, on one store. `passes` = MACs of all
evaluations of the race over those of one dense pass over the clips, `full_passes` = the same of all
configurations in full. `gap_points` = the largest loss of the race's front: of each point of the
full front, its gain less the best that the race's front has at no higher cost.
"""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any

from benchmarks import command
from orchestrator.environment import prepare
from workloads.mistakes import Mistake

FULL = """from dataclasses import replace

import search_spaces


def study(source=None):
    whole = search_spaces.load({study!r}, source)
    return replace(whole, name=whole.name + "_full", rungs=(), controls=())
"""
ROUNDING = 1e-9  # of sums in another order, relative


def main() -> None:
    """Run both, print a table, and last a JSON object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--study", required=True)
    parser.add_argument("--store", required=True, type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--trials", type=int)
    parser.add_argument("--workers", type=int, default=1)
    prepare()
    command.run(lambda: _measured(vars(parser.parse_args())))


def _measured(asked: dict[str, Any]) -> dict[str, Any]:  # Any: as argparse and JSON have them
    import search_spaces

    study = search_spaces.load(asked["study"])
    if not study.rungs:
        raise Mistake(f"--study {asked['study']}: it has no rungs", "a study with rungs=(1 / 16,)")
    store: Path = asked["store"]
    store.mkdir(parents=True, exist_ok=True)
    file = store / "full.py"
    is_file = asked["study"].endswith(".py")
    name = str(Path(asked["study"]).absolute()) if is_file else asked["study"]
    file.write_text(FULL.format(study=name))
    raced = _run(asked)
    full = _run({**asked, "study": str(file)})
    known = {point["trial"]: point["params"] for point in full["points"]}
    assert all(known[p["trial"]] == p["params"] for p in raced["points"]), "the same trials"
    found = {
        "study": raced["study"],
        "clips": raced["split"]["clips"],
        "rungs": list(study.rungs),
        "configurations": len(raced["points"]),
        "passes": raced["passes"],
        "full_passes": full["passes"],
        "gap_points": gap(full["front"], raced["front"], raced["objectives"]),
        "pruned": raced["trials"]["pruned"],
        "front": len(raced["front"]),
        "full_front": len(full["front"]),
    }
    print(_table(found))
    return found


def _run(asked: dict[str, Any]) -> dict[str, Any]:  # Any: as above
    from orchestrator.display import Display
    from orchestrator.run import Options, run

    known = {field.name for field in fields(Options)}
    with Display() as display:
        return run(Options(**{n: value for n, value in asked.items() if n in known}), display)


Point = dict[str, Any]  # Any: JSON


def gap(full: list[Point], raced: list[Point], objectives: list[dict[str, Any]]) -> float:
    """Return by how many points one front falls short of another, at no higher cost, at most."""
    names = {o["direction"]: o["name"] for o in objectives}
    gain, cost = names["max"], names["min"]
    worst = 0.0
    for point in full:
        most = point["values"][cost] * (1 + ROUNDING)
        rivals = [p["values"][gain] for p in raced if p["values"][cost] <= most]
        worst = max(worst, point["values"][gain] - max(rivals, default=0.0))
    return 100 * worst


def _table(found: dict[str, Any]) -> str:  # Any: JSON
    return "\n".join(
        [
            f"{found['study']}: {found['configurations']} configurations, {found['clips']} clips",
            "              dense passes   points of the front",
            f"raced         {found['passes']:12.1f}   {found['front']:5}",
            f"all in full   {found['full_passes']:12.1f}   {found['full_front']:5}",
            f"largest loss of the front: {found['gap_points']:.2f} points",
        ]
    )


if __name__ == "__main__":
    main()
