"""The video transformer: one loop for every host, with a place for each kind of token reducer.

    (choose frames) -> select (pixels) -> embed the kept tubelets -> after_embed -> add positions ->
    (a sequence a frame, class tokens) ->
    blocks: attention -> in_block -> MLP -> after_block -> pool -> norm -> head

Tokens are packed from the first step to the last. The forward also gives its trace, tokens entering
each part, which is the single source of cost. Hosts differ in embedding, positions, blocks, pool
and head (`models/*.py`); this file knows the base class of reducers, never a concrete one.

Legend: B clips, N packed tokens, L cells of a grid, D width, K classes, C T H W video.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from workloads.blocks import Block
from workloads.mistakes import Mistake
from workloads.parts import Head, PatchEmbed, Pool
from workloads.reducers.base import At, Chain, Config, Host, chain_of
from workloads.tokens import Grid, Layout, Tokens, by_frame, cells, packed_index, take
from workloads.trace import Trace

REVISION = 2


PIXELS = "give pixels in 0..1, normalised with the model's mean and std"
ADDED = ("learned", "heads", "head_norm", "pool", "adapter", "time")
"""Parts that do not belong to a pre-trained backbone, by a component of their parameters' names."""


def is_added(name: str) -> bool:
    """Tell whether a parameter comes on top of the backbone."""
    return any(part.startswith(ADDED) for part in name.split("."))


class VideoTransformer(nn.Module):
    """A host with its parts; see the loop above.

    Args:
        host: what reducers may know of it.
        blocks, embed, positions, pool: the parts; `pool(tokens, head) -> (B, D)`.
        heads: classifiers, chosen by `head` in the forward.
        learned: parameters of reducers, by their names.
        default: the chain of a forward that names none.
        begin: from embedded tokens with positions to what enters the first block (class tokens).
        head_norm: between pool and classifier.
        config: the host's Config that it was built from; what is saved beside the weights.

    `labels` are the names of the classes, where they are known.
    """

    def __init__(
        self,
        host: Host,
        blocks: Sequence[Block],
        embed: PatchEmbed,
        positions: nn.Module,
        pool: Pool,
        heads: Sequence[Head],
        learned: dict[str, nn.Module],
        default: tuple[Config, ...] = (),
        begin: nn.Module | None = None,
        head_norm: nn.Module | None = None,
        config: object = None,
    ) -> None:
        super().__init__()
        self.host, self.default, self.config = host, default, config
        self.labels: tuple[str, ...] = ()
        self.patch_embed: PatchEmbed = embed
        self.positions = positions
        self.pool: Pool = pool
        self.begin, self.head_norm = begin or nn.Identity(), head_norm or nn.Identity()
        self.blocks, self.heads = nn.ModuleList(blocks), nn.ModuleList(heads)
        self.num_classes = tuple(head.out_features for head in heads)
        self.learned = nn.ModuleDict(learned)

    def forward(
        self,
        clip_BCTHW: Tensor,
        chain: Chain | Sequence[Config] | None = None,
        head: int = 0,
        seeds: Sequence[int] | None = None,
    ) -> Tensor:
        """Classify clips, (B, K) logits.

        Args:
            clip_BCTHW: normalised pixels, float.
            chain: reducers to apply; () is dense; None is what the model was built or loaded with.
            head: which classifier.
            seeds: one integer a clip for reducers that draw; 0 for each if none are given.

        Raises:
            Mistake: the clip does not fit the tubelet and patch or holds pixels that are no
            numbers, or the chain does not fit the host or the grid.
        """
        return self.traced(clip_BCTHW, chain, head, seeds)[0]

    def features(
        self,
        clip_BCTHW: Tensor,
        chain: Chain | Sequence[Config] | None = None,
        head: int = 0,
        seeds: Sequence[int] | None = None,
    ) -> Tensor:
        """Return what the classifier reads, (B, D)."""
        tokens = self.encode(clip_BCTHW, self.chain(chain), seeds, Trace())
        return self.head_norm(self.pool(tokens, head))

    def traced(
        self,
        clip_BCTHW: Tensor,
        chain: Chain | Sequence[Config] | None = None,
        head: int = 0,
        seeds: Sequence[int] | None = None,
    ) -> tuple[Tensor, Trace]:
        """Return the logits (B, K) and the trace."""
        if not 0 <= head < len(self.heads):
            what = f"head={head} of a model with {len(self.heads)}"
            raise Mistake(what, "heads count from 0; the host says how many there are")
        trace = Trace()
        tokens = self.encode(clip_BCTHW, self.chain(chain), seeds, trace)
        return self.classify(tokens, head, trace), trace

    def classify(self, tokens: Tokens, head: int, trace: Trace) -> Tensor:
        """Return the logits (B, K) of encoded tokens."""
        classifier = self.heads[head]
        assert isinstance(classifier, Head)
        trace.add("pool", tokens, self.pool.macs)
        trace.add_by_clip("head", tokens, classifier.macs)
        return classifier(self.head_norm(self.pool(tokens, head)))

    def chain(self, chain: Chain | Sequence[Config] | None) -> Chain:
        """Return a chain checked against this host."""
        if isinstance(chain, Chain):
            return chain if chain.host == self.host else chain_of(chain.configs, self.host)
        return chain_of(self.default if chain is None else tuple(chain), self.host)

    def encode(
        self, clip_BCTHW: Tensor, chain: Chain, seeds: Sequence[int] | None, trace: Trace
    ) -> Tokens:
        """Run the loop up to the last block and record it in `trace`."""
        clip_BCTHW = self.choose_frames(clip_BCTHW, chain, seeds, trace)
        tokens = self.embed(clip_BCTHW, chain, seeds, trace)
        return self.run_blocks(self.enter(tokens), chain, trace)

    def choose_frames(
        self, clip_BCTHW: Tensor, chain: Chain, seeds: Sequence[int] | None, trace: Trace
    ) -> Tensor:
        """Return the frames that go on: all, but for a reducer that chooses among them."""
        for _, reducer in chain.actors(At.FRAMES):
            grid = self.host.grid(clip_BCTHW)
            self._refuse(clip_BCTHW, chain, chain.grid(grid), seeds)  # also what is not chosen
            trace.add_action("select", self.whole(clip_BCTHW), At.FRAMES, reducer, 0)
            embed = partial(self.patch_embed, grid=grid, index_N=None)
            clip_BCTHW = clip_BCTHW.to(self.patch_embed.proj.weight.device)  # see `whole`
            clip_BCTHW = reducer.choose_frames(clip_BCTHW, embed, seeds or (0,) * len(clip_BCTHW))
        return clip_BCTHW

    def embed(
        self, clip_BCTHW: Tensor, chain: Chain, seeds: Sequence[int] | None, trace: Trace
    ) -> Tokens:
        """Return the tokens that survive selection, one sequence a clip, without positions."""
        self._refuse(clip_BCTHW, chain, self.host.grid(clip_BCTHW), seeds)
        tokens = self._selected(clip_BCTHW, chain, seeds or (0,) * len(clip_BCTHW), trace)
        for name, reducer in chain.actors(At.EMBED):
            trace.add_action("select", tokens, At.EMBED, reducer, 0)
            tokens = reducer.after_embed(tokens, self._learned_by(name))
        return tokens

    def _refuse(
        self, clip_BCTHW: Tensor, chain: Chain, grid: Grid, seeds: Sequence[int] | None
    ) -> None:
        chain.check(grid)
        chain.accept(dict(self.learned.items()))
        if not clip_BCTHW.is_floating_point():
            raise Mistake(f"clip: pixels are {clip_BCTHW.dtype}", PIXELS)
        if seeds and len(seeds) != len(clip_BCTHW):
            raise Mistake(f"seeds: {len(seeds)} for {len(clip_BCTHW)} clips", "give one a clip")
        if not (self.training and clip_BCTHW.is_cuda):  # no host sync in each step of a training
            _refuse_pixels(clip_BCTHW)

    def enter(self, tokens: Tokens) -> Tokens:
        """Return what enters the first block: positions added, sequences formed."""
        tokens = tokens.replace(x_ND=tokens.x_ND + self.positions(tokens).to(tokens.x_ND.dtype))
        return self.begin(by_frame(tokens) if self.host.per_frame else tokens)

    def run_blocks(self, tokens: Tokens, chain: Chain, trace: Trace) -> Tokens:
        """Return the tokens after the last block."""
        for layer, block in enumerate(self.blocks):
            tokens = block(tokens, chain, layer, trace)
            for name, reducer in chain.actors(At.AFTER_BLOCK, layer):
                trace.add_action("match", tokens, At.AFTER_BLOCK, reducer, layer)
                tokens = reducer.after_block(tokens, layer, self._learned_by(name))
        return tokens

    def _learned_by(self, name: str) -> nn.Module | None:
        return dict(self.learned.items()).get(name)

    def _selected(
        self, clip_BCTHW: Tensor, chain: Chain, seeds: Sequence[int], trace: Trace
    ) -> Tokens:
        tokens, index_N = self.whole(clip_BCTHW), None
        for _, reducer in chain.actors(At.SELECT):
            trace.add_action("select", tokens, At.SELECT, reducer, 0)
        size_BL = chain.select(clip_BCTHW, seeds)
        device = tokens.x_ND.device
        if size_BL is not None:
            index_N, lengths = packed_index(size_BL)
            size_N = size_BL.flatten()[index_N].float().to(device)
            index_N = index_N.to(device)
            tokens = take(tokens, index_N, lengths).replace(size_N=size_N)
        trace.add("embed", tokens, self.patch_embed.macs)
        x_ND = self.patch_embed(clip_BCTHW.to(device), tokens.grid, index_N)
        return tokens.replace(x_ND=x_ND)

    def whole(self, clip_BCTHW: Tensor) -> Tokens:
        """Return the full grid of each clip, with places where its embeddings will be."""
        # A model may lie elsewhere than its clips: `cost.foresee` runs one without numbers.
        device = self.patch_embed.proj.weight.device
        grid, clips = self.host.grid(clip_BCTHW), tuple(range(len(clip_BCTHW)))
        lengths, coord_N3 = (math.prod(grid),) * len(clips), cells(grid, len(clips), device)
        size_N = torch.ones(len(coord_N3), device=device)
        return Tokens(coord_N3, coord_N3, size_N, None, lengths, clips, 0, grid, Layout.GRID)


def _refuse_pixels(clip_BCTHW: Tensor) -> None:
    """Refuse pixels that are no numbers: thresholds would drop them without a word."""
    # One sum instead of a look at each: NaN and infinity both survive it.
    if not clip_BCTHW.is_meta and not clip_BCTHW.sum(dtype=torch.float32).isfinite():
        bad = int((~clip_BCTHW.isfinite()).sum())
        raise Mistake(f"clip: {bad} of {clip_BCTHW.numel()} pixels are NaN or infinite", PIXELS)
