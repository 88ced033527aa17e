"""Evaluation: metrics come from its table, and a clip's row from the clip alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from movies import movies
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from workloads import augment, clips, cost, evaluate, finetune, optim
from workloads.clips import seed_of
from workloads.mistakes import Mistake
from workloads.models import fluxvit, videomae
from workloads.reducers import drop, flux, rlt, tome
from workloads.stage import Input, Quiet

TRAINING = finetune.Config(
    model=videomae.Config(dim=16, depth=2, heads=2, patch=4, frames=4, size=16),
    clip=clips.Config(frames=4, stride=2.0, size=16),
    reducers=(rlt.Config(encode_length=True),),
    optim=optim.Config(lr=1e-2),
    steps=40,
    batch=6,
)
CONFIG = evaluate.Config(clip=TRAINING.clip)
CLIPS = movies(val=7, test=4)
CHAINS: dict[str, tuple[Any, ...]] = {
    "dense": (),
    "drop": (drop.Config(keep=0.4),),
    "rlt": (rlt.Config(tau=0.1),),
    "rlt with lengths": TRAINING.reducers,
    "tome": (tome.Config(r=8),),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Input:
    """A training that was done and published."""
    path = tmp_path_factory.mktemp("stage") / "weights.safetensors"
    result = finetune.run(TRAINING, CLIPS, {}, Quiet())
    save_file(result.weights, path)
    return Input(TRAINING, path)


def measure(trained: Input, **changes: Any) -> tuple[dict[str, float], pa.Table]:
    result = evaluate.run(replace(CONFIG, **changes), CLIPS, {"weights": trained}, Quiet())
    return result.metrics, result.clips


def view_of(view: int) -> torch.Tensor:
    """Return the val clips from a quarter (0) or three quarters (1) of the way, normalised."""
    ids = CLIPS.splits["val"]
    raw = CLIPS.load(ids, CONFIG.clip, [(0.25, 0.75)[view]] * len(ids))
    return augment.normalise(raw, TRAINING.model.mean, TRAINING.model.std)


def logits_of(table: pa.Table) -> torch.Tensor:
    return torch.tensor(table["logits"].to_pylist())


@pytest.mark.parametrize("name", CHAINS)
def test_metrics_are_those_of_the_table(trained: Input, name: str) -> None:
    metrics, table = measure(trained, reducers=CHAINS[name])
    assert table["clip"].to_pylist() == [CLIPS.names[i] for i in CLIPS.splits["val"]]
    label_B = torch.tensor(table["label"].to_pylist())
    assert label_B.tolist() == [CLIPS.labels[i] for i in CLIPS.splits["val"]]
    hits_B = logits_of(table).argmax(dim=1) == label_B
    assert metrics["val/top1"] == pytest.approx(hits_B.double().mean().item())
    assert metrics["val/top5"] == 1.0  # of two classes
    by_class = [hits_B[label_B == label].double().mean() for label in (0, 1)]
    assert metrics["val/mean_class"] == pytest.approx(float(sum(by_class) / 2))
    loss = F.cross_entropy(logits_of(table), label_B)
    assert metrics["val/loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert metrics["cost/gmacs"] == pytest.approx(np.mean(table["gmacs"].to_pylist()))
    assert metrics["cost/tokens"] == pytest.approx(np.mean(table["tokens"].to_pylist()))
    parts = [metrics[f"cost/{part}_gmacs"] for part in cost.PARTS]
    assert metrics["cost/gmacs"] == pytest.approx(sum(parts))


def test_a_trained_model_is_better_than_a_guess(trained: Input) -> None:
    assert measure(trained, reducers=CHAINS["rlt with lengths"])[0]["val/top1"] > 0.5


@pytest.mark.parametrize("name", CHAINS)
def test_a_row_does_not_depend_on_the_batch(trained: Input, name: str) -> None:
    """Random drop included: its draw belongs to the clip."""
    tables = [measure(trained, reducers=CHAINS[name], batch=batch)[1] for batch in (1, 3, 32)]
    for table in tables[1:]:
        for column in ("clip", "label", "tokens", "gmacs"):
            assert table[column].to_pylist() == tables[0][column].to_pylist()
        # Rounding of packs of other lengths.
        torch.testing.assert_close(logits_of(table), logits_of(tables[0]), rtol=0, atol=1e-5)


def test_random_drop_draws_anew_for_each_clip_and_seed(trained: Input) -> None:
    """Twice the same frames: two clips, two draws; a third draw with another seed."""
    twins = replace(CLIPS, frames_of=lambda clip_id: movies().frames_of(clip_id % 2))
    config = replace(CONFIG, reducers=CHAINS["drop"])
    first, again, other = (
        logits_of(evaluate.run(c, twins, {"weights": trained}, Quiet()).clips)
        for c in (config, config, replace(config, seed=1))
    )
    assert torch.equal(first, again)
    assert not torch.allclose(first[0], first[2], atol=1e-4)
    assert not torch.allclose(first, other, atol=1e-4)


@pytest.mark.parametrize("name", CHAINS)
def test_tokens_and_macs_are_those_of_one_view(trained: Input, name: str) -> None:
    """Two views double the work, not the cost that is reported: their mean."""
    _, table = measure(trained, reducers=CHAINS[name], views=2)
    model, ids = TRAINING.model.build(2, TRAINING.reducers), CLIPS.splits["val"]
    gmacs_VB, tokens_VB = [], []
    for view in range(2):
        seeds = [seed_of(CONFIG.seed, view, clip_id) for clip_id in ids]
        _, trace = model.traced(view_of(view), CHAINS[name], seeds=seeds)
        gmacs_VB.append(sum(cost.macs_by_clip(trace).values()) / 1e9)
        tokens_VB.append(cost.tokens_by_clip(trace))
    assert table["tokens"].to_pylist() == pytest.approx(np.mean(tokens_VB, axis=0).tolist())
    assert table["gmacs"].to_pylist() == pytest.approx(np.mean(gmacs_VB, axis=0).tolist())


def test_views_are_averaged_as_probabilities(trained: Input) -> None:
    _, table = measure(trained, views=2)
    model = TRAINING.model.build(2, TRAINING.reducers).eval()
    model.load_state_dict(load_file(trained.weights))
    shares = [model(view_of(view), ()).softmax(dim=1) for view in range(2)]
    expected = (shares[0] + shares[1]) / 2
    torch.testing.assert_close(logits_of(table).softmax(dim=1), expected, rtol=0, atol=1e-5)


def test_dense_cost_is_that_of_the_cost_module(trained: Input) -> None:
    metrics, table = measure(trained)
    model = TRAINING.model.build(2)
    dense = cost.macs(model, torch.zeros(1, 3, 4, 16, 16))["total"] / 1e9
    assert table["gmacs"].to_pylist() == pytest.approx([dense] * 7)
    assert metrics["cost/tokens"] == 32


def test_a_model_can_see_other_clips_than_it_was_trained_on(trained: Input) -> None:
    longer = replace(CONFIG.clip, frames=6, size=24)
    metrics, _ = measure(trained, clip=longer)
    assert metrics["cost/tokens"] == 3 * 6 * 6


def test_the_split_of_the_config_is_evaluated(trained: Input) -> None:
    metrics, table = measure(trained, split="test")
    assert "test/top1" in metrics
    assert "val/top1" not in metrics
    assert table["clip"].to_pylist() == [CLIPS.names[i] for i in CLIPS.splits["test"]]


def test_half_precision_is_near_single_and_not_the_same(trained: Input) -> None:
    single, half = (logits_of(measure(trained, precision=p)[1]) for p in ("float32", "bfloat16"))
    # Eight bits a number.
    torch.testing.assert_close(half, single, rtol=0.05, atol=0.1)
    assert not torch.equal(half, single)


def test_training_goes_on_as_before_after_an_evaluation_in_the_same_process(
    trained: Input,
) -> None:
    """Evaluation runs without autograd; nothing that it leaves in memory may stop a training."""
    unseen = replace(TRAINING.clip, frames=10, stride=1.0, size=12)  # a grid of no other test
    spec = replace(TRAINING, steps=2, clip=unseen, reducers=())
    measure(trained, clip=unseen)
    assert np.isfinite(finetune.run(spec, CLIPS, {}, Quiet()).metrics["train/loss"])


@pytest.mark.parametrize("wrong", [{"views": 0}, {"batch": 0}])
def test_evaluations_of_nothing_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(Mistake, match="must be 1 or more"):
        evaluate.Config(clip=TRAINING.clip, **wrong)


# A host with a head for each budget, clips that span their video.

FLUX = finetune.Config(
    model=fluxvit.Config(
        dim=16,
        depth=2,
        heads=2,
        patch=4,
        frames=6,
        size=16,
        budgets=(96, 32),
        pool_heads=4,
        features=24,
        layer_scale=1.0,
    ),
    clip=clips.Config(frames=6, size=16, sampling="segments"),
)


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Input:
    path = tmp_path_factory.mktemp("heads") / "weights.safetensors"
    save_file(FLUX.model.build(2).state_dict(), path)
    return Input(FLUX, path)


@pytest.mark.parametrize("head", [0, 1])
def test_the_head_of_the_config_is_read_on_one_frame_of_each_part(
    untrained: Input, head: int
) -> None:
    """Also on a clip of another grid than that of training."""
    spec = replace(FLUX.clip, frames=8, size=12)
    reducers = (flux.Config(budget=32),)
    config = evaluate.Config(clip=spec, reducers=reducers, head=head)
    table = evaluate.run(config, CLIPS, {"weights": untrained}, Quiet()).clips
    # 12 frames, parts of 11 / 8: no whole frame to their middle.
    chosen = [round(11 / 8 * i) for i in range(8)]
    first = CLIPS.splits["val"][0]
    frames_THWC = clips.fit(CLIPS.frames_of(first)[chosen], spec)
    raw = torch.from_numpy(frames_THWC)[None].permute(0, 4, 1, 2, 3)
    pixels = augment.normalise(raw, FLUX.model.mean, FLUX.model.std)
    expected = FLUX.model.build(2)(pixels, reducers, head=head)
    torch.testing.assert_close(logits_of(table)[:1], expected.detach())
    assert set(table["tokens"].to_pylist()) == {32.0}


@pytest.mark.parametrize("head", [-1, 2])
def test_a_head_that_is_not_there_is_refused(untrained: Input, head: int) -> None:
    config = evaluate.Config(clip=FLUX.clip, head=head)
    with pytest.raises(Mistake, match=f"head={head} of a model with 2"):
        evaluate.run(config, CLIPS, {"weights": untrained}, Quiet())
