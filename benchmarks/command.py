"""What every benchmark says: on which machine it ran, and last one JSON object."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable
from importlib import metadata
from typing import Any

import torch

from workloads.mistakes import Mistake


def run(measure: Callable[[], dict[str, Any]]) -> None:  # Any: JSON
    """Print what a benchmark returns; a mistake of the user's ends it with exit code 2."""
    try:
        print(json.dumps(measure()))
    except Mistake as mistake:
        print(f"error: {mistake}", file=sys.stderr)
        sys.exit(2)


def machine(device: torch.device, *packages: str) -> str:
    """Say what is measured on: the device, the cores, and the versions that matter."""
    on_gpu = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if on_gpu else _processor()
    cores = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"
    versions = [f"{package} {metadata.version(package)}" for package in packages]
    return ", ".join([name, cores, f"torch {torch.__version__}", *versions])


def _processor() -> str:
    """Return the name of the CPU; Python itself knows it on few systems."""
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.partition(":")[2].strip() for line in file if "model name" in line]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
