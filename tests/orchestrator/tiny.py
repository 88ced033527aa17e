"""A study of seconds for tests that run the whole way: clips of 32 px, a model of 16 channels.

paretoken run tests/orchestrator/tiny.py --store STORE
"""

from __future__ import annotations

from dataclasses import replace

from search_spaces import demo
from search_spaces.study import Study
from workloads import finetune


def study() -> Study:
    """Return the demo, shrunk; its trainings are long enough to be killed in the middle."""
    small = demo.study().smoke()
    train, measure = small.stages
    assert isinstance(train.config, finetune.Config)
    longer = replace(train, config=replace(train.config, steps=200))
    stages = (longer, replace(measure, inputs=(("weights", longer),)))
    return replace(small, name="tiny", stages=stages, trials=6, confirm_seeds=2)
