"""Two processes on one stage come to what one process comes to."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from movies import movies
from safetensors.torch import load_file, save_file

from workloads import augment, clips, evaluate, finetune, optim
from workloads.branches import Branch
from workloads.mistakes import Mistake
from workloads.models import fluxvit, videomae
from workloads.reducers import drop, flux, rlt, tome
from workloads.stage import Input, Quiet, Result

TRAINING = finetune.Config(
    model=videomae.Config(dim=16, depth=2, heads=2, patch=4, frames=4, size=16),
    clip=clips.Config(frames=4, stride=2.0, size=16),
    augment=augment.Config(crop=0.7, flip=0.5),
    optim=optim.Config(lr=1e-3),  # Adam makes steps of this size of a gradient of rounding errors
    steps=6,
    batch=4,
)
CHAINS: dict[str, tuple[Any, ...]] = {
    "dense": (),
    "rlt": (rlt.Config(tau=0.1, encode_length=True),),
    "tome": (tome.Config(r=10),),
    "drop": (drop.Config(keep=0.5),),
    "budgets": (),
}
BUDGETS = replace(
    TRAINING,
    model=fluxvit.Config(
        dim=16, depth=2, heads=2, patch=4, frames=8, size=16, budgets=(96, 64, 32), pool_heads=4,
        features=24, layer_scale=1.0,
    ),
    clip=clips.Config(frames=8, size=16, sampling="segments"),
    grids=clips.Grids(frames=(6, 8), sizes=(16, 20), least=96),
    # The third head and its aligner idle.
    branches=tuple(
        Branch(reducers=(flux.Config(budget=b),), head=i) for i, b in ((0, 96), (1, 64))
    ),
)  # fmt: skip
# What shifts all keys of a pool alike changes nothing: gradients are rounding errors and no more.
SHIFTS = (".k.bias", ".norm_k.bias")
# 5 clips, in batches of 2: one rank has 3 of them in two batches, the other 2 in one.
MEASURE = evaluate.Config(clip=TRAINING.clip, batch=2)
CLIPS = movies(train=10, val=5)


def training_of(name: str) -> finetune.Config:
    return BUDGETS if name == "budgets" else replace(TRAINING, reducers=CHAINS[name])


class Together(Quiet):
    """A report that all ranks make at once, like that of a group."""

    def __init__(self) -> None:
        self.line = dist.new_group(backend="gloo")

    def step(self, done: int, total: int, metrics: Any, state: Any = None) -> None:
        dist.barrier(self.line)


def both(training: finetune.Config, folder: Path, report: Quiet) -> Result:
    """Train, then evaluate under the same chain."""
    trained = finetune.run(training, CLIPS, {}, report)
    assert trained.weights is not None
    path = folder / "weights.safetensors"
    save_file(trained.weights, path)
    config = replace(MEASURE, clip=training.clip, reducers=training.reducers)
    return evaluate.run(config, CLIPS, {"weights": Input(training, path)}, report)


def work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        f"file://{folder}/meeting",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=30),
    )
    for name in CHAINS:
        mine = folder / name / str(rank)
        mine.mkdir(parents=True)
        result = both(training_of(name), mine, Together())
        torch.save(result.clips.to_pydict(), mine / "clips.pt")
    with pytest.raises(Mistake, match="batch=5 must be a multiple of the ranks"):
        finetune.run(replace(TRAINING, batch=5), CLIPS, {}, Quiet())
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(work, (folder,), nprocs=2)
    return folder


@pytest.mark.parametrize("name", CHAINS)
def test_two_ranks_equal_one_up_to_rounding(name: str, two_ranks: Path, tmp_path: Path) -> None:
    alone = both(training_of(name), tmp_path, Quiet()).clips.to_pydict()
    expected = load_file(tmp_path / "weights.safetensors")
    for rank in "01":
        folder = two_ranks / name / rank
        for key, weight in load_file(folder / "weights.safetensors").items():
            if not key.endswith(SHIFTS):
                torch.testing.assert_close(weight, expected[key], atol=1e-4, rtol=1e-4)
        found = torch.load(folder / "clips.pt", weights_only=True)
        assert found["clip"] == alone["clip"]  # each once, in order
        assert found["label"] == alone["label"]
        assert found["tokens"] == alone["tokens"]
        logits = torch.tensor(found["logits"]), torch.tensor(alone["logits"])
        torch.testing.assert_close(*logits, atol=1e-3, rtol=1e-3)
