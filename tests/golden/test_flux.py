"""Flux against the official code (OpenGVLab/FluxViT @ 8e09613), on vectors made with it.

A check needs some fields of a kind of case and runs on every case that has them all, so cases are
found in the file and never listed. `PARETOKEN_GOLDEN` names another folder of vectors to read.
Kept tokens, counts and grids are exact, ties by lower id first (`dropmask`: the official code with
a stable sort). Positions are within 1e-6, what goes through a model within 2e-5 (other kernels).
"""

from __future__ import annotations

import json
import os
import re
from collections import defaultdict
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from workloads import clips, losses, parts
from workloads.augment import normalise
from workloads.models import fluxvit
from workloads.reducers import flux
from workloads.reducers.base import Host
from workloads.tokens import Grid, Layout, Tokens, cells
from workloads.trace import Trace
from workloads.vit import VideoTransformer

FOLDER = Path(os.environ.get("PARETOKEN_GOLDEN") or Path(__file__).parent / "vectors")
FILE = FOLDER / "flux.npz"
CPU = torch.device("cpu")
NAME = re.compile(r"(sincos3d_\d+|[a-z]+(?:\d+d?)?)[_.]?(.*)")

Case = dict[str, Tensor]


def read(file: Path) -> tuple[dict[str, Case], dict[str, Any]]:
    """Return the fields of each case (`case_field`, of `tiny` the weights) and `tiny_cfg`."""
    cases: dict[str, Case] = defaultdict(dict)
    with np.load(file) as arrays:
        settings = json.loads(str(arrays["tiny_cfg"]))
        for key in arrays.files:
            if key != "tiny_cfg":
                name, field = NAME.fullmatch(key).groups()
                cases[name][field.removeprefix("sd.")] = torch.from_numpy(arrays[key])
    return cases, settings


def close(ours: Tensor, official: Tensor, tolerance: float = 2e-5) -> None:
    torch.testing.assert_close(
        ours, official, rtol=5 * tolerance, atol=tolerance, check_dtype=False
    )


# Selection.


def reducer_of(budget: int, dim: int = 1) -> flux.GroupDynamic:
    host = Host(depth=1, dim=dim, heads=1, tubelet=1, patch=1, std=(1.0, 1.0, 1.0))
    return flux.Config(budget=budget, official_count=True).build(host)


def embedded(x_BTLD: Tensor, grid: Grid) -> Tokens:
    """Return features as a model embeds them: full grids, no positions."""
    batch, num = len(x_BTLD), x_BTLD.shape[1] * x_BTLD.shape[2]
    return Tokens(
        x_ND=x_BTLD.flatten(0, 2),
        coord_N3=cells(grid, batch, CPU),
        size_N=torch.ones(batch * num),
        mass_N=None,
        lengths=(num,) * batch,
        clips=tuple(range(batch)),
        num_prefix=0,
        grid=grid,
        layout=Layout.GRID,
    )


def assert_same_tokens(ours: Tokens, dropped_BL: Tensor) -> None:
    """Compare the cells of tokens, in order, with those that an official mask leaves."""
    all_N3 = cells(ours.grid, len(dropped_BL), CPU)
    assert torch.equal(ours.coord_N3, all_N3[~dropped_BL.flatten()])


def features_of(case: Case) -> tuple[Tensor, Grid]:
    """Return features (B, T, L, D) and their grid; those of pixels are square."""
    if "x" in case:
        time, rows, columns = case["grid"][1:4].tolist()
        return case["x"], (time, rows, columns)
    side = case["clip_u8"].shape[2] // CASES["pix"]["proj_weight"].shape[-1]
    return case["embed"], (case["embed"].shape[1], side, side)


def check_importance(case: Case) -> None:
    x_BTLD, grid = features_of(case)
    close(flux.importance(x_BTLD, flux.groups_of(grid[0])), case["importance"])


def check_groups(case: Case) -> None:
    assert flux.groups_of(int(case["grid"][1])) == case["grid"][5]


def check_kept_tokens(case: Case) -> None:
    x_BTLD, grid = features_of(case)
    tokens = embedded(x_BTLD, grid)
    for budget, dropped_BL in zip(case["budgets"].tolist(), case["dropmask"], strict=True):
        assert_same_tokens(reducer_of(budget).after_embed(tokens, None), dropped_BL)


def check_kept_tokens_of_the_official_run_without_ties(case: Case) -> None:
    """The official sort is unstable: where a group has no tie at its cut, it has no choice."""
    x_BTLD, grid = features_of(case)
    shape = (len(x_BTLD), flux.groups_of(grid[0]), -1)
    rows = zip(case["budgets"].tolist(), case["dropmask_asrun"], case["tie"], strict=True)
    for budget, dropped_BL, tie_BG in rows:
        tokens = reducer_of(budget).after_embed(embedded(x_BTLD, grid), None)
        flat_N = (tokens.coord_N3 * torch.tensor([grid[1] * grid[2], grid[2], 1])).sum(dim=1)
        ours_BL = torch.ones_like(dropped_BL).scatter(1, tokens.per_sequence(flat_N), False)
        ours_BGF, official_BGF = ours_BL.view(shape), dropped_BL.view(shape)
        assert torch.equal(ours_BGF[~tie_BG], official_BGF[~tie_BG])


def check_counts(case: Case) -> None:
    grid = features_of(case)[1]
    for budget, kept in zip(case["budgets"].tolist(), case["kept"], strict=True):
        assert (reducer_of(budget).kept(grid) == kept).all()


def check_kept_table(case: Case) -> None:
    """Rows: frames, side in pixels, budget, cells of the grid, tokens really kept."""
    host = fluxvit.Config().host()
    for frames, side, budget, num_cells, kept in case["table"].tolist():
        time, rows, columns = host.grid_of(frames, side, side)
        assert time * rows * columns == num_cells
        assert reducer_of(budget).kept((time, rows, columns)) == kept


def pixels(clip_BTHWC: Tensor) -> Tensor:
    host = fluxvit.Config()  # ImageNet mean and deviation
    return normalise(clip_BTHWC.permute(0, 4, 1, 2, 3), host.mean, host.std)


def check_embedding(case: Case) -> None:
    """Embed pixels through both norms; the weights stand beside all cases of this kind."""
    weights = CASES["pix"]
    dim, channels, _, patch, _ = weights["proj_weight"].shape
    embed = parts.NormedEmbed(1, patch, dim, fluxvit.RMS_EPS, channels).requires_grad_(False)
    names = {
        f"patch_embed.{field.replace('_weight', '.weight').replace('_bias', '.bias')}": weight
        for field, weight in weights.items()
    }
    position = {"pos_embed": torch.zeros(1, 1, dim), "cls_token": torch.zeros(1, 1, dim)}
    ours = fluxvit.from_official(names | position)
    own = {name: w for name, w in ours.items() if name.startswith("patch_embed.")}
    embed.load_state_dict({name.removeprefix("patch_embed."): w for name, w in own.items()})
    x_ND = embed(pixels(case["clip_u8"]), features_of(case)[1], None)
    close(x_ND.view_as(case["embed"]), case["embed"])


# Position tables.


def check_grid_code(case: Case) -> None:
    dim, side, time = case["args"].tolist()
    close(parts.grid_code((time, side, side), dim), case[""][1:], 1e-6)
    assert not case[""][0].any()  # the class token stands nowhere
    assert not parts.ClassToken(dim).position.any()


def check_frame_code(case: Case) -> None:
    dim, side = case["args"].tolist()
    close(parts.frame_code(side, side, dim), case[""], 1e-6)


def check_axis_code(case: Case) -> None:
    dim, num = case["args"].tolist()
    close(parts.axis_code(num, dim), case[""], 1e-6)


def check_positions(case: Case) -> None:
    model, (time, side) = tiny(), case["grid"].tolist()
    class_1D = model.begin.position[None]
    ours_LD = torch.cat([class_1D, model.positions.on((time, side, side))])
    close(ours_LD, case[""][0], 1e-6)


# A tiny FluxViT with the official weights.


@cache
def tiny() -> VideoTransformer:
    heads = [name for name in CASES["tiny"] if re.fullmatch(r"head\.\d+\.weight", name)]
    host = fluxvit.Config(
        dim=SETTINGS["embed_dim"],
        depth=SETTINGS["depth"],
        heads=SETTINGS["num_heads"],
        mlp_ratio=SETTINGS["mlp_ratio"],
        patch=SETTINGS["patch_size"],
        frames=SETTINGS["num_frames"],
        size=SETTINGS["img_size"],
        pool_heads=SETTINGS["attn_pool_num_heads"],
        features=SETTINGS["clip_embed_dim"],
        budgets=tuple(range(len(heads), 0, -1)),
    )
    model = host.build(SETTINGS["num_classes"])
    model.load_state_dict(fluxvit.from_official(CASES["tiny"]))
    return model.eval().requires_grad_(False)


def sequences(x_SLD: Tensor) -> Tokens:
    return embedded(x_SLD[:, :, None], (x_SLD.shape[1], 1, 1))


def check_attention(case: Case) -> None:
    tokens = sequences(case["in"])
    out_ND, seen = tiny().blocks[1].attn(tokens.x_ND, tokens, "map")
    close(tokens.per_sequence(out_ND), case["out"])
    close(seen.map_SLL, case["probs"].mean(dim=1))  # ours is a mean over the heads
    fast_ND, _ = tiny().blocks[1].attn(tokens.x_ND, tokens, None)
    close(tokens.per_sequence(fast_ND), case["out"])


def check_pools(case: Case) -> None:
    for head, official in enumerate(case["out"]):
        close(tiny().pool(sequences(case["in"]), head), official)


def check_pools_of_ragged_tokens(case: Case) -> None:
    tokens = sequences(case["in"]).replace(layout=Layout.RAGGED)
    for head, official in enumerate(case["out"]):
        close(tiny().pool(tokens, head), official)


def check_aligners(case: Case) -> None:
    for head, official in enumerate(case["out"], start=1):
        close(tiny().pool.aligned(case["in"], head), official)


def chain(case: Case) -> tuple[flux.Config, ...]:
    budget = int(case["budget"])
    return () if budget < 0 else (flux.Config(budget=budget, official_count=True),)


def encoded(case: Case) -> Tokens:
    model = tiny()
    return model.encode(pixels(case["clip_u8"]), model.chain(chain(case)), None, Trace())


def check_tokens(case: Case) -> None:
    model = tiny()
    tokens = model.embed(pixels(case["clip_u8"]), model.chain(chain(case)), None, Trace())
    assert_same_tokens(tokens, case["dropmask"])


def check_logits(case: Case) -> None:
    for head, official in enumerate(case["logits"]):
        close(tiny()(pixels(case["clip_u8"]), chain(case), head=head), official)


def check_features(case: Case) -> None:
    for head, official in enumerate(case["feat"]):
        close(tiny().pool(encoded(case), head), official)


def check_aligned_features(case: Case) -> None:
    pool, tokens = tiny().pool, encoded(case)
    for head, official in enumerate(case["proj"], start=1):
        close(pool.aligned(pool(tokens, head), head), official)


# The loss, the grids of training, the frames of evaluation.


def check_alignment(case: Case) -> None:
    """A student and its loss, or some of both."""
    students, expected = case["student"], case["align"]
    several = zip(students, expected, strict=True) if expected.ndim else [(students, expected)]
    for student, loss in several:
        close(losses.alignment(student, case["teacher"]), loss, 1e-6)


def check_alignment_of_far_vectors(case: Case) -> None:
    """Some differences are above 1, where the loss is linear."""
    ours = losses.alignment(case["student_small"], case["teacher_small"])
    close(ours, case["align_small"], 1e-6)


def shapes_of(case: Case) -> tuple[clips.Shape, ...]:
    frames, sizes, least_and_most = case["cfg"][:3], case["cfg"][3:6], case["cfg"][6:8]
    least, most = least_and_most.tolist()
    grids = clips.Grids(
        frames=tuple(range(*frames.tolist())),
        sizes=tuple(range(*sizes.tolist())),
        least=least,
        most=most,
    )
    return grids.legal(fluxvit.Config().patch)


def check_legal_shapes(case: Case) -> None:
    assert [list(shape) for shape in shapes_of(case)] == case["legal"].tolist()


def check_drawn_shapes(case: Case) -> None:
    """What the official sampler drew is legal for ours too, and one shape a batch."""
    legal = {shape[:2] for shape in shapes_of(case)}
    for batch in case["seq"].split(int(case["cfg"][9])):
        (shape,) = {(time, size) for _, time, size in batch.tolist()}
        assert shape in legal


def check_frames(case: Case) -> None:
    """A row: frames of the video and of the clip, views (-1: validation), view, then the frames."""
    for num_frames, length, views, view, *frames in case["table"].tolist():
        start = clips.View(0, 1) if views < 0 else clips.View(view, views)
        spec = clips.Config(frames=length, sampling="segments")
        assert clips.frame_indices(num_frames, spec, start) == frames[:length]


# The kind of case that each check reads, and its fields. "" is the array of the case's own name.
SELECTION = {"importance", "budgets", "dropmask"}
FORWARD = {"clip_u8", "budget"}
CHECKS: dict[Callable[[Case], None], tuple[str, set[str]]] = {
    check_importance: (r"(sel|pix)\d+", SELECTION),
    check_groups: (r"sel\d+", {"grid"}),
    check_kept_tokens: (r"(sel|pix)\d+", SELECTION),
    check_kept_tokens_of_the_official_run_without_ties: (
        r"(sel|pix)\d+",
        {*SELECTION, "dropmask_asrun", "tie"},
    ),
    check_counts: (r"(sel|pix)\d+", {*SELECTION, "kept"}),
    check_kept_table: (r"kept", {"table"}),
    check_embedding: (r"pix\d+", {"clip_u8", "embed"}),
    check_grid_code: (r"sincos3d_\d+", {"", "args"}),
    check_frame_code: (r"sincos2d", {"", "args"}),
    check_axis_code: (r"sincos1d", {"", "args"}),
    check_positions: (r"pos\d+", {"", "grid"}),
    check_attention: (r"attn", {"in", "out", "probs"}),
    check_pools: (r"pool", {"in", "out"}),
    check_pools_of_ragged_tokens: (r"pool", {"in", "out"}),
    check_aligners: (r"aligner", {"in", "out"}),
    check_tokens: (r"fwd\d+", {*FORWARD, "dropmask"}),
    check_logits: (r"fwd\d+", {*FORWARD, "logits"}),
    check_features: (r"fwd\d+", {*FORWARD, "feat"}),
    check_aligned_features: (r"fwd\d+", {*FORWARD, "proj"}),
    check_alignment: (r"loss", {"student", "teacher", "align"}),
    check_alignment_of_far_vectors: (r"loss", {"student_small", "teacher_small", "align_small"}),
    check_legal_shapes: (r"sampler\d+", {"cfg", "legal"}),
    check_drawn_shapes: (r"sampler\d+", {"cfg", "seq"}),
    check_frames: (r"frameidx", {"table"}),
}

CASES, SETTINGS = read(FILE) if FILE.exists() else ({}, {})
ITEMS = [
    pytest.param(check, case, id=f"{name}-{check.__name__.removeprefix('check_')}")
    for name, case in CASES.items()
    for check, (kind, fields) in CHECKS.items()
    if re.fullmatch(kind, name) and case.keys() >= fields
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
