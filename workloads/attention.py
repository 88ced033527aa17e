"""Softmax attention over packed sequences: one entry, the fastest kernel that is right for the
batch.

Equal lengths run as one dense SDPA. Ragged ones run through `varlen_attn` on CUDA in half precision
and as a loop of SDPA per sequence elsewhere (on a CPU the loop reaches 0.9 of the ideal; jagged
NestedTensors are 6x slower than dense). No kernel here lets one clip see another.

Legend: N packed tokens, S sequences, L tokens of one sequence, A heads, E head width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from workloads.tokens import Tokens, offsets

REVISION = 3


def attend(q_NAE: Tensor, k_NAE: Tensor, v_NAE: Tensor, tokens: Tokens) -> Tensor:
    """Return softmax(q k' / sqrt(E) + log mass) v within each sequence, (N, A, E)."""
    if tokens.is_equal:
        return _dense(q_NAE, k_NAE, v_NAE, tokens)
    if q_NAE.is_cuda and q_NAE.dtype in (torch.float16, torch.bfloat16):
        return _varlen(q_NAE, k_NAE, v_NAE, tokens)
    return _loop(q_NAE, k_NAE, v_NAE, tokens)


def attend_and_show(
    q_NAE: Tensor, k_NAE: Tensor, v_NAE: Tensor, tokens: Tokens
) -> tuple[Tensor, Tensor]:
    """Return what `attend` returns, and the map of each sequence (S, L, L); needs equal lengths.

    The map is that of the same logits without mass, see `shown`. One product of queries and keys
    and one softmax do for both, since softmax(logits + log m) v = (P (m v)) / (P m).
    """
    q_SALE, k_SALE, v_SALE = (tokens.per_sequence(x).transpose(1, 2) for x in (q_NAE, k_NAE, v_NAE))
    logits_SALL = (q_SALE * q_NAE.shape[-1] ** -0.5) @ k_SALE.transpose(-1, -2)
    map_SALL = torch.softmax(logits_SALL, dim=-1, dtype=torch.float32)
    if tokens.mass_N is None:
        o_SALE = map_SALL.to(v_SALE.dtype) @ v_SALE
    else:
        mass_S1L1 = tokens.per_sequence(tokens.mass_N)[:, None, :, None]
        heavy_SALE = (v_SALE * mass_S1L1).to(v_SALE.dtype)
        o_SALE = (map_SALL.to(v_SALE.dtype) @ heavy_SALE) / (map_SALL @ mass_S1L1)
    return o_SALE.transpose(1, 2).reshape(q_NAE.shape).to(q_NAE.dtype), shown(map_SALL)


def shown(map_SALL: Tensor) -> Tensor:
    """Return the map that a probe sees, (S, L, L): mean over the heads, float32, detached."""
    return map_SALL.detach().mean(dim=1, dtype=torch.float32)


def backend(is_equal: bool, device: torch.device, dtype: torch.dtype) -> str:
    """Name the kernel that `attend` uses for such a batch: it stands beside every speed."""
    if is_equal:
        return "sdpa-dense"
    half = dtype in (torch.float16, torch.bfloat16)
    return "varlen" if device.type == "cuda" and half else "sdpa-loop"


def _bias(mass_L: Tensor, dtype: torch.dtype) -> Tensor:
    return mass_L.log().to(dtype)


def _dense(q_NAE: Tensor, k_NAE: Tensor, v_NAE: Tensor, tokens: Tokens) -> Tensor:
    q, k, v = (tokens.per_sequence(x).transpose(1, 2) for x in (q_NAE, k_NAE, v_NAE))
    bias = None
    if tokens.mass_N is not None:
        bias = _bias(tokens.per_sequence(tokens.mass_N), q.dtype)[:, None, None, :]
    o_SALE = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    return o_SALE.transpose(1, 2).reshape(q_NAE.shape)


def _loop(q_NAE: Tensor, k_NAE: Tensor, v_NAE: Tensor, tokens: Tokens) -> Tensor:
    # `split`, not slices: the gradient of each slice would be a zero tensor as large as the batch.
    parts = [x.transpose(0, 1)[None].split(tokens.lengths, dim=2) for x in (q_NAE, k_NAE, v_NAE)]
    biases: Sequence[Tensor | None] = (None,) * len(tokens.lengths)
    if tokens.mass_N is not None:
        biases = _bias(tokens.mass_N, q_NAE.dtype)[None, None, None].split(tokens.lengths, dim=3)
    outputs = [
        F.scaled_dot_product_attention(q, k, v, attn_mask=bias_111L)
        for q, k, v, bias_111L in zip(*parts, biases, strict=True)
    ]
    return torch.cat(outputs, dim=2)[0].transpose(0, 1)


def _varlen(q_NAE: Tensor, k_NAE: Tensor, v_NAE: Tensor, tokens: Tokens) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn  # CUDA only

    width = q_NAE.shape[-1]
    if tokens.mass_N is not None:
        q_NAE, k_NAE, v_NAE = with_mass_channel(q_NAE, k_NAE, v_NAE, tokens.mass_N)
    starts = torch.tensor(offsets(tokens.lengths), dtype=torch.int32, device=q_NAE.device)
    longest = max(tokens.lengths)
    o_NAE = varlen_attn(q_NAE, k_NAE, v_NAE, starts, starts, longest, longest, scale=width**-0.5)
    assert isinstance(o_NAE, Tensor)
    return o_NAE[..., :width]


def with_mass_channel(
    q_NAE: Tensor, k_NAE: Tensor, v_NAE: Tensor, mass_N: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Fold log(mass) into the product, for kernels that take no bias.

    One more key channel holds log(mass), one more query channel sqrt(E): after the scale 1 /
    sqrt(E) the logit gains exactly log(mass). Kernels want widths in eights, so zeros fill up.
    """
    width = q_NAE.shape[-1]
    q, k, v = (F.pad(x, (0, 8)) for x in (q_NAE, k_NAE, v_NAE))
    q[..., width] = width**0.5
    k[..., width] = mass_N.log()[:, None].to(k.dtype)
    return q, k, v
