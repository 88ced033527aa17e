"""Time a trained model under a chain beside the dense one: latency, throughput, peak memory.

The loop of the `timing` stage, for confirmations: it is run while nothing else is. Real clips,
read and normalised before the clock starts; a warm-up first; then the two take turns, so that a
machine that slows down slows both. The process uses all cores of its node while it is timed.

    latency     a forward of one clip, another one each time: where clips differ in their tokens, so
                does the time they take, and shapes that were never seen are part of it
    throughput  a forward of a batch, the same one each time
    memory      weights, pixels, and what a forward of that batch takes on top while it runs: on
                CUDA what torch allocates, on Linux what becomes resident, elsewhere not known

Legend: B clips, C T H W video.
"""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import load_file
from torch import Tensor

from workloads import attention, augment, clips, evaluate
from workloads.clips import ClipSet, View, seed_of
from workloads.mistakes import Mistake
from workloads.reducers import base
from workloads.stage import Input, Inputs, Report, Result, rank_and_world
from workloads.trace import Trace
from workloads.vit import VideoTransformer

REVISION = 1
WARM = 3  # forwards before the clock starts
SIDES = ("point", "dense")
QUARTILES = (0.25, 0.5, 0.75)
_PROCESS = Path("/proc/self")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that decides what is timed, and where."""

    clip: clips.Config
    """What the model sees of a video."""
    reducers: tuple[base.Config, ...] = ()
    """Chain to time; () is dense."""
    head: int = 0
    """Classifier that is read."""
    split: Literal["val", "test"] = "test"
    """Whose clips are shown."""
    batch: int = 32
    """Clips at once for throughput and memory, or as many as there are."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of matrix products."""
    seed: int = 0
    """Of random reducers."""
    dense: evaluate.Config
    """What it is timed beside."""
    singles: int = 21
    """Clips of which the latency is taken."""
    repeats: int = 7
    """Forwards of a batch."""
    machine: str = ""
    """Names where it is timed: the times of another machine do not stand for those of this one."""

    def __post_init__(self) -> None:
        if min(self.batch, self.singles, self.repeats) < 1:
            counts = f"batch={self.batch}, singles={self.singles}, repeats={self.repeats}"
            raise Mistake(f"timing: {counts} must be 1 or more")


@torch.inference_mode()
def run(config: Config, clip_set: ClipSet, inputs: Inputs, report: Report) -> Result:
    """Time a point and the dense model in turns; return medians, quartiles and a row a forward.

    Args:
        config: what to time.
        clip_set: clips; those of its split are shown.
        inputs: `weights` of the point and those of the `dense` model.
        report: hears of each turn.
    """
    rank, _ = rank_and_world()
    total = config.singles + config.repeats
    if rank > 0:  # one process is timed; the others wait with it at each report
        for done in range(total):
            report.step(done + 1, total, lambda: {})
        return Result(None, {}, None)
    sides = {
        "point": _Side(config, inputs["weights"], clip_set),
        "dense": _Side(config.dense, inputs["dense"], clip_set),
    }
    ids = clip_set.ids(config.split)

    def heard(done: int) -> None:
        report.step(done, total, lambda: {})

    with all_cores() as threads:
        singles = _singles(sides, _spread(ids, config.singles), heard)
        for one in sides.values():
            one.show(_spread(ids, min(config.batch, len(ids))))
        batches = _batches(sides, config.repeats, lambda done: heard(config.singles + done))
        peaks = {side: one.peak_bytes() for side, one in sides.items()}
    metrics = _summary(singles, batches, peaks) | {"timing/threads": float(threads)}
    return Result(None, metrics, _table(singles + batches, device_name(clip_set.device)))


Row = dict[str, str | float]


class _Side:
    """One of the two that are timed: a model, its chain, and the clips that it will be shown."""

    def __init__(self, shown: Config | evaluate.Config, source: Input, clip_set: ClipSet) -> None:
        self.shown, self.clip_set, self.host = shown, clip_set, source.config.model
        num_classes = len(evaluate.classes_of(source.config, clip_set.classes))
        model: VideoTransformer = self.host.build(num_classes, source.config.reducers)
        model.load_state_dict(load_file(source.weights))
        self.model = model.to(clip_set.device).eval()
        self.chain = model.chain(shown.reducers)
        self.pixels, self.seeds = torch.empty(0), [0]

    def show(self, ids: Sequence[int]) -> None:
        """Have clips ready on the device."""
        clip_BCTHW = self.clip_set.load(ids, self.shown.clip, [View(0, 1)] * len(ids))
        self.pixels = augment.normalise(clip_BCTHW, self.host.mean, self.host.std)
        self.seeds = [seed_of(self.shown.seed, 0, one) for one in ids]

    def forward(self) -> Trace:
        """Classify what is shown."""
        half = self.shown.precision == "bfloat16"
        with torch.autocast(self.pixels.device.type, torch.bfloat16, enabled=half):
            return self.model.traced(self.pixels, self.chain, self.shown.head, self.seeds)[1]

    def timed(self, side: str) -> Row:
        """Return how long a forward of what is shown takes, and the attention that it used."""
        _wait(self.pixels.device)
        begun = time.perf_counter()
        trace = self.forward()
        _wait(self.pixels.device)
        seconds = time.perf_counter() - begun
        kernel = self._kernel(trace)
        return {"side": side, "batch": len(self.pixels), "seconds": seconds, "kernel": kernel}

    def _kernel(self, trace: Trace) -> str:
        dtype = torch.bfloat16 if self.shown.precision == "bfloat16" else torch.float32
        visits = [visit.lengths for visit in trace.visits if visit.part == "attention"]
        kinds = {
            attention.backend(len({*lengths}) == 1, self.pixels.device, dtype) for lengths in visits
        }
        return " + ".join(sorted(kinds))

    def peak_bytes(self) -> float | None:
        """Return the memory of model, pixels and a forward of them; None where it is not known."""
        parts = [*self.model.parameters(), *self.model.buffers(), self.pixels]
        rise = _rise(self.pixels.device, self.forward)
        return None if rise is None else rise + sum(map(_size, parts))


Sides = dict[str, _Side]


def _singles(sides: Sides, ids: Sequence[int], heard: Callable[[int], None]) -> list[Row]:
    """Time clip after clip."""
    rows: list[Row] = []
    for turn, clip_id in enumerate(ids):
        for one in sides.values():
            one.show([clip_id])
        rows += _turn(sides, turn)
        heard(turn + 1)
    return rows


def _batches(sides: Sides, repeats: int, heard: Callable[[int], None]) -> list[Row]:
    """Time what is shown, again and again."""
    rows: list[Row] = []
    for turn in range(repeats):
        rows += _turn(sides, turn)
        heard(turn + 1)
    return rows


def _turn(sides: Sides, turn: int) -> list[Row]:
    """Time both, each first in every other turn; the first turn comes after a warm-up."""
    if turn == 0:
        for _ in range(WARM):
            for one in sides.values():
                one.forward()
    order = SIDES if turn % 2 == 0 else SIDES[::-1]
    return [sides[side].timed(side) for side in order]


def _spread(ids: Sequence[int], num: int) -> list[int]:
    """Return `num` ids, evenly spread over all; where there are fewer, some come again."""
    return [ids[place * len(ids) // num] for place in range(num)]


def _summary(
    singles: list[Row], batches: list[Row], peaks: dict[str, float | None]
) -> dict[str, float]:
    """Return medians and quartiles of each side, and by how much the point is faster."""
    size = float(batches[0]["batch"])
    made = {"timing/batch": size}
    for side in SIDES:
        prefix = "timing/" if side == "point" else "timing/dense_"
        single_N, batch_N = (_seconds(rows, side) for rows in (singles, batches))
        names = ("latency_low_ms", "latency_ms", "latency_high_ms")
        made |= _named(prefix, names, 1e3 * np.quantile(single_N, QUARTILES))
        names = ("clips_per_s_high", "clips_per_s", "clips_per_s_low")
        made |= _named(prefix, names, size / np.quantile(batch_N, QUARTILES))
        peak = peaks[side]
        made |= {} if peak is None else {f"{prefix}peak_mb": peak / 2**20}
    made["timing/speedup"] = made["timing/clips_per_s"] / made["timing/dense_clips_per_s"]
    made["timing/latency_speedup"] = made["timing/dense_latency_ms"] / made["timing/latency_ms"]
    return made


def _seconds(rows: list[Row], side: str) -> np.ndarray:
    return np.array([row["seconds"] for row in rows if row["side"] == side], dtype=float)


def _table(rows: list[Row], device: str) -> pa.Table:
    columns = {name: [row[name] for row in rows] for name in ("side", "batch", "seconds", "kernel")}
    return pa.table({**columns, "device": [device] * len(rows)})


def _named(prefix: str, names: Sequence[str], values: np.ndarray) -> dict[str, float]:
    return {prefix + name: float(value) for name, value in zip(names, values, strict=True)}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _rise(device: torch.device, work: Callable[[], object]) -> float | None:
    """Return by how many bytes memory rises while something runs; None where that is not known."""
    gc.collect()
    if device.type == "cuda":
        _wait(device)
        torch.cuda.reset_peak_memory_stats(device)
        allocated = torch.cuda.memory_allocated(device)
        work()
        _wait(device)
        return float(torch.cuda.max_memory_allocated(device) - allocated)
    with suppress(OSError, AttributeError):  # what was freed and kept would not be taken again
        ctypes.CDLL(None).malloc_trim(0)
    try:
        (_PROCESS / "clear_refs").write_text("5")  # the peak is from here on
        before = _resident("VmRSS")
        work()
        return max(_resident("VmHWM") - before, 0.0)
    except OSError:
        return None


def _resident(name: str) -> float:
    """Return a line of the process's memory, bytes.

    Raises:
        OSError: this system does not say.
    """
    found = re.search(rf"^{name}:\s+(\d+) kB$", (_PROCESS / "status").read_text(), re.MULTILINE)
    if found is None:
        raise OSError(f"no {name}")
    return 1024.0 * int(found[1])


@contextmanager
def all_cores() -> Iterator[int]:
    """Let torch use all cores of this node, whatever share the process has; yield their number."""
    before = torch.get_num_threads()
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    torch.set_num_threads(cores)
    try:
        yield cores
    finally:
        torch.set_num_threads(before)


def device_name(device: torch.device) -> str:
    """Return what a device is called by its maker."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with suppress(OSError):
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
        if found is not None:
            return found[1]
    return platform.processor() or platform.machine()
