"""Pre-training: it learns, it resumes to the same bits, and ranks share it."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from movies import movies
from safetensors.torch import load_file, save_file
from test_finetune import Diary, same
from torch import Tensor

from workloads import augment, clips, decoder, finetune, losses, mae, optim, pretrain
from workloads.branches import Branch, Distil, encoded, taught_by
from workloads.clips import Order, seed_of
from workloads.mistakes import Mistake
from workloads.models import videomae
from workloads.reducers import drop, mats, rlt, tome
from workloads.stage import Input, Quiet, Result

CONFIG = pretrain.Config(
    model=videomae.Config(dim=16, depth=2, heads=2, patch=4, frames=4, size=16),
    clip=clips.Config(frames=4, stride=2.0, size=16),
    reducers=(mats.Config(keep=0.5),),
    visible_keep=0.2,
    decoder=decoder.Config(dim=12, depth=1, heads=3),
    optim=optim.Config(lr=1e-3, betas=(0.9, 0.95)),
    steps=4,
    batch=4,
)
CONFIGS = {
    "mats": CONFIG,
    "all": replace(CONFIG, reducers=()),
    "drop": replace(CONFIG, reducers=(drop.Config(),)),
    "rlt": replace(CONFIG, reducers=(rlt.Config(tau=0.1, encode_length=True),)),
    "half": replace(CONFIG, precision="bfloat16"),
}
CLIPS = movies()


def train(config: pretrain.Config, report: Quiet | None = None, **inputs: Input) -> Result:
    return pretrain.run(config, CLIPS, inputs, report or Quiet())


@pytest.mark.parametrize("name", CONFIGS)
def test_resuming_after_any_step_ends_with_the_same_bits(name: str) -> None:
    whole = Diary()
    expected = train(CONFIGS[name], whole)
    assert len(whole.states) == 4
    for state in whole.states[:-1]:
        rest = Diary(state)
        result = train(CONFIGS[name], rest)
        assert same(result.weights, expected.weights)
        assert result.metrics == expected.metrics
        assert rest.losses == whole.losses[state["done"] :]


def test_loss_falls() -> None:
    diary = Diary()
    config = replace(CONFIG, steps=60, batch=6, optim=replace(CONFIG.optim, lr=1e-2))
    train(config, diary)
    assert np.mean(diary.losses[-5:]) < 0.9 * np.mean(diary.losses[:5])


def test_the_first_loss_is_that_of_the_untrained_model_on_the_first_batch() -> None:
    """By hand: the seed of a clip gives its start in the video, its masks and random reducers."""
    config = replace(CONFIGS["drop"], augment=augment.Config(), steps=1, seed=3)
    places = Order(CLIPS.splits["train"], 4, seed=3).at(0)
    ids, seeds = [i for _, i in places], [seed_of(3, epoch, i) for epoch, i in places]
    raw = CLIPS.load(ids, config.clip, [np.random.default_rng(s).random() for s in seeds])
    pixels = augment.normalise(raw, config.model.mean, config.model.std)
    model = mae.build(config.model, config.reducers, config.decoder, 0.2, seed=3)
    loss = model(pixels, seeds).loss
    assert train(config).metrics["train/loss"] == pytest.approx(loss.item(), rel=1e-6)


def test_seeds_and_only_they_change_an_equal_training() -> None:
    first, again, other = (train(replace(CONFIG, seed=s)).weights for s in (0, 0, 1))
    assert same(first, again)
    assert not same(first, other)


def test_chain_and_precision_of_the_config_are_trained_with() -> None:
    weights = [train(CONFIGS[name]).weights for name in ("mats", "all", "drop", "half")]
    assert not any(same(weights[0], other) for other in weights[1:])
    assert all(weight.dtype == torch.float32 for weight in weights[-1].values())
    assert "learned.rlt.length_embed" in train(CONFIGS["rlt"]).weights


def test_metrics_tell_how_many_tokens_were_selected() -> None:
    diary = Diary()
    result = train(CONFIG, diary)
    assert result.metrics == {"train/loss": diary.losses[-1], "cost/tokens": 16, "train/steps": 4}
    assert train(CONFIGS["all"]).metrics["cost/tokens"] == 32
    assert 16 <= train(CONFIGS["rlt"]).metrics["cost/tokens"] < 32
    assert result.clips is None


def saved(weights: dict[str, Tensor] | None, path: Path) -> Input:
    assert weights is not None
    save_file(weights, path)
    return Input(CONFIG, path)


def test_a_fine_tuning_starts_from_its_encoder(tmp_path: Path) -> None:
    done = saved(train(CONFIG).weights, tmp_path / "weights.safetensors")
    tuning = finetune.Config(
        model=CONFIG.model, clip=CONFIG.clip, optim=optim.Config(lr=1e-9), steps=1, batch=4
    )
    tuned = finetune.run(tuning, CLIPS, {"weights": done}, Quiet()).weights
    before = load_file(done.weights)
    for name in ("patch_embed.proj.weight", "blocks.1.mlp.fc2.weight"):
        torch.testing.assert_close(tuned[name], before[name], rtol=0, atol=1e-6)
    assert not {name for name in tuned if name.startswith(("norm.", "decoder."))}


def test_a_pretraining_goes_on_from_another_one(tmp_path: Path) -> None:
    done = saved(train(CONFIG).weights, tmp_path / "weights.safetensors")
    still = replace(CONFIG, optim=optim.Config(lr=1e-12), steps=1, seed=5)
    after, before = train(still, weights=done).weights, load_file(done.weights)
    for name, weight in before.items():
        torch.testing.assert_close(after[name], weight, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"steps": 0}, "steps=0, batch=4 must be 1 or more"),
        ({"batch": 0}, "batch=0 must be 1 or more"),
        ({"visible_keep": 0.0}, "visible_keep=0.0 must be between 0 and 1"),
        ({"visible_keep": 1.0}, "visible_keep=1.0"),
        ({"reducers": (tome.Config(r=2),)}, "tome acts in block 0"),
        ({"clip": clips.Config(frames=2, size=16)}, "mats: 1 tubelet of 2 frames"),
        ({"clip": clips.Config(frames=5, size=16)}, "frames=5 must be a multiple"),
        ({"clip": clips.Config(frames=4, size=18)}, "18x18 px must be a multiple of the patch"),
    ],
)
def test_what_cannot_be_trained_is_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(Mistake, match=words):
        replace(CONFIG, **wrong).check()


# Two ranks.


def work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    limit = timedelta(seconds=30)
    dist.init_process_group("gloo", meeting, rank=rank, world_size=2, timeout=limit)
    for name in ("mats", "rlt"):
        result = train(CONFIGS[name])
        torch.save((result.weights, result.metrics["cost/tokens"]), folder / f"{name}-{rank}.pt")
    with pytest.raises(Mistake, match="batch=5 must be a multiple of the ranks"):
        train(replace(CONFIG, batch=5))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(work, (folder,), nprocs=2)
    return folder


@pytest.mark.parametrize("name", ["mats", "rlt"])
def test_two_ranks_equal_one_up_to_rounding(name: str, two_ranks: Path) -> None:
    """Also where their shares have unequal numbers of targets."""
    alone = train(CONFIGS[name])
    for rank in "01":
        weights, tokens = torch.load(two_ranks / f"{name}-{rank}.pt", weights_only=True)
        assert tokens == alone.metrics["cost/tokens"]
        for key, weight in weights.items():
            torch.testing.assert_close(weight, alone.weights[key], atol=1e-4, rtol=1e-4)


def test_a_student_learns_the_tokens_of_its_teacher(tmp_path: Path) -> None:
    """Card 4.4a, in pre-training: what it makes of visible tokens comes closer to the teacher's."""
    config = replace(CONFIG, steps=40, optim=replace(CONFIG.optim, lr=1e-2))
    source = finetune.Config(model=CONFIG.model, clip=CONFIG.clip, steps=1, batch=4, seed=5)
    weights = finetune.run(source, CLIPS, {}, Quiet()).weights
    assert weights is not None
    save_file(weights, tmp_path / "teacher.safetensors")
    teacher = Input(source, tmp_path / "teacher.safetensors")
    host = CONFIG.model
    clip_BCTHW = augment.normalise(
        CLIPS.load((12, 13), CONFIG.clip, [0.5] * 2), host.mean, host.std
    )
    gaps = []
    for weight in (0.0, 5.0):
        model = CONFIG.model.build(1)
        distilled = replace(config, distil=Distil(weight=weight, layers=2))
        finetune.adopt(model, train(distilled, teacher=teacher).weights or {})
        full = taught_by(teacher, model, 2)(clip_BCTHW)
        with torch.no_grad():
            mine = encoded(model.eval(), clip_BCTHW, Branch(), None, 2)
        gaps.append(float(losses.token_gap(mine.tokens, full.tokens)))
    assert gaps[1] < 0.7 * gaps[0]
