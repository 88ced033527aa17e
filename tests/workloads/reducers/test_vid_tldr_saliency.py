"""vid-TLDR's saliency of a map: properties 6.3, 6.4 and 6.16 of its method card."""

from __future__ import annotations

import pytest
import torch
from merges import a_map, draw

from workloads.reducers import vid_tldr


def test_saliency_lies_between_0_and_1_and_is_0_below_the_mean() -> None:
    """Card 6.3."""
    sharp_SL = vid_tldr.sharpness(a_map(3, 40, 40))
    s_SL = vid_tldr.saliency(sharp_SL)
    assert torch.equal(s_SL.amax(dim=1), torch.ones(3))
    assert torch.equal(s_SL == 0, sharp_SL <= sharp_SL.mean(dim=1, keepdim=True))
    assert ((s_SL >= 0) & (s_SL <= 1)).all()


def test_saliency_does_not_see_scale_shift_or_the_order_of_keys() -> None:
    """Card 6.3: and follows the order of queries."""
    map_SLL = a_map(2, 30, 30)
    sharp_SL = vid_tldr.sharpness(map_SLL)
    s_SL, order_L = vid_tldr.saliency(sharp_SL), torch.randperm(30)
    for other in (2.5 * sharp_SL - 3, vid_tldr.sharpness(map_SLL[:, :, order_L])):
        torch.testing.assert_close(vid_tldr.saliency(other), s_SL, rtol=1e-5, atol=1e-5)
    moved = vid_tldr.saliency(vid_tldr.sharpness(map_SLL[:, order_L]))
    torch.testing.assert_close(moved, s_SL[:, order_L], rtol=1e-5, atol=1e-5)


def test_a_sharp_row_is_salient_and_a_flat_one_is_background() -> None:
    """Card 6.4."""
    map_1LL = torch.full((1, 10, 10), 0.1)
    map_1LL[0, 3] = torch.full((10,), 0.01).index_fill(0, torch.tensor(7), 0.91)
    s_L = vid_tldr.saliency(vid_tldr.sharpness(map_1LL))[0]
    assert s_L[3] == 1
    assert s_L.sum() == 1


def test_saliency_is_that_of_the_mean_of_the_heads() -> None:
    """Pitfall 4 of the card: two heads, sharp on different keys, make a row that is not."""
    one, other = torch.eye(6), torch.eye(6).roll(1, dims=1)
    mean_LL = torch.stack([one, other]).mean(dim=0)
    mean_LL[0] = one[0]
    s_L = vid_tldr.saliency(vid_tldr.sharpness(mean_LL[None]))[0]
    assert s_L.tolist() == [1, 0, 0, 0, 0, 0]


def test_zeros_in_a_map_count_nothing() -> None:
    """Card 6.16: 0 ln 0 = 0."""
    assert vid_tldr.sharpness(torch.eye(4)[None]).tolist() == [[0, 0, 0, 0]]
    half = torch.tensor([[[0.5, 0.5, 0, 0]]])
    torch.testing.assert_close(vid_tldr.sharpness(half), -torch.tensor([[2.0]]).log())
    assert vid_tldr.sharpness(torch.zeros(1, 2, 2)).tolist() == [[0, 0]]


@pytest.mark.parametrize("num", [3, 10, 392, 1568])
def test_where_all_are_equally_sharp_all_count_in_full(num: int) -> None:
    """Card 6.16: up to rounding, which a softmax over so many keys leaves behind."""
    for map_1LL in (torch.full((1, num, num), 1 / num), (1e-6 * draw(1, num, num)).softmax(-1)):
        s_SL = vid_tldr.saliency(vid_tldr.sharpness(map_1LL))
        assert torch.equal(s_SL, torch.ones(1, num))
