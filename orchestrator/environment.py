"""What Ray, Tune and MLflow read from the environment, set before they are imported."""

from __future__ import annotations

import logging
import os

SETTINGS = {
    # Users did not ask to be reported.
    "RAY_USAGE_STATS_ENABLED": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    # The default of 2 s is most of what the start and the end of a group take.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    # A stray call after the end of a run must not start a cluster of its own.
    "RAY_ENABLE_AUTO_CONNECT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Decoding tasks come and go with the batches; a process that is new imports torch first.
    "RAY_idle_worker_killing_time_threshold_ms": "60000",
    # A machine of 2 CPUs warns of more than 4 times as many processes, and two groups need them.
    "RAY_worker_maximum_startup_concurrency": str(max(os.cpu_count() or 1, 4)),
    # The ledger remembers; Tune's own folder is scrap.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # an interrupt ends the run, ours to say how
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_WARN_SLOW_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "3600",
    "RAY_AIR_NEW_OUTPUT": "0",
    # A server that is down must not hold a study up.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",  # of a few files that lie here
}


# What they say of themselves is no news to whoever runs a study.
CHATTY = ("ray", "ray.data", "ray.train", "mlflow", "alembic")


def prepare() -> None:
    """Set what is not set."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)


def hush() -> None:
    """Keep their loggers to errors; they set their levels when imported, so call it after that."""
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    # It prints the traceback of what the ledger has as a trial's reason, or the last line says.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
