"""What every reducer promises, whatever its knobs and its host: found, not listed.

Configs are the default, some drawn from the knobs, and the default with each switch that is no knob
turned over.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from scenes import SEEDS, encoded, flat_cells, scene, still
from torch import Tensor

from workloads.knobs import Choice, Int, Knob, knobs_of
from workloads.mistakes import Mistake
from workloads.models import HostConfig, clip, fluxvit, videomae
from workloads.reducers import available, load
from workloads.reducers.base import At, Chain, name_of
from workloads.tokens import Layout, Tokens, cells, clip_of_token, sum_by_clip, without_prefix
from workloads.vit import VideoTransformer

DRAWN = 3  # configs a reducer
WITH_BACKGROUND = ("vid_tldr",)
SMALL = {"dim": 24, "depth": 3, "heads": 2, "patch": 4, "frames": 16}
HOSTS = {
    "mean-flat-even": videomae.Config(**SMALL, size=16),
    "attention-separable-odd": videomae.Config(
        **SMALL, size=12, pool="attention", positions="separable", embed_init="difference"
    ),
    # One frame a token; clips are wider than those that its positions are made for.
    "size-wide": videomae.Config(**SMALL | {"frames": 8}, tubelet=1, size=8, pool="size_mean"),
    # A class token, normed patches, positions that are learned on another grid than the clip's.
    "class-token-normed": fluxvit.Config(
        **SMALL | {"dim": 32, "frames": 8, "size": 16, "pool_heads": 2, "features": 24},
        budgets=(64,),
        layer_scale=1.0,
    ),
    # Attention within each frame, each with a class token, and over time among what is left there.
    "frames-and-times": clip.Config(
        **SMALL | {"depth": 4, "frames": 8, "size": 12}, adapters="space_time"
    ),
}
WIDER = ("size-wide", "class-token-normed")
# What all logits of a softmax share cancels in it.
WITHOUT_GRADIENT = ("pool.score.bias", "pool.projectors.0.k.bias", "pool.projectors.0.norm_k.bias")


def draw(knob: Knob, rng: random.Random) -> Any:
    if isinstance(knob, Choice):
        return rng.choice(knob.options)
    if isinstance(knob, Int):
        return rng.randrange(knob.low, knob.high + 1, knob.step)
    if knob.log:
        return knob.low * (knob.high / knob.low) ** rng.random()
    return rng.uniform(knob.low, knob.high)


def configs_of(name: str) -> Iterator[Any]:
    kind, rng = load(name).Config, random.Random(name)
    knobs = knobs_of(kind)
    yield kind()
    for _ in range(DRAWN):
        yield kind(**{field: draw(knob, rng) for field, knob in knobs.items()})
    for field in dataclasses.fields(kind):
        if isinstance(field.default, bool) and field.name not in knobs:
            yield kind(**{field.name: not field.default})


def short(config: Any) -> str:
    values = [getattr(config, field.name) for field in dataclasses.fields(config)]
    shown = [f"{value:.3g}" if isinstance(value, float) else str(value) for value in values]
    return "-".join([name_of(config), *shown])


def refusal(host: HostConfig, config: Any) -> Mistake | None:
    """Return why a host refuses a reducer, which it does before any work; None if it does not."""
    try:
        config.build(host.host((config,)))
    except Mistake as mistake:
        return mistake
    return None


CONFIGS = [
    config
    for name in available()
    for config in configs_of(name)
    if not all(refusal(host, config) for host in HOSTS.values())  # drawn for deeper models
]
PAIRS = [
    pytest.param((name, config), id=f"{name}-{short(config)}")
    for name in HOSTS
    for config in CONFIGS
    if not refusal(HOSTS[name], config)
]


@pytest.fixture(params=PAIRS)
def pair(request: pytest.FixtureRequest) -> tuple[str, Any]:
    return request.param


@pytest.fixture
def host(pair: tuple[str, Any]) -> HostConfig:
    return HOSTS[pair[0]]


@pytest.fixture
def config(pair: tuple[str, Any]) -> Any:
    return pair[1]


@pytest.fixture
def model(host: HostConfig, config: Any) -> VideoTransformer:
    """A model that was built with the reducer: what it learns is there."""
    return host.build(5, (config,)).eval()


@pytest.fixture(name="clip_BCTHW")
def clips_for_the_host(host: HostConfig) -> Tensor:
    wide = host.size + (host.patch if host in [HOSTS[name] for name in WIDER] else 0)
    return scene(frames=host.frames, height=host.size, width=wide)


def entering(model: VideoTransformer, clip_BCTHW: Tensor, chain: Any = None) -> list[Tokens]:
    """Return the tokens of the grid that entered each block."""
    seen: list[Tokens] = []
    handles = [
        block.register_forward_pre_hook(lambda part, inputs: seen.append(without_prefix(inputs[0])))
        for block in model.blocks
    ]
    encoded(model, clip_BCTHW, chain)
    for handle in handles:
        handle.remove()
    return seen


def found_layout(tokens: Tokens) -> Layout:
    """Look at tokens and say how regular they are."""
    grids = cells(tokens.grid, tokens.clips[-1] + 1, tokens.coord_N3.device)
    if torch.equal(tokens.coord_N3, grids):
        return Layout.GRID
    return Layout.EQUAL if len(set(tokens.lengths)) == 1 else Layout.RAGGED


@pytest.mark.parametrize("name", available())
def test_every_reducer_works_in_three_hosts_or_more_and_is_refused_in_words(name: str) -> None:
    mistakes = [refusal(host, load(name).Config()) for host in HOSTS.values()]
    assert mistakes.count(None) >= 3
    assert all(m.what.startswith(f"{name}: ") and m.remedy for m in mistakes if m)


@torch.no_grad()
@pytest.mark.parametrize("host", HOSTS.values(), ids=HOSTS)
@pytest.mark.parametrize("name", available())
def test_switched_off_it_is_the_dense_model_bit_for_bit(
    name: str, host: HostConfig, clip_BCTHW: Tensor
) -> None:
    off = load(name).Config.off()
    model = host.build(5, (off,)).eval()
    assert off.build(model.host).steps() == ()
    ours_BK, trace = model.traced(clip_BCTHW, seeds=SEEDS)
    dense_BK, dense_trace = model.traced(clip_BCTHW, ())
    assert torch.equal(ours_BK, dense_BK)
    assert trace == dense_trace


@torch.no_grad()
def test_no_cell_is_counted_twice_or_lost_unless_tokens_are_plainly_dropped(
    model: VideoTransformer, clip_BCTHW: Tensor, config: Any
) -> None:
    """Sizes add up to the cells of a clip; whoever drops tokens leaves the others at size 1.

    Mass is the size, or less where a method takes some of what it merges for background: that is
    in a token's size, as its cell is accounted for, but weighs nothing in attention.
    """
    tokens = encoded(model, clip_BCTHW)
    num_cells = math.prod(model.host.grid(clip_BCTHW))
    assert tokens.size_N.dtype == torch.float32
    if torch.equal(tokens.size_N, torch.ones_like(tokens.size_N)):
        assert max(tokens.lengths) <= num_cells
        assert tokens.mass_N is None
        return
    assert torch.equal(sum_by_clip(tokens.size_N, tokens), torch.full((3,), float(num_cells)))
    assert torch.equal(tokens.size_N, tokens.size_N.round().clamp(min=1))
    if tokens.mass_N is not None:
        assert (tokens.mass_N >= 1).all()
        assert (tokens.mass_N <= tokens.size_N).all()
        if name_of(config) not in WITH_BACKGROUND:
            assert torch.equal(tokens.mass_N, tokens.size_N)


@torch.no_grad()
def test_other_seeds_change_its_answers_only_if_it_says_that_it_draws(
    model: VideoTransformer, clip_BCTHW: Tensor
) -> None:
    one_BK, other_BK = (model(clip_BCTHW, seeds=[s + add for s in SEEDS]) for add in (0, 1000))
    assert torch.equal(one_BK, other_BK) != model.chain(None).draws


@torch.no_grad()
def test_tokens_are_as_regular_as_its_steps_declare(
    model: VideoTransformer, clip_BCTHW: Tensor, config: Any
) -> None:
    steps, declared = config.build(model.host).steps(), Layout.GRID
    assert steps, "neither a default nor a drawn config is off"
    for block, tokens in enumerate([*entering(model, clip_BCTHW), encoded(model, clip_BCTHW)]):
        for step in steps:  # those since the last look
            is_early = step.at in (At.SELECT, At.EMBED)
            if block == (step.layer if is_early else step.layer + 1):
                declared = max(declared, step.gives)
        assert found_layout(tokens) <= tokens.layout <= declared
        needs = [step.needs for step in steps if (step.at, step.layer) == (At.IN_BLOCK, block)]
        assert all(tokens.layout <= layout for layout in needs)
    assert model.chain(None).layout == declared


@torch.no_grad()
def test_its_packed_tokens_fit_together(model: VideoTransformer, clip_BCTHW: Tensor) -> None:
    for tokens in [*entering(model, clip_BCTHW), encoded(model, clip_BCTHW)]:
        num = sum(tokens.lengths)
        assert len(tokens.x_ND) == len(tokens.coord_N3) == len(tokens.size_N) == num
        assert len(tokens.clips) == len(tokens.lengths)
        assert {*tokens.clips} == {0, 1, 2}
        assert (torch.bincount(clip_of_token(tokens)) > 0).all()


@torch.no_grad()
def test_coords_are_different_cells_of_the_grid(
    model: VideoTransformer, clip_BCTHW: Tensor
) -> None:
    tokens = encoded(model, clip_BCTHW)
    time, *sides = model.host.grid(clip_BCTHW)
    assert [*tokens.grid[1:]] == sides
    assert time % tokens.grid[0] == 0  # neighbouring frames may have become one
    assert (tokens.coord_N3 >= 0).all()
    assert (tokens.coord_N3 < torch.tensor(tokens.grid)).all()
    assert all(len(set(flat)) == len(flat) for flat in flat_cells(tokens))


@torch.no_grad()
def test_tokens_enter_the_first_block_with_pixels_and_position_of_their_cell(
    model: VideoTransformer, clip_BCTHW: Tensor, config: Any
) -> None:
    """What `after_embed` adds is off here: it is what a reducer learns, not a place."""
    for part in model.learned.parameters():
        part.zero_()
    ours, dense = entering(model, clip_BCTHW)[0], entering(model, clip_BCTHW, ())[0]
    same = [
        dense_LD[flat] for dense_LD, flat in zip(dense.x_ND.chunk(3), flat_cells(ours), strict=True)
    ]
    # The same products in a matrix of other height.
    torch.testing.assert_close(ours.x_ND, torch.cat(same), rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_clip_does_not_see_its_batch_mates(model: VideoTransformer, clip_BCTHW: Tensor) -> None:
    ours_BK = model(clip_BCTHW, seeds=SEEDS)
    others_BCTHW = clip_BCTHW.clone()
    others_BCTHW[0] = torch.randn(clip_BCTHW[0].shape, generator=torch.Generator().manual_seed(0))
    theirs_BK = model(others_BCTHW, seeds=SEEDS)
    # Not bit for bit: a pack of another length may be cut into other blocks for the kernels.
    torch.testing.assert_close(theirs_BK[1:], ours_BK[1:], rtol=0, atol=1e-6)
    assert not torch.allclose(theirs_BK[0], ours_BK[0], atol=1e-3)
    alone = [model(clip_BCTHW[i : i + 1], seeds=SEEDS[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(torch.cat(alone), ours_BK, rtol=0, atol=1e-5)


@torch.no_grad()
def test_the_same_clips_give_the_same_bits(
    model: VideoTransformer, clip_BCTHW: Tensor, host: HostConfig, config: Any
) -> None:
    ours_BK = model(clip_BCTHW, seeds=SEEDS)
    again_BK = host.build(5, (config,)).eval()(clip_BCTHW.clone(), seeds=SEEDS)
    assert torch.equal(ours_BK, again_BK)


@torch.no_grad()
def test_seeds_matter_to_random_drop_and_to_nobody_else(
    model: VideoTransformer, clip_BCTHW: Tensor, config: Any
) -> None:
    ours_BK, other_BK = model(clip_BCTHW, seeds=SEEDS), model(clip_BCTHW, seeds=(1, 2, 3))
    assert torch.equal(ours_BK, other_BK) == (name_of(config) != "drop")
    if hasattr(config, "seed"):
        reseeded = dataclasses.replace(config, seed=config.seed + 1)
        assert not torch.equal(model(clip_BCTHW, (reseeded,), seeds=SEEDS), ours_BK)


def test_gradients_are_finite_and_reach_every_parameter(
    model: VideoTransformer, clip_BCTHW: Tensor
) -> None:
    model.train()
    for weight in model.parameters():
        if not weight.any():  # what begins at zero hides what comes before it
            weight.data.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    model(clip_BCTHW, seeds=SEEDS).square().sum().backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.isfinite().all(), name
        if name not in WITHOUT_GRADIENT:
            assert weight.grad.any(), name


@torch.no_grad()
def test_half_precision_stays_finite(model: VideoTransformer, clip_BCTHW: Tensor) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert model(clip_BCTHW, seeds=SEEDS).isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("make", [scene, still])
def test_one_clip_of_two_tubelets_works(
    model: VideoTransformer, host: HostConfig, config: Any, make: Any
) -> None:
    tiny = make(batch=1, frames=2 * host.tubelet, height=2 * host.patch, width=2 * host.patch)
    if len(getattr(config, "halve_after", ())) > 1:  # two tubelets cannot be halved twice
        with pytest.raises(Mistake, match="halved"):
            model(tiny)
        return
    assert 1 <= len(encoded(model, tiny).x_ND) <= 8
    assert model(tiny).isfinite().all()


@torch.no_grad()
def test_it_leaves_no_trace_in_pixels_and_model(
    model: VideoTransformer, clip_BCTHW: Tensor
) -> None:
    before = clip_BCTHW.clone()
    dense_BK = model(clip_BCTHW, ())
    model(clip_BCTHW, seeds=SEEDS)
    assert torch.equal(clip_BCTHW, before)
    assert torch.equal(model(clip_BCTHW, ()), dense_BK)


def test_equal_configs_make_equal_chains(config: Any, host: HostConfig) -> None:
    chain, twin = (Chain((dataclasses.replace(config),), host.host((config,))) for _ in range(2))
    assert chain == twin
    assert len({chain, twin, Chain((), host.host())}) == 2
