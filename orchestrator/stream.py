"""Clips that are not in the frame cache, decoded ahead of a stage in the order it asks for them.

The order of a stage follows from its config and its position alone, so it is known before the first
batch and after a restart alike. Ray tasks make the next batches while the stage works on this one;
the object store carries clips as the model sees them, a few dozen at most, never whole videos.

Deviation from the plan, which had Ray Data here: its executor takes a second to start in each stage
and keeps its order and its bounds by options; tasks keyed by the order have both from their nature.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import ray
import torch
from ray.exceptions import RayTaskError

from orchestrator.cluster import DATA_CPUS
from workloads.clips import Config, Meter, Request, Start, Video, batch_of
from workloads.footage import Frames
from workloads.mistakes import Mistake

PART = 16  # clips of a task, at most: between two tasks a process waits for milliseconds
MOST_BYTES = 512 * 2**20  # of clips that a rank has in flight


@dataclass
class Coming:
    """A batch that was announced."""

    request: Request
    parts: list[tuple[list[int], ray.ObjectRef]] = field(default_factory=list)
    """Places in the batch, and the clips that will stand there."""

    @property
    def num_bytes(self) -> int:
        """What its tasks return, at most."""
        config = self.request.config
        clip = config.frames * config.size**2 * 3
        return clip * sum(len(places) for places, _ in self.parts)


class Stream:
    """A `clips.Feed` of one rank.

    Args:
        frames: of the set of clips that it feeds; what is stored is left to that.
        ahead: tasks in flight, about, beside those of the batch that is wanted next.
        meter: counts what it decodes.
    """

    def __init__(self, frames: Frames, ahead: int, meter: Meter) -> None:
        self.frames, self.ahead, self.meter = frames, ahead, meter
        self.coming: deque[Coming] = deque()
        self.requests: Iterator[Request] = iter(())

    def expect(self, requests: Iterator[Request]) -> None:
        """Begin with the first batches; give up those of before that nobody took."""
        for before in self.coming:
            for _, ref in before.parts:
                ray.cancel(ref)
        self.coming.clear()
        self.requests = requests
        self._advance()

    def take(self, request: Request) -> np.ndarray | None:
        """Return a batch, uint8 (B, T, H, W, C); None if it is not next, or all of it is stored."""
        if not self.coming or self.coming[0].request != request:
            return None
        next_one = self.coming.popleft()
        self._advance()
        return self._whole(next_one) if next_one.parts else None

    def _advance(self) -> None:
        """Begin as many batches as may be in flight."""
        while len(self.coming) < self.ahead and self._has_room():
            request = next(self.requests, None)
            if request is None:
                return
            self.coming.append(self._begun(request))

    def _has_room(self) -> bool:
        tasks = sum(len(one.parts) for one in self.coming)
        return tasks < self.ahead and sum(one.num_bytes for one in self.coming) < MOST_BYTES

    def _begun(self, request: Request) -> Coming:
        found = {place: self.frames.missing(clip_id) for place, clip_id in enumerate(request.ids)}
        videos = {place: video for place, video in found.items() if video is not None}
        begun, places = Coming(request), [*videos]
        for first in range(0, len(places), PART):
            part = places[first : first + PART]
            starts = [request.starts[place] for place in part]
            ref = _made.remote([videos[place] for place in part], request.config, starts)
            begun.parts.append((part, ref))
        return begun

    def _whole(self, batch: Coming) -> np.ndarray:
        """Put a batch together: what tasks made, and what is stored."""
        ids, config, starts = batch.request
        whole_BTHWC = np.empty((len(ids), config.frames, config.size, config.size, 3), np.uint8)
        here = {*range(len(ids))}
        for places, ref in batch.parts:
            whole_BTHWC[places] = _got(ref)
            here -= {*places}
            self.meter.decoded += len(places)
        for place in here:
            video = self.frames(ids[place])
            whole_BTHWC[place] = batch_of([video], config, [starts[place]])[0]
        return whole_BTHWC


def _got(ref: ray.ObjectRef) -> np.ndarray:
    try:
        made: np.ndarray = ray.get(ref)
    except RayTaskError as error:
        if isinstance(error.cause, Mistake):
            raise error.cause from None
        raise
    return made


def _make(videos: Sequence[Video], config: Config, starts: Sequence[Start]) -> np.ndarray:
    """Decode some clips, in a process of Ray's."""
    torch.set_num_threads(1)
    return batch_of(videos, config, starts)


_made = ray.remote(num_cpus=DATA_CPUS)(_make)
