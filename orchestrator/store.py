"""The store: what every stage left, by key. Equal work has an equal key and is done once.

    stages/<2>/<key>/attempt-<id>/{config.json, metrics.json, weights.safetensors, clips.parquet,
                                   checkpoint}
    stages/<2>/<key>/DONE      names the attempt that counts, with the hashes of its files
    stages/<2>/<key>/lock      held by the process that works on it

Each attempt writes into a folder of its own; publishing is the exclusive creation of DONE, so the
first attempt wins and a later one is waste, not corruption. Only success is published. A successor
of a killed attempt goes on from the newest whole checkpoint of any attempt.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pyarrow.parquet as pq
import torch
from safetensors.torch import save

from orchestrator.files import create, read_json, sha256, write_bytes, write_json
from orchestrator.lock import Lock
from workloads.mistakes import Mistake
from workloads.stage import Result, State

log = logging.getLogger(__name__)

VERSION = 1
LEAST_FREE_BYTES = 50 * 2**20
WEIGHTS = "weights.safetensors"
PATIENCE_S = 10.0  # how long what one machine wrote may take to be seen by another
_DIGEST_BYTES = 32
# What reading a marker raises that is no JSON, or JSON of another shape, or names what is no file.
_DAMAGE = (ValueError, KeyError, TypeError, AttributeError, NotADirectoryError, IsADirectoryError)

T = TypeVar("T")


@dataclass(frozen=True)
class Done:
    """A finished stage."""

    key: str
    folder: Path
    metrics: dict[str, float]
    seconds: float
    """Spent inside the stage, over all of its attempts."""
    device: str

    @property
    def weights(self) -> Path:
        """Where its weights lie, if it has any."""
        return self.folder / WEIGHTS


@dataclass
class Attempt:
    """One try at a stage, in a folder of its own."""

    key: str
    root: Path
    """Folder of the stage."""
    name: str = field(default_factory=lambda: f"attempt-{uuid.uuid4().hex[:12]}")

    @property
    def folder(self) -> Path:
        """Folder of this attempt."""
        return self.root / self.name

    def save(self, state: State) -> None:
        """Replace the checkpoint of this attempt: one object, its hash in front."""
        buffer = io.BytesIO()
        torch.save(state, buffer)
        payload = buffer.getvalue()
        content = hashlib.sha256(payload).digest() + payload
        self._unless_done(lambda: write_bytes(self.folder / "checkpoint", content))

    def newest(self) -> State | None:
        """Return the checkpoint that is furthest on, of any attempt; a torn one is passed over."""
        states = [_read_checkpoint(path) for path in self.root.glob("attempt-*/checkpoint")]
        whole = [state for state in states if state is not None]
        return max(whole, key=lambda state: int(state["done"]), default=None)

    def publish(self, result: Result, config: Any, facts: dict[str, Any]) -> None:  # Any: JSON
        """Write what the stage left and make it count, unless an equal attempt was first."""
        if not self._unless_done(lambda: self._count(result, config, facts)):
            log.info("event=duplicate stage=%s attempt=%s", self.key, self.name)
        self._sweep()

    def _unless_done(self, write: Callable[[], T]) -> T | None:
        """Write something; None if that fails because a rival is done.

        A rival, on a file system without locks, sweeps our folder away under us.
        """
        try:
            return write()
        except OSError:
            if not (self.root / "DONE").exists():
                raise
            return None

    def _count(self, result: Result, config: Any, facts: dict[str, Any]) -> bool:  # Any: JSON
        """Write what the stage left; say whether it is this attempt that counts."""
        write_json(self.folder / "config.json", config)
        write_json(self.folder / "metrics.json", {"metrics": result.metrics, **facts})
        if result.weights is not None:
            write_bytes(self.folder / WEIGHTS, save(result.weights))
        if result.clips is not None:
            pq.write_table(result.clips, self.folder / "clips.parquet")
        (self.folder / "checkpoint").unlink(missing_ok=True)
        hashes = {path.name: sha256(path) for path in sorted(self.folder.iterdir())}
        done = json.dumps({"attempt": self.name, "hashes": hashes}, indent=1)
        return create(self.root / "DONE", done.encode())

    def _sweep(self) -> None:
        """Remove the attempts that do not count, ours or others': they serve nobody any more."""
        winner = read_json(self.root / "DONE")["attempt"]
        for path in self.root.glob("attempt-*"):
            if path.name != winner:
                shutil.rmtree(path, ignore_errors=True)


def _read_checkpoint(path: Path) -> State | None:
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, payload = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    if hashlib.sha256(payload).digest() != digest:
        log.warning("event=torn_checkpoint path=%s", path)
        return None
    state: State = torch.load(io.BytesIO(payload), weights_only=True)
    return state


class Store:
    """A folder that outlives every run; see above for its layout."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @classmethod
    def open(cls, root: Path) -> Store:
        """Return the store in a folder, made if it is not there.

        Raises:
            Mistake: the folder cannot be written to, is full, or is of a newer version.
        """
        try:
            root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=root):  # may we write? Others may ask at this moment
                pass
            if not (root / "store.json").exists():
                write_json(root / "store.json", {"version": VERSION})
            version = int(read_json(root / "store.json")["version"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            what = getattr(error, "strerror", None) or f"store.json is damaged ({error})"
            raise Mistake(f"--store {root}: {what}", "choose a folder you can write to") from None
        if version > VERSION:
            raise Mistake(
                f"--store {root} is of version {version}, this paretoken reads up to {VERSION}",
                "update paretoken, or choose another --store",
            )
        free = shutil.disk_usage(root).free
        if free < LEAST_FREE_BYTES:
            least = LEAST_FREE_BYTES // 2**20
            raise Mistake(
                f"--store {root}: {free // 2**20} MiB free, at least {least} needed",
                "free some space, or choose another --store",
            )
        return cls(root.resolve())

    def stage(self, key: str) -> Path:
        """Return the folder of a stage."""
        return self.root / "stages" / key[:2] / key

    def attempt(self, key: str) -> Attempt:
        """Return a new attempt at a stage."""
        return Attempt(key, self.stage(key))

    def lock(self, key: str) -> Lock:
        """Return the lock of a stage."""
        return Lock(self.stage(key) / "lock")

    def find(self, key: str) -> Done | None:
        """Return a finished stage, its files checked; a damaged one is set aside and not found."""
        marker = self.stage(key) / "DONE"
        try:
            done = read_json(marker)
            folder = marker.parent / str(done["attempt"])
            hashes = done["hashes"]
            damaged = [name for name, known in hashes.items() if sha256(folder / name) != known]
            if not damaged:
                facts = read_json(folder / "metrics.json")
                return Done(key, folder, facts["metrics"], facts["seconds"], facts["device"])
        except FileNotFoundError as error:
            if error.filename == os.fspath(marker):
                return None
            damaged = [str(error.filename)]
        except _DAMAGE as error:
            damaged = [str(error)]
        self._set_aside(key, damaged)
        return None

    def expect(self, key: str) -> Done | None:
        """Find a stage that was said to be done; another machine may see it some seconds later."""
        end = time.monotonic() + PATIENCE_S
        while (done := self.find(key)) is None and time.monotonic() < end:
            time.sleep(0.1)
        return done

    def _set_aside(self, key: str, damaged: list[str]) -> None:
        aside = self.root / "damaged" / f"{key}-{uuid.uuid4().hex[:6]}"
        aside.parent.mkdir(exist_ok=True)
        with suppress(FileNotFoundError):  # another process found it too, and was faster
            self.stage(key).rename(aside)
            log.warning("event=damaged_stage stage=%s files=%s moved_to=%s", key, damaged, aside)
