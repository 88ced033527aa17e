"""The loop: who acts when, which chain is meant, what comes out, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from packing import draw, packed
from torch import Tensor, nn

from workloads.blocks import Attention
from workloads.mistakes import Mistake
from workloads.models import videomae
from workloads.parts import Head, MeanPool
from workloads.reducers import drop, mats, rlt, tome
from workloads.reducers.base import At, Host, Reducer, Seen, Step
from workloads.tokens import Layout, Tokens
from workloads.vit import VideoTransformer

HOST = videomae.Config(dim=16, depth=2, heads=2, patch=4, frames=4, size=8)  # 2 x 2 x 2 tokens


@pytest.fixture(name="clip_BCTHW")
def two_clips() -> Tensor:
    """Two clips; the first one stands still."""
    clip = draw(2, 3, 4, 8, 8)
    clip[0] = clip[0, :, :1]
    return clip


def model_of(*reducers: Any, **changes: Any) -> VideoTransformer:
    return videomae.Config(
        **{"dim": 16, "depth": 2, "heads": 2, "patch": 4, "frames": 4, "size": 8} | changes
    ).build(5, reducers)


class Diary(Reducer):
    """Acts everywhere, changes nothing, and writes down who called it with what."""

    def __init__(self, log: list[str], probe: str) -> None:
        self.log, self.asks = log, probe

    def steps(self) -> tuple[Step, ...]:
        early = [(At.SELECT, 0), (At.EMBED, 0)]
        late = [(at, layer) for layer in (0, 1) for at in (At.IN_BLOCK, At.AFTER_BLOCK)]
        return tuple(Step(*place, needs=Layout.GRID, gives=Layout.GRID) for place in early + late)

    def select(self, clip_BCTHW: Tensor, seeds: Sequence[int]) -> None:
        self.log.append(f"select {tuple(seeds)}")

    def after_embed(self, tokens: Tokens, learned: nn.Module | None) -> Tokens:
        self.log.append(f"after_embed {sum(tokens.lengths)}")
        return tokens

    def probe(self, layer: int) -> Any:
        return self.asks

    def in_block(self, tokens: Tokens, seen: Seen, layer: int) -> Tokens:
        shape = None if seen.map_SLL is None else tuple(seen.map_SLL.shape)
        self.log.append(f"in_block {layer} {tuple(seen.keys_NAE.shape)} {shape}")
        return tokens

    def after_block(self, tokens: Tokens, layer: int, learned: nn.Module | None) -> Tokens:
        self.log.append(f"after_block {layer}")
        return tokens


@dataclass(frozen=True, eq=False)
class DiaryConfig:
    log: list[str]
    asks: str = "keys"

    def build(self, host: Host) -> Diary:
        return Diary(self.log, self.asks)

    def parameters(self, dim: int, grid: Any, generator: Any) -> None:
        return None


class Late(Diary):
    """Acts inside blocks only, whatever tokens there are, and wants to see the keys of each."""

    def steps(self) -> tuple[Step, ...]:
        return (Step(At.IN_BLOCK, 0, needs=Layout.RAGGED, gives=Layout.GRID),)

    def in_block(self, tokens: Tokens, seen: Seen, layer: int) -> Tokens:
        assert len(seen.keys_NAE) == len(tokens.x_ND)
        return tokens


class LateConfig(DiaryConfig):
    def build(self, host: Host) -> Late:
        return Late(self.log, self.asks)


@pytest.mark.parametrize(("asks", "shape"), [("keys", None), ("map", (2, 8, 8))])
def test_hooks_are_called_in_the_order_of_the_loop(
    clip_BCTHW: Tensor, asks: str, shape: tuple[int, ...] | None
) -> None:
    log: list[str] = []
    logits_BK = model_of()(clip_BCTHW, (DiaryConfig(log, asks),), seeds=(3, 4))
    assert log == [
        "select (3, 4)",
        "after_embed 16",
        f"in_block 0 (16, 2, 8) {shape}",
        "after_block 0",
        f"in_block 1 (16, 2, 8) {shape}",
        "after_block 1",
    ]
    # A map is an explicit product; without one the fused kernel rounds otherwise.
    torch.testing.assert_close(logits_BK, model_of()(clip_BCTHW), rtol=0, atol=1e-5)


def test_a_second_reducer_inside_a_block_sees_its_own_tokens_or_is_refused(
    clip_BCTHW: Tensor,
) -> None:
    with suppress(Mistake):
        model_of()(clip_BCTHW, (tome.Config(r=2), LateConfig([])))


def test_the_trace_tells_who_saw_how_many_tokens(clip_BCTHW: Tensor) -> None:
    chain = (drop.Config(keep=0.5), tome.Config(r=1))
    _, trace = model_of().traced(clip_BCTHW, chain)
    assert [(visit.part, visit.layer, visit.lengths) for visit in trace.visits] == [
        ("select", 0, (8, 8)),
        ("embed", 0, (4, 4)),
        ("attention", 0, (4, 4)),
        ("match", 0, (4, 4)),
        ("mlp", 0, (3, 3)),
        ("attention", 1, (3, 3)),
        ("match", 1, (3, 3)),
        ("mlp", 1, (2, 2)),
        ("pool", 0, (2, 2)),
        ("head", 0, (1, 1)),
    ]
    assert trace.left == (2, 2)


def test_no_chain_is_the_models_own_and_an_empty_one_is_dense(clip_BCTHW: Tensor) -> None:
    own = (rlt.Config(tau=0.1),)
    model = model_of(*own)
    assert torch.equal(model(clip_BCTHW), model(clip_BCTHW, own))
    assert torch.equal(model(clip_BCTHW, ()), model_of()(clip_BCTHW))
    assert not torch.equal(model(clip_BCTHW), model(clip_BCTHW, ()))


def test_a_chain_is_built_once_and_for_the_right_host(clip_BCTHW: Tensor) -> None:
    small, deep = model_of(), model_of(depth=4)
    chain = small.chain((tome.Config(r=2, schedule="decreasing"),))
    assert small.chain(chain) is chain
    assert small.chain((tome.Config(r=2, schedule="decreasing"),)) is chain
    assert deep.chain(chain) is not chain
    assert torch.equal(deep(clip_BCTHW, chain), deep(clip_BCTHW, chain.configs))


def test_logits_are_the_head_of_the_features(clip_BCTHW: Tensor) -> None:
    model, chain = model_of(), (drop.Config(),)
    features_BD = model.features(clip_BCTHW, chain, seeds=(1, 2))
    assert features_BD.shape == (2, 16)
    assert torch.equal(model.heads[0](features_BD), model(clip_BCTHW, chain, seeds=(1, 2)))


def test_a_head_is_chosen_by_its_number(clip_BCTHW: Tensor) -> None:
    one = model_of()
    heads = [Head(16, 5), Head(16, 3)]
    parts = (one.blocks, one.patch_embed, one.positions, one.pool)
    model = VideoTransformer(one.host, *parts, heads, learned={})
    for number, head in enumerate(heads):
        assert torch.equal(model(clip_BCTHW, head=number), head(model.features(clip_BCTHW)))


def test_clips_have_seed_0_unless_seeds_are_given(clip_BCTHW: Tensor) -> None:
    model, chain = model_of(), (drop.Config(),)
    assert torch.equal(model(clip_BCTHW, chain), model(clip_BCTHW, chain, seeds=(0, 0)))


def test_equal_seeds_make_equal_models_and_others_other_ones() -> None:
    first, same, other = (HOST.build(5, seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["patch_embed.proj.weight"], other["patch_embed.proj.weight"])


def test_a_model_holds_what_its_reducers_learn_under_their_names() -> None:
    model = model_of(rlt.Config(encode_length=True))
    assert model.learned["rlt"].length_embed.shape == (1, 2, 16)
    assert model.host.learned == {"rlt"}
    assert not model_of(rlt.Config()).learned


def test_every_norm_has_the_hosts_epsilon() -> None:
    norms = [part for part in model_of(norm_eps=1e-3).modules() if isinstance(part, nn.LayerNorm)]
    assert len(norms) == 5
    assert {norm.eps for norm in norms} == {1e-3}


def test_half_of_the_channels_can_start_as_differences_within_a_tubelet() -> None:
    weight_DCTHW = model_of(embed_init="difference").patch_embed.proj.weight
    still, moving = weight_DCTHW[:8], weight_DCTHW[8:]
    assert torch.equal(still[:, :, 0], still[:, :, 1])
    assert torch.equal(moving[:, :, 0], -moving[:, :, 1])


@pytest.mark.parametrize("bias", ["qv", "qkv", "none"])
def test_keys_have_a_bias_only_where_checkpoints_have_one(bias: str) -> None:
    layer, tokens = Attention(16, 2, bias), packed((4,), dim=16)
    for weight in layer.parameters():
        nn.init.constant_(weight, 0.5)
    plain = [tokens.x_ND @ w.T for w in layer.qkv.weight.chunk(3)]
    shifts = [
        part.flatten(1) - x for part, x in zip(layer.project(tokens.x_ND), plain, strict=True)
    ]
    expected = {"qv": (0.5, 0, 0.5), "qkv": (0.5, 0.5, 0.5), "none": (0, 0, 0)}[bias]
    for shift, value in zip(shifts, expected, strict=True):
        torch.testing.assert_close(shift, torch.full_like(shift, value), rtol=0, atol=1e-5)


@torch.no_grad()
def test_half_precision_is_near_single(clip_BCTHW: Tensor) -> None:
    model = model_of()
    with torch.autocast("cpu", torch.bfloat16):
        half_BK = model(clip_BCTHW)
    # Eight bits a number through two blocks; logits are about 1.
    torch.testing.assert_close(half_BK.float(), model(clip_BCTHW), rtol=0, atol=0.1)


@pytest.mark.parametrize(
    ("shape", "what"),
    [
        ((1, 3, 5, 8, 8), "frames=5 must be a multiple of the tubelet"),
        ((1, 3, 4, 8, 10), "8x10 px must be a multiple of the patch"),
        ((3, 4, 8, 8), r"a tensor of shape \(3, 4, 8, 8\) holds no clips"),
        ((1, 1, 4, 8, 8), "holds no clips\n  .clips, 3 colours, frames"),
        ((1, 3, 0, 8, 8), "holds no clips"),
        ((0, 3, 4, 8, 8), "holds no clips"),
    ],
)
def test_a_clip_that_does_not_fit_is_refused(shape: tuple[int, ...], what: str) -> None:
    with pytest.raises(Mistake, match=what):
        model_of()(torch.zeros(shape))


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"heads": 3}, "dim=16 must be a multiple of heads=3"),
        ({"embed_init": "difference", "tubelet": 1}, "embed_init='difference' needs tubelet=2"),
    ],
)
def test_a_host_that_cannot_be_is_refused(changes: dict[str, Any], what: str) -> None:
    with pytest.raises(Mistake, match=what):
        model_of(**changes)


def test_a_chain_that_is_not_legal_is_refused_before_any_work(clip_BCTHW: Tensor) -> None:
    with pytest.raises(Mistake, match="tome at block 0 needs"):
        model_of(rlt.Config(), tome.Config())(clip_BCTHW)


def test_pool_is_chosen_by_the_host() -> None:
    assert isinstance(model_of().pool, MeanPool)
    assert [model_of(pool=p).pool.by_size for p in ("mean", "size_mean")] == [False, True]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_pixels_that_are_no_numbers_are_refused(clip_BCTHW: Tensor, bad: float) -> None:
    clip_BCTHW[1, 0, 0, 3, 3] = bad
    with pytest.raises(Mistake, match=r"1 of \d+ pixels are NaN or infinite"):
        model_of()(clip_BCTHW)


def test_pixels_of_frames_that_are_not_chosen_are_looked_at_too() -> None:
    clip_1CTHW = draw(1, 3, 8, 8, 8)
    clip_1CTHW[:, :, :2] = clip_1CTHW[:, :, 2:4]  # the first tubelet stands still: seldom chosen
    clip_1CTHW[0, 0, 0, 3, 3] = float("nan")
    for seed in range(8):
        with pytest.raises(Mistake, match=r"1 of 1536 pixels are NaN or infinite"):
            model_of()(clip_1CTHW, (mats.Config(alpha=2.0),), seeds=[seed])


def test_pixels_as_they_are_stored_are_refused() -> None:
    with pytest.raises(Mistake, match=r"pixels are torch.uint8\n  give pixels in 0..1, normalised"):
        model_of()(torch.zeros(1, 3, 4, 8, 8, dtype=torch.uint8))


def test_as_many_seeds_as_clips_are_asked_for(clip_BCTHW: Tensor) -> None:
    with pytest.raises(Mistake, match="seeds: 1 for 2 clips"):
        model_of()(clip_BCTHW, (drop.Config(keep=0.5),), seeds=[7])


def test_a_head_or_a_reducer_that_is_not_there_is_refused(clip_BCTHW: Tensor) -> None:
    with pytest.raises(Mistake, match="head=1 of a model with 1"):
        model_of()(clip_BCTHW, head=1)
    for wrong in ("rlt", tome.Config):
        with pytest.raises(Mistake, match="is no reducer"):
            model_of()(clip_BCTHW, (wrong,))
