"""Clips that were prepared, kept by the process that evaluates them again under another chain.

What is kept is what `ClipSet.prepare` gives: frames that were chosen and resized, before any model.
It changes no number. The batches of a pass over clips stand together. Where room is wanted, passes
that rested longest make way; a batch that would push out its own pass is not kept, as a pass over
more than fits would otherwise find nothing of itself the next time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence

import numpy as np
from torch import Tensor

from workloads import clips
from workloads.clips import ClipSet, View

ROOM_BYTES = 512 * 2**20  # of a process: 220 clips of 16 x 224 px, 1 700 of 16 x 80 px

Batch = tuple[tuple[int, ...], tuple[View, ...]]


class Shelf:
    """Prepared batches of one set of clips, within a bound on their bytes."""

    def __init__(self, clip_set: ClipSet, room_bytes: int = ROOM_BYTES) -> None:
        self.clip_set, self.room_bytes = clip_set, room_bytes
        self.passes: OrderedDict[Hashable, dict[Batch, np.ndarray]] = OrderedDict()

    def load(
        self, ids: Sequence[int], config: clips.Config, views: Sequence[View], walk: Hashable
    ) -> Tensor:
        """Return clips as `ClipSet.load` does; `walk` names the pass, whatever its clip config."""
        here = self.passes.setdefault((walk, config), {})
        self.passes.move_to_end((walk, config))
        batch = (tuple(ids), tuple(views))
        if batch not in here:
            made = self.clip_set.prepare(ids, config, views)
            if not self._has_room(made.nbytes):
                return self.clip_set.send(made)
            here[batch] = made
        return self.clip_set.send(here[batch])

    def has(
        self, ids: Sequence[int], config: clips.Config, views: Sequence[View], walk: Hashable
    ) -> bool:
        """Say whether a batch is kept, as `load` asks for it."""
        return (tuple(ids), tuple(views)) in self.passes.get((walk, config), {})

    def _has_room(self, num_bytes: int) -> bool:
        """Make room, of all passes but the last; tell whether there is enough."""
        while self._taken() + num_bytes > self.room_bytes and len(self.passes) > 1:
            self.passes.popitem(last=False)
        return self._taken() + num_bytes <= self.room_bytes

    def _taken(self) -> int:
        return sum(made.nbytes for here in self.passes.values() for made in here.values())


_shelf: list[Shelf] = []  # of the process: none or one


def of(clip_set: ClipSet) -> Shelf:
    """Return the shelf of a set of clips; that of another set is given up."""
    if not _shelf or _shelf[0].clip_set is not clip_set:
        _shelf[:] = [Shelf(clip_set)]
    return _shelf[0]
