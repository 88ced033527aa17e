"""Data sets of files that only look like videos: a manifest never decodes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

MakeFiles = Callable[..., Path]


@pytest.fixture
def make_files(tmp_path: Path) -> MakeFiles:
    """Return a function that writes files below a folder, each with its path as content."""

    def make(*paths: str, root: str = "data") -> Path:
        folder = tmp_path / root
        folder.mkdir(exist_ok=True)
        for path in paths:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(path)
        return folder

    return make
