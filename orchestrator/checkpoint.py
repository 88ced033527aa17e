"""A checkpoint folder in a store: the finished stage `load`, put there by whoever runs the study.

Groups, on other machines too, find it there like any other stage, so no path leaves this process.
"""

from __future__ import annotations

import time
from pathlib import Path

from orchestrator.store import Store
from search_spaces.study import Study
from workloads import load, pretrained
from workloads.knobs import canonical
from workloads.mistakes import Mistake
from workloads.stage import Result


def put(study: Study, folder: Path, store: Store, digest: str) -> None:
    """Publish the weights of a folder as the stages of a study that load them.

    Args:
        study: whose stages `load` describe the folder.
        folder: the checkpoint.
        store: where it goes, unless it is there.
        digest: of the clips, as in the keys of all stages.

    Raises:
        Mistake: the weights do not fit what the folder says of them.
    """
    for stage in study.stages:
        key = stage.key(digest)
        if not isinstance(stage.config, load.Config) or store.find(key) is not None:
            continue
        begun = time.monotonic()
        try:
            weights = pretrained.weights_of(folder, stage.config)
        except Mistake as mistake:
            raise Mistake(f"--model {mistake}") from None
        facts = {"seconds": time.monotonic() - begun, "kind": "load", "device": "cpu"}
        store.attempt(key).publish(Result(weights, {}, None), canonical(stage.config), facts)
