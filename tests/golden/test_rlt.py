"""RLT against the official code (rccchoudhury/rlt @ 69ec8b4), on vectors made with it.

A check needs some fields of a case and runs on every case that has them all, so cases are found in
the file and never named here. `PARETOKEN_GOLDEN` names another folder of vectors to read instead.
Masks, counts and lengths are exact; scores within 2e-6 (another order of summation); what goes
through a model within 1e-5 (other kernels).
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from workloads.augment import normalise
from workloads.models import videomae
from workloads.reducers import rlt
from workloads.tokens import packed_index
from workloads.vit import VideoTransformer

FOLDER = Path(os.environ.get("PARETOKEN_GOLDEN") or Path(__file__).parent / "vectors")
FILE = FOLDER / "rlt.npz"

Case = dict[str, Tensor]


def read(file: Path) -> dict[str, Case]:
    """Return the fields of each case: `case__field`, weights as `w__name`."""
    cases: dict[str, Case] = defaultdict(dict)
    with np.load(file) as arrays:
        for key in arrays.files:
            name, _, field = key.partition("__")
            cases[name][field] = torch.from_numpy(arrays[key])
    return cases


def close(ours: Tensor, official: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(ours, official, rtol=tolerance, atol=tolerance)


def pixels(case: Case) -> Tensor:
    """Return what the official criterion was given: normalised, raw 0..255, or any floats."""
    if "frames_u8" in case:
        host = videomae.Config()  # ImageNet mean and deviation
        return normalise(case["frames_u8"].permute(0, 4, 1, 2, 3), host.mean, host.std)
    if "frames_u8_raw" in case:
        return case["frames_u8_raw"].permute(0, 4, 1, 2, 3)
    return case["x_f32"]


def scores_of(case: Case) -> Tensor:
    tubelet, patch = case["params"][:2].tolist()
    return rlt.score(pixels(case), tubelet, patch)


def masks_of(case: Case) -> list[Tensor]:
    """Return our mask at each threshold of a case, (B, T', H', W')."""
    score_BTHW = scores_of(case)
    return [rlt.mask(score_BTHW, tau) for tau in case["taus"].tolist()]


def check_scores(case: Case) -> None:
    close(scores_of(case), case["scores"], 2e-6)


def check_masks(case: Case) -> None:
    for ours, official in zip(masks_of(case), case["keep"], strict=True):
        assert torch.equal(ours.flatten(1), official)


def check_counts(case: Case) -> None:
    for mask, official in zip(masks_of(case), case["num_tokens"], strict=True):
        _, lengths = packed_index(rlt.run_lengths(mask).flatten(1))
        assert lengths == tuple(official.tolist())


def check_run_lengths(case: Case) -> None:
    for mask, official in zip(masks_of(case), case["length_map"], strict=True):
        assert torch.equal(rlt.run_lengths(mask), official)


def check_official_order(case: Case) -> None:
    parts = case["lengths_official"].split(case["lengths_split"].tolist())
    for mask, official in zip(masks_of(case), parts, strict=True):
        assert torch.equal(rlt.official_order(rlt.run_lengths(mask)), official)


def model_of(case: Case) -> VideoTransformer:
    """Return our host with the official weights; it has a length table if they have one."""
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
    with_lengths = "w__length_embed" in case
    model = host.build(classes, (rlt.Config(encode_length=True),) if with_lengths else ())
    model.load_state_dict({our_name(f[3:]): w for f, w in case.items() if f.startswith("w__")})
    return model.eval().requires_grad_(False)


def our_name(official: str) -> str:
    for theirs, ours in (("fc_norm.", "pool.norm."), ("head.", "heads.0.")):
        if official.startswith(theirs):
            return ours + official.removeprefix(theirs)
    return "learned.rlt.length_embed" if official == "length_embed" else official


def chain(case: Case, *, lengths: bool = False, official_order: bool = False) -> tuple[rlt.Config]:
    tau = case["tau"].item()
    return (rlt.Config(tau=tau, encode_length=lengths, official_order=official_order),)


def check_packed_mask(case: Case) -> None:
    """Keep the same tokens, and give each the length that it stands for."""
    keep_BTHW = rlt.mask(scores_of(case), case["tau"].item())
    length_BL = rlt.run_lengths(keep_BTHW).flatten(1)
    assert torch.equal(keep_BTHW.flatten(1), case["keep"])
    assert packed_index(length_BL)[1] == tuple(case["num_tokens"].tolist())
    assert torch.equal(length_BL[case["keep"]], case["lengths_aligned"].int())


def check_packed_order(case: Case) -> None:
    length_BTHW = rlt.run_lengths(rlt.mask(scores_of(case), case["tau"].item()))
    assert torch.equal(rlt.official_order(length_BTHW), case["lengths_official"].int())


def check_positions(case: Case) -> None:
    """Add the rows of the cells that a token comes from, whatever was dropped before it."""
    model, added = model_of(case), []
    close(model.positions.on(model.host.grid(pixels(case))), case["pos_table"], 1e-5)
    model.positions.register_forward_hook(lambda part, inputs, rows_ND: added.append(rows_ND))
    model(pixels(case), chain(case))
    close(added[0], case["pos_embeds"], 1e-5)


def check_tubelets(case: Case) -> None:
    """Embed the pixels of the kept tubelets, in the official order of pixels."""
    model, embedded = model_of(case), []
    model.patch_embed.register_forward_hook(lambda part, inputs, x_ND: embedded.append(inputs))
    model(pixels(case), chain(case))
    first = case["tokens_first8"]
    close(model.patch_embed.tubelets(*embedded[0])[: len(first)], first, 1e-5)


def check_logits(case: Case) -> None:
    close(model_of(case)(pixels(case), chain(case)), case["logits_rlt"], 1e-5)


def check_logits_of_each_clip_alone(case: Case) -> None:
    model, chain_alone = model_of(case), chain(case)
    alone = [model(clip_CTHW[None], chain_alone) for clip_CTHW in pixels(case)]
    close(torch.cat(alone), case["logits_rlt_solo"], 1e-5)


def check_dense_logits(case: Case) -> None:
    close(model_of(case)(pixels(case), ()), case["logits_dense"], 1e-5)


def check_logits_with_lengths(case: Case) -> None:
    ours = model_of(case)(pixels(case), chain(case, lengths=True))
    close(ours, case["logits_len_aligned"], 1e-5)


def check_logits_with_lengths_in_official_order(case: Case) -> None:
    ours = model_of(case)(pixels(case), chain(case, lengths=True, official_order=True))
    close(ours, case["logits_len_official"], 1e-5)


# What each check reads; the pixels of a case come in one of three fields. A model has one `tau`,
# a criterion several `taus`. Random drops are information: the official count is one less.
CRITERION = {"params", "taus"}
MODEL = {"params", "tau", "w__head.weight"}
LENGTHS = {*MODEL, "w__length_embed"}
CHECKS: dict[Callable[[Case], None], set[str]] = {
    check_scores: {"params", "scores"},
    check_masks: {*CRITERION, "keep"},
    check_counts: {*CRITERION, "num_tokens"},
    check_run_lengths: {*CRITERION, "length_map"},
    check_official_order: {*CRITERION, "lengths_official", "lengths_split"},
    check_packed_mask: {"params", "tau", "keep", "num_tokens", "lengths_aligned"},
    check_packed_order: {"params", "tau", "lengths_official"},
    check_positions: {*MODEL, "pos_table", "pos_embeds"},
    check_tubelets: {*MODEL, "tokens_first8"},
    check_logits: {*MODEL, "logits_rlt"},
    check_logits_of_each_clip_alone: {*MODEL, "logits_rlt_solo"},
    check_dense_logits: {*MODEL, "logits_dense"},
    check_logits_with_lengths: {*LENGTHS, "logits_len_aligned"},
    check_logits_with_lengths_in_official_order: {*LENGTHS, "logits_len_official"},
}
PIXELS = {"frames_u8", "frames_u8_raw", "x_f32"}

CASES = read(FILE) if FILE.exists() else {}
ITEMS = [
    pytest.param(check, case, id=f"{name}-{check.__name__.removeprefix('check_')}")
    for name, case in CASES.items()
    for check, fields in CHECKS.items()
    if case.keys() >= fields and case.keys() & PIXELS
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
