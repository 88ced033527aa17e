"""What the way from a video to a training batch costs, beside plain decord loops.

    python -m benchmarks.ingest [--quick] [--data VIDEOS]

`ratio` = training batches a second out of the pipeline without the cache, in steady state (clips
401-2 000 of a pass of 2 000) / those of two warm decord processes on the same clips: each opens a
video, asks decord for the frames of the clip, and resizes them as we do. They leave batches where
they are; ours come through Ray to a process that reserves the CPUs of a rank. `cached_ratio` = the
same clips out of the cache / out of the pipeline, index choice and resize in both. `startup_s` = to
the first batch of a fresh pipeline. `rss_mb` = memory of all processes of it, Ray's own too, each
page counted once, after 500 and after 2 000 clips of the first pass. 16 frames with stride 4; 224
px, `--quick` 112 px. No model runs, so no attention backend matters.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray
import torch

from benchmarks import clips as given
from benchmarks import command
from orchestrator import cluster, data
from orchestrator.environment import prepare
from orchestrator.room import Room, room_of
from orchestrator.stream import Stream
from workloads import cache, datasets, frames
from workloads.clips import Config, Order, Request, fit, frame_indices, open_clips
from workloads.datasets import Manifest, synthetic
from workloads.footage import Frames

CLIPS, SKIPPED, EARLY = 2000, 400, 500
MOST_VIDEOS = 400
BATCH = 16
PROCESSES = 2


@dataclass(frozen=True)
class Pass:
    """A pass over the clips out of a pipeline."""

    first_s: float
    """To its first batch."""
    steady_s: float
    """From clip 401 to the last."""
    early_mb: float
    late_mb: float


def main() -> None:
    """Measure, print a table, and last a JSON object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--data", type=Path, default=given.default_data())
    args = parser.parse_args()
    prepare()
    command.run(lambda: _measured(args.data, args.quick))


def _measured(videos: Path | None, quick: bool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        clip = Config(frames=16, stride=4.0, size=112 if quick else 224)
        answer = _Bench(Path(folder), videos, clip).measure(7 if quick else 20)
    print(answer["setting"])
    for name, ratios in answer.pop("ratios").items():
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(f"{name:<13}{middle:6.2f}   [{low:.2f}, {high:.2f}]   n={len(ratios)}")
    rates = "   ".join(f"{name} {rate:.0f}" for name, rate in answer["clips_per_s"].items())
    print(f"clips/s      {rates}")
    print(f"start-up     {answer['startup_s']:.1f} s   memory {answer['rss_mb']} MB")
    return answer


class _Bench:
    """Videos, a view of them, and the requests of a training."""

    def __init__(self, folder: Path, videos: Path | None, clip: Config) -> None:
        self.root, self.clip = folder / "store", clip
        self.side = 1 << (clip.size - 1).bit_length()
        self.words = f"videos of {videos}" if videos else "synthetic videos of 128 px"
        self.manifest = _some(videos or _drawn(folder / "videos"))
        self.view = data.folder_for(self.root, self.manifest, self.side)

    def measure(self, rounds: int) -> dict[str, Any]:
        """Return the answer; Ray is gone then, whatever happened."""
        try:
            cluster.join(None)
            return self._compared(rounds)
        finally:
            ray.shutdown()

    def _compared(self, rounds: int) -> dict[str, Any]:
        # An actor, as ranks are: a task would lend its CPUs to others whenever it waits.
        self.rank = ray.remote(num_cpus=cluster.shares(1, 1).cpus)(_Rank).remote()
        self._fill(Room(self.root / "cache", 0))
        fresh = self._passed(cached=False)
        self._fill(room_of(self.root))
        requests = self._requests()
        found: list[tuple[Pass, float, Pass]] = []
        context = multiprocessing.get_context("spawn")
        # As nice as Ray's processes are, or a busy machine would serve these first.
        with ProcessPoolExecutor(
            PROCESSES, mp_context=context, initializer=os.nice, initargs=(self._niceness(),)
        ) as processes:
            self._plain(processes, requests[:4])  # warm
            for _ in range(rounds):
                ours = self._passed(cached=False)
                theirs = self._plain(processes, requests[SKIPPED // BATCH :])
                found.append((ours, theirs, self._passed(cached=True)))
        return self._answer(fresh, found)

    def _niceness(self) -> int:
        """Return how much more Ray's processes give way to others than this one."""
        theirs: int = ray.get(self.rank.niceness.remote())
        return theirs - os.nice(0)

    def _answer(self, fresh: Pass, found: Sequence[tuple[Pass, float, Pass]]) -> dict[str, Any]:
        ratios = {
            "ratio": [theirs / ours.steady_s for ours, theirs, _ in found],
            "cached_ratio": [ours.steady_s / cached.steady_s for ours, _, cached in found],
        }
        times = {
            "pipeline": [ours.steady_s for ours, _, _ in found],
            "decord": [theirs for _, theirs, _ in found],
            "cache": [cached.steady_s for _, _, cached in found],
        }
        num = CLIPS - SKIPPED
        # Of the first pass: later ones have maps of cached frames open, whose pages count, too.
        memory = {str(EARLY): fresh.early_mb, str(CLIPS): fresh.late_mb}
        return {
            **{name: statistics.median(values) for name, values in ratios.items()},
            "startup_s": fresh.first_s,
            "rss_mb": {name: round(size, 1) for name, size in memory.items()},
            "clips_per_s": {name: num / statistics.median(took) for name, took in times.items()},
            "load": os.getloadavg()[0],
            "setting": self._setting(),
            "ratios": ratios,
        }

    def _setting(self) -> str:
        clip = f"{self.clip.frames} frames, stride {self.clip.stride:g}, {self.clip.size} px"
        machine = command.machine(torch.device("cpu"), "ray", "av", "decord")
        return (
            f"{len(self.manifest.clips)} {self.words}, {CLIPS} clips a pass, {clip}, batches of "
            f"{BATCH}; {machine}"
        )

    def _fill(self, room: Room) -> None:
        data.fill(self.view, self.manifest, self.side, lambda done, total: None, room)

    def _requests(self) -> list[Request]:
        """Return the batches of a pass, over as many epochs as it takes."""
        return [*_batches(tuple(range(len(self.manifest.clips))), self.clip)]

    def _passed(self, cached: bool) -> Pass:
        """Run a pass in a process that has the CPUs of the one rank of the one group."""
        ids = tuple(range(len(self.manifest.clips)))
        done: Pass = ray.get(self.rank.go.remote(self.view, cached, ids, self.clip, os.getpid()))
        return done

    def _plain(self, processes: ProcessPoolExecutor, requests: Sequence[Request]) -> float:
        """Return how long decord takes for the batches, each process for a half of them."""
        lengths = {entry.clip: entry.frames for entry in cache.index(self.view)}
        paths = {i: self.manifest.root / clip.path for i, clip in enumerate(self.manifest.clips)}
        begun = time.perf_counter()
        halves = [requests[number::PROCESSES] for number in range(PROCESSES)]
        parts = [processes.submit(_decord, half, paths, lengths, self.side) for half in halves]
        for part in parts:
            part.result()
        return time.perf_counter() - begun


def _some(videos: Path) -> Manifest:
    """Return a manifest of at most so many videos, spread over all there are."""
    manifest = datasets.load(videos, trains=True)
    num = len(manifest.clips)
    kept = sorted({place * num // MOST_VIDEOS for place in range(MOST_VIDEOS)})
    return replace(
        manifest,
        clips=tuple(manifest.clips[place] for place in kept),
        contents=tuple(manifest.contents[place] for place in kept),
        digest=f"{MOST_VIDEOS} of {manifest.digest}",
    )


def _drawn(folder: Path) -> Path:
    config = synthetic.Config(train=160, val=40, test=0, side=128, frames=64)
    return synthetic.write(config, folder, processes=os.cpu_count() or 1)


def _batches(ids: tuple[int, ...], clip: Config) -> Iterator[Request]:
    order = Order(ids, BATCH, seed=0)
    for step in range(CLIPS // BATCH):
        places = order.at(step)
        starts = tuple(float(np.random.default_rng([step, i]).random()) for i in range(BATCH))
        yield Request(tuple(clip_id for _, clip_id in places), clip, starts)


class _Rank:
    """The process that takes batches."""

    def go(self, *args: Any) -> Pass:  # Any: as in _pass
        """Run a pass."""
        return _pass(*args)

    def niceness(self) -> int:
        """Return how far this process gives way to others."""
        return os.nice(0)


def _pass(view: Path, cached: bool, ids: tuple[int, ...], clip: Config, driver: int) -> Pass:
    """Take all batches of a pass, as a training does that has nothing else to do."""
    torch.set_num_threads(cluster.num_cores())
    clip_set = open_clips(view, cached=cached)
    assert isinstance(clip_set.frames_of, Frames)
    ahead = cluster.shares(1, 1).ahead
    clip_set = replace(clip_set, feed=Stream(clip_set.frames_of, ahead, clip_set.meter))
    begun = time.perf_counter()
    clip_set.expect(_batches(ids, clip))
    times, early_mb = [], 0.0
    for number, request in enumerate(_batches(ids, clip), start=1):
        clip_set.load(*request)
        times.append(time.perf_counter())
        if number == EARLY // BATCH and not cached:
            looked = time.perf_counter()
            early_mb = _memory_mb(driver)
            begun_later = time.perf_counter() - looked
            times = [one + begun_later for one in times]  # it is no part of the pass
            begun += begun_later
    steady_s = times[-1] - times[SKIPPED // BATCH - 1]
    return Pass(times[0] - begun, steady_s, early_mb, 0.0 if cached else _memory_mb(driver))


def _memory_mb(driver: int) -> float:
    """Return what a process and all that it started hold, pages that they share counted once."""
    whole = 0
    for process in [psutil.Process(driver), *psutil.Process(driver).children(recursive=True)]:
        try:
            whole += process.memory_full_info().pss
        except psutil.Error:  # it ended
            continue
    return whole / 2**20


def _decord(
    requests: Sequence[Request], paths: dict[int, Path], lengths: dict[int, int], side: int
) -> int:
    """Make batches as a person would with decord alone; return how many clips."""
    import decord

    torch.set_num_threads(1)
    num = 0
    for request in requests:
        clips = []
        for clip_id, start in zip(request.ids, request.starts, strict=True):
            chosen = frame_indices(lengths[clip_id], request.config, start)
            needed = sorted({*chosen})
            reader = decord.VideoReader(str(paths[clip_id]), num_threads=1)
            some_THWC = reader.get_batch(needed).asnumpy()
            frames_THWC = some_THWC[[needed.index(number) for number in chosen]]
            clips.append(fit(frames.cap(frames_THWC, side), request.config))
        num += len(np.stack(clips))
    return num


if __name__ == "__main__":
    main()
