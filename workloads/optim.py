"""AdamW with warm-up and a cosine to zero: the recipe of every method here.

Matrices decay, vectors (biases, norms) do not. Steps are counted, not epochs: equal steps are equal
work.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import nn

from workloads.knobs import Float

REVISION = 1


@dataclass(frozen=True, kw_only=True)
class Config:
    """Optimiser and learning rate schedule."""

    lr: Annotated[float, Float(1e-4, 1e-2, log=True, stage="finetune")] = 1e-3
    """Highest learning rate."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the running moments."""
    weight_decay: float = 0.05
    """Of matrices."""
    warmup: float = 0.1
    """Share of the steps in which the rate rises from zero."""
    max_norm: float = 1.0
    """Gradients longer than this are shortened to it."""


def build(model: nn.Module, config: Config) -> torch.optim.AdamW:
    """Return the optimiser of a model's trainable parameters."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)


def rate(step: int, num_steps: int, config: Config) -> float:
    """Return the learning rate of a step, counted from 0."""
    warmup = max(round(config.warmup * num_steps), 1)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    progress = (step - warmup) / max(num_steps - warmup, 1)
    return config.lr * 0.5 * (1 + math.cos(math.pi * progress))


def step(model: nn.Module, optimizer: torch.optim.Optimizer, lr: float, max_norm: float) -> None:
    """Apply the gradients once and clear them."""
    for group in optimizer.param_groups:
        group["lr"] = lr
    nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
