"""Whatever a point is made of, its folder gives the logits of its two stages; no study is run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny import study

from orchestrator import stages
from orchestrator.export import Source, write
from orchestrator.files import read_json
from orchestrator.ledger import Record
from orchestrator.store import Store
from workloads import cache, clips, finetune, pretrained
from workloads.cache import Entry
from workloads.datasets import load, synthetic
from workloads.reducers import base, drop, inti, rlt, tome

SIDE = 64
INTI = inti.Config(halve_after=(1,), weights="softmax")
LENGTHS = rlt.Config(tau=0.1, encode_length=True)

Chain = tuple[base.Config, ...]


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The frame cache of the tiny study's clips."""
    config, folder = study().data, tmp_path_factory.mktemp("cache")
    assert config is not None
    manifest = load(synthetic.write(config, folder / "videos"), trains=True)
    wanted = [
        Entry(clip=i, name=clip.path, label=manifest.labels[i], split=clip.split, key=f"key{i}")
        for i, clip in enumerate(manifest.clips)
    ]
    cache.make(folder, manifest.root, wanted, SIDE, manifest.classes)
    return folder


def source_of(frames: Path, store: Store, trained: Chain, evaluated: Chain, how: Any) -> Source:
    """Train and evaluate, here and now; return where the parts lie."""
    train, measure = study().stages
    assert isinstance(train.config, finetune.Config)
    train = replace(train, config=replace(train.config, steps=3, reducers=trained))
    config = replace(measure.config, reducers=evaluated, **how)
    plan = replace(measure, config=config, inputs=(("weights", train),))
    launch = stages.in_process(clips.open_clips(frames), "digest", store)
    keys = stages.run(plan, "digest", store, launch).keys
    training, evaluation = map(store.find, keys)
    assert training is not None
    assert evaluation is not None
    return Source(
        record=Record(
            trial=1, role="trial", params={}, values={}, state="complete", stage_keys=keys
        ),
        training=training,
        evaluation=evaluation,
        trained=read_json(training.folder / "config.json"),
        evaluated=read_json(evaluation.folder / "config.json"),
        frames=frames,
        short_side=SIDE,
    )


@pytest.mark.parametrize(
    ("trained", "evaluated", "how"),
    [
        pytest.param((INTI,), (INTI,), {}, id="learned"),
        pytest.param((INTI,), (), {}, id="what was learned is left behind"),
        pytest.param((LENGTHS,), (replace(LENGTHS, tau=0.3),), {"views": 2}, id="views"),
        pytest.param((), (drop.Config(keep=0.5),), {"seed": 5}, id="drawn"),
        pytest.param((), (tome.Config(r=8),), {"precision": "bfloat16", "batch": 3}, id="half"),
    ],
)
def test_a_folder_gives_the_logits_of_its_stages(
    frames: Path, tmp_path: Path, trained: Chain, evaluated: Chain, how: dict[str, Any]
) -> None:
    source = source_of(frames, Store(tmp_path / "store"), trained, evaluated, how)
    check = write(source, tmp_path / "out")
    assert check.is_close
    assert check.difference <= 1e-5  # on this machine half precision is as exact
    assert check.draws == (evaluated == (drop.Config(keep=0.5),))
    assert pretrained.load(tmp_path / "out").default == evaluated
