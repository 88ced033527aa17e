"""Names of weights in checkpoint folders of Hugging Face transformers, and what they are here.

Three architectures of theirs are known; ours holds any host under the names of its parameters.
Queries, keys and values are three matrices there and one here; a CLIP has one table of positions
there, of which the first row is the class token's, and two here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

VIDEOMAE, PRETRAINING, CLIP, OURS = (
    "VideoMAEForVideoClassification",
    "VideoMAEForPreTraining",
    "CLIPVisionModel",
    "ParetokenVideoTransformer",
)
ARCHITECTURES = (VIDEOMAE, PRETRAINING, CLIP, OURS)


@dataclass(frozen=True)
class Same:
    """The same numbers in the same order, under our names and theirs."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    shape: tuple[int, ...]
    """Of each of theirs."""


Shapes = Mapping[str, tuple[int, ...]]

_BLOCK = (
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.attn\.([qv]_bias)", r".attention.attention.\1"),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
)
_FROM_VIDEOMAE = (
    (r"^patch_embed\.proj\.", "videomae.embeddings.patch_embeddings.projection."),
    (r"^norm\.", "videomae.layernorm."),
    (r"^heads\.0\.", "classifier."),
    (r"^decoder\.bridge\.", "encoder_to_decoder."),
    (r"^decoder\.mask_token", "mask_token"),
    (r"^decoder\.blocks\.", "decoder.decoder_layers."),
    (r"^blocks\.", "videomae.encoder.layer."),
    *_BLOCK,
)
_FROM_CLIP = (
    (r"^patch_embed\.proj\.", "embeddings.patch_embedding."),
    (r"^begin\.class_token", "embeddings.class_embedding"),
    (r"^begin\.norm\.", "pre_layrnorm."),
    (r"^pool\.norm\.", "post_layernorm."),
    (r"^blocks\.", "encoder.layers."),
    (r"\.norm([12])\.", r".layer_norm\1."),
    (r"\.attn\.proj\.", ".self_attn.out_proj."),
)
_ALIASES = (
    (r"\.attention\.attention\.query\.bias$", ".attention.attention.q_bias"),
    (r"\.attention\.attention\.value\.bias$", ".attention.attention.v_bias"),
    (r"^vision_model\.", ""),
)


def alias(name: str) -> str:
    """Return the name that a weight of transformers has in the table above."""
    return _renamed(name, _ALIASES)


def same(architecture: str, shapes: Shapes, pool: str) -> list[Same]:
    """Return where each of our weights is found.

    Args:
        architecture: of the folder.
        shapes: of our weights, by name.
        pool: that of the host: it decides what transformers calls its norm.
    """
    if architecture == OURS:
        return [Same((name,), (name,), shape) for name, shape in shapes.items()]
    if architecture == CLIP:
        return _same_clip(shapes)
    last = "fc_norm." if pool == "mean" else "videomae.layernorm."
    table = ((r"^pool\.norm\.", last), *_FROM_VIDEOMAE)
    parts = ("attention.attention.query", "attention.attention.key", "attention.attention.value")
    pairs = [_pair(name, shape, table, parts) for name, shape in shapes.items()]
    return [
        replace(pair, shape=(1, 1, *pair.shape)) if "mask_token" in pair.theirs else pair
        for pair in pairs
    ]


def _same_clip(shapes: Shapes) -> list[Same]:
    places, dim = shapes["positions.table"]
    table = "embeddings.position_embedding.weight"
    pairs = [Same(("begin.position", "positions.table"), (table,), (places + 1, dim))]
    parts = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    for name, shape in shapes.items():
        if name in pairs[0].ours:
            continue
        if name == "begin.class_token":
            shape = shape[1:]
        elif name == "patch_embed.proj.weight":
            shape = (*shape[:2], *shape[3:])  # theirs has no time
        pairs.append(_pair(name, shape, _FROM_CLIP, parts))
    return pairs


def _pair(
    name: str, shape: tuple[int, ...], table: tuple[tuple[str, str], ...], parts: tuple[str, ...]
) -> Same:
    """Return the other name of a weight; queries, keys and values are apart there."""
    theirs = _renamed(name, table)
    if ".attn.qkv." not in name:
        return Same((name,), (theirs,), shape)
    apart = tuple(theirs.replace("attn.qkv", part) for part in parts)
    return Same((name,), apart, (shape[0] // 3, *shape[1:]))


def _renamed(name: str, table: tuple[tuple[str, str], ...]) -> str:
    if name.startswith("learned."):
        return name
    for pattern, new in table:
        name = re.sub(pattern, new, name)
    return name
