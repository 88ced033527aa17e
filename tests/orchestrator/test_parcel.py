"""The command of a job says what was asked for, in words that no shell can misread."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
from heads import stand_in

from orchestrator import parcel
from orchestrator.__main__ import parser
from workloads.mistakes import Mistake


def asked(*words: str) -> Any:  # Any: an argparse.Namespace, whose fields have no types
    return parser().parse_args(["submit", *words])


def test_only_a_project_folder_is_shipped(tmp_path: Path) -> None:
    with pytest.raises(Mistake, match="ships the project folder"):
        parcel.command(asked("demo"), tmp_path)


def test_a_study_file_is_named_by_its_place_in_the_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = stand_in(tmp_path / "project")
    demo = "from search_spaces.demo import study as demo\ndef study():\n    return demo()\n"
    for folder in (root, tmp_path):
        (folder / "mine.py").write_text(demo)
    monkeypatch.chdir(root)
    for name in ("mine.py", "./mine.py", str(root / "mine.py")):
        assert "run ./mine.py" in parcel.command(asked(name), root)
    with pytest.raises(Mistake, match="not in the project folder"):
        parcel.command(asked("../mine.py"), root)


def test_every_word_from_outside_is_quoted(tmp_path: Path) -> None:
    root = stand_in(tmp_path / "project")
    words = ("--data", "/a b;c", "--store", "~/$(d)", "--tracking-uri", "`e`", "--ranks", "2")
    command = parcel.command(asked("demo", *words), root)
    split = shlex.split(command.replace("~/", "/home/"))
    assert split[:6] == ["python", "-m", "orchestrator", "run", "demo", "--address"]
    assert split[-4:] == ["--data", "/a b;c", "--store", "/home/$(d)"]
    assert split[split.index("--tracking-uri") + 1] == "`e`"
    assert split[split.index("--ranks") + 1] == "2"


def test_the_store_outlives_the_job_unless_told_otherwise(tmp_path: Path) -> None:
    root = stand_in(tmp_path / "project")
    assert parcel.command(asked("demo"), root).endswith(" --store ~/paretoken-store")
    given = parcel.command(asked("demo", "--model", "/m n"), root)
    assert "--model '/m n'" in given
