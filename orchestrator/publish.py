"""What a study shows at its end, and again on `paretoken front`: its report, its runs in MLflow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from orchestrator import report, summary, tracking
from orchestrator.display import Display
from orchestrator.ledger import Ledger
from orchestrator.lock import Lock
from orchestrator.store import Store
from orchestrator.summary import Summary


def publish(
    mirror: tracking.Mirror, ledger: Ledger, made: Summary, folder: Path, display: Display
) -> None:
    """Write the report of a summary and bring MLflow up to date with it."""
    ranks = {point["trial"]: place for place, point in enumerate(made["front"], start=1)}
    parent = tracking.Parent("no trial is complete", [], {}, "FAILED")
    if ranks:
        files = report.write(made, folder)
        shown = [files[name] for name in ("front.html", "front.json", "front.csv", "front.png")]
        growth = summary.growth(list(ledger.trials().values()), made)
        parent = tracking.Parent(report.markdown(made), shown, growth)
    searched = [record for record in ledger.records if record.role != "confirm"]
    error = mirror.finish(searched, ranks, parent)
    if error is not None:
        display.warn(
            f"MLflow at {mirror.uri}: {error}; the ledger has everything, "
            f"`paretoken front {made['study']}` makes up for it"
        )


def front(store: Path, study: str, uri: str | None, display: Display) -> Summary:
    """Return the summary of a study that was run, with its report written and MLflow repaired.

    Args:
        store: of the study.
        study: its name or its file.
        uri: of MLflow; None is where the study was mirrored before.
        display: told what is not done.

    Raises:
        Mistake: it was never run on this store, or the store is of a newer version.
    """
    root = store.resolve()
    if (root / "store.json").exists():  # a store is not made just to be found empty
        Store.open(root)
    folder = summary.latest(root, study)
    with Lock(folder / "driver.lock") as lock:
        is_ours = lock.take()
        ledger = Ledger(folder / "ledger.jsonl")
        made = summary.placed(summary.summarise(folder, ledger), root)
        if is_ours:
            _repair(made, ledger, folder, uri, display)
        else:  # two that repair at once would do it twice
            display.line(f"MLflow is left to {lock.holder()}, who has this study in hand")
            if made["front"]:
                report.write(made, folder)
    return made


def _repair(made: Summary, ledger: Ledger, folder: Path, uri: str | None, display: Display) -> None:
    """Write the report and bring MLflow up to date, elsewhere too if one asks for it."""
    tracked: dict[str, Any] = made["tracking"]
    tracked["uri"] = uri or tracked["uri"]
    mirror = tracking.Mirror(tracked["uri"], Path(made["store"]), made["study"], made["study_key"])
    tracked["run_id"] = mirror.connected()
    publish(mirror, ledger, made, folder, display)
