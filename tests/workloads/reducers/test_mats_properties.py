"""MATS: the properties of its method card, by their numbers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scenes import SEEDS, encoded, flat_cells, scene, still
from torch import Tensor

from workloads import mae
from workloads.mistakes import Mistake
from workloads.models import videomae
from workloads.reducers import drop, mats, rlt, tome
from workloads.reducers.base import Chain
from workloads.tokens import num_kept
from workloads.trace import Trace

TIME, CELLS, WIDTH = 5, 9, 7  # an odd number of cells, and not 8 tubelets
HOST = videomae.Config(dim=24, depth=2, heads=2, patch=4, frames=8, size=16)


def embeddings(batch: int = 3, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, TIME, CELLS, WIDTH, generator=generator)


def kept(x_BTLD: Tensor, keep: float = 0.4) -> Tensor:
    score_BN = mats.importance(x_BTLD)
    return mats.keep_mask(score_BN, num_kept(score_BN.shape[1], keep))


@pytest.mark.parametrize(
    ("drop_ratio", "n", "count"),
    [
        (0.7, 1568, 470),
        (0.4, 1568, 940),
        (0.9, 1568, 156),
        (0.9, 160, 15),
        (0.9, 640, 63),
        (0.9, 1280, 127),
    ],
)
def test_card_10_1_counts_are_those_of_official_drop_ratios(
    drop_ratio: float, n: int, count: int
) -> None:
    assert num_kept(n, mats.keep_of(drop_ratio)) == count


def test_card_10_1_visible_and_targets_are_disjoint_and_all_that_is_selected() -> None:
    selected = mats.order(mats.importance(embeddings()))[0, :20]
    shown, asked = mae.split(selected, torch.rand(20), 6)
    assert (len(shown), len(asked)) == (6, 14)
    assert sorted([*shown.tolist(), *asked.tolist()]) == sorted(selected.tolist())


def test_card_10_2_the_first_tubelet_copies_the_second() -> None:
    score_BTL = mats.importance(embeddings()).unflatten(1, (TIME, CELLS))
    assert torch.equal(score_BTL[:, 0], score_BTL[:, 1])


def test_card_10_2_a_constant_changes_nothing_and_a_factor_only_scores() -> None:
    x_BTLD = embeddings()
    score_BN = mats.importance(x_BTLD)
    torch.testing.assert_close(mats.importance(x_BTLD + torch.randn(WIDTH)), score_BN)
    torch.testing.assert_close(mats.importance(4 * x_BTLD), 4 * score_BN)
    assert torch.equal(kept(4 * x_BTLD), kept(x_BTLD))


@pytest.mark.parametrize("embed_init", ["xavier", "difference"])
def test_card_10_3_of_a_still_clip_the_first_tokens_are_kept(embed_init: Any) -> None:
    x_BTLD = embeddings()[:, :1].expand(-1, TIME, -1, -1)
    assert not mats.importance(x_BTLD).any()
    num = num_kept(TIME * CELLS, 0.4)
    assert (kept(x_BTLD) == (torch.arange(TIME * CELLS) < num)).all()
    model = videomae.Config(
        dim=24, depth=1, heads=2, patch=4, frames=8, size=16, embed_init=embed_init
    ).build(2)
    for flat in flat_cells(encoded(model, still(), (mats.Config(keep=0.3),))):
        assert flat == list(range(num_kept(64, 0.3)))


@pytest.mark.parametrize("since", [1, 2, 4])
def test_card_10_4_a_step_in_one_place_scores_there_alone(since: int) -> None:
    x_BTLD = embeddings(1)[:, :1].repeat(1, TIME, 1, 1)
    x_BTLD[:, since:, 3] += 1.0
    expected = {since * CELLS + 3} | ({3} if since == 1 else set())
    assert {*mats.importance(x_BTLD)[0].nonzero()[:, 0].tolist()} == expected


def test_card_10_5_selection_is_of_each_clip_alone() -> None:
    x_BTLD, order = embeddings(), torch.tensor([2, 0, 1])
    assert torch.equal(kept(x_BTLD[order]), kept(x_BTLD)[order])
    assert torch.equal(kept(x_BTLD[:1]), kept(x_BTLD)[:1])


def test_card_10_6_places_may_be_permuted_and_time_reversed() -> None:
    """Without ties at the cut: 17 tokens are an odd number, 16 of which are pairs at most."""
    x_BTLD, order = embeddings(), torch.randperm(CELLS)
    permuted = kept(x_BTLD[:, :, order]).unflatten(1, (TIME, CELLS))
    assert torch.equal(permuted, kept(x_BTLD).unflatten(1, (TIME, CELLS))[:, :, order])
    change_BTL, back_BTL = (
        mats.importance(x).unflatten(1, (TIME, CELLS))[:, 1:] for x in (x_BTLD, x_BTLD.flip(1))
    )
    assert torch.equal(back_BTL, change_BTL.flip(1))


def test_card_10_7_noise_decides_the_split_and_never_the_union() -> None:
    selected = mats.order(mats.importance(embeddings()))[0, :20]
    one, other = (mae.split(selected, torch.rand(20), 6) for _ in range(2))
    assert not torch.equal(one[0], other[0])
    assert torch.equal(torch.cat(one).sort().values, torch.cat(other).sort().values)
    rising = mae.split(selected, torch.arange(20) / 20, 6)
    assert torch.equal(rising[0], selected[:6].sort().values)


# 8-10 are of the autoencoder: tests/workloads/test_mae.py.


@torch.no_grad()
def test_card_10_11_everything_kept_is_the_full_model() -> None:
    model, clip_BCTHW = HOST.build(5).eval(), scene()
    off = (mats.Config(keep=1.0),)
    assert torch.equal(model(clip_BCTHW, off), model(clip_BCTHW, ()))


def test_card_10_11_training_and_evaluation_keep_the_same_tokens() -> None:
    model, chain = HOST.build(5), (mats.Config(keep=0.3),)
    trained = flat_cells(encoded(model.train(), scene(), chain))
    assert trained == flat_cells(encoded(model.eval(), scene(), chain))
    assert [len(flat) for flat in trained] == [num_kept(64, 0.3)] * 3
    x_ND = model.embed(scene(), model.chain(()), None, Trace()).x_ND
    mask_BN = kept(x_ND.view(3, 4, 16, -1), 0.3)
    assert trained == [row.nonzero()[:, 0].tolist() for row in mask_BN]


# Frame selection.


def counts(x_BTLD: Tensor) -> Tensor:
    return mats.per_tubelet(kept(x_BTLD), x_BTLD.shape[1])


def test_card_10_12_tubelets_are_distinct_rising_and_counts_add_up() -> None:
    count_BT = counts(embeddings())
    assert (count_BT.sum(dim=1) == num_kept(TIME * CELLS, 0.4)).all()
    for num in range(1, TIME + 1):
        chosen_BP = mats.choose_tubelets(count_BT, num, SEEDS)
        assert chosen_BP.shape == (3, num)
        assert (chosen_BP.diff(dim=1) > 0).all()
    assert torch.equal(chosen_BP, torch.arange(TIME).expand(3, -1))


def test_card_10_12_who_has_none_is_drawn_last_and_all_alike() -> None:
    count_BT = torch.tensor([[3, 0, 1, 0, 0, 2]]).expand(2000, -1)
    seeds = range(2000)
    assert torch.equal(
        mats.choose_tubelets(count_BT, 3, seeds), torch.tensor([[0, 2, 5]]).expand(2000, -1)
    )
    more_BP = mats.choose_tubelets(count_BT, 4, seeds)
    drawn = torch.bincount(more_BP.flatten(), minlength=6) / 2000
    assert torch.equal(drawn[[0, 2, 5]], torch.ones(3))
    torch.testing.assert_close(drawn[[1, 3, 4]], torch.full((3,), 1 / 3), rtol=0, atol=0.04)


def test_card_10_12_chances_are_by_counts_one_after_the_other() -> None:
    """Of two draws: the first by c / 6, the second by c over what is left; summed over orders."""
    c = [1, 2, 3]
    pairs = [(i, j, c[i] / 6 * c[j] / (6 - c[i])) for i in range(3) for j in range(3) if i != j]
    included = [sum(chance for i, j, chance in pairs if k in (i, j)) for k in range(3)]
    chosen_BP = mats.choose_tubelets(torch.tensor([c]).expand(6000, -1), 2, range(6000))
    drawn = torch.bincount(chosen_BP.flatten(), minlength=3) / 6000
    torch.testing.assert_close(drawn, torch.tensor(included), rtol=0, atol=0.02)
    assert drawn[0] < drawn[1] < drawn[2]


@torch.no_grad()
def test_frames_are_chosen_before_all_else_and_ranked_again() -> None:
    model, clip_BCTHW = HOST.build(5).eval(), scene(frames=12)
    chain = model.chain((mats.Config(keep=0.3, alpha=1.5),))
    assert chain.draws  # its frames
    trace = Trace()
    chosen = model.choose_frames(clip_BCTHW, chain, SEEDS, trace)
    assert chosen.shape[2] == 8
    parts, wholes = chosen.unflatten(2, (4, 2)), clip_BCTHW.unflatten(2, (6, 2))
    for part, whole in zip(parts, wholes, strict=True):
        same = [[torch.equal(part[:, p], whole[:, t]) for t in range(6)] for p in range(4)]
        places = [row.index(True) for row in same]
        assert places == sorted(set(places)), "whole tubelets, in order"
    ours = model(clip_BCTHW, chain, seeds=SEEDS)
    assert torch.equal(ours, model(chosen, (mats.Config(keep=0.3),)))
    embedding = 6 * 16 * 24 * (3 * 2 * 4**2 + 1)
    assert sum(visit.price(n) for visit in trace.visits for n in visit.lengths) == 3 * embedding


@torch.no_grad()
def test_a_clip_has_its_own_draw_of_frames_whatever_its_batch() -> None:
    model, clip_BCTHW = HOST.build(5).eval(), scene(frames=16)
    chain = model.chain((mats.Config(keep=0.3, alpha=2.0),))
    together = model.choose_frames(clip_BCTHW, chain, SEEDS, Trace())
    alone = model.choose_frames(clip_BCTHW[1:2], chain, SEEDS[1:2], Trace())
    assert torch.equal(together[1:2], alone)
    other = model.choose_frames(clip_BCTHW, chain, (1, 2, 3), Trace())
    assert not torch.equal(together, other)


# Motion.


@pytest.mark.parametrize("keep", [0.05, 0.1, 0.15])
def test_card_10_13_tokens_lie_where_a_square_moves(keep: float) -> None:
    """A box runs over still texture, 3 px a frame: 9 of 10 tokens are on its way."""
    generator = torch.Generator().manual_seed(0)
    clip_BCTHW = torch.randn(1, 3, 1, 64, 64, generator=generator).repeat(1, 1, 16, 1, 1)
    swept_THW = torch.zeros(8, 8, 8, dtype=torch.bool)
    for frame in range(16):
        left = frame * 3
        clip_BCTHW[:, :, frame, 16:40, left : left + 16] = 2.0
        swept_THW[frame // 2, 2:5, left // 8 : (left + 15) // 8 + 1] = True
    # A tubelet also scores where the box was in the one before it, the first as the second.
    swept_THW[1:] |= swept_THW[:-1].clone()
    swept_THW[0] = swept_THW[1]
    host = videomae.Config(dim=32, depth=1, heads=2, patch=8, frames=16, size=64)
    ((*flat,),) = flat_cells(encoded(host.build(2), clip_BCTHW, (mats.Config(keep=keep),)))
    assert len(flat) <= swept_THW.sum()
    assert swept_THW.flatten()[flat].float().mean() >= 0.9


def test_still_frames_may_be_left_without_tokens() -> None:
    """No quota a frame: what moves in one tubelet takes all there is."""
    x_BTLD = embeddings(1)[:, :1].repeat(1, TIME, 1, 1)
    x_BTLD[:, 3:] += embeddings(1, seed=1)[:, :1]
    assert counts(x_BTLD)[0].tolist() == [num_kept(45, 0.4) - CELLS, 0, 0, CELLS, 0]


# As a part of a chain.


def test_the_choice_has_no_gradient() -> None:
    x_BTLD = embeddings().requires_grad_()
    assert not mats.importance(x_BTLD).requires_grad


def test_tome_may_follow_it_and_rlt_may_not_stand_before_it() -> None:
    host = HOST.host()
    Chain((mats.Config(), tome.Config(r=2)), host)
    with pytest.raises(Mistake, match=r"mats at block 0 needs the full grid, rlt leaves them ragg"):
        Chain((rlt.Config(), mats.Config()), host)
    with pytest.raises(Mistake, match="mats at block 0 needs the full grid, drop leaves the same"):
        Chain((drop.Config(), mats.Config()), host)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"keep": 0}, r"keep=0 must be in \(0, 1\]"),
        ({"keep": 1.5}, "keep=1.5"),
        ({"keep": math.nan}, "keep=nan"),
        ({"alpha": 0.5}, "alpha=0.5 must be 1 or more"),
        ({"alpha": math.inf}, "alpha=inf"),
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(Mistake, match=words):
        mats.Config(**wrong)


def test_a_single_tubelet_is_refused_before_any_work() -> None:
    model = HOST.build(2)
    with pytest.raises(Mistake, match="1 tubelet of 2 frames has none before it\n  show 4 frames"):
        model(scene(frames=2), (mats.Config(),))
    model(scene(frames=2), (mats.Config.off(),))
    for alpha in (1.3, 1.5):  # whole tubelets, and enough of them
        with pytest.raises(Mistake, match="show 6 frames"):
            model(scene(frames=2), (mats.Config(alpha=alpha),))
        model(scene(frames=6), (mats.Config(alpha=alpha),))
    with pytest.raises(Mistake, match="show 6 frames"):
        model(scene(frames=4), (mats.Config(alpha=1.5),))


def test_it_works_on_shapes_alone() -> None:
    with torch.device("meta"):
        model = HOST.build(2)
    for config in (mats.Config(keep=0.3), mats.Config(keep=0.3, alpha=2.0)):
        trace = model.traced(torch.empty(2, 3, 16, 16, 16, device="meta"), (config,))[1]
        assert trace.left == (num_kept(128 // int(config.alpha), 0.3),) * 2
