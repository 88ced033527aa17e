"""A stretch of a split: disjoint, in an order of its own, and no worse for being put together."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from movies import movies
from safetensors.torch import save_file

from workloads import clips, evaluate, finetune, shelf
from workloads.evaluate import stretch
from workloads.mistakes import Mistake
from workloads.models import videomae
from workloads.reducers import drop, rlt
from workloads.stage import Input, Quiet, Result

CLIPS = movies(val=21, test=4)
TRAINING = finetune.Config(
    model=videomae.Config(dim=16, depth=2, heads=2, patch=4, frames=4, size=16),
    clip=clips.Config(frames=4, stride=2.0, size=16),
    steps=1,
    batch=4,
)
CONFIG = evaluate.Config(clip=TRAINING.clip, batch=4)
ENDS = (0.0, 1 / 16, 1 / 8, 1 / 3, 1.0)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Input:
    path = tmp_path_factory.mktemp("stage") / "weights.safetensors"
    save_file(dict(TRAINING.model.build(2, (), 3).state_dict()), path)
    return Input(TRAINING, path)


def run(source: Input, config: evaluate.Config) -> Result:
    return evaluate.run(config, CLIPS, {"weights": source}, Quiet())


@pytest.mark.parametrize("num", [1, 2, 16, 17, 399, 400])
def test_stretches_that_touch_share_no_clip_and_leave_none_out(num: int) -> None:
    ids, names = range(5, 5 + num), [f"clip{i}" for i in range(5 + num)]
    parts = [stretch(ids, names, share) for share in pairwise(ENDS)]
    assert sorted(i for part in parts for i in part) == list(ids)
    assert len(parts[0]) == -(-num // 16)


def test_the_order_is_that_of_the_names_alone() -> None:
    names = [f"clip{i}" for i in range(40)]
    one = stretch(range(40), names, (0, 0.3))
    turned = stretch(range(40), names[::-1], (0, 0.3))
    assert {names[i] for i in one} == {names[::-1][i] for i in turned}
    assert one != tuple(range(12)), "shuffled: files lie by class"


@pytest.mark.parametrize("chain", [(), (rlt.Config(tau=0.1),), (drop.Config(keep=0.5),)])
def test_stretches_put_together_are_the_whole(source: Input, chain: tuple[object, ...]) -> None:
    config = replace(CONFIG, reducers=chain)
    whole = run(source, config)
    parts = [run(source, replace(config, share=share)) for share in pairwise(ENDS)]
    together = evaluate.columns_of([part.clips for part in parts])
    expected = evaluate.columns_of([whole.clips])
    for name in ("clip", "label", "tokens", "macs"):
        assert (together[name] == expected[name]).all(), name
    # Rounding of other batches.
    logits = [torch.from_numpy(columns["logits"]) for columns in (together, expected)]
    torch.testing.assert_close(*logits, rtol=0, atol=1e-5)
    metrics = evaluate.metrics_of(together, "val")
    assert metrics == pytest.approx(whole.metrics, abs=1e-5)
    assert metrics["val/clips"] == 21
    assert metrics["val/top1"] == whole.metrics["val/top1"]


def test_a_stretch_without_clips_is_refused(source: Input) -> None:
    with pytest.raises(Mistake, match="no clip of val lies in share"):
        run(source, replace(CONFIG, share=(0.01, 0.02)))


@pytest.mark.parametrize("share", [(0.5, 0.5), (0.5, 0.25), (-0.1, 1.0), (0.0, 1.1)])
def test_a_share_that_is_no_stretch_is_refused(share: tuple[float, float]) -> None:
    with pytest.raises(Mistake, match="must rise"):
        replace(CONFIG, share=share)


def test_clips_are_prepared_once_for_many_chains(source: Input) -> None:
    counted = []
    own = replace(CLIPS, frames_of=lambda i: (counted.append(i), CLIPS.frames_of(i))[1])
    for keep in (0.3, 0.5, 0.9):
        config = replace(CONFIG, reducers=(drop.Config(keep=keep),))
        evaluate.run(config, own, {"weights": source}, Quiet())
    assert sorted(counted) == sorted(own.ids("val"))
    assert shelf.of(own).passes
