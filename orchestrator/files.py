"""Writing files so that a reader, after any crash, finds the old content or the new, whole."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from pathlib import Path
from typing import Any


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file at once: written beside it, flushed, renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:  # Any: JSON
    """Replace a JSON file at once."""
    write_bytes(path, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())


def read_json(path: Path) -> Any:  # Any: JSON
    """Return the content of a JSON file."""
    return json.loads(path.read_text())


def create(path: Path, content: bytes) -> bool:
    """Create a file with its whole content unless it exists; say whether it was created."""
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    write_bytes(beside, content)
    try:
        os.link(beside, path)  # fails where the name is taken: the first wins
    except FileExistsError:
        return False
    finally:
        beside.unlink()
    return True


def sha256(path: Path) -> str:
    """Return the hash of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
