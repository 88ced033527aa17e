"""What the README shows works."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from workloads import composition
from workloads.models import videomae
from workloads.reducers.base import Chain

README = Path(__file__).resolve().parents[1] / "README.md"
HOST = videomae.Config(dim=16, depth=2, heads=2, patch=4, frames=8, size=16)


@pytest.fixture
def sparse(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    module = ModuleType("workloads.reducers.sparse")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(code, str(README), "exec"), module.__dict__)
    return module


def test_the_reducer_of_the_readme_keeps_every_nth_tubelet(sparse: ModuleType) -> None:
    clip_BCTHW = torch.randn(2, 3, 8, 16, 16)
    model = HOST.build(3)
    _, trace = model.traced(clip_BCTHW, (sparse.Config(every=2),))
    assert {visit.lengths for visit in trace.visits if visit.part == "attention"} == {(32, 32)}
    off = Chain((sparse.Config.off(),), model.host)
    assert torch.equal(model(clip_BCTHW, off), model(clip_BCTHW))


def test_its_table_of_chains_is_what_can_be_built() -> None:
    assert composition.table() in README.read_text()


def test_its_pictures_are_there_and_small() -> None:
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", README.read_text())
    assert pictures
    assert all((README.parent / name).stat().st_size < 500_000 for name in pictures)
