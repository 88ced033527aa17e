"""Losses between a model and its teacher: Flux' alignment, the gap of tokens at the same cells."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from workloads import losses
from workloads.branches import Branch, Branches, Distil, Teacher, distillation, encoded
from workloads.mistakes import Mistake
from workloads.models import fluxvit, videomae
from workloads.reducers import drop, flux, rlt, tome
from workloads.vit import VideoTransformer

HOSTS = {
    "no class token": videomae.Config(dim=16, depth=3, heads=2, patch=4, frames=8, size=16),
    "class token": fluxvit.Config(
        dim=16, depth=3, heads=2, patch=4, frames=8, size=16, budgets=(64, 32), pool_heads=4,
        features=24, layer_scale=1.0,
    ),
}  # fmt: skip


def clips_of(num: int = 2) -> Tensor:
    return torch.randn(num, 3, 8, 16, 16, generator=torch.Generator().manual_seed(0))


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# Card 10, P12, and pitfall 9.11.


@pytest.mark.parametrize("width", [64, 768])
def test_alignment_is_one_minus_cosine_by_width(width: int) -> None:
    """P12: where all differences are below 1, as they are for vectors of many channels."""
    student_BD, teacher_BD = random(5, width), random(5, width, seed=1)
    cos_B = torch.cosine_similarity(student_BD, teacher_BD)
    expected = (1 - cos_B).mean() / width
    torch.testing.assert_close(losses.alignment(student_BD, teacher_BD), expected)


def test_alignment_at_the_official_weight_is_nearly_inert() -> None:
    """Card 4.1: 0.0013 for random vectors of 768 channels, 0.0026 for opposite ones."""
    student_BD = random(50, 768)
    assert losses.alignment(student_BD, random(50, 768, seed=1)) == pytest.approx(0.0013, abs=1e-4)
    assert losses.alignment(student_BD, -student_BD) == pytest.approx(0.0026, abs=1e-4)
    assert losses.alignment(student_BD, 7 * student_BD) == pytest.approx(0, abs=1e-7)


def test_differences_above_one_count_linearly() -> None:
    """|x| - 1/2 beyond 1: two opposite unit vectors along one of two channels."""
    one = torch.tensor([[1.0, 0.0]])
    assert losses.alignment(-one, one) == pytest.approx((2 - 0.5) / 2)


@pytest.mark.parametrize("loss", [losses.alignment, losses.gap])
def test_no_gradient_reaches_the_teacher(loss: object) -> None:
    """P12, 9.11."""
    student_BD = random(4, 8).requires_grad_()
    teacher_BD = random(4, 8, seed=1).requires_grad_()
    loss(student_BD, teacher_BD).backward()
    assert teacher_BD.grad is None
    assert student_BD.grad.abs().sum() > 0


def test_gap_is_two_minus_two_cosines() -> None:
    student_ND = random(6, 10)
    assert losses.gap(student_ND, 3 * student_ND) == pytest.approx(0, abs=1e-6)
    assert losses.gap(student_ND, -student_ND) == pytest.approx(4)
    squares = (math.sqrt(0.5), math.sqrt(0.5))
    assert losses.gap(torch.tensor([[1.0, 0.0]]), torch.tensor([squares])) == pytest.approx(
        2 - math.sqrt(2)
    )


# Card 4.4: a teacher that sees all tokens, a student that sees some of the same grid.

CHAINS = {
    "dense": (),
    "drop": (drop.Config(keep=0.4),),
    "flux": (flux.Config(budget=24, groups=2),),
    "rlt": (rlt.Config(tau=0.9),),
    "tome": (tome.Config(r=5),),
}


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("host", HOSTS)
def test_tokens_are_compared_at_their_own_cells(host: str, chain: str) -> None:
    """The place of a token is its cell in the full grids of the batch, clip after clip."""
    model = HOSTS[host].build(2).eval()
    found = encoded(model, clips_of(), Branch(reducers=CHAINS[chain]), (0, 1), layers=2)
    full = encoded(model, clips_of(), Branch(), None, layers=2)
    assert len(found.tokens) == len(full.tokens) == 2
    for few, all_of_them in zip(found.tokens, full.tokens, strict=True):
        x_ND, place_N = losses.without_class(few)
        full_ND, full_place_N = losses.without_class(all_of_them)
        assert len(x_ND) == len(place_N) == sum(few.lengths) - few.num_prefix * len(few.lengths)
        assert torch.equal(full_place_N, torch.arange(2 * 4 * 16 * 8 // model.host.tubelet // 4))
        clip_N, t_N = place_N // (len(full_ND) // 2), few.coord_N3[few.coord_N3[:, 0] >= 0]
        _, rows, columns = few.grid
        cell_N = (t_N[:, 0] * rows + t_N[:, 1]) * columns + t_N[:, 2]
        assert torch.equal(place_N - clip_N * (len(full_ND) // 2), cell_N)


@pytest.mark.parametrize("host", HOSTS)
def test_a_model_that_sees_what_its_teacher_sees_has_nothing_to_learn(host: str) -> None:
    model = HOSTS[host].build(2).eval()
    twin = HOSTS[host].build(2)
    taught = Teacher(twin, 3)(clips_of())
    same = encoded(model, clips_of(), Branch(), None, layers=3)
    assert float(distillation(same, taught).detach()) == pytest.approx(0, abs=1e-5)
    other = encoded(model, clips_of(), Branch(reducers=CHAINS["drop"]), (0, 1), layers=3)
    assert float(distillation(other, taught).detach()) > 1e-4


def test_tokens_of_another_grid_are_not_compared() -> None:
    model = HOSTS["class token"].build(2).eval()
    few = encoded(model, clips_of()[:, :, :6], Branch(), None, layers=1)
    full = encoded(model, clips_of(), Branch(), None, layers=1)
    with pytest.raises(Mistake, match="layers=0"):
        distillation(few, full)


def test_a_teacher_is_frozen_and_no_part_of_what_is_trained() -> None:
    model, twin = (HOSTS["class token"].build(2) for _ in range(2))
    ways = (Branch(reducers=CHAINS["flux"], head=1),)
    objective = Branches(model, ways, 1.0, 0.0, Distil(weight=0.5, layers=2), Teacher(twin, 2))
    assert len([*objective.parameters()]) == len([*model.parameters()])
    objective(clips_of(), torch.eye(2), (0, 1)).backward()
    assert all(p.grad is None and not p.requires_grad for p in twin.parameters())
    assert not any(block._forward_hooks for block in (*model.blocks, *twin.blocks))


# Card 4.1: several budgets in one step.


def objective_of(model: VideoTransformer, *ways: Branch, align: float = 1.0) -> Tensor:
    objective = Branches(model, ways, align, 0.0, Distil(), None)
    return objective(clips_of(), torch.eye(2), (0, 1))


THREE = (
    Branch(reducers=(flux.Config(budget=64),), head=0),
    Branch(reducers=(flux.Config(budget=32),), head=1),
)


def test_cross_entropies_are_summed_not_averaged() -> None:
    """9.11: a mean would change the effective learning rate."""
    model = HOSTS["class token"].build(2).eval()
    alone = [objective_of(model, way, align=0) for way in THREE]
    torch.testing.assert_close(objective_of(model, *THREE, align=0), torch.stack(alone).sum())
    for way, loss in zip(THREE, alone, strict=True):
        logits_BK = model(clips_of(), way.reducers, head=way.head)
        torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits_BK, torch.eye(2)))


def test_the_alignment_is_added_with_its_weight() -> None:
    """A(u_1, f_0): features before the norm of the heads, the first ones through no aligner."""
    model = HOSTS["class token"].build(2).eval()
    f0, f1 = (encoded(model, clips_of(), way, None, 0).pooled_BE for way in THREE)
    expected = losses.alignment(model.pool.aligned(f1, 1), f0)
    added = objective_of(model, *THREE, align=50) - objective_of(model, *THREE, align=0)
    torch.testing.assert_close(added, 50 * expected)


def test_the_largest_budget_takes_no_gradient_from_the_others() -> None:
    """9.11: its own projector and head get what they get when it is alone."""
    grads = []
    for ways in (THREE[:1], THREE):
        model = HOSTS["class token"].build(2)
        objective_of(model, *ways, align=1000).backward()
        own = [*model.heads[0].parameters(), *model.pool.projectors[0].parameters()]
        grads.append([p.grad for p in own])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_one_branch_is_plain_training() -> None:
    model = HOSTS["no class token"].build(2)
    loss = objective_of(model, Branch(reducers=CHAINS["tome"]))
    logits_BK = model(clips_of(), CHAINS["tome"])
    assert torch.equal(loss, torch.nn.functional.cross_entropy(logits_BK, torch.eye(2)))


def test_clips_within_the_budget_are_not_reduced() -> None:
    """Card 4.1: with no more tokens than the budget, a branch is simply unmasked."""
    way = Branch(reducers=(flux.Config(budget=32),), whole=32)
    assert way.chain((2, 4, 4)) == ()
    assert way.chain((4, 4, 4)) == way.reducers
    assert Branch(reducers=way.reducers).chain((2, 4, 4)) == way.reducers


def test_a_batch_of_one_clip_has_a_loss() -> None:
    """9.7: the official code crashes there."""
    model = HOSTS["class token"].build(2)
    loss = Branches(model, THREE, 1.0, 0.0, Distil(), None)(clips_of(1), torch.eye(2)[:1], (0,))
    loss.backward()
    assert torch.isfinite(loss)
