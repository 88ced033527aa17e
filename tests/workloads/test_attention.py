"""Attention over packed sequences: every kernel gives the masked softmax, with mass and without."""

from __future__ import annotations

import pytest
import torch
from packing import draw, packed
from torch import Tensor
from torch.nn import functional as F

from workloads.attention import attend, attend_and_show, backend, with_mass_channel
from workloads.tokens import Layout, Tokens

HEADS, WIDTH = 3, 8
EQUAL, RAGGED = (6, 6, 6), (1, 9, 4)
PACKS = [
    pytest.param(packed(EQUAL), id="dense"),
    pytest.param(packed(EQUAL, masses=True), id="dense-mass"),
    pytest.param(packed(EQUAL, layout=Layout.RAGGED), id="loop-equal"),
    pytest.param(packed(RAGGED), id="loop"),
    pytest.param(packed(RAGGED, masses=True), id="loop-mass"),
]


def queries_keys_values(num: int) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(2 * draw(num, HEADS, WIDTH, seed=i) for i in range(3))


def slow_attention(q_NAE: Tensor, k_NAE: Tensor, v_NAE: Tensor, tokens: Tokens) -> Tensor:
    """Mask one softmax over the whole pack, so that sequences see themselves only; in float64."""
    place_S = torch.arange(len(tokens.lengths))
    sequence_N = place_S.repeat_interleave(torch.tensor(tokens.lengths))
    q, k, v = (x.double().transpose(0, 1) for x in (q_NAE, k_NAE, v_NAE))
    logits_ANN = q @ k.transpose(1, 2) / WIDTH**0.5
    if tokens.mass_N is not None:
        logits_ANN = logits_ANN + tokens.mass_N.double().log()
    apart_NN = sequence_N[:, None] != sequence_N
    weight_ANN = logits_ANN.masked_fill(apart_NN, -torch.inf).softmax(dim=-1)
    return (weight_ANN @ v).transpose(0, 1).float()


@pytest.mark.parametrize("tokens", PACKS)
def test_output_is_that_of_one_masked_softmax(tokens: Tokens) -> None:
    q, k, v = queries_keys_values(len(tokens.x_ND))
    ours = attend(q, k, v, tokens)
    # float32 against float64.
    torch.testing.assert_close(ours, slow_attention(q, k, v, tokens), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("tokens", PACKS)
def test_gradients_are_those_of_one_masked_softmax(tokens: Tokens) -> None:
    inputs = [x.requires_grad_() for x in queries_keys_values(len(tokens.x_ND))]
    ours = torch.autograd.grad(attend(*inputs, tokens).square().sum(), inputs)
    official = torch.autograd.grad(slow_attention(*inputs, tokens).square().sum(), inputs)
    for gradient, expected in zip(ours, official, strict=True):  # as above, squared
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=5e-5)


def test_a_mass_of_one_changes_nothing() -> None:
    plain = packed(EQUAL)
    ones = plain.replace(mass_N=torch.ones_like(plain.size_N))
    q, k, v = queries_keys_values(sum(EQUAL))
    # A kernel with a bias of zero against one without.
    torch.testing.assert_close(attend(q, k, v, ones), attend(q, k, v, plain), rtol=0, atol=1e-6)


@pytest.mark.parametrize("tokens", PACKS)
def test_another_sequence_of_the_pack_is_not_seen(tokens: Tokens) -> None:
    q, k, v = queries_keys_values(len(tokens.x_ND))
    before = attend(q, k, v, tokens)
    first, second, _ = tokens.lengths
    middle = slice(first, first + second)
    for x_NAE in (q, k, v):
        x_NAE[middle] = 100 * draw(second, HEADS, WIDTH, seed=7)
    after = attend(q, k, v, tokens)
    assert torch.equal(after[:first], before[:first])
    assert torch.equal(after[first + second :], before[first + second :])


def test_one_more_channel_weighs_keys_like_a_bias_does() -> None:
    tokens = packed(EQUAL, masses=True)
    q, k, v = queries_keys_values(sum(EQUAL))
    wide = [
        tokens.per_sequence(x).transpose(1, 2) for x in with_mass_channel(q, k, v, tokens.mass_N)
    ]
    trick = F.scaled_dot_product_attention(*wide, scale=WIDTH**-0.5)[..., :WIDTH]
    # One more product in the sum of a logit instead of one more addition: rounding of float32.
    torch.testing.assert_close(
        trick.transpose(1, 2).flatten(0, 1), attend(q, k, v, tokens), rtol=2e-6, atol=2e-6
    )


@pytest.mark.parametrize("masses", [False, True])
def test_the_map_knows_no_mass_and_the_output_beside_it_does(masses: bool) -> None:
    tokens = packed(EQUAL, masses=masses)
    q, k, v = queries_keys_values(sum(EQUAL))
    out_NAE, map_SLL = attend_and_show(q, k, v, tokens)
    torch.testing.assert_close(out_NAE, attend(q, k, v, tokens), rtol=1e-5, atol=2e-6)
    q_SALE, k_SALE = (tokens.per_sequence(x).transpose(1, 2) for x in (q, k))
    by_head_SALL = (q_SALE @ k_SALE.transpose(2, 3) * WIDTH**-0.5).softmax(dim=-1)
    torch.testing.assert_close(map_SLL, by_head_SALL.mean(dim=1), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("most", [1.0, 5.0, 1e4])
def test_beside_a_map_gradients_are_those_without_one(most: float) -> None:
    """Mass enters there as a weight of the values, here as a bias of the logits."""
    tokens = packed(EQUAL, masses=True)
    mass_N = torch.linspace(1, most, sum(EQUAL))
    tokens = tokens.replace(mass_N=mass_N)
    inputs = [x.requires_grad_() for x in queries_keys_values(sum(EQUAL))]
    shown_beside = attend_and_show(*inputs, tokens)[0].square().sum()
    ours = torch.autograd.grad(shown_beside, inputs)
    plain = torch.autograd.grad(attend(*inputs, tokens).square().sum(), inputs)
    for gradient, expected in zip(ours, plain, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=5e-5)


@pytest.mark.parametrize(
    ("is_equal", "device", "dtype", "name"),
    [
        (True, "cuda", torch.bfloat16, "sdpa-dense"),
        (True, "cpu", torch.float32, "sdpa-dense"),
        (False, "cpu", torch.bfloat16, "sdpa-loop"),
        (False, "cuda", torch.float32, "sdpa-loop"),
        (False, "cuda", torch.bfloat16, "varlen"),
    ],
)
def test_each_batch_has_its_kernel(
    is_equal: bool, device: str, dtype: torch.dtype, name: str
) -> None:
    assert backend(is_equal, torch.device(device), dtype) == name


@pytest.mark.gpu
@pytest.mark.parametrize("masses", [False, True])
def test_varlen_on_a_gpu_gives_the_masked_softmax(masses: bool) -> None:
    lengths = (1, 300, 37)
    tokens = packed(lengths, masses=masses)
    q, k, v = (draw(sum(lengths), 4, 64, seed=i).bfloat16() for i in range(3))
    on_gpu = tokens.replace(
        x_ND=tokens.x_ND.cuda(), mass_N=tokens.mass_N.cuda() if masses else None
    )
    assert backend(on_gpu.is_equal, on_gpu.x_ND.device, q.dtype) == "varlen"
    ours = attend(q.cuda(), k.cuda(), v.cuda(), on_gpu).float().cpu()
    official = attend(q.float(), k.float(), v.float(), tokens)
    # Eight bits a number, in weights and in log(mass).
    torch.testing.assert_close(ours, official, rtol=2e-2, atol=2e-2)
