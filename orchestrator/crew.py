"""Ray, the groups and the clips of a run: started when first needed, sent home at its end.

A run that finds everything in the store never starts them.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

import ray

from orchestrator import cluster, data, interrupts, room
from orchestrator.display import Display
from orchestrator.lock import Lock
from orchestrator.pool import Pool
from orchestrator.store import Store
from search_spaces.study import Stage
from workloads.datasets import Manifest


class Crew:
    """Whoever does the work of a run; a context."""

    def __init__(
        self,
        store: Store,
        display: Display,
        address: str | None,
        workers: int,
        ranks: int,
        cache: float | None = None,
    ) -> None:
        self.store, self.display, self.address = store, display, address
        self.workers, self.ranks, self.cache = workers, ranks, cache
        self.scratch = store.root / "ray"
        self.clips: tuple[Manifest, int, str, int] | None = None
        self._starter = ThreadPoolExecutor(max_workers=1)
        self._starting: Future[Pool] | None = None
        self._ready: Pool | None = None
        self._pin: Lock | None = None
        self._decoded = 0

    def start(self) -> Future[Pool]:
        """Start Ray and the groups in the background; they need nothing but time."""
        if self._starting is None:
            self._starting = self._starter.submit(self._start)
        return self._starting

    def _start(self) -> Pool:
        where = cluster.join(self.address)
        self.display.line(f"ray    {where}")
        pool = Pool(
            self.workers,
            self.ranks,
            cluster.shares(self.workers, self.ranks),
            self.scratch,
            cached=self.cache != 0,
        )
        pool.start(self.store.root)
        return pool

    def work_on(self, manifest: Manifest, side: int, digest: str, span: int) -> None:
        """Say which clips it will be about, how large they are kept, and the digest of both.

        Args:
            span: frames of a video that a clip of the study needs.
        """
        self.clips = manifest, side, digest, span

    def pool(self) -> Pool:
        """Return the groups, with the frames of all clips ready for them."""
        if self._ready is None:
            assert self.clips is not None, "work_on comes first"
            manifest, side, digest, span = self.clips
            pool = self.start().result()
            interrupts.arm()
            folder = data.folder_for(self.store.root, manifest, side)
            self._pin = room.pin(folder)
            limit = room.room_of(self.store.root, self.cache)
            filled = data.fill(folder, manifest, side, self._told, limit)
            self._decoded = filled.decoded
            if filled.bad:
                self.display.warn(data.complaint(folder, filled.bad, manifest))
            if limit.limit and (told := data.told_full(filled, manifest, limit)):
                self.display.line(told)
            for told in (data.told_short(folder, span), data.told_long(folder)):
                if told:
                    self.display.warn(told)
            pool.serve(folder, digest)
            self.display.snapshot = pool.snapshot
            self._ready = pool
        return self._ready

    def launch(self, stage: Stage, key: str) -> dict[str, Any]:
        """Run one stage; a `stages.Launch`."""
        return self.pool().launch(stage, key)

    def counts(self) -> dict[str, Any]:
        """Return the seconds that stages took and how many were run, so far."""
        if self._ready is None:
            return {}
        seen = self._ready.snapshot()
        counts = {name: seen[name] for name in ("busy_s", "stages_run", "data_wait_s")}
        return counts | {"decoded": self._decoded + seen["decoded"]}

    def _told(self, done: int, total: int) -> None:
        self.display.progress("decode", done, total)

    def __enter__(self) -> Crew:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.display.snapshot = lambda: None
        if self._pin is not None:
            self._pin.release()
        if self._starting is None or not self._starting.done():
            return
        if self._starting.exception() is None and self._starting.result().stop():
            ray.shutdown()
            self._starter.shutdown()  # not before: Ray's servers die with the thread of their start
        # Else Ray is left to notice the end of this process, which takes it seconds.
