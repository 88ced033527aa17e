"""`paretoken confirm`: the front again, on further seeds and on the test split, and timed.

A point of the front was chosen on one seed and on the val split, so its figures flatter it. Here
the dense model and each point are trained and evaluated anew under `confirm_seeds` other seeds, on
clips that no search has seen. Trainings that points have in common are common again, and a chain
that neither trains nor draws is run once: other seeds would give the same logits. When nothing else
is left to do, each point is timed beside the dense model, one after the other.

All of it are stages in the store and records in the ledger, so a confirmation that was killed is
taken up by the next one, and one that is whole needs no Ray.
"""

from __future__ import annotations

import logging
import shlex
import time
from dataclasses import replace
from pathlib import Path

from orchestrator import checkpoint, cluster, data, publish, summary, tracking, verdict
from orchestrator.confirmation import SPLIT, Confirmation
from orchestrator.confirmed import Confirmed
from orchestrator.crew import Crew
from orchestrator.display import Display
from orchestrator.files import read_json
from orchestrator.ledger import Ledger
from orchestrator.lock import Lock
from orchestrator.run import Options, labelled, manifest_of, study_of
from orchestrator.store import Store
from orchestrator.summary import Summary
from search_spaces.study import Study
from workloads.datasets import Manifest
from workloads.mistakes import Mistake

log = logging.getLogger(__name__)


def confirm(options: Options, display: Display) -> tuple[Summary, Confirmed | None]:
    """Confirm a study; return its summary and its confirmation, None if it has no front.

    Raises:
        Mistake: it was never run on this store, or on other clips, or there are no test clips.
        Halted: nothing can run any more; nothing is lost.
    """
    begun = time.monotonic()
    folder = summary.latest(options.store.resolve(), options.study)
    store = Store.open(options.store)
    made = summary.summarise(folder, Ledger(folder / "ledger.jsonl"))
    if not made["front"]:
        return made, None
    options = _as_run(options, folder)
    study = study_of(options)
    with Crew(
        store, display, options.address, options.workers, options.ranks, options.cache
    ) as crew:
        manifest = manifest_of(study, options, store, crew, display)
        study = labelled(study, manifest)
        _refuse_other(study, manifest, folder, options)
        with Lock(folder / "driver.lock") as lock:
            _take(lock, study)
            side = data.short_side(study)
            digest = data.digest_of(manifest, side)
            if options.model is not None:
                checkpoint.put(study, options.model, store, digest)
            crew.work_on(manifest, side, digest, study.stages[-1].config.clip.span)
            one = Confirmation(study, Ledger(folder / "ledger.jsonl"), digest, store)
            _run(one, crew, options.address, display)
            call = {"wall_s": time.monotonic() - begun, **crew.counts()}
            found = one.found(made, len(manifest.ids(SPLIT)), call)
            verdict.write(found, folder)
    made = publish.front(options.store, study.name, options.tracking_uri, display)
    return made, _mirrored(found, made, folder, display)


def _as_run(options: Options, folder: Path) -> Options:
    """Return the options with what they leave open as the study was run."""
    asked = read_json(folder / "study.json").get("asked", {})
    data, model = (Path(asked[name]) if asked.get(name) else None for name in ("data", "model"))
    return replace(
        options,
        study=asked.get("study", options.study),
        data=options.data or data,
        model=options.model or model,
    )


def _refuse_other(study: Study, manifest: Manifest, folder: Path, options: Options) -> None:
    if study.key(manifest.digest) != folder.name:
        what = f"study {study.name!r} or its clips are not those of its last run on this store"
        words = [options.study, *_given("--data", options.data), *_given("--model", options.model)]
        again = shlex.join(["paretoken", "run", *words])
        raise Mistake(what, f"{again} runs it as it is now")
    if not manifest.ids(SPLIT):
        what = f"study {study.name!r}: there are no test clips to confirm it on"
        raise Mistake(what, "its clips were split by you: give some of them the split test")


def _given(flag: str, path: Path | None) -> list[str]:
    return [flag, str(path)] if path else []


def _take(lock: Lock, study: Study) -> None:
    if not lock.take():
        what = f"study {study.name!r} is in the hands of {lock.holder()}"
        raise Mistake(what, "wait for it, stop it, or choose another --store")


def _run(one: Confirmation, crew: Crew, address: str | None, display: Display) -> None:
    """Run what is left on the groups of a crew, which are not called if nothing is."""
    if address is not None:
        crew.pool()  # who else could tell which machines these are
    machine = cluster.machines(address)
    if one.lacks(machine):
        crew.pool()
    one.run(crew.launch, crew.workers, display.confirmed)
    for done, point in enumerate(one.all):
        display.progress("time", done, len(one.all))
        one.time(point, machine, crew.launch)
    display.progress("time", len(one.all), len(one.all))


def _mirrored(found: Confirmed, made: Summary, folder: Path, display: Display) -> Confirmed:
    """Show the confirmation in MLflow, as a run of its own; return it with the place of that."""
    uri, store = made["tracking"]["uri"], Path(made["store"])
    mirror = tracking.Mirror(uri, store, made["study"], made["study_key"], "confirm")
    shown = [folder / name for name in (summary.CONFIRMED, verdict.CSV, "front.html")]
    parent = tracking.Parent(verdict.markdown(found, made), shown, {})
    error = mirror.finish(verdict.records_of(found), {}, parent)
    if error is not None:
        display.warn(f"MLflow at {uri}: {error}; {folder / summary.CONFIRMED} has everything")
    tracked = {**made["tracking"], "run_id": None if error else mirror.run_id}
    return {**found, "tracking": tracked}
