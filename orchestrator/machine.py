"""What has to be right about a machine: its devices, its disks, and Ray on it.

As in `checks`, imports that may fail stand where they are used.
"""

from __future__ import annotations

import os
import shutil
import stat
import time
from pathlib import Path

from orchestrator import credentials
from orchestrator.checks import Finding, judge

STORE = Path("paretoken-store")
STORE_BYTES = 5 * 2**30  # a study of a few models; more clips take more
SHARED_BYTES = 2**30
TASK_S = 30.0


def devices() -> Finding:
    """Count what can compute, and notice a GPU that torch cannot use."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    found = (
        f"{cores} CPU cores, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}, {', '.join(gpus) or 'no CUDA device'}"
    )
    is_idle = shutil.which("nvidia-smi") is not None and not torch.cuda.is_available()
    remedy = "nvidia-smi is there: does it show a GPU, and is its driver new enough for this torch?"
    return judge(found, not is_idle, remedy)


def attention() -> Finding:
    """Run attention on equal and on ragged clips, with the kernels that a study would use."""
    import torch

    from workloads.attention import attend, backend
    from workloads.tokens import Layout, Tokens

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    x_NAE = torch.zeros(4, 2, 64, device=device, dtype=dtype)
    equal = Tokens(
        x_ND=x_NAE.flatten(1),
        coord_N3=torch.zeros(4, 3, device=device, dtype=torch.long),
        size_N=torch.ones(4, device=device),
        mass_N=None,
        lengths=(2, 2),
        clips=(0, 1),
        num_prefix=0,
        grid=(1, 1, 2),
        layout=Layout.EQUAL,
    )
    for tokens in (equal, equal.replace(lengths=(1, 3), layout=Layout.RAGGED)):
        attend(x_NAE, x_NAE, x_NAE, tokens)
    kernels = [backend(is_equal, device, dtype) for is_equal in (True, False)]
    return Finding(f"{' and '.join(kernels)} on {device.type} in {str(dtype)[len('torch.') :]}")


def disk(store: Path = STORE) -> Finding:
    """Look for room where the store is, or would be made."""
    folder = next(place for place in (store, *store.resolve().parents) if place.is_dir())
    free = shutil.disk_usage(folder).free
    found = f"{_gib(free)} free at {folder.resolve()}"
    if not os.access(folder, os.W_OK):
        return Finding(f"{found}, which is read-only", False, "choose another --store")
    return judge(found, free >= STORE_BYTES, "free space, or choose another --store")


def shared_memory(folder: Path = Path("/dev/shm")) -> Finding:
    """Look for the memory through which Ray's processes pass clips."""
    if not folder.is_dir():
        return Finding(f"no {folder} here, Ray uses files")
    free = shutil.disk_usage(folder).free
    remedy = "in Docker: --shm-size=4g; else delete what was left in it"
    return judge(f"{_gib(free)} free in {folder}", free >= SHARED_BYTES, remedy)


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"


def token() -> Finding:
    """Look for the token that keeps strangers out of Ray, and for who else can read it."""
    mode, source = os.environ.get("RAY_AUTH_MODE"), credentials.source()
    found = f"{source or 'none yet'}, RAY_AUTH_MODE is {mode or 'not set'}"
    if mode == "disabled":
        return Finding(found, True, "unset RAY_AUTH_MODE: Ray runs whatever anybody sends it")
    if source is None:
        return Finding(found, True, "Ray makes one; to join a cluster, copy that of its head")
    if source == "RAY_AUTH_TOKEN":
        return Finding(found)
    file = credentials.file()
    if not file.is_file() or not file.read_text().strip():
        return Finding(f"{found}, but no token is in {file}", False, f"write it to {file}")
    rights = stat.S_IMODE(file.stat().st_mode)
    hint = f"chmod 600 {file}" if rights & 0o077 else ""
    return Finding(f"{found}, file mode {rights:04o}", True, hint)


def telemetry() -> Finding:
    """Make sure that neither Ray nor MLflow reports to its makers."""
    loud = [] if os.environ.get("RAY_USAGE_STATS_ENABLED") == "0" else ["RAY_USAGE_STATS_ENABLED"]
    silencers = ("MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK")
    if not any(os.environ.get(name, "").lower() in ("1", "true") for name in silencers):
        loud.append("MLFLOW_DISABLE_TELEMETRY")
    found = f"on, by {' and '.join(loud)}" if loud else "off, Ray's and MLflow's"
    return judge(found, not loud, f"unset {' '.join(loud)}: paretoken sets what is not set")


def start_ray() -> Finding:
    """Start Ray as a study does, run a task, and shut it down."""
    import ray

    from orchestrator import cluster

    begun = time.monotonic()
    try:
        where = cluster.join(None)
        started = time.monotonic()
        ray.get(ray.remote(_nothing).remote(), timeout=TASK_S)
        ended = time.monotonic()
    except Exception as error:  # whatever Ray raises: it is what this looks for
        first_line = f"{type(error).__name__}: {error}".partition("\n")[0][:160]
        remedy = "look into /tmp/ray/session_latest/logs; is /tmp full, or /dev/shm small?"
        return Finding(first_line, False, remedy)
    finally:
        ray.shutdown()
    return Finding(f"{where}: up in {started - begun:.1f} s, first task {ended - started:.1f} s")


def _nothing() -> None:
    """Be a task."""
