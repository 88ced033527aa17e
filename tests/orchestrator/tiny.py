"""A study of seconds for tests that run the whole way: clips of 32 px, a model of 16 channels.

    paretoken run tests/orchestrator/tiny.py --store STORE
"""

from __future__ import annotations

from dataclasses import replace

from search_spaces import demo
from search_spaces.study import Study


def study() -> Study:
    """Return the demo, shrunk; two trainings, evaluations in between."""
    return replace(demo.study().smoke(), name="tiny", trials=6)
