"""Chains of two reducers: legal ones work, the others are refused in words before any work."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from scenes import SEEDS, encoded, flat_cells, scene, still

from workloads.mistakes import Mistake
from workloads.models import videomae
from workloads.reducers import available, load
from workloads.reducers.base import Chain, name_of
from workloads.tokens import Layout, sum_by_clip
from workloads.trace import Trace

HOST = videomae.Config(dim=24, depth=3, heads=2, patch=4, frames=16, size=16)  # 128 tokens
PAIRS = list(itertools.permutations([load(name).Config() for name in available()], 2))


def names_of(pair: tuple[Any, Any]) -> str:
    return "+".join(map(name_of, pair))


def refusal(pair: tuple[Any, Any]) -> Mistake | None:
    """Return why a chain is not legal in the host, None if it is."""
    try:
        Chain(pair, HOST.host(pair))
    except Mistake as mistake:
        return mistake
    return None


@torch.no_grad()
@pytest.mark.parametrize("pair", PAIRS, ids=names_of)
def test_every_pair_works_or_is_refused_in_words(pair: tuple[Any, Any]) -> None:
    mistake = refusal(pair)
    if mistake is None:
        assert HOST.build(5, pair).eval()(scene(frames=16), seeds=SEEDS).isfinite().all()
    else:
        assert f"reducers=({', '.join(map(name_of, pair))}): " in mistake.what
        assert mistake.remedy


def test_rlt_before_tome_is_refused_with_place_reason_and_remedy() -> None:
    rlt, tome = load("rlt").Config(), load("tome").Config()
    with pytest.raises(Mistake) as caught:
        HOST.build(5)(scene(frames=16), (rlt, tome))
    assert caught.value.what == (
        "reducers=(rlt, tome): tome at block 0 needs the same number of tokens in every clip, "
        "rlt leaves them ragged"
    )
    assert caught.value.remedy == "legal here: rlt | tome"


def test_the_remedy_names_chains_that_are_legal() -> None:
    drop, rlt, tome = (load(name).Config() for name in ("drop", "rlt", "tome"))
    with pytest.raises(Mistake) as caught:
        Chain((drop, rlt, tome), HOST.host())
    assert caught.value.remedy == "legal here: drop + rlt | drop + tome"
    assert refusal((drop, rlt)) is refusal((drop, tome)) is None


@torch.no_grad()
def test_dropping_before_merging_merges_what_was_left() -> None:
    model = HOST.build(5).eval()
    chain = (load("drop").Config(keep=0.5), load("tome").Config(r=6))
    tokens = encoded(model, scene(frames=16), chain)
    assert tokens.layout == Layout.EQUAL
    assert tokens.lengths == (128 // 2 - 3 * 6,) * 3
    assert torch.equal(sum_by_clip(tokens.size_N, tokens), torch.full((3,), 64.0))


@torch.no_grad()
def test_two_selections_keep_what_both_keep_with_the_run_lengths_of_rlt() -> None:
    model = HOST.build(5).eval()
    rlt, drop = load("rlt").Config(tau=0.3), load("drop").Config(keep=0.5)
    alone = [encoded(model, scene(frames=16), (config,)) for config in (rlt, drop)]
    sizes = dict(
        zip(
            [(b, cell) for b, flat in enumerate(flat_cells(alone[0])) for cell in flat],
            alone[0].size_N.tolist(),
            strict=True,
        )
    )
    kept = {(b, cell) for b, flat in enumerate(flat_cells(alone[1])) for cell in flat}
    for chain in ((rlt, drop), (drop, rlt)):
        tokens = encoded(model, scene(frames=16), chain)
        both = [(b, cell) for b, flat in enumerate(flat_cells(tokens)) for cell in flat]
        assert both == sorted(kept & sizes.keys())
        assert tokens.size_N.tolist() == [sizes[place] for place in both]


@torch.no_grad()
def test_two_selections_leave_each_clip_a_token() -> None:
    """A still clip has few tokens after RLT, and a sparse random mask often misses them all."""
    model = HOST.build(5).eval()
    chain = (load("rlt").Config(), load("drop").Config(keep=0.02))
    clip_BCTHW, seeds = still(batch=16, frames=16), tuple(range(16))
    assert min(model.encode(clip_BCTHW, model.chain(chain), seeds, Trace()).lengths) > 0
    assert model(clip_BCTHW, chain, seeds=seeds).isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("name", available())
def test_a_reducer_twice_works_or_is_refused_in_words(name: str) -> None:
    pair = (load(name).Config(), load(name).Config())
    mistake = refusal(pair)
    if mistake is None:
        model = HOST.build(5).eval()
        once, twice = (
            encoded(model, scene(frames=16), chain).size_N.sum() for chain in (pair[:1], pair)
        )
        assert twice <= once
    else:
        assert f"reducers=({name}, {name}): " in mistake.what
