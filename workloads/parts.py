"""Parts that hosts are put together from: embedding, positions, pools.

Legend: B clips, N packed tokens, L cells of a grid, D width, P values of a tubelet, C T H W video.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workloads.tokens import Grid, Tokens, cells, max_by_clip, offsets, sum_by_clip, with_prefix

REVISION = 3


def sincos_1d(num: int, dim: int) -> Tensor:
    """Return VideoMAE's table over flat positions, (num, dim): sin on even, cos on odd channels."""
    channel = torch.arange(dim, dtype=torch.float64)
    wave = 10000 ** ((channel - channel % 2) / dim)
    angle = torch.arange(num, dtype=torch.float64)[:, None] / wave
    angle[:, 0::2], angle[:, 1::2] = angle[:, 0::2].sin(), angle[:, 1::2].cos()
    return angle.float()


def sincos_3d(grid: Grid, dim: int) -> Tensor:
    """Return a separable table, (L, dim): a share of the channels for each of t, y, x."""
    even = dim // 6 * 2
    widths = (dim - 2 * even, even, even)
    axes = [sincos_1d(n, width) for n, width in zip(grid, widths, strict=True)]
    place_L3 = cells(grid, 1, torch.device("cpu"))
    return torch.cat([axis[place_L3[:, i]] for i, axis in enumerate(axes)], dim=1)


def axis_code(num: int, dim: int) -> Tensor:
    """Return FluxViT's table of one axis, float64 (num, dim): all sines, then all cosines."""
    wave = 10000.0 ** (-torch.arange(dim // 2, dtype=torch.float64) / (dim / 2))
    angle = torch.arange(num, dtype=torch.float64)[:, None] * wave
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def frame_code(rows: int, columns: int, dim: int) -> Tensor:
    """Return a table over a frame, float64 (rows * columns, dim): half for x, then half for y."""
    x_code = axis_code(columns, dim // 2).repeat(rows, 1)
    y_code = axis_code(rows, dim // 2).repeat_interleave(columns, dim=0)
    return torch.cat([x_code, y_code], dim=1)


def grid_code(grid: Grid, dim: int) -> Tensor:
    """Return a table over a grid, float64 (L, dim): a quarter for time, the rest for the frame."""
    time, rows, columns = grid
    t_code = axis_code(time, dim // 4).repeat_interleave(rows * columns, dim=0)
    return torch.cat([t_code, frame_code(rows, columns, dim // 4 * 3).repeat(time, 1)], dim=1)


class Positions(nn.Module):
    """A fixed table of positions on the trained grid, interpolated to any other grid."""

    def __init__(self, table_LD: Tensor, grid: Grid) -> None:
        super().__init__()
        self.grid = grid
        self.register_buffer("table", table_LD, persistent=False)

    def on(self, grid: Grid) -> Tensor:
        """Return the table for a grid, (L, D)."""
        table_LD = self.get_buffer("table")
        if grid == self.grid:
            return table_LD
        table_1DTHW = table_LD.view(*self.grid, -1).permute(3, 0, 1, 2)[None]
        other = F.interpolate(table_1DTHW, size=grid, mode="trilinear")
        return other[0].flatten(1).T

    def forward(self, tokens: Tokens) -> Tensor:
        """Return the row of each token's cell, (N, D)."""
        return rows_of(self.on(tokens.grid), tokens)


def rows_of(table_LD: Tensor, tokens: Tokens) -> Tensor:
    """Return the row of each token's cell in a table over the grid, (N, D)."""
    _, rows, columns = tokens.grid
    t, y, x = tokens.coord_N3.unbind(dim=1)
    return table_LD[(t * rows + y) * columns + x]


class ClassToken(nn.Module):
    """One learned token at the head of every sequence, with a learned position outside the grid."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(dim))
        self.position = nn.Parameter(torch.zeros(dim))

    def forward(self, tokens: Tokens) -> Tokens:
        return with_prefix(tokens, (self.token + self.position)[None])


class RMSNorm(nn.RMSNorm):
    """Division by the root mean square of the channels, then a weight; float32 inside."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float()).to(x.dtype)


class LayerScale(nn.Module):
    """A learned factor a channel; small at first, so that a deep model starts near the identity."""

    def __init__(self, dim: int, start: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), start))

    def forward(self, x_ND: Tensor) -> Tensor:
        return (x_ND.float() * self.gamma).to(x_ND.dtype)


class PatchEmbed(nn.Module):
    """A linear map of each tubelet; only the chosen ones are read and embedded."""

    def __init__(
        self, tubelet: int, patch: int, dim: int, channels: int = 3, bias: bool = True
    ) -> None:
        super().__init__()
        # A convolution for its weight layout, the one that checkpoints have; applied as a product.
        size = (tubelet, patch, patch)
        self.proj = nn.Conv3d(channels, dim, kernel_size=size, stride=size, bias=bias)

    def forward(self, clip_BCTHW: Tensor, grid: Grid, index_N: Tensor | None) -> Tensor:
        """Return embedded tubelets (N, D): all, or those at flat positions over the batch."""
        pixels_NP = self.tubelets(clip_BCTHW, grid, index_N).flatten(1)
        weight_DP = self.proj.weight.flatten(1)
        return F.linear(pixels_NP.to(weight_DP.dtype), weight_DP, self.proj.bias)

    def macs(self, n: int) -> int:
        """Return the cost of `n` tokens."""
        return n * self.proj.weight.numel()

    def tubelets(self, clip_BCTHW: Tensor, grid: Grid, index_N: Tensor | None) -> Tensor:
        """Return the pixels of tubelets, (N, C, tubelet, patch, patch)."""
        batch, channels = clip_BCTHW.shape[:2]
        frames, height, width = self.proj.kernel_size
        (t, y, x), shape = grid, (batch, channels, grid[0], frames, grid[1], height, grid[2], width)
        view = clip_BCTHW.reshape(shape).permute(0, 2, 4, 6, 1, 3, 5, 7)
        if index_N is None:
            return view.reshape(-1, channels, frames, height, width)
        return view[torch.unravel_index(index_N, (batch, t, y, x))]


class NormedEmbed(PatchEmbed):
    """A linear map of each patch between two norms: contrast does not matter, nor does size."""

    def __init__(self, tubelet: int, patch: int, dim: int, eps: float, channels: int = 3) -> None:
        super().__init__(tubelet, patch, dim, channels)
        self.norm_before = RMSNorm(channels * tubelet * patch**2, eps)
        self.norm = RMSNorm(dim, eps)

    def forward(self, clip_BCTHW: Tensor, grid: Grid, index_N: Tensor | None) -> Tensor:
        """Return embedded patches (N, D): all, or those at flat positions over the batch."""
        pixels_NP = self.norm_before(self.tubelets(clip_BCTHW, grid, index_N).flatten(1))
        weight_DP = self.proj.weight.flatten(1)
        return self.norm(F.linear(pixels_NP.to(weight_DP.dtype), weight_DP, self.proj.bias))


class Head(nn.Linear):
    """A linear classifier that knows its price."""

    def macs(self, n: int) -> int:
        """Return the cost of `n` clips."""
        return n * self.in_features * self.out_features


class Pool(nn.Module):
    """From the tokens of each clip to one vector for a classifier."""

    def macs(self, n: int) -> int:
        """Return the cost of a sequence of `n` tokens."""
        raise NotImplementedError

    def forward(self, tokens: Tokens, head: int = 0) -> Tensor:
        """Return (B, D); `head` is the classifier that will read it."""
        raise NotImplementedError

    def aligned(self, pooled_BD: Tensor, head: int) -> Tensor:
        """Return pooled features of a head above 0 as a loss compares them with head 0's."""
        return pooled_BD


class MeanPool(Pool):
    """Mean over the tokens of a clip, then a norm; `by_size` counts the cells of a token."""

    def __init__(self, dim: int, norm_eps: float, by_size: bool = False) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, norm_eps)
        self.by_size = by_size

    def macs(self, n: int) -> int:
        """Return the cost of `n` tokens."""
        return n * self.norm.weight.numel()

    def forward(self, tokens: Tokens, head: int = 0) -> Tensor:
        weight_N1 = (tokens.size_N if self.by_size else torch.ones_like(tokens.size_N))[:, None]
        weight_N1 = weight_N1.to(tokens.x_ND.dtype)
        total_BD = sum_by_clip(tokens.x_ND * weight_N1, tokens)
        return self.norm(total_BD / sum_by_clip(weight_N1, tokens))


class FirstPool(Pool):
    """The first token that is left of a clip, normed: what a model without class token may read."""

    def __init__(self, dim: int, norm_eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, norm_eps)

    def macs(self, n: int) -> int:
        """Return the cost of a clip: one token is looked at."""
        return self.norm.weight.numel()

    def forward(self, tokens: Tokens, head: int = 0) -> Tensor:
        if tokens.is_equal:
            return self.norm(tokens.per_sequence(tokens.x_ND)[:, 0])
        first_B = torch.tensor(offsets(tokens.lengths)[:-1], device=tokens.x_ND.device)
        return self.norm(tokens.x_ND[first_B])


class AttentionPool(Pool):
    """A norm, one learned score a token, and the softmax-weighted sum over the tokens of a clip."""

    SHARPNESS = 3.0  # small models find the few moving tokens sooner with a steeper softmax

    def __init__(self, dim: int, norm_eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, norm_eps)
        self.score = nn.Linear(dim, 1)

    def macs(self, n: int) -> int:
        """Return the cost of `n` tokens: the scores, as everywhere without the weighted sum."""
        return n * self.norm.weight.numel()

    def forward(self, tokens: Tokens, head: int = 0) -> Tensor:
        x_ND = self.norm(tokens.x_ND)
        score_N1 = self.SHARPNESS * self.score(x_ND).float()
        # A shift a clip: with one for the batch, a clip of low scores could vanish beside another.
        weight_N1 = (score_N1 - max_by_clip(score_N1.detach(), tokens)).exp()
        total_BD = sum_by_clip(x_ND * weight_N1.to(x_ND.dtype), tokens)
        return total_BD / sum_by_clip(weight_N1, tokens).to(x_ND.dtype)
