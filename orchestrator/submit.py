"""`paretoken submit`: run a study on a Ray cluster, as a job.

    paretoken submit demo --address http://127.0.0.1:8265 --follow

The project folder is shipped as it lies here, without what git ignores, and `run` is started in it
by the `python` on the head's PATH. --data, --model and --store are paths of the cluster. The job's
own folder is temporary, so a store is an absolute path there, or one under `~`: `~/paretoken-store`
where none is given.
"""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator import credentials, failures, parcel
from workloads.mistakes import Mistake

if TYPE_CHECKING:
    from ray.job_submission import JobDetails

    from orchestrator.jobs import Jobs

ROOT = Path(__file__).resolve().parent.parent
NO_PYTHON = 127  # how a shell ends that does not find a command

Answer = tuple[int, dict[str, Any]]  # Any: JSON


def submit(args: argparse.Namespace, root: Path = ROOT) -> Answer:
    """Send a study to a cluster, or ask after a job that was sent.

    Raises:
        Mistake: in the command line, the address, the token, or the size of the project folder.
        jobs.Lost: the cluster went away while a job was followed.
    """
    _check(args)
    command = parcel.command(args, root) if args.study else ""
    credentials.use()
    from orchestrator.jobs import Jobs  # not before: with it Ray is imported

    jobs = Jobs(args.address.rstrip("/"))
    if command:
        return _send(args, jobs, command, root)
    if args.logs:
        return _follow(args, jobs, args.logs) if args.follow else _log(args, jobs)
    info = jobs.stop(args.stop) if args.stop else jobs.info(args.status)
    _print(args, f"{_described(info)}\n")
    still_runs = bool(args.stop) and not info.status.is_terminal()
    return int(still_runs), _answer(jobs, info)


def _check(args: argparse.Namespace) -> None:
    if sum(bool(asked) for asked in (args.study, args.status, args.logs, args.stop)) != 1:
        raise Mistake("submit takes a STUDY or one of --status, --logs, --stop", "see --help")
    if not args.address or not args.address.startswith(("http://", "https://")):
        raise Mistake(
            f"--address {args.address} is no URL" if args.address else "submit needs --address URL",
            "that of a Ray dashboard: http://127.0.0.1:8265 with `ray dashboard cluster.yaml`",
        )


def _send(args: argparse.Namespace, jobs: Jobs, command: str, root: Path) -> Answer:
    job_id = jobs.send(command, root)
    _print(
        args,
        f"job    {job_id}: {command}\n"
        f"next   {_again(jobs, 'logs', job_id)} --follow\n"
        f"       {_again(jobs, 'status', job_id)}\n"
        f"       {_again(jobs, 'stop', job_id)}\n",
    )
    if args.follow:
        return _follow(args, jobs, job_id)
    return 0, _answer(jobs, jobs.info(job_id))


def _again(jobs: Jobs, word: str, job_id: str) -> str:
    return f"paretoken submit --{word} {job_id} --address {jobs.address}"


def _follow(args: argparse.Namespace, jobs: Jobs, job_id: str) -> Answer:
    """Show the log of a job until it ends; the exit code is the job's."""
    try:
        info = jobs.follow(job_id, lambda text: _print(args, text))
    except KeyboardInterrupt:
        _print(args, f"\njob {job_id} runs on; to stop it: {_again(jobs, 'stop', job_id)}\n")
        return failures.INTERRUPTED, _answer(jobs, jobs.info(job_id))
    _print(args, f"{_described(info)}\n")
    answer = _answer(jobs, info)
    return answer["exit_code"], {**answer, "summary": _summary(jobs.log(job_id))}


def _log(args: argparse.Namespace, jobs: Jobs) -> Answer:
    text = jobs.log(args.logs)
    _print(args, text)
    return 0, {**_answer(jobs, jobs.info(args.logs)), "summary": _summary(text)}


def _summary(log: str) -> Any:  # Any: JSON
    """Return what a job that was submitted with --json printed last; None if nothing."""
    for line in reversed(log.splitlines()):
        if line.startswith("{"):
            with suppress(json.JSONDecodeError):
                return json.loads(line)
    return None


def _answer(jobs: Jobs, info: JobDetails) -> dict[str, Any]:
    return {
        "job_id": info.submission_id,
        "status": info.status.value,
        "address": jobs.address,
        "exit_code": _exit_code(info),
    }


def _exit_code(info: JobDetails) -> int | None:
    """Return how a job ended; 1 where it was stopped, was killed or never began."""
    if not info.status.is_terminal():
        return None
    return 0 if info.status.value == "SUCCEEDED" else max(info.driver_exit_code or 1, 1)


def _described(info: JobDetails) -> str:
    """Say what became of a job, and why where it failed before it could say so itself."""
    code = info.driver_exit_code
    ended = "" if code is None else f", exit code {code}"
    line = f"job    {info.submission_id}: {info.status.value}{ended}"
    if code == NO_PYTHON:
        return f"{line}\n  the PATH that the head was started with has no `python`"
    failed_early = code is None and info.status.value == "FAILED"
    return f"{line}\n  {info.message}" if failed_early else line


def _print(args: argparse.Namespace, text: str) -> None:
    """Print for people; with --json they get it on stderr."""
    print(text, end="", flush=True, file=sys.stderr if args.json else sys.stdout)
