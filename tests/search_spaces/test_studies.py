"""Every study that comes with the package runs, in small; files that hold none are refused."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import search_spaces
from orchestrator import stages, store
from orchestrator.store import Store
from search_spaces import demo
from workloads import cache, clips, datasets
from workloads.clips import ClipSet
from workloads.datasets import synthetic
from workloads.mistakes import Mistake
from workloads.reducers import rlt

Data = tuple[ClipSet, str]
SHORT_SIDE = 32


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tensors are tiny here: a second thread costs more than it brings."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    """The clips of every smoke study, and the digest of their manifest."""
    config = demo.study().smoke().data
    assert config is not None
    folder = tmp_path_factory.mktemp("data")
    manifest = datasets.load(synthetic.write(config, folder / "clips"), trains=True)
    rows = enumerate(zip(manifest.clips, manifest.labels, strict=True))
    wanted = [cache.Entry(i, clip.path, label, clip.split, f"key{i}") for i, (clip, label) in rows]
    frames = folder / "frames"
    cache.make(frames, manifest.root, wanted, SHORT_SIDE, manifest.classes)
    return clips.open_clips(frames), manifest.digest


@pytest.mark.parametrize("name", search_spaces.available())
def test_a_study_is_what_its_file_says_and_can_run(name: str) -> None:
    study = search_spaces.load(name)
    assert study.name == name
    assert study.question == search_spaces.questions()[name]
    assert study.question.endswith("?")
    study.check()
    study.smoke().check()


@pytest.mark.parametrize("name", search_spaces.available())
def test_a_study_runs_in_small_with_everything_that_it_may_choose(
    name: str, data: Data, tmp_path: Path
) -> None:
    clip_set, digest = data
    study = search_spaces.load(name).smoke()
    store = Store.open(tmp_path / "store")
    launch = stages.in_process(clip_set, digest, store)
    plans = {study.plan(chosen) for chosen in ({}, *study.space.examples())}
    launched = []
    for plan in plans:
        outcome = stages.run(plan, digest, store, launch)
        assert all(math.isfinite(outcome.metrics[o.metric]) for o in study.objectives)
        assert outcome.keys == [stage.key(digest) for stage in plan.chain()]
        launched += [took["key"] for took in outcome.stages if not took["reused"]]
    assert {*launched} == {stage.key(digest) for plan in plans for stage in plan.chain()}
    assert len({*launched}) == len(launched), "a stage was run twice"
    again = [took for plan in plans for took in stages.run(plan, digest, store, launch).stages]
    assert all(took["reused"] for took in again)


def test_a_stage_is_shared_by_studies_that_need_it(data: Data, tmp_path: Path) -> None:
    clip_set, digest = data
    store = Store.open(tmp_path / "store")
    launch = stages.in_process(clip_set, digest, store)
    study = demo.study().smoke()
    dense = stages.run(study.plan({}), digest, store, launch)
    reduced = study.plan({"evaluate.reducers": (rlt.Config(),)})
    took = stages.run(reduced, digest, store, launch).stages
    assert [stage["reused"] for stage in took] == [True, False]
    assert took[0]["key"] == dense.keys[0]
    assert took[0]["seconds"] == dense.stages[0]["seconds"]


def test_a_stage_that_leaves_nothing_fails_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "PATIENCE_S", 0.2)  # no other machine takes part

    def idle(stage: object, key: str) -> dict[str, str]:
        return {"state": "done"}

    with pytest.raises(stages.StageFailed, match=r"finetune: .* result"):
        stages.run(demo.study().plan({}), "", Store.open(tmp_path), idle)


# Files that hold no study.


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("dmeo", 'no study "dmeo"; did you mean "demo"?\n  paretoken studies lists all'),
        ("rlt-tau", 'did you mean "rlt_tau"?'),
        ("quite-unlike", 'no study "quite-unlike"\n'),
        ("space", 'no study "space"'),
        ("nowhere/mine.py", 'no study file "nowhere/mine.py"'),
        ("./demo", 'no study file "demo"'),
        ("./README.md", "no Python file\n  its name must end in .py"),
    ],
)
def test_a_study_that_does_not_exist_is_named_with_the_nearest(name: str, words: str) -> None:
    with pytest.raises(Mistake) as refused:
        search_spaces.load(name)
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1", "has no study()\n  add `def study() -> Study` to it"),
        ("study = 1", "has no study()"),
        ("def study(): return 1", "study() returned a int"),
        ("def study(): pass", "study() returned a NoneType"),
        ("def study(:", "SyntaxError"),
        ("import nowhere_at_all", "ModuleNotFoundError: No module named 'nowhere_at_all'"),
        ("raise RuntimeError('first\\nthe moon is full')", "RuntimeError: the moon is full\n"),
        ("raise ValueError", "ValueError\n  mend the file"),
        ("import sys; sys.exit(3)", "SystemExit: 3\n  mend the file"),
        ("def study(): raise SystemExit", "SystemExit\n  mend study()"),
        ("def study(): raise KeyError('tide')", "KeyError: 'tide'\n  mend study()"),
        ("def study(x, y): return x", "TypeError: study() missing 1 required"),
    ],
)
def test_a_file_without_a_study_is_refused_with_its_last_line(
    text: str, words: str, tmp_path: Path
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(text)
    with pytest.raises(Mistake) as refused:
        search_spaces.load(str(file))
    assert words in str(refused.value)
    assert str(file) in str(refused.value)


def test_a_study_of_the_package_that_cannot_be_imported_is_refused_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken.py").write_text("import nowhere_at_all")
    monkeypatch.setattr(search_spaces, "__path__", [*search_spaces.__path__, str(tmp_path)])
    with pytest.raises(Mistake, match="broken: ModuleNotFoundError: No module"):
        search_spaces.load("broken")


def test_a_mistake_in_a_file_is_passed_on_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("from workloads.reducers import rlt\nrlt.Config(tau=-2)\n")
    with pytest.raises(Mistake, match=r"^rlt: tau=-2 must be 0 or more"):
        search_spaces.load(str(file))


def test_a_file_is_a_study_like_those_of_the_package(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("from search_spaces.demo import study\n")
    assert search_spaces.load(str(file)) == demo.study()
