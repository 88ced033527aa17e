"""MLflow as a mirror of the ledger: people compare there, nothing depends on it.

A parent run a study, a child a trial, a control below the run of its point; a confirmation is a
parent of its own, with a child a point. One thread writes, with
few retries, so a server that is down costs the study nothing; whatever is missing is made up for by
the next `run` or `front`, since a mirror is brought up to date against the ledger, not appended to.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from orchestrator.environment import hush
from orchestrator.ledger import Record
from orchestrator.words import method

if TYPE_CHECKING:
    from mlflow.entities import Run

log = logging.getLogger(__name__)

EXPERIMENT, ASIDE = "paretoken", "paretoken of {}"
STATUS = {"complete": "FINISHED", "failed": "FAILED", "pruned": "KILLED"}
FINISH_S = 120.0  # how long the end of a study waits for the mirror, each time it has to

PARENT, KEYS = "mlflow.parentRunId", "paretoken.stage_keys"

Place = tuple[str, int, str]
"""Role, trial and kind of control: what tells one record from another."""


def default_uri(store: Path) -> str:
    """Return the address of the store's own SQLite file."""
    return f"sqlite:///{store / 'mlflow.db'}"


def _place(record: Record) -> Place:
    return record.role, record.trial, str(record.params.get("control", ""))


def _place_of(tags: Mapping[str, str]) -> Place:
    number = int(tags["paretoken.trial"])
    return tags["paretoken.role"], number, tags.get("paretoken.control", "")


class Mirror:
    """Keeps MLflow like the ledger, from a thread of its own."""

    def __init__(
        self,
        uri: str,
        store: Path,
        name: str,
        key: str,
        what: Literal["study", "confirm"] = "study",
    ) -> None:
        self.uri, self.store, self.name, self.key, self.what = uri, store, name, key, what
        self.run_id: str | None = None
        self.error: str | None = None
        self._runs: dict[Place, Run] = {}
        self._work: queue.Queue[Callable[[], None]] = queue.Queue()
        threading.Thread(target=self._serve, daemon=True).start()
        self._work.put(self._connect)

    def connected(self) -> str | None:
        """Wait for the connection; return the parent run, None if there is none to be had."""
        self._settled()
        return self.run_id

    def push(self, record: Record) -> None:
        """Mirror a record, soon."""
        self._work.put(lambda: self._write(record))

    def finish(
        self, records: Sequence[Record], ranks: Mapping[int, int], parent: Parent
    ) -> str | None:
        """Bring everything up to date and wait for it; return why it could not be done.

        Args:
            records: the whole ledger.
            ranks: place on the front, by trial.
            parent: what the parent run shows.
        """
        self.error = None
        if self.run_id is None:
            self._work.put(self._connect)
        newest = {_place(record): record for record in records}  # a trial may have been run again
        for record in newest.values():
            self.push(record)
        self._work.put(lambda: self._write_parent(ranks, parent))
        return self.error if self._settled() else "it does not answer"

    def _settled(self) -> bool:
        """Wait until all is written, but not for ever; tell whether it is."""
        end = time.monotonic() + FINISH_S
        while self._work.unfinished_tasks and time.monotonic() < end:
            time.sleep(0.02)
        return not self._work.unfinished_tasks

    def _serve(self) -> None:
        while True:
            task = self._work.get()
            try:
                if self.error is None:  # after a failure, nothing more is tried until the end
                    task()
            except Exception as error:
                self.error = (str(error).strip().splitlines() or [type(error).__name__])[0]
                log.warning("event=mlflow_down uri=%s error=%s", self.uri, self.error)
            finally:
                self._work.task_done()

    def _connect(self) -> None:
        from mlflow import MlflowClient  # here: it takes seconds, and this thread has them

        hush()
        self.client = MlflowClient(tracking_uri=self.uri)
        self.experiment = self._experiment()
        found = self._search(f"tags.`paretoken.{self.what}_key` = '{self.key}'")
        tags = {"paretoken.study": self.name, f"paretoken.{self.what}_key": self.key}
        title = f"{self.name}{' confirm' * (self.what == 'confirm')} ({self.key[:6]})"
        parent = found[0] if found else self.client.create_run(self.experiment, None, tags, title)
        self._runs = self._children(parent)
        self.run_id = parent.info.run_id

    def _experiment(self) -> str:
        """Return the experiment, made if it is not there."""
        if self.uri == default_uri(self.store):
            return self._experiment_here((self.store / "mlartifacts").as_uri())
        found = self.client.get_experiment_by_name(EXPERIMENT)
        return str(found.experiment_id if found else self.client.create_experiment(EXPERIMENT))

    def _experiment_here(self, artifacts: str) -> str:
        """Return the experiment of the store's own file, whose artifacts lie in the store.

        MLflow keeps where they lie for good. In a store that was copied or moved that is the old
        place, so the experiment of there is put aside, and this one is made from the ledger.
        """
        found = self.client.get_experiment_by_name(EXPERIMENT)
        if found is not None and found.artifact_location == artifacts:
            return str(found.experiment_id)
        if found is not None:
            aside = ASIDE.format(found.artifact_location)
            self.client.rename_experiment(found.experiment_id, aside)
        earlier = self.client.get_experiment_by_name(ASIDE.format(artifacts))
        if earlier is None:
            return str(self.client.create_experiment(EXPERIMENT, artifact_location=artifacts))
        self.client.rename_experiment(earlier.experiment_id, EXPERIMENT)
        return str(earlier.experiment_id)

    def _search(self, query: str) -> list[Run]:
        """Return all runs that a query finds, page by page."""
        runs, token = [], None
        while True:
            page = self.client.search_runs([self.experiment], query, page_token=token)
            runs += list(page)
            token = page.token
            if not token:
                return runs

    def _children(self, parent: Run) -> dict[Place, Run]:
        """Return the runs below a parent, and those below its children."""
        runs = self._search(f"tags.`paretoken.parent` = '{parent.info.run_id}'")
        return {_place_of(run.data.tags): run for run in runs}

    def _write(self, record: Record) -> None:
        """Make the run of a record, unless it is there; one of other code or data is replaced."""
        above = self._above(record)
        if above is None:
            return  # a control of a trial that was not mirrored: `finish` comes back to it
        known = self._runs.get(_place(record))
        if known is not None:
            if _shows(known, record, above):
                return
            self.client.delete_run(known.info.run_id)
        self._runs[_place(record)] = self._made(record, above)

    def _made(self, record: Record, above: str) -> Run:
        """Make the run of a record; its status comes last, and so tells that the run is whole."""
        from mlflow.entities import Metric, Param

        title = f"{record.trial:03d} {method(record.params)}"
        run = self.client.create_run(self.experiment, None, self._tags(record, above), title)
        now = int(time.time() * 1000)
        metrics = [Metric(k, v, now, 0) for k, v in record.metrics.items()]
        params = [Param(k, str(v)) for k, v in record.params.items()]
        self.client.log_batch(run.info.run_id, metrics, params)
        self.client.set_terminated(run.info.run_id, STATUS[record.state])
        return self.client.get_run(run.info.run_id)

    def _above(self, record: Record) -> str | None:
        """Return the run that a record's run lies below."""
        if record.role != "control":
            return self.run_id
        run = self._runs.get(("trial", record.trial, ""))
        return None if run is None else str(run.info.run_id)

    def _tags(self, record: Record, above: str) -> dict[str, str]:
        tags = {
            PARENT: above,
            "paretoken.parent": str(self.run_id),
            "paretoken.role": record.role,
            "paretoken.trial": str(record.trial),
            "paretoken.study": self.name,
            "paretoken.method": str(record.params["reducer"]),
            "paretoken.reason": record.reason[:4000],
            KEYS: _keys(record),
        }
        if record.role == "control":
            tags["paretoken.control"] = str(record.params["control"])
        return tags

    def _write_parent(self, ranks: Mapping[int, int], parent: Parent) -> None:
        for (role, trial, _), run in self._runs.items():
            rank = str(ranks.get(trial, "")) if role == "trial" else ""
            if run.data.tags.get("paretoken.front_rank", "") != rank:
                self.client.set_tag(run.info.run_id, "paretoken.front_rank", rank)
        assert self.run_id is not None, "connected before"
        self._log_growth(parent.hypervolumes)
        self.client.set_tag(self.run_id, "mlflow.note.content", parent.markdown)
        for path in parent.artifacts:
            self.client.log_artifact(self.run_id, str(path))
        self.client.set_terminated(self.run_id, parent.status)

    def _log_growth(self, hypervolumes: Mapping[int, float]) -> None:
        from mlflow.entities import Metric

        history = self.client.get_metric_history(self.run_id, "hypervolume")
        known = {point.step for point in history}
        now = int(time.time() * 1000)
        new = [
            Metric("hypervolume", value, now, trial)
            for trial, value in hypervolumes.items()
            if trial not in known
        ]
        for start in range(0, len(new), 1000):  # MLflow takes a thousand at once
            self.client.log_batch(self.run_id, new[start : start + 1000])


@dataclass(frozen=True)
class Parent:
    """What the parent run of a study shows."""

    markdown: str
    artifacts: Sequence[Path]
    hypervolumes: Mapping[int, float]
    status: str = "FINISHED"


def _shows(run: Run, record: Record, above: str) -> bool:
    """Tell whether a run shows this very record, whole and where it belongs.

    A crash leaves a run that is RUNNING; a trial that was run again leaves its controls below a run
    that is no more.
    """
    is_whole = run.info.status == STATUS[record.state]
    tags = run.data.tags
    return bool(is_whole and tags.get(KEYS) == _keys(record) and tags.get(PARENT) == above)


def _keys(record: Record) -> str:
    return " ".join([record.state, *(key[:12] for key in record.stage_keys)])
