"""What a trial costs beyond its stage, beside a Tune function that starts a TorchTrainer each time.

    python -m benchmarks.trial_overhead [--quick]

`seconds_per_trial` = wall time from one finished trial to the next, less the time inside its
stages, from the second trial of its kind on: `evaluate` trials run one evaluation on a checkpoint
that is there, `train` trials a training and its evaluation. `naive_seconds_per_trial` = the same
for the naive pattern, with the same training inside. Both run in turn, in rounds; a tiny study, so
that little but the overhead is left. Nothing of a model's speed is measured here, so no attention
backend matters.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import uuid
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from benchmarks import command
from orchestrator import cluster, data, search
from orchestrator.environment import prepare
from orchestrator.ledger import Ledger, Record
from orchestrator.memory import Memory
from orchestrator.pool import Pool
from orchestrator.search import Asker
from orchestrator.store import Store
from search_spaces import demo
from search_spaces.space import Space, narrow
from search_spaces.study import Study
from workloads import datasets, finetune
from workloads.clips import open_clips
from workloads.datasets import Manifest, synthetic
from workloads.knobs import Float
from workloads.reducers import drop
from workloads.stage import Quiet

TRIALS = 4  # of ours in a round; the first is not counted
NAIVE_TRIALS = 2
FIT_CPUS = 0.9


def main() -> None:
    """Measure, print a table, and last a JSON object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true")
    rounds = 7 if parser.parse_args().quick else 20
    prepare()
    command.run(lambda: _measured(rounds))


def _measured(rounds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        bench = _Bench(Path(folder))
        answer = {**bench.measure(rounds), "setting": bench.setting()}
    print(answer["setting"])
    for name, seconds in answer.pop("all").items():
        low, middle, high = statistics.quantiles(seconds, n=4)
        print(f"{name:<10} {middle:8.3f} s a trial   [{low:.3f}, {high:.3f}]   n={len(seconds)}")
    return answer


class _Bench:
    """A pool, clips, and one long-lived group to measure with."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = Store.open(folder / "store")
        base = demo.study().smoke()
        assert base.data is not None
        self.base = base
        clips = synthetic.write(base.data, folder / "clips")
        self.manifest: Manifest = datasets.load(clips, trains=True)
        self.frames = data.folder_for(self.store.root, self.manifest, 32)

    def setting(self) -> str:
        """Say what is measured on what."""
        train = self.base.stages[0].config
        assert isinstance(train, finetune.Config), "the demo trains first"
        clip = train.clip
        what = f"{self.base.name}: {clip.frames} x {clip.size} px, {train.steps} steps a training"
        machine = command.machine(torch.device("cpu"), "ray", "optuna")
        return f"{what}, {len(self.manifest.clips)} synthetic clips, 1 group; {machine}"

    def measure(self, rounds: int) -> dict[str, Any]:
        """Return the answer; Ray is gone then, whatever happened."""
        try:
            cluster.join(None)
            return self._compared(rounds)
        finally:
            ray.shutdown()

    def _compared(self, rounds: int) -> dict[str, Any]:
        """Return the answer after some rounds of all three kinds in turn."""
        pool = Pool(1, 1, cluster.shares(1, 1), self.folder / "ray")
        pool.start(self.store.root)
        data.fill(self.frames, self.manifest, 32, lambda done, total: None)
        found: dict[str, list[float]] = {"evaluate": [], "train": [], "naive": []}
        self._ours("evaluate", -1, pool)  # the group comes up, the checkpoint is trained
        for number in range(rounds):
            found["evaluate"] += self._ours("evaluate", number, pool)
            found["train"] += self._ours("train", number, pool)
            found["naive"] += self._naive(number)
        pool.stop()
        medians = {name: statistics.median(seconds) for name, seconds in found.items()}
        return {
            "seconds_per_trial": {name: medians[name] for name in ("evaluate", "train")},
            "naive_seconds_per_trial": medians["naive"],
            "rounds": rounds,
            "all": found,
        }

    def _study(self, kind: str, number: int) -> Study:
        """Return a study whose trials all differ in their evaluation, or also in their training."""
        domains: dict[str, Any] = {"evaluate.reducers": narrow(drop.Config, keep=Float(0.3, 0.9))}
        if kind == "train":
            domains = {"finetune.optim.lr": Float(1e-4, 1e-2)} | domains
        return replace(
            self.base,
            name=f"{kind}-{number}",
            space=Space(domains),
            sampler="random",
            trials=TRIALS,
            seed=number + 1,
        )

    def _ours(self, kind: str, number: int, pool: Pool) -> list[float]:
        """Run a round through Tune and the pool; return the overhead of all trials but one."""
        study = self._study(kind, number)
        folder = self.folder / "studies" / study.name
        ledger = Ledger(folder / "ledger.jsonl")
        ends: list[tuple[float, Record]] = []

        def heard(record: Record) -> None:
            ends.append((time.monotonic(), record))

        memory = Memory(study, folder / "journal.log")
        asker = Asker(memory, ledger, self.manifest.digest, study.trials, 1, heard)
        pool.serve(self.frames, self.manifest.digest)  # anew: the numbers of trials come again
        search.search(asker, pool, self.store, folder / "ray")
        pairs = pairwise(ends)
        return [now - before - _inside(record) for (before, _), (now, record) in pairs]

    def _naive(self, number: int) -> list[float]:
        """Run trials that start a TorchTrainer each; return the overhead of each but the first."""
        ends: list[float] = []
        inside: list[float] = []

        class Clock(tune.Callback):  # type: ignore[misc]  # Ray ships no types
            def on_trial_complete(self, trials: Any, trial: Any, **info: Any) -> None:
                ends.append(time.monotonic())
                inside.append(trial.last_result["seconds"])

            def __getstate__(self) -> dict[str, Any]:
                return {}

        config = self.base.stages[0].config
        frames, scratch = str(self.frames), str(self.folder / "naive")

        def trial(settings: dict[str, Any]) -> None:
            note = Path(scratch, f"seconds-{uuid.uuid4().hex}")
            trainer = TorchTrainer(
                _train_once,
                train_loop_config={"config": config, "frames": frames, "note": note},
                scaling_config=ScalingConfig(resources_per_worker={"CPU": FIT_CPUS}),
                run_config=RunConfig(storage_path=scratch),
            )
            trainer.fit()
            tune.report({"seconds": float(note.read_text())})

        tune.Tuner(
            tune.with_resources(trial, {"cpu": 0.001}),
            param_space={"seed": tune.grid_search(list(range(NAIVE_TRIALS)))},
            tune_config=tune.TuneConfig(max_concurrent_trials=1),
            run_config=tune.RunConfig(
                name=f"naive-{number}", storage_path=scratch, verbose=0, callbacks=[Clock()]
            ),
        ).fit()
        return [b - a - spent for a, b, spent in zip(ends, ends[1:], inside[1:], strict=False)]


def _train_once(settings: dict[str, Any]) -> None:
    """Train as a stage does, in a TorchTrainer of its own."""
    config: finetune.Config = settings["config"]
    clip_set = open_clips(Path(settings["frames"]))
    begun = time.monotonic()
    finetune.run(config, clip_set, {}, Quiet())
    settings["note"].write_text(str(time.monotonic() - begun))


def _inside(record: Record) -> float:
    """Return the seconds a trial spent in stages that were run for it."""
    return sum(float(took["seconds"]) for took in record.stages if not took["reused"])


if __name__ == "__main__":
    main()
