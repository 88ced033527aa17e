"""Pre-train a host by masked reconstruction (`mae.py`): the plain loop of the `pretrain` stage.

No label is looked at. The reducers of the config select what is worth reconstructing: MATS, RLT,
Flux, or random drop, their control at equal tokens; () is VideoMAE with random masks. As in
`finetune`, every number depends on the config and the clips alone, a killed stage ends with the
same bits, and ranks share the batch: their loss is the mean over the targets of all of them,
however unequal those are.

Legend: B clips, C T H W video.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from workloads import augment, clips, decoder, losses, mae, optim
from workloads.branches import Distil, Teacher, teacher_of
from workloads.clips import ClipSet
from workloads.knobs import Float
from workloads.mae import MaskedAutoencoder
from workloads.mistakes import Mistake
from workloads.models import HostConfig
from workloads.reducers import base
from workloads.stage import Inputs, Report, Result
from workloads.training import Trainer

REVISION = 2


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that decides the trained weights; defaults follow the EVEREST recipe."""

    model: HostConfig
    """The encoder; its weights are random, or those of the stage that it reads as `weights`."""
    clip: clips.Config
    """What it sees of a video."""
    reducers: tuple[base.Config, ...] = ()
    """Chain that selects the tokens to pre-train on; () is all of them."""
    visible_keep: Annotated[float, Float(0.05, 0.5, stage="pretrain")] = 0.1
    """Tokens that are shown / all tokens of a clip; the other selected ones are reconstructed."""
    decoder: decoder.Config = field(default_factory=decoder.Config)
    distil: Distil = field(default_factory=Distil)
    """What a trained model, read as `teacher`, teaches beside the pixels: its tokens, of all of the
    clip, at the cells of the visible ones (for Flux: its two-stage self-teacher)."""
    augment: augment.Config = field(default_factory=lambda: augment.Config(crop=0.66))
    optim: optim.Config = field(default_factory=lambda: optim.Config(betas=(0.9, 0.95)))
    steps: int = 1000
    """Batches to train on."""
    batch: int = 32
    """Clips of a step, over all ranks."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of matrix products; weights, labels and loss stay float32."""
    seed: int = 0
    """Of weights, order, augmentation, masks and random reducers."""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1:
            raise Mistake(f"pretrain: steps={self.steps}, batch={self.batch} must be 1 or more")
        if not 0 < self.visible_keep < 1:
            what = f"pretrain: visible_keep={self.visible_keep} must be between 0 and 1"
            raise Mistake(what, "it is the share of all tokens that is shown; the papers: 0.1")
        if self.distil.weight and not self.distil.layers:
            what = "pretrain: distil.layers=0 compares pooled features, and nothing is pooled here"
            raise Mistake(what, "compare the tokens of 1 block or more")

    def check(self) -> None:
        """Refuse what a later step would stumble over, before any work.

        Raises:
            Mistake: the clip does not fit the host, or the chain does not fit either of them.
        """
        host = self.model.host(self.reducers)
        chain = base.chain_of(self.reducers, host)
        mae.refuse_reducing_blocks(chain)
        chain.check(chain.grid(host.grid_of(self.clip.frames, self.clip.size, self.clip.size)))


def run(config: Config, clip_set: ClipSet, inputs: Inputs, report: Report) -> Result:
    """Train for `config.steps` steps and return the weights of encoder and decoder.

    Args:
        config: what to train.
        clip_set: its `train` split is read, without labels.
        inputs: `weights` of another pre-training to start from and a `teacher`, if any.
        report: gets the loss and the state after each step.

    Raises:
        Mistake: clips, chain, weights or teacher do not fit the model.
    """
    config.check()
    model = mae.build(
        config.model, config.reducers, config.decoder, config.visible_keep, config.seed
    )
    if "weights" in inputs:
        mae.load(model, load_file(inputs["weights"].weights))
    model.to(clip_set.device).train()
    teacher = teacher_of(config.distil, model.encoder, inputs)
    trainer = _Trainer(config, clip_set, model, teacher)
    trainer.run(report)
    weights = {n: w.detach().cpu().contiguous() for n, w in mae.weights_of(model).items()}
    return Result(weights, {**trainer.metrics(), "train/steps": config.steps}, None)


class _Trainer(Trainer):
    """Reconstructs what the model did not see."""

    def __init__(
        self,
        config: Config,
        clip_set: ClipSet,
        model: MaskedAutoencoder,
        teacher: Teacher | None,
    ) -> None:
        super().__init__(config, clip_set, model)
        self.config, self.encoder, self.teacher = config, model.encoder, teacher
        self.forward: nn.Module = DistributedDataParallel(model) if self.world > 1 else model
        self.smoothed["tokens"] = torch.zeros((), device=clip_set.device)

    def loss(self, ids: list[int], seeds: list[int]) -> Tensor:
        nothing_B1 = torch.zeros(len(ids), 1, device=self.clip_set.device)
        clip_BCTHW, _ = self.load(ids, seeds, self.config.clip, nothing_B1)
        layers = self.config.distil.layers if self.teacher else 0
        with self.autocast(), losses.watched(self.encoder, layers) as seen:
            found: mae.Reconstruction = self.forward(clip_BCTHW, seeds=seeds)
        values, tokens = self._over_ranks(found.label_NV.numel(), sum(found.survivors))
        mean = torch.lerp(self.smoothed["tokens"], tokens / self.config.batch, 1 / (self.done + 1))
        self.smoothed["tokens"] = mean
        # Ranks average gradients: so it is the mean over the targets of all ranks.
        loss = found.error * self.world / values.clamp(min=1)
        if self.teacher is None:
            return loss
        with self.autocast():
            taught = self.teacher(clip_BCTHW)
        return loss + self.config.distil.weight * losses.token_gap(seen, taught.tokens)

    def _over_ranks(self, *counts: int) -> Tensor:
        """Return the sums of some counts over all ranks."""
        total = torch.tensor(counts, dtype=torch.float32, device=self.clip_set.device)
        if self.world > 1:
            dist.all_reduce(total)
        return total

    def metrics(self) -> dict[str, float]:
        """Return the smoothed loss, and the selected tokens of a clip, mean over all steps."""
        return {**super().metrics(), "cost/tokens": float(self.smoothed["tokens"])}
