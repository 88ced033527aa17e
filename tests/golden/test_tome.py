"""ToMe against the official code (facebookresearch/ToMe @ af95e4b), on vectors made with it.

A check needs some fields of a case and runs on every case that has them all, so cases are found in
the file and never named here. `PARETOKEN_GOLDEN` names another folder of vectors to read instead.
Sources, sizes and schedules are exact; values within 1e-5 (another order of summation).
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from workloads import merging
from workloads.augment import normalise
from workloads.blocks import Attention
from workloads.models import clip, videomae
from workloads.reducers import tome
from workloads.reducers.base import Seen
from workloads.tokens import Layout, Tokens
from workloads.trace import Trace
from workloads.vit import VideoTransformer

FOLDER = Path(os.environ.get("PARETOKEN_GOLDEN") or Path(__file__).parent / "vectors")
FILE = FOLDER / "tome.npz"
TOLERANCE = 1e-5

Case = dict[str, Tensor]


def read(file: Path) -> dict[str, Case]:
    """Return the fields of each case: `case__field`, weights as `w__name`."""
    cases: dict[str, Case] = defaultdict(dict)
    with np.load(file) as arrays:
        for key in arrays.files:
            name, _, field = key.partition("__")
            cases[name][field] = torch.from_numpy(arrays[key])
    return cases


def close(ours: Tensor, official: Tensor) -> None:
    torch.testing.assert_close(ours, official, rtol=TOLERANCE, atol=TOLERANCE)


def weights(case: Case) -> dict[str, Tensor]:
    return {f.removeprefix("w__"): value for f, value in case.items() if f.startswith("w__")}


def ones_like_sizes(x_SLD: Tensor) -> Tensor:
    return torch.ones_like(x_SLD[..., :1])


# One merge: `params` are r, class token, distillation token, tokens really removed.


def plan_of(case: Case) -> merging.Plan:
    r, class_token, distill, _ = case["params"].tolist()
    return tome.match(case["metric"], r, bool(class_token), bool(distill))


def merged(case: Case) -> tuple[Tensor, Tensor]:
    return merging.merge_weighted(
        case["x"], case.get("size_in", ones_like_sizes(case["x"])), plan_of(case)
    )


def check_sources(case: Case) -> None:
    plan = plan_of(case)
    assert plan.source_SR.shape[1] == case["params"][3]
    assert torch.equal(merging.sources([plan]), case["source"])


def check_weighted_merge(case: Case) -> None:
    x_SKD, size_SK1 = merged(case)
    close(x_SKD, case["x_out"])
    assert torch.equal(size_SK1, case["size_out"])


def check_plain_mean(case: Case) -> None:
    close(merging.merge_mean(case["x"], plan_of(case)), case["x_mean_mode"])


def check_unmerge(case: Case) -> None:
    copied = merging.unmerge(merged(case)[0], plan_of(case), official_order=True)
    close(copied, case["unmerged"])


# Merges in a row: after merge i of r[i] tokens there are x{i} and size{i}, and at some source{i}.


def check_merges_in_a_row(case: Case) -> None:
    x_SLD, size_SL1 = case["x"], ones_like_sizes(case["x"])
    plans = []
    for i, r in enumerate(case["r"].tolist(), start=1):
        plans.append(tome.match(x_SLD, r))  # tokens are compared themselves
        x_SLD, size_SL1 = merging.merge_weighted(x_SLD, size_SL1, plans[-1])
        close(x_SLD, case[f"x{i}"])
        assert torch.equal(size_SL1, case[f"size{i}"])
        if f"source{i}" in case:
            assert torch.equal(merging.sources(plans), case[f"source{i}"])


def check_schedules(case: Case) -> None:
    """A row a schedule: r and inflection, then the r of each layer, filled up with -1."""
    rows = zip(case["layers"], case["r"], case["inflect"], case["out"], strict=True)
    for layers, r, inflection, out in rows:
        ours = tome.schedule(int(layers), int(r), float(inflection))
        assert list(ours) == out[out != -1].tolist()


# One attention: with sizes on the keys (prop) and without.


def attended(case: Case, mass_N: Tensor | None) -> tuple[Tensor, Tokens, Seen]:
    """Return the output (B, N, D) of our layer with the official weights, its input, its keys."""
    x_BND = case["x"]
    batch, num, dim = x_BND.shape
    layer = Attention(dim, int(case["heads"]), bias="qkv").requires_grad_(False)
    layer.load_state_dict(weights(case))
    tokens = Tokens(
        x_ND=x_BND.flatten(0, 1),
        coord_N3=torch.zeros(batch * num, 3, dtype=torch.long),
        size_N=case["size"].flatten(),
        mass_N=mass_N,
        lengths=(num,) * batch,
        clips=tuple(range(batch)),
        num_prefix=0,
        grid=(1, 1, num),
        layout=Layout.EQUAL,
    )
    out_ND, seen = layer(tokens.x_ND, tokens, "keys")
    return tokens.per_sequence(out_ND), tokens, seen


def check_plain_attention(case: Case) -> None:
    close(attended(case, None)[0], case["out_plain"])


def check_proportional_attention(case: Case) -> None:
    close(attended(case, case["size"].flatten())[0], case["out_prop"])


def check_metric(case: Case) -> None:
    _, tokens, seen = attended(case, None)
    close(tome.metric(tokens, seen), case["metric"])


# A whole video model that merges in each block.


def video_pixels(case: Case) -> Tensor:
    host = videomae.Config()  # ImageNet mean and deviation
    return normalise(case["frames_u8"].permute(0, 4, 1, 2, 3), host.mean, host.std)


def model_of(case: Case) -> VideoTransformer:
    tubelet, patch, dim, depth, heads, classes, frames, side = case["params"].tolist()
    host = videomae.Config(
        dim=dim,
        depth=depth,
        heads=heads,
        tubelet=tubelet,
        patch=patch,
        frames=frames,
        size=side,
        norm_eps=1e-5,
    )
    model = host.build(classes)
    model.load_state_dict({our_name(name): value for name, value in weights(case).items()})
    return model.eval().requires_grad_(False)


def our_name(official: str) -> str:
    for theirs, ours in (("fc_norm.", "pool.norm."), ("head.", "heads.0.")):
        if official.startswith(theirs):
            return ours + official.removeprefix(theirs)
    return official


def chain(case: Case) -> tuple[tome.Config]:
    return (tome.Config(r=int(case["r"])),)


def check_video_logits(case: Case) -> None:
    close(model_of(case)(video_pixels(case), chain(case)), case["logits"])


def check_video_sizes(case: Case) -> None:
    model = model_of(case)
    tokens = model.encode(video_pixels(case), model.chain(chain(case)), None, Trace())
    assert torch.equal(tokens.per_sequence(tokens.size_N)[..., None], case["size"])


def check_video_sources(case: Case) -> None:
    """Match again what each layer's attention saw: the sources of the whole forward."""
    plans = plans_of(model_of(case), video_pixels(case), chain(case))
    assert torch.equal(merging.sources(plans), case["source"])


def plans_of(
    model: VideoTransformer, pixels_BCTHW: Tensor, chain: tuple[tome.Config]
) -> list[merging.Plan]:
    """Return what merged in each block that merged anything."""
    plans: list[merging.Plan] = []
    reducer = chain[0].build(model.host)
    acting = {step.layer for step in reducer.steps()}
    for i, block in enumerate(model.blocks):
        if i in acting:
            block.attn.register_forward_hook(
                lambda part, inputs, out, i=i: plans.append(reducer.plan(inputs[1], out[1], i))
            )
    model(pixels_BCTHW, chain)
    return plans


# An image model with a class token is the host of frames at one frame: `{tag}_r` are the tokens
# merged in each block, `{tag}_{mode}_...` what comes of it, with sizes on the keys (prop) or not.


def image_pixels(case: Case) -> Tensor:
    host = videomae.Config()  # ImageNet mean and deviation
    return normalise(case["image_u8"].permute(0, 3, 1, 2)[:, :, None], host.mean, host.std)


def image_model_of(case: Case) -> VideoTransformer:
    side, patch, dim, depth, heads, classes = case["params"].tolist()
    host = clip.Config(
        dim=dim,
        depth=depth,
        heads=heads,
        patch=patch,
        frames=1,
        size=side,
        activation="gelu",
        first_norm=False,
        embed_bias=True,
        norm_eps=1e-6,
    )
    model = host.build(classes)
    model.load_state_dict(dict(image_weights(case)))
    return model.eval().requires_grad_(False)


def image_weights(case: Case) -> Iterator[tuple[str, Tensor]]:
    """Yield the official weights by our names."""
    for official, value in weights(case).items():
        if official == "cls_token":
            yield "begin.class_token", value[0]
        elif official == "pos_embed":  # the row of the class token first
            yield "begin.position", value[0, :1]
            yield "positions.table", value[0, 1:]
        elif official == "patch_embed.proj.weight":
            yield official, value[:, :, None]
        elif official.startswith("norm."):
            yield f"pool.{official}", value
        else:
            yield our_name(official), value


def image_chain(case: Case, tag: str, mode: str) -> tuple[tome.Config]:
    counts = tuple(case[f"{tag}_r"].tolist())
    return (tome.Config(counts=counts, proportional=mode == "prop"),)


def check_image_logits_dense(case: Case) -> None:
    close(image_model_of(case)(image_pixels(case), ()), case["logits_base"])


def check_image_logits(case: Case, tag: str, mode: str) -> None:
    ours = image_model_of(case)(image_pixels(case), image_chain(case, tag, mode))
    close(ours, case[f"{tag}_{mode}_logits"])


def check_image_sizes(case: Case, tag: str, mode: str) -> None:
    model = image_model_of(case)
    chain = model.chain(image_chain(case, tag, mode))
    tokens = model.encode(image_pixels(case), chain, None, Trace())
    assert torch.equal(tokens.per_sequence(tokens.size_N)[..., None], case[f"{tag}_{mode}_size"])


def check_image_sources(case: Case, tag: str, mode: str) -> None:
    plans = plans_of(image_model_of(case), image_pixels(case), image_chain(case, tag, mode))
    assert torch.equal(merging.sources(plans), case[f"{tag}_{mode}_source"])


# What each check reads.
MERGE = {"metric", "x", "params"}
ATTENTION = {"x", "size", "heads", "w__qkv.weight"}
VIDEO = {"frames_u8", "params", "r", "w__head.weight"}
IMAGE = {"image_u8", "params", "w__cls_token", "w__pos_embed"}
CHECKS: dict[Callable[[Case], None], set[str]] = {
    check_sources: {*MERGE, "source"},
    check_weighted_merge: {*MERGE, "x_out", "size_out"},
    check_plain_mean: {*MERGE, "x_mean_mode"},
    check_unmerge: {*MERGE, "unmerged"},
    check_merges_in_a_row: {"x", "r", "x1", "size1"},
    check_schedules: {"layers", "r", "inflect", "out"},
    check_plain_attention: {*ATTENTION, "out_plain"},
    check_proportional_attention: {*ATTENTION, "out_prop"},
    check_metric: {*ATTENTION, "metric"},
    check_video_logits: {*VIDEO, "logits"},
    check_video_sizes: {*VIDEO, "size"},
    check_video_sources: {*VIDEO, "source"},
    check_image_logits_dense: {*IMAGE, "logits_base"},
}
SCHEDULED = {
    "logits": check_image_logits,
    "size": check_image_sizes,
    "source": check_image_sources,
}

CASES = read(FILE) if FILE.exists() else {}
ITEMS = [
    pytest.param(check, case, id=f"{name}-{check.__name__.removeprefix('check_')}")
    for name, case in CASES.items()
    for check, fields in CHECKS.items()
    if case.keys() >= fields
]
ITEMS += [
    pytest.param(partial(check, tag=tag, mode=mode), case, id=f"{name}-{tag}-{mode}-{what}")
    for name, case in CASES.items()
    if case.keys() >= IMAGE
    for tag in sorted(field.removesuffix("_r") for field in case if field.endswith("_r"))
    for mode in ("prop", "plain")
    for what, check in SCHEDULED.items()
    if f"{tag}_{mode}_{what}" in case
]


def test_file_holds_five_checks_or_more() -> None:
    assert FILE.exists(), f"{FILE} is missing"
    assert len(ITEMS) >= 5


@pytest.mark.parametrize(("check", "case"), ITEMS or [pytest.param(None, {}, id="none-found")])
def test_ours_gives_what_the_official_code_gives(
    check: Callable[[Case], None] | None, case: Case
) -> None:
    assert check is not None, f"no case was found in {FILE}"
    check(case)
