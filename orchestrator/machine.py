"""What has to be right about a machine: its devices, its disks, and Ray on it."""

from __future__ import annotations

import os
import shutil
import stat
import time
from pathlib import Path

import ray
import torch

from orchestrator import cluster
from orchestrator.checks import Finding, judge
from orchestrator.submit import token_source
from workloads.attention import attend, backend
from workloads.tokens import Layout, Tokens

STORE = Path("paretoken-store")
STORE_BYTES = 5 * 2**30  # the demo takes a fifth of it
SHARED_BYTES = 2**30
TASK_S = 30.0


def devices() -> Finding:
    """Count what can compute, and notice a GPU that torch cannot use."""
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
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    x_NAE = torch.zeros(3, 2, 64, device=device, dtype=dtype)
    tokens = Tokens(
        x_ND=x_NAE.flatten(1),
        coord_N3=torch.zeros(3, 3, device=device, dtype=torch.long),
        size_N=torch.ones(3, device=device),
        mass_N=None,
        lengths=(3,),
        clips=(0,),
        num_prefix=0,
        grid=(1, 1, 3),
        layout=Layout.GRID,
    )
    ragged = tokens.replace(lengths=(1, 2), clips=(0, 1), layout=Layout.RAGGED)
    for batch in (tokens, ragged):
        attend(x_NAE, x_NAE, x_NAE, batch)
    names = [backend(batch, device, dtype) for batch in (tokens, ragged)]
    return Finding(f"{' and '.join(names)} on {device.type}, {str(dtype).removeprefix('torch.')}")


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
    return judge(
        f"{_gib(free)} free in {folder}",
        free >= SHARED_BYTES,
        "in Docker: --shm-size=4g; else delete what was left in it",
    )


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"


def token() -> Finding:
    """Look for the token that keeps strangers out of Ray, and at who else can read it."""
    mode, source = os.environ.get("RAY_AUTH_MODE"), token_source()
    found = f"{source or 'none yet'}, RAY_AUTH_MODE is {mode or 'not set'}"
    if mode == "disabled":
        return Finding(found, True, "unset RAY_AUTH_MODE: without a token Ray runs anyone's code")
    if source is None:
        return Finding(found, True, "Ray makes one; for a cluster: copy that of its head")
    if source == "RAY_AUTH_TOKEN":
        return Finding(found)
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or source).expanduser()
    if not path.is_file() or not path.read_text().strip():
        return Finding(f"{found}: no token in {path}", False, "ray get-auth-token --generate")
    mode_bits = stat.S_IMODE(path.stat().st_mode)
    hint = f"chmod 600 {path}" if mode_bits & 0o077 else ""
    return Finding(f"{found}, file mode {mode_bits:04o}", True, hint)


def telemetry() -> Finding:
    """Make sure that neither Ray nor MLflow reports to its makers."""
    loud = []
    if os.environ.get("RAY_USAGE_STATS_ENABLED") != "0":
        loud.append("RAY_USAGE_STATS_ENABLED")
    silencers = ("MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK")
    if not any(os.environ.get(name, "").lower() in ("1", "true") for name in silencers):
        loud.append("MLFLOW_DISABLE_TELEMETRY")
    found = f"on, by {' and '.join(loud)}" if loud else "off, Ray's and MLflow's"
    return judge(found, not loud, f"unset {' '.join(loud)}: paretoken switches both off")


def start_ray() -> Finding:
    """Start Ray as a study does, run a task, and shut it down."""
    begun = time.monotonic()
    try:
        where = cluster.join(None)
        started = time.monotonic()
        ray.get(ray.remote(os.getpid).remote(), timeout=TASK_S)
        ended = time.monotonic()
    except Exception as error:  # whatever Ray raises: it is what we are asked to find
        first_line = f"{type(error).__name__}: {error}".partition("\n")[0][:160]
        remedy = "look into /tmp/ray/session_latest/logs; is /tmp full, or /dev/shm small?"
        return Finding(first_line, False, remedy)
    finally:
        ray.shutdown()
    return Finding(f"{where}: up in {started - begun:.1f} s, a task in {ended - started:.1f} s")
