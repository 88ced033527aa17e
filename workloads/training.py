"""What every training shares: the order of clips, the optimiser, the position, the smoothed loss.

Every number depends on the config and the clips alone: step k sees the clips that the order gives
it, each with a generator of its own, so a training that was killed goes on at the step where it was
and ends with the same bits. On several ranks the batch is split and gradients are averaged (DDP),
which changes sums by rounding only.

Legend: B clips, K classes, C T H W video.
"""

from __future__ import annotations

from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from workloads import augment, clips, optim
from workloads.clips import ClipSet, Order, Request, seed_of
from workloads.mistakes import Mistake
from workloads.models import HostConfig
from workloads.stage import Report, State, rank_and_world

REVISION = 1


class Settings(Protocol):
    """What the Config of every training has."""

    @property
    def model(self) -> HostConfig: ...
    @property
    def clip(self) -> clips.Config: ...
    @property
    def augment(self) -> augment.Config: ...
    @property
    def optim(self) -> optim.Config: ...
    @property
    def steps(self) -> int: ...
    @property
    def batch(self) -> int: ...
    @property
    def precision(self) -> Literal["float32", "bfloat16"]: ...
    @property
    def seed(self) -> int: ...


class Trainer:
    """The moving parts of a training; a kind of stage says what the loss of a batch is.

    Args:
        settings: how to train.
        clip_set: its `train` split is read.
        model: whose weights are trained.
    """

    def __init__(self, settings: Settings, clip_set: ClipSet, model: nn.Module) -> None:
        self.settings, self.clip_set, self.model = settings, clip_set, model
        self.rank, self.world = rank_and_world()
        if settings.batch % self.world:
            raise Mistake(
                f"batch={settings.batch} must be a multiple of the ranks ({self.world})",
                "choose other --ranks, or another batch in the study",
            )
        self.order = Order(clip_set.ids("train"), settings.batch, settings.seed)
        self.optimizer = optim.build(model, settings.optim)
        self.done = 0
        self.smoothed = {"loss": torch.zeros((), device=clip_set.device)}

    def loss(self, ids: list[int], seeds: list[int]) -> Tensor:
        """Return the loss of this rank's share of a batch, with its gradient."""
        raise NotImplementedError

    def run(self, report: Report) -> None:
        """Train from the newest checkpoint, if there is one, to the end."""
        self.restore(report.resume())
        self.clip_set.expect(map(self.request, range(self.done, self.settings.steps)))
        while self.done < self.settings.steps:
            self.step()
            report.step(self.done, self.settings.steps, self.metrics, self.state)

    def clip_at(self, step: int) -> clips.Config:
        """Return what all clips of a step show."""
        return self.settings.clip

    def batch(self, step: int) -> tuple[list[int], list[int]]:
        """Return the clips of this rank's share of a step, and a seed for each."""
        places = self.order.at(step, self.rank, self.world)
        seeds = [seed_of(self.settings.seed, epoch, clip_id) for epoch, clip_id in places]
        return [clip_id for _, clip_id in places], seeds

    def request(self, step: int) -> Request:
        """Return what `load` will ask for in a step: it follows from the step alone."""
        ids, seeds = self.batch(step)
        starts = tuple(np.random.default_rng(seed).random() for seed in seeds)
        return Request(tuple(ids), self.clip_at(step), starts)

    def step(self) -> None:
        """Take the next batch."""
        loss = self.loss(*self.batch(self.done))
        loss.backward()
        lr = optim.rate(self.done, self.settings.steps, self.settings.optim)
        optim.step(self.model, self.optimizer, lr, self.settings.optim.max_norm)
        before = self.smoothed["loss"]
        self.smoothed["loss"] = torch.lerp(loss.detach(), before, 0.95 if self.done else 0.0)
        self.done += 1

    def autocast(self) -> torch.autocast:
        """Return the context in which the model runs."""
        half = self.settings.precision == "bfloat16"
        return torch.autocast(self.clip_set.device.type, torch.bfloat16, enabled=half)

    def load(
        self, ids: list[int], seeds: list[int], clip: clips.Config, target_BK: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return augmented clips, normalised for the host, and targets that were mixed as they."""
        rngs = [np.random.default_rng(seed) for seed in seeds]
        starts = [rng.random() for rng in rngs]
        clip_BCTHW = self.clip_set.load(ids, clip, starts)
        host = self.settings.model
        pixels_BCTHW = augment.normalise(clip_BCTHW, host.mean, host.std)
        return augment.augment(pixels_BCTHW, target_BK, self.settings.augment, rngs)

    def metrics(self) -> dict[str, float]:
        """Return the smoothed loss."""
        return {"train/loss": float(self.smoothed["loss"])}

    def state(self) -> State:
        """Return what a later `restore` needs to go on with the next step."""
        return {
            "done": self.done,
            "smoothed": self.smoothed,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def restore(self, state: State | None) -> None:
        """Go on from a state; from the start without one."""
        if state is None:
            return
        device = self.clip_set.device
        self.done = state["done"]
        self.smoothed = {name: value.to(device) for name, value in state["smoothed"].items()}
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
