"""Measure a trained model under a chain: accuracy, tokens and MACs, clip by clip.

The loop of the `evaluate` stage. Everything later (paired comparisons, intervals, agreement) is
made from the table it leaves, without running anything again.

A stretch of a split may be evaluated alone. The tables of stretches, put together, give the metrics
of one evaluation of them all.

Legend: B clips, K classes, V views, P parts of the cost, C T H W video.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from workloads import augment, clips, cost, load, metrics, shelf
from workloads.clips import ClipSet, Request, View, seed_of
from workloads.mistakes import Mistake
from workloads.models import HostConfig
from workloads.reducers import base
from workloads.stage import Inputs, Report, Result, rank_and_world
from workloads.vit import VideoTransformer

REVISION = 3


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that decides the measurement."""

    clip: clips.Config
    """What the model sees of a video; frames and size may differ from training."""
    reducers: tuple[base.Config, ...] = ()
    """Chain to evaluate under; () is dense."""
    head: int = 0
    """Classifier that is read, of a host with one for each budget."""
    split: Literal["val", "test"] = "val"
    """The search selects on val; test is for confirmation alone."""
    share: tuple[float, float] = (0.0, 1.0)
    """Stretch of the split, from and to, in the order of `stretch`."""
    views: int = 1
    """Clips of a video whose predictions are averaged; cost is that of one."""
    batch: int = 32
    """Clips at once."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of matrix products."""
    seed: int = 0
    """Of random reducers."""

    def __post_init__(self) -> None:
        if self.views < 1 or self.batch < 1:
            raise Mistake(f"evaluate: views={self.views}, batch={self.batch} must be 1 or more")
        if not 0 <= self.share[0] < self.share[1] <= 1:
            raise Mistake(f"evaluate: share={self.share} must rise in 0..1", "(0.0, 1.0) is all")


@torch.inference_mode()
def run(config: Config, clip_set: ClipSet, inputs: Inputs, report: Report) -> Result:
    """Evaluate every clip of a split and return metrics and a table with a row a clip.

    Args:
        config: what to measure.
        clip_set: clips and their labels.
        inputs: `weights`, a finished training.
        report: hears of each batch.
    """
    source = inputs["weights"]
    places = places_in(source.config, clip_set.classes)
    num_classes = len(classes_of(source.config, clip_set.classes))
    model = _load(source.weights, source.config, num_classes, clip_set.device)
    if not 0 <= config.head < len(model.heads):
        what = f"evaluate: head={config.head} of a model with {len(model.heads)}"
        raise Mistake(what, "heads count from 0")
    ids = stretch(clip_set.ids(config.split), clip_set.names, config.share)
    if not ids:
        what = f"evaluate: no clip of {config.split} lies in share={config.share}"
        raise Mistake(what, "take a wider one")
    rank, world = rank_and_world()
    mine, rows = ids[rank::world], []
    clip_set.expect(_requests(mine, config, shelf.of(clip_set)))
    most = -(-len(ids) // world)  # reports are common to all ranks, so all make equally many
    for start in range(0, most, config.batch):
        part = mine[start : start + config.batch]
        if part:
            rows.append(_measure(model, source.config.model, config, clip_set, part, places))
        report.step(min(start + config.batch, most), most, lambda: {})
    columns = _gather(rows, world)
    place = np.argsort(columns["clip"], kind="stable")
    table = _table({name: values[place] for name, values in columns.items()}, clip_set)
    return Result(None, metrics_of(columns_of([table]), config.split), table)


def stretch(
    ids: Sequence[int], names: Sequence[str], share: tuple[float, float]
) -> tuple[int, ...]:
    """Return the clips of a stretch of a split, by id; stretches that touch share none.

    Their order is that of the hashes of their names: random, and the same for whoever evaluates.
    """
    hashes = {i: hashlib.sha256(names[i].encode()).digest() for i in ids}
    first, end = (math.ceil(len(ids) * part) for part in share)
    return tuple(sorted(sorted(ids, key=hashes.__getitem__)[first:end]))


def classes_of(source: Any, classes: Sequence[str]) -> Sequence[str]:  # Any: as in _load
    """Return the names of a model's outputs: its own, or those of the clips that it learned."""
    return source.labels if isinstance(source, load.Config) else classes


def places_in(source: Any, classes: Sequence[str]) -> tuple[int, ...]:  # Any: as in _load
    """Return which output of a model is right for each class of the clips; -1 without labels."""
    if isinstance(source, load.Config):
        return load.places_of(source.labels, classes)
    return tuple(range(len(classes)))


def _requests(ids: Sequence[int], config: Config, kept: shelf.Shelf) -> Iterator[Request]:
    """Yield what `_measure` will ask for that is not kept, batch by batch."""
    for start in range(0, len(ids), config.batch):
        part = tuple(ids[start : start + config.batch])
        for view in range(config.views):
            views = (View(view, config.views),) * len(part)
            if not kept.has(part, config.clip, views, _walk(config)):
                yield Request(part, config.clip, views)


def _walk(config: Config) -> Hashable:
    """Return which clips a pass shows, and in which order."""
    return config.split, config.share


@lru_cache(maxsize=1)  # a search evaluates one checkpoint many times in a row
def _load(
    weights: Path, config: Any, num_classes: int, device: torch.device
) -> VideoTransformer:  # Any: the config of whatever stage trained the weights
    model: VideoTransformer = config.model.build(num_classes, config.reducers)
    model.load_state_dict(load_file(weights))
    return model.to(device).eval()


Columns = dict[str, np.ndarray]


def _measure(
    model: VideoTransformer,
    host: HostConfig,
    config: Config,
    clip_set: ClipSet,
    ids: Sequence[int],
    places: Sequence[int],
) -> Columns:
    logits_VBK, tokens_VB, macs_VB = [], [], []
    for view in range(config.views):
        starts = [View(view, config.views)] * len(ids)
        raw = shelf.of(clip_set).load(ids, config.clip, starts, _walk(config))
        pixels = augment.normalise(raw, host.mean, host.std)
        seeds = [seed_of(config.seed, view, clip_id) for clip_id in ids]
        half = config.precision == "bfloat16"
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=half):
            logits_BK, trace = model.traced(pixels, config.reducers, config.head, seeds)
        logits_VBK.append(logits_BK.float())
        tokens_VB.append(cost.tokens_by_clip(trace))
        macs_VB.append(list(cost.macs_by_clip(trace).values()))
    macs_PB = np.mean(macs_VB, axis=0)
    return {
        "clip": np.array(ids),
        "label": np.array([places[clip_set.labels[i]] for i in ids]),
        "logits": average(torch.stack(logits_VBK)).cpu().numpy(),
        "tokens": np.mean(tokens_VB, axis=0),
        "macs": macs_PB.T,
    }


def average(logits_VBK: Tensor) -> Tensor:
    """Average views as probabilities, and leave the logits of a single view as they are."""
    if len(logits_VBK) == 1:
        return logits_VBK[0]
    return logits_VBK.softmax(dim=-1).mean(dim=0).log()


def _gather(rows: list[Columns], world: int) -> Columns:
    if world > 1:
        parts: list[list[Columns]] = [[] for _ in range(world)]
        dist.all_gather_object(parts, rows)
        rows = [row for part in parts for row in part]
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def columns_of(tables: Sequence[pa.Table]) -> Columns:
    """Return the columns of one or several tables: `macs` by part, all else as in `_table`.

    Rows are in the order of their clips' names, so the parts of a table give what the whole gives.
    """
    table = pa.concat_tables(tables).sort_by("clip")
    return {
        "clip": np.array(table["clip"].to_pylist()),
        "label": table["label"].to_numpy().copy(),
        "logits": np.stack(table["logits"].to_numpy()),
        "tokens": table["tokens"].to_numpy(),
        "macs": np.stack(table["macs"].to_numpy()),
    }


def metrics_of(columns: Columns, split: str) -> dict[str, float]:
    """Return the metrics of some clips; of a table, or of several together."""
    macs_BP = columns["macs"]
    parts = dict(zip(cost.PARTS, macs_BP.mean(axis=0) / 1e9, strict=True))
    return {
        **_accuracy(columns, split),
        f"{split}/clips": float(len(macs_BP)),
        "cost/gmacs": float(macs_BP.sum(axis=1).mean() / 1e9),
        "cost/tokens": float(columns["tokens"].mean()),
        **{f"cost/{part}_gmacs": float(value) for part, value in parts.items()},
    }


def _accuracy(columns: Columns, split: str) -> dict[str, float]:
    """Return how often labels are right, nothing for clips without labels."""
    logits_BK, label_B = torch.from_numpy(columns["logits"]), torch.from_numpy(columns["label"])
    if (label_B < 0).any():
        return {}
    return {
        f"{split}/top1": metrics.top_k(logits_BK, label_B),
        f"{split}/top5": metrics.top_k(logits_BK, label_B, k=5),
        f"{split}/mean_class": metrics.mean_class(logits_BK, label_B),
        f"{split}/loss": float(F.cross_entropy(logits_BK, label_B)),
    }


def _table(columns: Columns, clip_set: ClipSet) -> pa.Table:
    return pa.table(
        {
            "clip": [clip_set.names[i] for i in columns["clip"]],
            "label": columns["label"],
            "logits": list(columns["logits"]),
            "tokens": columns["tokens"],
            "gmacs": columns["macs"].sum(axis=1) / 1e9,
            "macs": list(columns["macs"]),
        }
    )
