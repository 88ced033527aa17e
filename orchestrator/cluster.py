"""Start Ray here or join a cluster, and share its CPUs out so that nothing waits for ever.

Ray only hangs when groups, trials and data tasks do not fit together, without a word. So the shares
are computed first: trials take none, data tasks half a CPU each, and groups leave one whole CPU
free.
"""

from __future__ import annotations

import logging
import math
import os
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import ray
from ray.exceptions import RayError

from orchestrator.environment import hush
from workloads.mistakes import Mistake

log = logging.getLogger(__name__)

ANSWER_S = 20  # how long an address may take to answer
DATA_CPUS = 0.5  # of a decoding task


@dataclass(frozen=True)
class Shares:
    """What one rank of a group reserves and uses."""

    cpus: float
    """Reserved with Ray."""
    gpus: int
    threads: int
    """Of torch, in each rank; fewer on a node with fewer cores."""
    ahead: int = 8
    """Decoding tasks that a rank keeps in flight; more would only fill memory."""


def join(address: str | None) -> str:
    """Start Ray on this machine, or join the cluster at an address; return where we are, in words.

    Raises:
        Mistake: nobody answers there, or not to us.
    """
    hush()
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    if address is None:
        ray.init(address="local", include_dashboard=False, **quiet)
        return f"local, {num_cpus():g} CPUs"
    try:
        _knock(address)
        _within(ANSWER_S, lambda: ray.init(address=address, **quiet))
    except (OSError, ValueError, RuntimeError, RayError) as error:  # RayError: about the token
        raise Mistake(
            f"--address {address}: no Ray cluster answers ({_first_line(error)})",
            "is it up (ray status)? One with tokens wants RAY_AUTH_MODE=token and its token in\n"
            "  RAY_AUTH_TOKEN or ~/.ray/auth_token; `paretoken doctor` shows what is set",
        ) from None
    return f"{address}, {num_cpus():g} CPUs, {num_gpus()} GPUs"


def _knock(address: str) -> None:
    """Raise an OSError where nothing listens: Ray would go on trying for minutes."""
    host, _, port = address.rpartition("//")[2].partition(":")
    if port.isdecimal():
        socket.create_connection((host, int(port)), timeout=ANSWER_S).close()


def _within(seconds: float, work: Callable[[], object]) -> None:
    """Do something that may hang, and wait for it so long and no longer.

    Raises:
        TimeoutError: it is still at it; its thread ends with the process.
    """
    errors: list[Exception] = []

    def run() -> None:
        try:
            work()
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError(f"no answer within {seconds:g} s")
    if errors:
        raise errors[0]


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]


def num_cpus() -> float:
    """Return the CPUs of the cluster."""
    return float(ray.cluster_resources().get("CPU", 0))


def num_cores() -> int:
    """Return the cores of this node that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def num_gpus() -> int:
    """Return the GPUs of the cluster."""
    return int(ray.cluster_resources().get("GPU", 0))


def machines(address: str | None) -> str:
    """Name the machines that work, so that another name is another machine, or it was restarted.

    Of a cluster that was joined these are its nodes.
    """
    if address is not None:
        return ",".join(sorted(node["NodeID"] for node in ray.nodes() if node["Alive"]))
    boot = Path("/proc/sys/kernel/random/boot_id")
    since = boot.read_text().strip() if boot.exists() else ""
    seen = os.environ.get("CUDA_VISIBLE_DEVICES", "all")
    return f"{socket.gethostname()} {since} {num_cores()} cores, GPUs {seen}"


def shares(workers: int, ranks: int) -> Shares:
    """Return what each rank gets.

    Raises:
        Mistake: the cluster has GPUs, but fewer than ranks.
    """
    total, gpus, processes = num_cpus(), num_gpus(), workers * ranks
    if 0 < gpus < processes:
        raise Mistake(
            f"--workers {workers} x --ranks {ranks} need {processes} GPUs, the cluster has {gpus}",
            f"choose at most {gpus} in all",
        )
    # Just under the share, so that a whole CPU is left whatever the rounding.
    spare = max(total - 1, 0.02)
    cpus = min(spare / processes, max(total / processes - DATA_CPUS, 0.01), 1.0) - 0.01
    return Shares(
        cpus=round(max(cpus, 0.01), 3),
        gpus=1 if gpus else 0,
        threads=max(int(total) // processes, 1),
        # Twice as many as run at once on its share of the CPUs, and as many that wait or are done.
        ahead=max(math.ceil(4 * total / processes), 4),
    )
