"""`paretoken export`: one point of a study as a folder that does the same work for less.

The folder is written beside its place, loaded again, and its logits are compared with those that
the study recorded clip by clip; only then it is put there. It is logged in MLflow too, but MLflow
is a mirror: without it the export is whole.

The study's file is not read: what a point is stands in its stages.
"""

from __future__ import annotations

import shlex
import shutil
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file
from torch import Tensor

from orchestrator import card, publish, registry, summary
from orchestrator.card import Check
from orchestrator.display import Display
from orchestrator.files import read_json, write_bytes
from orchestrator.ledger import Ledger, Record
from orchestrator.store import Done, Store
from orchestrator.summary import Summary
from workloads import cache, footage, layouts, pretrained, sampling
from workloads.folder import some
from workloads.mistakes import Mistake
from workloads.predict import Predictor
from workloads.vit import VideoTransformer

CLIPS = 16  # of the split, compared one with one; spread over its classes
BOUND = 1e-5  # absolute, or relative to a larger logit: sums in another order
BOUND_ELSEWHERE = 1e-2  # of bfloat16, or where the study ran on a device that is not here


class Differs(RuntimeError):  # noqa: N818 - a bound that was passed
    """The folder gives other logits than the study recorded."""

    is_expected = True


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    study: str
    store: Path
    at: str
    out: Path
    tracking_uri: str | None = None


@dataclass(frozen=True)
class Source:
    """Where the parts of a point lie."""

    record: Record
    training: Done
    evaluation: Done
    trained: dict[str, Any]  # Any: JSON, as below; the config of the training
    evaluated: dict[str, Any]
    frames: Path
    """Cache of the study's clips."""
    short_side: int
    """Cap on its frames."""

    @property
    def device(self) -> torch.device:
        """Where the folder is compared: on what the study ran on, if that is here."""
        is_there = self.evaluation.device != "cpu" and torch.cuda.is_available()
        return torch.device("cuda" if is_there else "cpu")

    @property
    def bound(self) -> float:
        """How far a logit may lie from the recorded one."""
        same = (self.device.type == "cpu") == (self.evaluation.device == "cpu")
        return BOUND if same and self.evaluated["precision"] == "float32" else BOUND_ELSEWHERE


def export(options: Options, display: Display) -> tuple[Summary, dict[str, Any]]:
    """Write a point of a study as a folder; return the summary, and what was written.

    Raises:
        Mistake: the study, its point or the place of the folder is not there to be used.
        Differs: what was written gives other logits than the study did; nothing is left.
    """
    _refuse_taken(options.out)
    made = publish.front(options.store, options.study, options.tracking_uri, display)
    folder = Path(made["store"]) / "studies" / made["study_key"]
    records = Ledger(folder / "ledger.jsonl").trials()
    if not made["front"]:
        return made, {}
    record = records[_trial(made, records, options)]
    source = _source(made, folder, record, options.study)
    draft = _draft_for(options.out)
    try:
        check = write(source, draft)
        command = _command(made, options)
        write_bytes(draft / card.NAME, card.of(made, source.record, source, check, command))
        _put(draft, options.out)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    point = {name: getattr(record, name) for name in ("trial", "params", "values", "stage_keys")}
    tokens = record.metrics.get("cost/tokens")
    return made, {
        "point": point | ({} if tokens is None else {"tokens": tokens}),
        "out": str(options.out.resolve()),
        "files": sorted(path.name for path in options.out.iterdir()),
        "check": check.as_json(),
        "mlflow": _log(made, record, options.out, display),
    }


def _refuse_taken(out: Path) -> None:
    there = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not there.is_dir():
        what = "is a file" if there == out else f"{there} is a file"
        raise Mistake(f"--out {out}: {what}", "give a folder that does not exist yet")
    if out.is_dir() and any(out.iterdir()):
        raise Mistake(f"--out {out}: exists and is not empty", "give a folder that does not exist")


def _trial(made: Summary, records: dict[int, Record], options: Options) -> int:
    """Return the number of the trial that `--at` asks for."""
    at = options.at.strip()
    complete = [number for number, record in records.items() if record.state == "complete"]
    if at.isdecimal():
        if int(at) not in complete:
            state = records[int(at)].state if int(at) in records else "not there"
            what = f"--at {at}: trial {at} of {made['study']} is {state}"
            raise Mistake(what, some("complete", [str(number) for number in sorted(complete)]))
        return int(at)
    point = summary.choose(made, at)
    if point is None:
        remedy = f"paretoken front {shlex.quote(options.study)} shows the front"
        raise Mistake(f'--at "{at}": no point of the front of {made["study"]} keeps it', remedy)
    return int(point["trial"])


def _source(made: Summary, folder: Path, record: Record, study: str) -> Source:
    """Find the stages of a trial: an evaluation, the last of several, and what it evaluates."""
    store = Store(Path(made["store"]))
    evaluated = [took["key"] for took in record.stages if took["kind"] == "evaluate"]
    others = [took["key"] for took in record.stages if took["kind"] != "evaluate"]
    training, evaluation = (store.find(k[-1]) if k else None for k in (others, evaluated))
    if training is None or evaluation is None or not training.weights.is_file():
        what = f"trial {record.trial}: its stages are not in {store.root} any more"
        raise Mistake(what, "choose another point, or run the study on another --store")
    facts = read_json(folder / "study.json").get("clips")
    if facts is None:
        what = f"{made['study']} was run by an older version, which did not note its clips"
        raise Mistake(what, f"paretoken run {shlex.quote(study)} notes it, and repeats no stage")
    frames = store.root / facts["cache"]
    if not cache.is_whole(frames):
        what = f"the frames of the clips of {made['study']} are not in {store.root} any more"
        more = f"paretoken run {shlex.quote(study)} with more --trials decodes them again"
        raise Mistake(f"{what}: the folder could not be checked", more)
    return Source(
        record=record,
        training=training,
        evaluation=evaluation,
        trained=read_json(training.folder / "config.json"),
        evaluated=read_json(evaluation.folder / "config.json"),
        frames=frames,
        short_side=facts["short_side"],
    )


def _draft_for(out: Path) -> Path:
    """Return a folder of this process on the same file system as `out`, not made yet."""
    above = next(folder for folder in out.resolve().parents if folder.is_dir())
    return above / f".{out.name}.{uuid.uuid4().hex[:12]}"


def _put(draft: Path, out: Path) -> None:
    """Move what was written to its place, `config.json` last: without it nothing is there."""
    out.mkdir(parents=True, exist_ok=True)
    for path in sorted(draft.iterdir(), key=lambda path: path.name == "config.json"):
        path.rename(out / path.name)


def write(source: Source, draft: Path) -> Check:
    """Write the model of a point and compare it, loaded again, with what the study recorded."""
    model, shown = _model(source), _shown(source)
    model.labels = tuple(source.trained.get("labels") or cache.classes(source.frames))
    pretrained.save(model, draft, shown)
    check = compare(Predictor(draft, source.device), source)
    if not check.is_close:
        raise Differs(
            f"trial {source.record.trial}: the folder, loaded again, gives other logits than the "
            f"study recorded: {check.words}; nothing was written"
        )
    return check


def _model(source: Source) -> VideoTransformer:
    """Return the model of the training with the chain of the evaluation."""
    told = str(source.training.folder / "config.json")
    config = layouts.of_canonical(source.trained["model"], told)
    chain = [layouts.of_canonical(one, told) for one in source.evaluated["reducers"]]
    weights = load_file(source.training.weights)
    model: VideoTransformer = config.build(len(weights["heads.0.weight"]), chain)
    own = model.state_dict()
    if absent := sorted(own.keys() - weights.keys()):
        what = f"trial {source.record.trial}: its chain has parts that were never learned"
        raise Mistake(f"{what} ({absent[0]})", "choose another point")
    # What was learned for a reducer that is not in the chain is left behind.
    model.load_state_dict({name: weights[name] for name in own})
    return model.eval()


def _shown(source: Source) -> sampling.Config:
    """Return what the evaluation showed the model of a video."""
    told = str(source.evaluation.folder / "config.json")
    names = ("views", "head", "precision", "seed")
    clip = layouts.of_canonical(source.evaluated["clip"], told)
    shown = sampling.Config(clip=clip, short_side=source.short_side)
    return replace(shown, **{name: source.evaluated[name] for name in names})


def compare(predictor: Predictor, source: Source) -> Check:
    """Compare logits on clips of the split that was evaluated with the recorded ones."""
    entries = cache.index(source.frames)
    frames_of, ids = footage.Frames(source.frames, entries), {e.name: e.clip for e in entries}
    table = pq.read_table(source.evaluation.folder / "clips.parquet")
    places = _spread(len(table), CLIPS)
    rows = table.take(places).to_pylist()
    numbers = [ids[row["clip"]] for row in rows]
    videos = [predictor.views_of(frames_of(number)) for number in numbers]
    size = min(int(source.evaluated["batch"]), CLIPS)
    parts = [slice(start, start + size) for start in range(0, len(rows), size)]
    ours_BK = torch.cat([predictor.logits(videos[part], numbers[part]) for part in parts])
    theirs_BK = torch.tensor([row["logits"] for row in rows])
    some = slice(0, 4)
    blind_BK = predictor.logits(videos[some])
    return Check(
        clips=len(rows),
        split=source.evaluated["split"],
        difference=_farthest(ours_BK, theirs_BK),
        bound=source.bound,
        is_close=_is_close(ours_BK, theirs_BK, source.bound),
        draws=not _is_close(blind_BK, ours_BK[some], source.bound),
        device=predictor.device.type,
    )


def _spread(num: int, most: int) -> list[int]:
    """Return at most `most` places from the first to the last of `num`, evenly spread."""
    wanted = min(num, most)
    return [i * (num - 1) // max(wanted - 1, 1) for i in range(wanted)]


def _farthest(one_BK: Tensor, two_BK: Tensor) -> float:
    return float((one_BK - two_BK).abs().max())


def _is_close(one_BK: Tensor, two_BK: Tensor, bound: float) -> bool:
    is_near = torch.allclose(one_BK, two_BK, rtol=bound, atol=bound)
    return is_near and torch.equal(one_BK.argmax(dim=1), two_BK.argmax(dim=1))


def _command(made: Summary, options: Options) -> str:
    words: Sequence[object] = ("--at", options.at, "--out", options.out, "--store", made["store"])
    return shlex.join(["paretoken", "export", options.study, *map(str, words)])


def _log(made: Summary, record: Record, out: Path, display: Display) -> dict[str, str] | None:
    """Log the folder as an MLflow model of the trial's run; None if that cannot be done."""
    tracked = made["tracking"]
    try:
        return registry.log(tracked["uri"], tracked["run_id"], record.trial, out)
    except Exception as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        display.warn(f"MLflow at {tracked['uri']}: {why}; the folder is whole without it")
        return None
