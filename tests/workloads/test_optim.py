"""The recipe: warm-up, cosine, who decays, what a step does."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from workloads import optim
from workloads.models import videomae
from workloads.reducers import rlt


def test_rate_rises_in_a_line_and_falls_as_a_cosine_to_almost_zero() -> None:
    config = optim.Config(lr=2.0, warmup=0.1)
    rates = [optim.rate(step, 100, config) for step in range(100)]
    assert rates[:10] == pytest.approx([2.0 * (step + 1) / 10 for step in range(10)])
    assert rates[10] == 2.0  # the cosine starts where the line ends
    assert rates[55] == pytest.approx(2.0 / 2)  # half-way between 10 and 100
    assert rates[99] == pytest.approx(1 + math.cos(math.pi * 89 / 90))
    assert all(a > b > 0 for a, b in itertools.pairwise(rates[10:]))


@pytest.mark.parametrize("num_steps", [1, 2, 3])
def test_the_shortest_trainings_have_a_rate(num_steps: int) -> None:
    rates = [optim.rate(step, num_steps, optim.Config()) for step in range(num_steps)]
    assert rates[0] == optim.Config().lr
    assert min(rates) > 0


def test_matrices_decay_and_vectors_do_not() -> None:
    model = videomae.Config(dim=16, depth=1, heads=2, patch=4, frames=4, size=8).build(
        5, (rlt.Config(encode_length=True),)
    )
    model.patch_embed.proj.bias.requires_grad = False
    decayed, plain = optim.build(model, optim.Config(weight_decay=0.3)).param_groups
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.3, 0.0)
    names = {id(weight): name for name, weight in model.named_parameters()}
    kinds = [{names[id(weight)] for weight in group["params"]} for group in (decayed, plain)]
    assert kinds[0] >= {"patch_embed.proj.weight", "heads.0.weight", "learned.rlt.length_embed"}
    assert kinds[1] >= {"pool.norm.weight", "blocks.0.attn.q_bias", "heads.0.bias"}
    assert set(names.values()) - kinds[0] - kinds[1] == {"patch_embed.proj.bias"}  # frozen


def test_a_step_uses_its_rate_and_clears_the_gradients() -> None:
    """The first step of Adam moves each weight by the rate, whatever its gradient."""
    model = nn.Linear(3, 1, bias=False)
    before = model.weight.detach().clone()
    optimizer = optim.build(model, optim.Config(lr=1.0, weight_decay=0.0))
    model.weight.grad = torch.tensor([[1.0, -20.0, 300.0]])
    optim.step(model, optimizer, lr=0.25, max_norm=1e9)
    expected = before - 0.25 * torch.tensor([[1.0, -1.0, 1.0]])
    torch.testing.assert_close(model.weight.detach(), expected)  # Adam's epsilon is 1e-8
    assert model.weight.grad is None


def test_long_gradients_are_shortened() -> None:
    """Seen in the first moment, which begins as a tenth of the gradient."""
    model = nn.Linear(2, 1, bias=False)
    optimizer = optim.build(model, optim.Config())
    model.weight.grad = torch.tensor([[30.0, 40.0]])
    optim.step(model, optimizer, lr=0.1, max_norm=5.0)
    moment = optimizer.state[model.weight]["exp_avg"]
    torch.testing.assert_close(moment, torch.tensor([[0.3, 0.4]]), rtol=1e-4, atol=0)
