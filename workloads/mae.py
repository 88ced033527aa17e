"""Masked pre-training: reconstruct pixels of hidden tokens from a few visible ones.

Tong et al., "VideoMAE", NeurIPS 2022, arXiv 2203.12602; Hwang et al., "EVEREST", ICML 2024, arXiv
2211.10636, whose decoder sees only what a selection left.

    survivors = the tokens that a chain of selecting reducers keeps (all of them, without a chain)
    visible   = num_kept(n, visible_keep) of the survivors at random; n: all tokens of a clip.
                Where no more than that survived, max(1, survivors // 3)
    targets   = the other survivors; the rest of the clip is neither encoded, decoded, nor scored
    encoder   = the host's blocks on the visible tokens, then a norm
    decoder   = visible tokens and, for each target, a mask token: see `decoder.py`
    label     = (v - mean) / (sqrt(var) + 1e-6) of the pixels v of a token, for each colour by
                itself, unbiased; pixel after pixel, colour last
                (`norm_pixels=False`: v in 0..1, with ImageNet's units, as transformers does)
    loss      = mean over all values of all targets of the batch of (prediction - label)^2

Deviations from the official code:
* Any selection may stand in front, also one that leaves clips with different numbers (RLT): batches
  are packed. A clip without targets adds no loss.
* Labels are made from differences to a token's first pixel in units of 0..1: the mean that pixels
  were normalised with cancels, and a flat token gives exactly 0.
* Draws come from one generator a clip.

Invariants: visible and target tokens are disjoint; pixels of discarded tokens change nothing; no
gradient passes through a selection.

Legend: B clips, n cells of a clip, N packed tokens, D width, C T H W video.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from workloads import decoder as decoders
from workloads.clips import seed_of
from workloads.decoder import Decoder
from workloads.mistakes import Mistake
from workloads.models import HostConfig
from workloads.reducers import base
from workloads.reducers.base import At, Chain
from workloads.tokens import (
    Tokens,
    clip_of_token,
    num_kept,
    offsets,
    packed_index,
    take,
    without_prefix,
)
from workloads.trace import Trace
from workloads.vit import VideoTransformer

REVISION = 1
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and std
APART = 1  # seeds of the same clip: what is drawn here is apart from what reducers draw
UNUSED = ("pool", "heads", "head_norm")
"""Parts of a host that only a classification needs."""


class Reconstruction(NamedTuple):
    """What was predicted of a batch, and what was asked for."""

    pred_NV: Tensor
    """A row a target, clip after clip in the order of the grid."""
    label_NV: Tensor
    """The values it is compared with, float32."""
    survivors: tuple[int, ...]
    """Tokens of each clip, visible ones and targets together."""

    @property
    def error(self) -> Tensor:
        """Sum of all squared errors."""
        return (self.pred_NV.float() - self.label_NV).square().sum()

    @property
    def loss(self) -> Tensor:
        """Mean squared error; 0 without targets."""
        return self.error / max(self.label_NV.numel(), 1)


class MaskedAutoencoder(nn.Module):
    """A host with a decoder; the encoder keeps the names of its parameters in `weights_of`.

    Args:
        encoder: built with the chain that selects.
        decoder: see above.
        visible_keep: visible tokens / all tokens of a clip.
        config: that of the decoder, which says what it is shown and what it predicts.
    """

    def __init__(
        self,
        encoder: VideoTransformer,
        decoder: Decoder,
        visible_keep: float,
        config: decoders.Config,
    ) -> None:
        super().__init__()
        refuse_reducing_blocks(encoder.chain(None))
        self.encoder, self.decoder, self.visible_keep = encoder, decoder, visible_keep
        norm = nn.LayerNorm(encoder.host.dim, config.norm_eps)
        self.norm = norm if config.encoder_norm else nn.Identity()
        self.norm_pixels = config.norm_pixels
        for part in UNUSED:
            getattr(encoder, part).requires_grad_(False)

    def forward(self, clip_BCTHW: Tensor, seeds: Sequence[int] | None = None) -> Reconstruction:
        """Select, split, and reconstruct; `seeds`: one a clip, for all that is drawn."""
        return self.traced(clip_BCTHW, seeds)[0]

    def traced(
        self, clip_BCTHW: Tensor, seeds: Sequence[int] | None = None
    ) -> tuple[Reconstruction, Trace]:
        """Return the reconstruction and the trace."""
        trace, seeds = Trace(), seeds or (0,) * len(clip_BCTHW)
        chain = self.encoder.chain(None)
        clip_BCTHW = self.encoder.choose_frames(clip_BCTHW, chain, seeds, trace)
        tokens = self.encoder.embed(clip_BCTHW, chain, seeds, trace)
        visible, hidden = self._split(tokens, seeds)
        return self.reconstruct(clip_BCTHW, visible, hidden, trace), trace

    def _split(self, tokens: Tokens, seeds: Sequence[int]) -> tuple[Tokens, Tokens]:
        """Return visible and hidden survivors."""
        n = math.prod(tokens.grid)
        parts: tuple[list[Tensor], list[Tensor]] = ([], [])
        starts = offsets(tokens.lengths)[:-1]
        for start, survivors, seed in zip(starts, tokens.lengths, seeds, strict=True):
            draw = torch.Generator().manual_seed(seed_of(seed, APART))
            noise_K = torch.rand(survivors, generator=draw)
            place_K = torch.arange(start, start + survivors)
            num = num_visible(n, survivors, self.visible_keep)
            for part, some in zip(parts, split(place_K, noise_K, num), strict=True):
                part.append(some)
        device = tokens.x_ND.device
        shown_N, asked_N = (torch.cat(part).to(device, non_blocking=True) for part in parts)
        shown, asked = (tuple(map(len, part)) for part in parts)
        places = tokens.replace(x_ND=tokens.coord_N3)  # of hidden ones no more is needed
        return take(tokens, shown_N, shown), take(places, asked_N, asked)

    def reconstruct(
        self, clip_BCTHW: Tensor, visible: Tokens, hidden: Tokens, trace: Trace
    ) -> Reconstruction:
        """Return what embedded visible tokens tell of hidden ones, of which only places count."""
        pred_NV = self.decoder(self.encode(visible, trace), hidden, trace)
        label_NV = self.labels(clip_BCTHW.to(pred_NV.device), cells_of(hidden))
        pairs = zip(visible.lengths, hidden.lengths, strict=True)
        return Reconstruction(pred_NV, label_NV, tuple(map(sum, pairs)))

    def encode(self, visible: Tokens, trace: Trace) -> Tokens:
        """Return visible tokens behind blocks and norm, a sequence a clip, no class tokens."""
        nothing = self.encoder.chain(())
        tokens = self.encoder.run_blocks(self.encoder.enter(visible), nothing, trace)
        return visible.replace(x_ND=self.norm(without_prefix(tokens).x_ND))

    @torch.no_grad()
    def labels(self, clip_BCTHW: Tensor, cell_N: Tensor) -> Tensor:
        """Return what is to be predicted for some cells, flat over the batch, (N, values)."""
        host = self.encoder.host
        grid = host.grid(clip_BCTHW)
        pixels = self.encoder.patch_embed.tubelets(clip_BCTHW, grid, cell_N).flatten(2).float()
        if not self.norm_pixels:
            mean_C1, std_C1 = (pixels.new_tensor(one)[:, None] for one in IMAGENET)
            return (pixels * std_C1 + mean_C1).transpose(1, 2).flatten(1)
        scale_C1 = pixels.new_tensor(host.std)[:, None]
        change_NCP = (pixels - pixels[:, :, :1]) * scale_C1
        change_NCP = change_NCP - change_NCP.mean(dim=2, keepdim=True)
        # Written out, as `std` complains of no tokens at all.
        variance_NC1 = change_NCP.square().sum(dim=2, keepdim=True) / (change_NCP.shape[2] - 1)
        return (change_NCP / (variance_NC1.sqrt() + 1e-6)).transpose(1, 2).flatten(1)


def cells_of(tokens: Tokens) -> Tensor:
    """Return the cell of each token, flat over the batch (clip * n + cell), (N,)."""
    time, rows, columns = tokens.grid
    t, y, x = tokens.coord_N3.unbind(dim=1)
    return ((clip_of_token(tokens) * time + t) * rows + y) * columns + x


def num_visible(n: int, survivors: int, visible_keep: float) -> int:
    """Return how many of the survivors of a clip of `n` tokens are visible."""
    num = max(num_kept(n, visible_keep), 1)
    return num if survivors > num else max(1, survivors // 3)


def split(place_K: Tensor, noise_K: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """Return which of some places are visible and which are targets, each rising.

    Args:
        place_K: places of the survivors of a clip, in any order.
        noise_K: a number for each; the `num` lowest are visible, of equal ones the earlier.
        num: visible ones.
    """
    shuffled_K = place_K[noise_K.argsort(stable=True)]
    return shuffled_K[:num].sort().values, shuffled_K[num:].sort().values


def refuse_reducing_blocks(chain: Chain) -> None:
    """Refuse a chain that does more than select tokens before the first block.

    Raises:
        Mistake: a reducer merges tokens, or drops them between blocks.
    """
    for layer in range(chain.host.depth):
        for at in (At.IN_BLOCK, At.AFTER_BLOCK):
            for name, _ in chain.actors(at, layer):
                raise Mistake(
                    f"pretrain: reducers: {name} acts in block {layer}",
                    "pre-training takes those that select before the first block",
                )


def loss(
    model: MaskedAutoencoder, clip_BCTHW: Tensor, visible_BN: Tensor, target_BN: Tensor
) -> Tensor:
    """Return the loss of clips of which it is known what is shown and what is asked for.

    Args:
        model: encoder and decoder.
        clip_BCTHW: normalised pixels.
        visible_BN: tokens that the encoder sees, bool, by flat id; one or more a clip.
        target_BN: tokens whose pixels are predicted, bool; none of them visible.
    """
    return reconstruct(model, clip_BCTHW, visible_BN, target_BN).loss


def reconstruct(
    model: MaskedAutoencoder, clip_BCTHW: Tensor, visible_BN: Tensor, target_BN: Tensor
) -> Reconstruction:
    """Return predictions and labels; see `loss`."""
    hidden_N, lengths = packed_index(target_BN.int())
    hidden = take(model.encoder.whole(clip_BCTHW), hidden_N, lengths)
    return model.reconstruct(clip_BCTHW, embed(model, clip_BCTHW, visible_BN), hidden, Trace())


def embed(model: MaskedAutoencoder, clip_BCTHW: Tensor, keep_BN: Tensor) -> Tokens:
    """Return the embeddings of some tokens (bool, by flat id), for `MaskedAutoencoder.encode`."""
    whole = model.encoder.whole(clip_BCTHW)
    index_N, lengths = packed_index(keep_BN.int())
    x_ND = model.encoder.patch_embed(clip_BCTHW, whole.grid, index_N)
    return take(whole, index_N, lengths).replace(x_ND=x_ND)


def build(
    host: HostConfig,
    reducers: Sequence[base.Config],
    config: decoders.Config,
    visible_keep: float,
    seed: int = 0,
) -> MaskedAutoencoder:
    """Return an encoder and its decoder with random weights.

    Args:
        host: the encoder.
        reducers: what selects its tokens.
        config: the decoder.
        visible_keep: see `MaskedAutoencoder`.
        seed: of the weights.
    """
    encoder = host.build(1, reducers, seed)
    num_pixels = encoder.host.channels * host.tubelet * host.patch**2
    decoder = Decoder(config, host.dim, host.grid, num_pixels)
    generator = torch.Generator().manual_seed(seed_of(seed, APART))
    for module in decoder.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    nn.init.trunc_normal_(decoder.mask_token, std=0.02, generator=generator)
    return MaskedAutoencoder(encoder, decoder, visible_keep, config)


def weights_of(model: MaskedAutoencoder) -> dict[str, Tensor]:
    """Return the parameters; those of the encoder bear the names that they have in a host.

    A fine-tuning takes those and leaves `norm` and `decoder`, as the papers do.
    """
    whole = model.state_dict(keep_vars=True)
    named = {name.removeprefix("encoder."): weight for name, weight in whole.items()}
    return {name: w for name, w in named.items() if name.partition(".")[0] not in UNUSED}


@torch.no_grad()
def load(model: MaskedAutoencoder, weights: Mapping[str, Tensor]) -> None:
    """Load weights by the names of `weights_of`.

    Raises:
        Mistake: one is missing, or of another shape.
    """
    own = weights_of(model)
    unfit = [n for n, w in own.items() if n not in weights or weights[n].shape != w.shape]
    if unfit:
        what = f"weights: {len(unfit)} of {len(own)} tensors do not fit, such as {unfit[0]}"
        raise Mistake(what, "they must come from a pre-training of the same model and decoder")
    for name, weight in own.items():
        weight.copy_(weights[name])


_OFFICIAL = {
    "encoder.norm.": "norm.",
    "encoder_to_decoder.": "decoder.bridge.",
    "encoder.": "",
    "mask_token": "decoder.mask_token",
    "fc_norm.": "pool.norm.",
    "head.": "heads.0.",
}


def from_official(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights of the official code (VideoMAE, EVEREST) under the names that they have here.

    Those of a pre-training fit `load`, those of a fine-tuned model a host.
    """
    named: dict[str, Tensor] = {}
    for name, weight in weights.items():
        theirs = next((start for start in _OFFICIAL if name.startswith(start)), "")
        ours = _OFFICIAL.get(theirs, "") + name.removeprefix(theirs)
        named[ours] = weight.flatten() if theirs == "mask_token" else weight
    return named
