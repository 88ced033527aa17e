"""`paretoken run`: from a study and its clips to the front, through whatever is there already.

A run that is killed at any moment is taken up by the next one: finished stages are read from the
store, trials that were asked are adopted, and a study that is whole needs no Ray at all.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import search_spaces
from orchestrator import checkpoint, data, publish, samplers, search, summary, tracking
from orchestrator.controls import Controls
from orchestrator.crew import Crew
from orchestrator.display import Display
from orchestrator.files import write_json
from orchestrator.ledger import Ledger, Record
from orchestrator.lock import Lock
from orchestrator.memory import Memory
from orchestrator.racer import Racer
from orchestrator.search import Asker
from orchestrator.store import Store
from orchestrator.summary import Summary
from orchestrator.tables import Tables
from search_spaces.fit import Learner
from search_spaces.study import Study
from workloads import datasets, load, pretrained
from workloads.datasets import Manifest, synthetic
from workloads.mistakes import Mistake


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line selects; nothing in it changes a number, but for the clips."""

    study: str
    store: Path
    data: Path | None = None
    model: Path | None = None
    trials: int | None = None
    workers: int = 1
    ranks: int = 1
    tracking_uri: str | None = None
    address: str | None = None
    cache: float | None = None


def run(options: Options, display: Display) -> Summary:
    """Run or resume a study and return its summary.

    Raises:
        Mistake: something the user can put right.
        data.TooManyBad, search.Halted: the study cannot go on; nothing is lost.
    """
    begun = time.monotonic()
    study = study_of(options)
    store = Store.open(options.store)
    with Crew(
        store, display, options.address, options.workers, options.ranks, options.cache
    ) as crew:
        manifest = manifest_of(study, options, store, crew, display)
        study = labelled(study, manifest)
        if told := _told_of_head(study, manifest):
            display.line(told)
        with _Run(study, manifest, store, crew, options, display) as one:
            one.search()
            one.control()
            return one.finish(begun)


def study_of(options: Options) -> Study:
    """Return the study that is asked for, checked before anything starts.

    Raises:
        Mistake: there is none, it cannot be run, lacks a model, or not with so many ranks.
    """
    study = _study(options)
    study.check()
    samplers.load(study.sampler)
    if study.rungs:
        samplers.refuse_rungs(study.sampler)
    _check_ranks(study, options.ranks)
    return study


def _study(options: Options) -> Study:
    """Return the study that was asked for, with the model that it is to start from."""
    if options.model is None:
        study = search_spaces.load(options.study)
        if study.lacks_model:
            kinds = "a folder of Hugging Face (VideoMAE), or of paretoken export"
            raise Mistake(f"study {study.name!r} needs --model DIR", kinds)
        return study
    try:
        source = pretrained.described(options.model)
    except Mistake as mistake:
        raise Mistake(f"--model {mistake}") from None
    return search_spaces.load(options.study, source)


def _check_ranks(study: Study, ranks: int) -> None:
    for stage in study.stages:
        config = stage.config
        if isinstance(config, Learner) and config.batch % ranks:
            raise Mistake(
                f"--ranks {ranks}: the batch of {study.name!r}, {config.batch} clips, is divided "
                "among them, and must be a multiple",
                "choose other --ranks, or another batch in the study",
            )


def manifest_of(
    study: Study, options: Options, store: Store, crew: Crew, display: Display
) -> Manifest:
    """Return the clips that a study is run on, and say which they are.

    Raises:
        Mistake: there are none, or not as the study needs them.
    """
    folder = options.data
    if folder is None:
        if study.data is None:
            raise Mistake(
                f"study {study.name!r} needs --data PATH",
                "class folders (PATH/<class>/*.mp4), or a CSV: path,label[,split[,group]]"
                + ("" if study.trains else "; without labels: a folder of videos, or a CSV: path"),
            )
        folder = _synthetic(study, study.data, store, crew, display)
    hashes = store.root / "hashes.json"
    manifest = datasets.load(folder, trains=study.trains, seed=study.seed, hashes=hashes)
    display.line(f"data   {_described(manifest)}   {folder}")
    for note in manifest.notes:
        display.line(f"       {note}")
    return manifest


def labelled(study: Study, manifest: Manifest) -> Study:
    """Return a study as the labels of the clips allow it.

    Raises:
        Mistake: they are not those of the model that is evaluated.
    """
    if study.source is not None:
        load.places_of(study.source.labels, manifest.classes)
    return study if manifest.is_labelled else study.unlabelled()


def _told_of_head(study: Study, manifest: Manifest) -> str:
    """Say that the head of a checkpoint is made anew, if it is; nothing if not."""
    sources = [s.config for s in study.stages if isinstance(s.config, load.Config)]
    if study.source is not None or not sources or sources[0].names(manifest.classes):
        return ""
    had = f"{len(sources[0].labels)} other classes" if sources[0].labels else "no head"
    return f"model  new head for {len(manifest.classes)} classes: --model has {had}"


def _synthetic(
    study: Study, config: synthetic.Config, store: Store, crew: Crew, display: Display
) -> Path:
    """Make a study's own clips; Ray starts beside it, as it will surely be needed."""
    folder = store.root / "data" / f"{study.name}-{synthetic.key(config)[:8]}"
    if not (folder / synthetic.MARKER).exists():
        crew.start()

    def drawn(done: int, total: int) -> None:
        display.progress("draw", done, total)

    return synthetic.write(config, folder, processes=os.cpu_count() or 1, progress=drawn)


def _described(manifest: Manifest) -> str:
    sizes = ", ".join(f"{len(manifest.ids(s))} {s}" for s in ("train", "val", "test"))
    labels = f"{len(manifest.classes)} classes" if manifest.is_labelled else "no labels"
    return f"{len(manifest.clips)} clips, {labels} ({sizes})"


class _Run:
    """One study on its clips in its store; a context that holds the study's lock."""

    def __init__(
        self,
        study: Study,
        manifest: Manifest,
        store: Store,
        crew: Crew,
        options: Options,
        display: Display,
    ) -> None:
        self.study, self.manifest, self.store = study, manifest, store
        self.crew, self.options, self.display = crew, options, display
        self.key = study.key(manifest.digest)
        self.folder = store.root / "studies" / self.key
        self.lock = Lock(self.folder / "driver.lock")
        self.trials = options.trials or study.trials
        self.pointed = False
        self.side = data.short_side(study)
        self.digest = data.digest_of(manifest, self.side)
        if options.model is not None:
            checkpoint.put(study, options.model, store, self.digest)
        span = study.stages[-1].config.clip.span
        crew.work_on(manifest, self.side, self.digest, span)

    def __enter__(self) -> _Run:
        if not self.lock.take():
            raise Mistake(
                f"study {self.study.name!r} is being run on this store by {self.lock.holder()}",
                "wait for it, stop it, or choose another --store",
            )
        self.ledger = Ledger(self.folder / "ledger.jsonl")
        uri = self.options.tracking_uri or tracking.default_uri(self.store.root)
        self.mirror = tracking.Mirror(uri, self.store.root, self.study.name, self.key)
        memory = Memory(self.study, self.folder / "journal.log")
        self.asker = self._asker(memory)
        self.known = len(self.ledger.trials().keys() - set(self.asker.again))
        self.reused = 0
        self._note_facts(None)
        self._announce()
        return self

    def _asker(self, memory: Memory) -> Asker:
        """Return what says which trial is next: one after the other, or all in a race."""
        tables, workers = Tables(self.store), self.options.workers
        given = (memory, self.ledger, self.digest, self.trials, workers, self._heard, tables)
        if not self.study.rungs:
            return Asker(*given)
        return Racer(*given, len(self.manifest.ids("val")), self.display.racing)

    def __exit__(self, *error: object) -> None:
        self.lock.release()

    def _announce(self) -> None:
        self.display.line(f"store  {self.store.root}   mlflow  {self.mirror.uri}")
        adopted = len(self.asker.again)
        if self.known or adopted:
            again = f", {adopted} taken up again" if adopted else ""
            text = f"continuing {self.study.name}: {self.known} of {self.trials} trials done"
            self.display.line(text + again)
        if self.known:
            self._point_here()

    def _point_here(self) -> None:
        """Make this the study that `front NAME` shows, now that there is something to show."""
        self.pointed = True
        summary.point_latest(self.store.root, self.study.name, self.folder, self.display.line)

    def _note_facts(self, run_id: str | None) -> None:
        """Write `study.json`: what the ledger does not know."""
        tracked = {"uri": self.mirror.uri, "experiment": tracking.EXPERIMENT, "run_id": run_id}
        facts = summary.facts_of(
            self.study.objectives,
            name=self.study.name,
            question=self.study.question,
            key=self.key,
            store=str(self.store.root),
            workers=self.options.workers,
            chance=self._chance,
            val_clips=len(self.manifest.ids("val")),
            clips={"cache": self._frames(), "short_side": self.side},
            asked=self._asked(),
            tracking=tracked,
        )
        write_json(self.folder / "study.json", facts)

    def _asked(self) -> dict[str, str | None]:
        """Return what the study was run with, for commands that go on from it."""
        paths = {"data": self.options.data, "model": self.options.model}
        whole = {name: str(path.absolute()) if path else None for name, path in paths.items()}
        study = self.options.study
        is_file = study.endswith(".py") or "/" in study
        return {"study": str(Path(study).absolute()) if is_file else study, **whole}

    def _frames(self) -> str:
        """Return where the frames of the clips lie, from the store."""
        folder = data.folder_for(self.store.root, self.manifest, self.side)
        return folder.relative_to(self.store.root).as_posix()

    def search(self) -> None:
        """Run the trials that are left."""
        if self.asker.left:
            search.search(self.asker, self.crew.pool(), self.store, self.crew.scratch)

    def _heard(self, record: Record) -> None:
        if not self.pointed:
            self._point_here()
        self.mirror.push(record)
        self.reused += sum(took["reused"] for took in record.stages)
        trials = list(self.ledger.trials().values())
        if record.role == "trial":
            done = len(trials)
            failed = sum(trial.state == "failed" for trial in trials)
            best = summary.progress_of(trials, self.study.objectives, self._chance)
            self.display.searching(record, done, self.trials, failed, best)
        else:
            self.display.control(record)

    @property
    def _chance(self) -> float:
        source = self.study.source
        return 1 / len(self.manifest.classes if source is None else source.labels)

    def control(self) -> None:
        """Run the controls of the front."""
        front = summary.front_records(list(self.ledger.trials().values()), self.study.objectives)
        compared = self.asker.compared
        controls = Controls(self.asker.memory, self.ledger, self.digest, self.store, compared)
        controls.run(front, self.crew, self._heard)

    def finish(self, begun: float) -> Summary:
        """Write the report, bring MLflow up to date, and return the summary."""
        call = {**self.crew.counts(), "trials_reused": self.known, "stages_reused": self.reused}
        self._note_facts(self.mirror.connected())
        call["wall_s"] = time.monotonic() - begun
        if told := summary.told_of_waiting(call):
            self.display.line(told)
        made = summary.summarise(self.folder, self.ledger, call)
        publish.publish(self.mirror, self.ledger, made, self.folder, self.display)
        return made
