"""MATS (EVEREST) against the official code (sunilhoho/EVEREST @ 8ebdd70), on vectors made with it.

A check needs some fields of a case and runs on every case that has them all, so cases are found in
the file and never named here. `PARETOKEN_GOLDEN` names another folder of vectors to read instead.
Masks, orders and counts are exact; values within 1e-5 (another order of summation). Runs with the
official unstable sort (`_asrun`) and the mask generators of others (`gen_mask_*`) are information.
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

from workloads import clips, decoder, finetune, mae
from workloads.augment import normalise
from workloads.models import videomae
from workloads.parts import sincos_1d
from workloads.reducers import mats
from workloads.tokens import num_kept
from workloads.trace import Trace
from workloads.vit import VideoTransformer

FOLDER = Path(os.environ.get("PARETOKEN_GOLDEN") or Path(__file__).parent / "vectors")
FILE = FOLDER / "mats.npz"
TOLERANCE = 1e-5

Case = dict[str, Tensor]
PIXELS = {"video_u8", "arch"}


def read(file: Path) -> dict[str, Case]:
    """Return the fields of each case: `case/field`; an array without a case is its own, `table`.

    Cases that belong to a model also hold its weights and those of its pre-training, each by its
    official name: `mae` takes `mae_w/...` as `w/...` and `mae_grad/...` as `grad/...`.
    """
    cases: dict[str, Case] = defaultdict(dict)
    with np.load(file) as arrays:
        for key in arrays.files:
            case, _, field = key.partition("/")
            name, _, kind = case.partition("_")
            if kind in ("w", "grad"):
                cases[name][f"{kind}/{field}"] = torch.from_numpy(arrays[key])
            else:
                cases[case][field or "table"] = torch.from_numpy(arrays[key])
    shared = {f: v for f, v in cases["mae"].items() if f in PIXELS or f.startswith("w/")}
    for case in cases.values():
        if case.keys() & {"features", "logits"}:  # fine-tuned on those clips from those weights
            case |= {**shared, **case}
    return cases


def close(ours: Tensor, official: Tensor) -> None:
    torch.testing.assert_close(ours, official, rtol=TOLERANCE, atol=TOLERANCE)


def ids(mask: Tensor) -> Tensor:
    """Return what a mask holds: flat over all of it, rising."""
    return mask.flatten().nonzero()[:, 0]


def part_of(case: Case, kind: str) -> dict[str, Tensor]:
    """Return what is stored by official names, under our names."""
    found = {f.partition("/")[2]: v for f, v in case.items() if f.startswith(f"{kind}/")}
    return mae.from_official(found)


# Selection on given embeddings: `cfg` has drop ratios (selection, masking, fine-tuning if there),
# `counts` has tubelets and cells of each, then visible, selected and fine-tuned ones.


def scores(case: Case) -> Tensor:
    time, cells = case["counts"][:2].tolist()
    return mats.importance(case["x"].unflatten(1, (time, cells)))


def numbers(x_BND: Tensor, case: Case) -> list[int]:
    """Return how many tokens we keep at each drop ratio of a case."""
    return [num_kept(x_BND.shape[1], mats.keep_of(drop)) for drop in case["cfg"].tolist()]


def is_split_so(ranked_BK: Tensor, num: int, case: Case) -> None:
    """Noise is drawn by rank, and parts selected tokens in visible ones and targets."""
    rows = zip(ranked_BK, case["noise"], case["visible_mask"], case["recon_mask"], strict=True)
    for place_K, noise_K, visible_N, target_N in rows:
        shown, asked = mae.split(place_K, noise_K, num)
        assert torch.equal(shown, ids(visible_N))
        assert torch.equal(asked, ids(target_N))


def check_importance(case: Case) -> None:
    close(scores(case), case["importance"])


def check_order(case: Case) -> None:
    assert torch.equal(mats.order(case["importance"]).int(), case["order_stable"])
    assert torch.equal(mats.order(scores(case)).int(), case["order_stable"])


def check_counts(case: Case) -> None:
    selected, visible, *tuned = numbers(case["x"], case)
    assert [visible, selected, *tuned] == case["counts"][2:].tolist()


def check_split(case: Case) -> None:
    selected, visible, *_ = numbers(case["x"], case)
    is_split_so(mats.order(scores(case))[:, :selected], visible, case)


def check_fine_tuning_mask(case: Case) -> None:
    ours = mats.keep_mask(scores(case), numbers(case["x"], case)[2])
    assert torch.equal(ours, case["ft_keep_mask"])


def check_selected_per_tubelet(case: Case) -> None:
    selected, *_ = numbers(case["x"], case)
    keep_BN = mats.keep_mask(scores(case), selected)
    time = int(case["counts"][0])
    assert torch.equal(mats.per_tubelet(keep_BN, time).int(), case["selected_per_time"])


# Tables.


def check_truncation(case: Case) -> None:
    """A row a drop ratio, a column a number of tokens."""
    for ratio, row in zip(case["ratios"].tolist(), case["counts"].tolist(), strict=True):
        keep = mats.keep_of(ratio)
        assert [num_kept(total, keep) for total in case["totals"].tolist()] == row


def check_positions(case: Case) -> None:
    close(sincos_1d(*case["table"].shape), case["table"])


def check_dense_sampler(case: Case) -> None:
    """A row a draw: frames of the video, of the clip, step, and the start counted from 1."""
    for row, frames in zip(case["cfg"].tolist(), case["frame_ids"].tolist(), strict=True):
        assert list(clips.dense_indices(*row)) == frames


# The masked autoencoder: one step of pre-training.


def host_of(case: Case) -> videomae.Config:
    height, _, patch, tubelet, dim, depth, heads, _, _, _, mlp = case["arch"].tolist()
    return videomae.Config(
        dim=dim,
        depth=depth,
        heads=heads,
        mlp_ratio=mlp,
        tubelet=tubelet,
        patch=patch,
        frames=case["video_u8"].shape[2],
        size=height,
    )


def pixels_of(case: Case) -> Tensor:
    host = host_of(case)
    return normalise(case["video_u8"], host.mean, host.std)


def autoencoder(case: Case) -> mae.MaskedAutoencoder:
    *_, dim, depth, heads, mlp = case["arch"].tolist()
    light = decoder.Config(dim=dim, depth=depth, heads=heads, mlp_ratio=mlp)
    keeps = [mats.keep_of(drop) for drop in case["cfg"].tolist()]
    model = mae.build(host_of(case), (mats.Config(keep=keeps[0]),), light, keeps[1])
    mae.load(model, part_of(case, "w"))
    return model


def check_embeddings(case: Case) -> None:
    with torch.no_grad():
        model = autoencoder(case).encoder
        tokens = model.embed(pixels_of(case), model.chain(()), None, Trace())
    close(tokens.per_sequence(tokens.x_ND), case["embed"])


def check_survivors(case: Case) -> None:
    """What the model's own selection leaves is what the official step split in two."""
    with torch.no_grad():
        model = autoencoder(case).encoder
        tokens = model.embed(pixels_of(case), model.chain(None), None, Trace())
    assert torch.equal(mae.cells_of(tokens), ids(case["visible_mask"] | case["recon_mask"]))


def check_split_of_the_step(case: Case) -> None:
    grid = host_of(case).grid
    scores_BN = mats.importance(case["embed"].unflatten(1, (grid[0], -1)))
    selected, visible = numbers(case["embed"], case)
    is_split_so(mats.order(scores_BN)[:, :selected], visible, case)


def check_encoder(case: Case) -> None:
    with torch.no_grad():
        model = autoencoder(case)
        visible = mae.embed(model, pixels_of(case), case["visible_mask"])
        tokens = model.encode(visible, Trace())
    close(tokens.per_sequence(tokens.x_ND), case["enc_tokens"])


def check_reconstruction(case: Case) -> None:
    with torch.no_grad():
        found = mae.reconstruct(
            autoencoder(case), pixels_of(case), case["visible_mask"], case["recon_mask"]
        )
    close(found.label_NV, case["labels"].flatten(0, 1))
    close(found.pred_NV, case["pred"].flatten(0, 1))


def check_loss(case: Case) -> None:
    loss = mae.loss(autoencoder(case), pixels_of(case), case["visible_mask"], case["recon_mask"])
    close(loss.double(), case["loss"])


def check_gradients(case: Case) -> None:
    model = autoencoder(case)
    mae.loss(model, pixels_of(case), case["visible_mask"], case["recon_mask"]).backward()
    ours = {name: weight.grad for name, weight in mae.weights_of(model).items()}
    for name, official in part_of(case, "grad").items():
        close(ours[name], official)


# Fine-tuning from those weights, in evaluation mode.


def tuned(case: Case) -> VideoTransformer:
    """Return a host that takes the encoder of the pre-training, and head and norm of its own."""
    weights = part_of(case, "w")
    model = host_of(case).build(len(weights["heads.0.bias"]))
    assert finetune.adopt(model, weights) == ()
    return model.eval().requires_grad_(False)


def tuned_chain(case: Case) -> tuple[mats.Config]:
    return (mats.Config(keep=mats.keep_of(float(case["cfg"][0]))),)


def check_kept(case: Case) -> None:
    model = tuned(case)
    tokens = model.embed(pixels_of(case), model.chain(tuned_chain(case)), None, Trace())
    assert torch.equal(mae.cells_of(tokens), ids(case["keep_mask"]))


def check_features(case: Case) -> None:
    model = tuned(case)
    chain = model.chain(tuned_chain(case))
    close(model.pool(model.encode(pixels_of(case), chain, None, Trace())), case["features"])


def check_logits(case: Case) -> None:
    close(tuned(case)(pixels_of(case), tuned_chain(case)), case["logits"])


def check_full_logits(case: Case) -> None:
    close(tuned(case)(pixels_of(case), ()), case["logits_full"])


# What each check reads.
SELECTION = {"x", "cfg", "counts"}
STEP = {"video_u8", "cfg", "arch", "w/mask_token"}
SPLIT = {"visible_mask", "recon_mask"}
TUNED = {"video_u8", "cfg", "arch", "w/head.weight"}
CHECKS: dict[Callable[[Case], None], set[str]] = {
    check_importance: {*SELECTION, "importance"},
    check_order: {*SELECTION, "importance", "order_stable"},
    check_counts: SELECTION,
    check_split: {*SELECTION, *SPLIT, "noise"},
    check_fine_tuning_mask: {*SELECTION, "ft_keep_mask"},
    check_selected_per_tubelet: {*SELECTION, "selected_per_time"},
    check_truncation: {"ratios", "totals", "counts"},
    check_positions: {"table"},
    check_dense_sampler: {"cfg", "frame_ids"},
    check_embeddings: {*STEP, "embed"},
    check_survivors: {*STEP, *SPLIT},
    check_split_of_the_step: {*STEP, *SPLIT, "embed", "noise"},
    check_encoder: {*STEP, "visible_mask", "enc_tokens"},
    check_reconstruction: {*STEP, *SPLIT, "pred", "labels"},
    check_loss: {*STEP, *SPLIT, "loss"},
    check_gradients: {*STEP, *SPLIT, "grad/mask_token"},
    check_kept: {*TUNED, "keep_mask"},
    check_features: {*TUNED, "features"},
    check_logits: {*TUNED, "logits"},
    check_full_logits: {*TUNED, "logits_full"},
}

CASES = read(FILE) if FILE.exists() else {}
ITEMS = [
    pytest.param(check, case, id=f"{name}-{check.__name__.removeprefix('check_')}")
    for name, case in CASES.items()
    for check, fields in CHECKS.items()
    if case.keys() >= fields
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
