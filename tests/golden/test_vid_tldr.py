"""vid-TLDR against the official code (mlvlab/vid-TLDR @ a25051d), on vectors made with it.

A check needs some fields of a case and runs on every case that has them all, so cases are found in
the file and never named here; so are the merges of a case (`r0_`, `r1_`, ...) and the schedules of
a model (`main__`, ...). `PARETOKEN_GOLDEN` names another folder of vectors to read instead. Indices
and counts are exact; values within 1e-5, those that went through a whole model within 2e-5.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from workloads import merging, metrics
from workloads.attention import shown
from workloads.augment import normalise
from workloads.models import videomae
from workloads.reducers import vid_tldr
from workloads.reducers.base import Host, Seen
from workloads.tokens import Tokens
from workloads.trace import Trace
from workloads.vit import VideoTransformer

FOLDER = Path(os.environ.get("PARETOKEN_GOLDEN") or Path(__file__).parent / "vectors")
FILE = FOLDER / "vid_tldr.npz"

Case = dict[str, Tensor]


def read(file: Path) -> dict[str, Case]:
    """Return the fields of each case: `case__field`, weights as `w__name`."""
    cases: dict[str, Case] = defaultdict(dict)
    with np.load(file) as arrays:
        for key in arrays.files:
            name, _, field = key.partition("__")
            cases[name][field] = torch.from_numpy(np.asarray(arrays[key]))
    return cases


def part(case: Case, prefix: str) -> Case:
    """Return the fields of a case that begin alike, without their beginning."""
    return {f.removeprefix(prefix): v for f, v in case.items() if f.startswith(prefix)}


def close(ours: Tensor, official: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(ours, official, rtol=tolerance, atol=tolerance)


# Saliency of a map.


def sharpness_of(case: Case) -> Tensor:
    return vid_tldr.sharpness(shown(case["attn"]))


def check_sharpness(case: Case) -> None:
    close(sharpness_of(case), case["negent"])


def check_saliency(case: Case) -> None:
    close(vid_tldr.saliency(sharpness_of(case))[..., None], case["score"])


def check_saliency_with_the_official_clamp(case: Case) -> None:
    """A copy of the official code clamps the map: finite where it has zeros, and else the same."""
    close(vid_tldr.saliency(sharpness_of(case))[..., None], case["score_clamped"])


def check_uniform_map(case: Case) -> None:
    """No token is sharper than another: all count in full, and nothing is NaN."""
    saliency_SL = vid_tldr.saliency(sharpness_of(case))
    assert torch.equal(saliency_SL, torch.ones_like(saliency_SL))


# One merge of a case: `r_list` asked for, `r_eff` removed; none of its arrays where that is 0.


def plan_of(case: Case, k: int) -> merging.Plan:
    return vid_tldr.match(case["x"], case["r_list"][k].item(), bool(case["class_token"]))


def check_count(k: int, case: Case) -> None:
    assert plan_of(case, k).source_SR.shape[1] == case["r_eff"][k]


def check_indices(k: int, case: Case) -> None:
    """Official ones count even and odd tokens apart."""
    plan, official = plan_of(case, k), part(case, f"r{k}_")
    even_L, odd_L = torch.arange(case["x"].shape[1])[::2], torch.arange(case["x"].shape[1])[1::2]
    num_even = official["unm_idx"].shape[1]
    assert torch.equal(plan.kept_SK[:, :num_even], even_L[official["unm_idx"].long()])
    assert torch.equal(plan.kept_SK[:, num_even:], odd_L.expand(len(plan.kept_SK), -1))
    assert torch.equal(plan.source_SR, even_L[official["src_idx"].long()])
    into_SR = plan.kept_SK.gather(1, plan.into_SR)
    assert torch.equal(into_SR, odd_L[official["dst_idx"].long()])


def check_merge(k: int, case: Case) -> None:
    plan = plan_of(case, k)
    size_SL1 = case.get("size_in", torch.ones_like(case["x"][..., :1]))
    share_SR1 = vid_tldr.share(shown(case["attn"]), plan)
    x_SKD, size_SK1 = merging.merge_weighted(case["x"], size_SL1, plan, share_SR1)
    close(x_SKD, case[f"r{k}_x_out"])
    close(size_SK1, case[f"r{k}_size_out"])


def check_sources(k: int, case: Case) -> None:
    plan = plan_of(case, k)
    share_SR1 = vid_tldr.share(shown(case["attn"]), plan)
    close(merging.contributions([(plan, share_SR1)]), case[f"r{k}_source"])


# A whole video model, under each schedule that the file holds.


def pixels(case: Case) -> Tensor:
    host = videomae.Config()  # ImageNet mean and deviation
    return normalise(case["frames_u8"].permute(0, 4, 1, 2, 3), host.mean, host.std)


def model_of(case: Case) -> VideoTransformer:
    """Return our host with the official weights.

    The official end is a norm of each token and a plain mean: attention pooling with equal scores.
    """
    _, frames, side, patch, tubelet, dim, depth, heads = case["params"].tolist()
    host = videomae.Config(
        dim=dim,
        depth=depth,
        heads=heads,
        mlp_ratio=case["mlp_ratio"].item(),
        tubelet=tubelet,
        patch=patch,
        frames=frames,
        size=side,
        pool="attention",
    )
    model = host.build(1).eval().requires_grad_(False)
    equal = {"pool.score.weight": torch.zeros(1, dim), "pool.score.bias": torch.zeros(1)}
    head = {name: value for name, value in model.state_dict().items() if name.startswith("heads.")}
    official = {our_name(name): value for name, value in part(case, "w__").items()}
    model.load_state_dict(official | equal | head)
    return model


def our_name(official: str) -> str:
    return f"pool.{official}" if official.startswith("norm.") else official


Step = tuple[Tokens, Seen, Tokens, float]  # what entered a merge, what came out, how many it asked


class Watched(vid_tldr.Config):
    """The method, which also writes down each merge."""

    def build(self, host: Host) -> vid_tldr.SaliencyMerging:
        return Watcher(self, host)


class Watcher(vid_tldr.SaliencyMerging):
    def in_block(self, tokens: Tokens, seen: Seen, layer: int) -> Tokens:
        out = super().in_block(tokens, seen, layer)
        STEPS[layer] = (tokens, seen, out, self.asked[layer])
        return out


STEPS: dict[int, Step] = {}


def encoded(case: Case, sched: str) -> tuple[VideoTransformer, Tokens, Trace]:
    STEPS.clear()
    model, trace = model_of(case), Trace()
    chain = model.chain((Watched(ratio=0, counts=tuple(case[f"{sched}__r"].tolist())),))
    return model, model.encode(pixels(case), chain, None, trace), trace


def check_positions(case: Case) -> None:
    model = model_of(case)
    close(model.positions.on(model.host.grid(pixels(case))), case["pos_embed"])


def check_counts_of_tokens(sched: str, case: Case) -> None:
    _, _, trace = encoded(case, sched)
    left = [visit.lengths for visit in trace.visits if visit.part == "mlp"]
    official = case[f"{sched}__num_tokens"].tolist()
    assert left == [(num,) * len(case["frames_u8"]) for num in official]


def check_tokens(sched: str, case: Case) -> None:
    model, tokens, _ = encoded(case, sched)
    close(tokens.per_sequence(model.pool.norm(tokens.x_ND)), case[f"{sched}__tokens_out"], 2e-5)


def check_pooled(sched: str, case: Case) -> None:
    model, tokens, _ = encoded(case, sched)
    close(model.pool(tokens), case[f"{sched}__pooled"], 2e-5)


def check_saliency_of_each_layer(sched: str, case: Case) -> None:
    encoded(case, sched)
    official = {f: v for f, v in part(case, f"{sched}__l").items() if f.endswith("_score")}
    ours = {
        f"{layer}_score": vid_tldr.saliency(vid_tldr.sharpness(seen.map_SLL))[..., None]
        for layer, (_, seen, _, _) in STEPS.items()
    }
    assert ours.keys() == official.keys()
    for name, score_SL1 in ours.items():
        close(score_SL1, official[name], 2e-5)


def check_mass_of_each_layer(sched: str, case: Case) -> None:
    encoded(case, sched)
    official = {f: v for f, v in part(case, f"{sched}__l").items() if f.endswith("_size")}
    ours = {
        f"{i}_size": out.per_sequence(out.mass_N)[..., None] for i, (_, _, out, _) in STEPS.items()
    }
    assert ours.keys() == official.keys()
    for name, mass_SK1 in ours.items():
        close(mass_SK1, official[name], 2e-5)


def check_blocks(sched: str, case: Case) -> None:
    model, outputs = model_of(case), []
    for block in model.blocks:
        block.register_forward_hook(lambda block, inputs, out: outputs.append(out))
    chain = (vid_tldr.Config(counts=tuple(case[f"{sched}__r"].tolist())),)
    model(pixels(case), chain)
    for layer, tokens in enumerate(outputs):
        close(tokens.per_sequence(tokens.x_ND), case[f"{sched}__l{layer}_block_out"], 2e-5)


def check_sources_of_a_model(sched: str, case: Case) -> None:
    """The official trace is that of the first clip."""
    encoded(case, sched)
    merges = []
    for tokens, seen, _, asked in STEPS.values():
        plan = vid_tldr.match(tokens.per_sequence(tokens.x_ND), asked)
        merges.append((plan, vid_tldr.share(seen.map_SLL, plan)))
    official = case[f"{sched}__source"]
    close(merging.contributions(merges)[: len(official)], official, 2e-5)


# Retrieval.


def check_retrieval(case: Case) -> None:
    """Official figures are per cent, with two digits."""
    found = metrics.retrieval(case["scores_v2t"], case["scores_t2v"], case["text_to_video"])
    official = [f"{figure:.2f}%" for figure in case["metrics"].tolist()]
    assert [f"{figure:.2%}" for figure in found.values()] == official


def check_likeness(case: Case) -> None:
    temperature = case["temp"].item()
    close(metrics.likeness(case["video"], case["text"], temperature), case["sim_v2t"])


def check_contrastive_loss(case: Case) -> None:
    video_BD, text_BD, temperature = case["video"], case["text"], case["temp"].item()
    alone = metrics.contrastive(video_BD, text_BD, temperature)
    repeated = metrics.contrastive(video_BD, text_BD, temperature, case["idx"])
    close(alone.double(), case["loss_noidx"])
    close(repeated.double(), case["loss_idx"])


Check = Callable[[Case], None]

# What each check reads; of some of them there is one for each merge or schedule of a case.
CHECKS: dict[Check, set[str]] = {
    check_sharpness: {"attn", "negent"},
    check_saliency: {"attn", "score"},
    check_saliency_with_the_official_clamp: {"attn", "score_clamped"},
    check_uniform_map: {"attn", "official_all_nan"},
    check_positions: {"frames_u8", "params", "pos_embed"},
    check_retrieval: {"scores_v2t", "scores_t2v", "text_to_video", "metrics"},
    check_likeness: {"video", "text", "temp", "sim_v2t"},
    check_contrastive_loss: {"video", "text", "temp", "idx", "loss_idx", "loss_noidx"},
}
OF_A_MERGE: dict[Callable[[int, Case], None], str] = {
    check_count: "r_eff",
    check_indices: "r{}_src_idx",
    check_merge: "r{}_x_out",
    check_sources: "r{}_source",
}
OF_A_SCHEDULE: dict[Callable[[str, Case], None], str] = {
    check_counts_of_tokens: "{}__num_tokens",
    check_tokens: "{}__tokens_out",
    check_pooled: "{}__pooled",
    check_saliency_of_each_layer: "{}__r_eff",
    check_mass_of_each_layer: "{}__r_eff",
    check_blocks: "{}__l0_block_out",
    check_sources_of_a_model: "{}__source",
}


def items(name: str, case: Case) -> list[object]:
    """Return every check that a case has the fields for."""
    found = [(check, "") for check, fields in CHECKS.items() if case.keys() >= fields]
    merges = range(len(case["r_list"])) if "r_list" in case else ()
    models = [f.removesuffix("__r") for f in case if f.endswith("__r")]
    for kinds, places in ((OF_A_MERGE, merges), (OF_A_SCHEDULE, models)):
        for check, field in kinds.items():
            having = (place for place in places if field.format(place) in case)
            found += [(partial(check, place), f"-{place}") for place in having]
    return [
        pytest.param(check, case, id=f"{name}{place}-{called(check).removeprefix('check_')}")
        for check, place in found
    ]


def called(check: Check | partial[None]) -> str:
    return (check.func if isinstance(check, partial) else check).__name__


CASES = read(FILE) if FILE.exists() else {}
ITEMS = [item for name, case in CASES.items() for item in items(name, case)]


def test_file_holds_five_checks_or_more() -> None:
    assert FILE.exists(), f"{FILE} is missing"
    assert len(ITEMS) >= 5


@pytest.mark.parametrize(("check", "case"), ITEMS or [pytest.param(None, {}, id="none-found")])
def test_ours_gives_what_the_official_code_gives(check: Check | None, case: Case) -> None:
    assert check is not None, f"no case was found in {FILE}"
    check(case)
