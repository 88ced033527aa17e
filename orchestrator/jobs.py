"""The jobs of a Ray cluster, over HTTP; what can go wrong on the way there comes with its remedy.

Import this module after `credentials.use()`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path

import aiohttp
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobSubmissionClient
from requests.exceptions import RequestException

from orchestrator import parcel
from workloads.mistakes import Mistake

ANSWER_S = 20.0  # how long an address may take to answer
STOP_S = 60.0  # Ray asks a job to stop, and kills it 3 s later


class Lost(RuntimeError):  # noqa: N818 - the network's, not an error of ours
    """The cluster went away while a job was followed: exit code 1, no traceback."""

    is_expected = True


class Jobs:
    """The jobs of the cluster whose dashboard answers at an address."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._knock()
        for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
            os.environ.pop(name, None)  # Ray would ask there instead, without a word
        for handler in logging.getLogger("ray").handlers:
            handler.setLevel(logging.ERROR)  # or it tells of every file that is not shipped
        try:
            with self._asking():
                self._client = JobSubmissionClient(address)
        except RuntimeError as error:
            raise self._silent(error) from None

    def send(self, command: str, root: Path) -> str:
        """Ship a folder, run a shell command in it, and return the id of the job."""
        shipped = {"working_dir": str(root), "excludes": list(parcel.EXCLUDES)}
        try:
            with self._asking():
                job_id: str = self._client.submit_job(entrypoint=command, runtime_env=shipped)
        except RuntimeError as error:
            if "status code 413" not in str(error):
                raise
            raise parcel.too_large(root) from None
        return job_id

    def info(self, job_id: str) -> JobDetails:
        """Return what the cluster knows of a job."""
        try:
            with self._asking():
                return self._client.get_job_info(job_id)
        except RuntimeError as error:
            if "status code 404" not in str(error):
                raise
            raise Mistake(
                f"no job {job_id} at {self.address}", "`ray job list` names all there are"
            ) from None

    def log(self, job_id: str) -> str:
        """Return what a job has printed so far."""
        self.info(job_id)
        with self._asking():
            text: str = self._client.get_job_logs(job_id)
        return text

    def stop(self, job_id: str) -> JobDetails:
        """Stop a job, wait until it has stopped, and return what became of it."""
        self.info(job_id)
        with self._asking():
            self._client.stop_job(job_id)
        return self._ended(job_id, STOP_S)

    def follow(self, job_id: str, write: Callable[[str], object]) -> JobDetails:
        """Pass on what a job prints, from its first line, and return what became of it.

        Raises:
            Lost: the cluster went away.
        """
        self.info(job_id)
        try:
            asyncio.run(self._tail(job_id, write))
            return self._ended(job_id)
        except (aiohttp.ClientError, RuntimeError, Mistake) as error:
            reason = str(error).partition("\n")[0]
            raise Lost(
                f"job {job_id} may run on, but cannot be followed: {reason}\n"
                f"  paretoken submit --logs {job_id} --follow --address {self.address}"
            ) from None

    async def _tail(self, job_id: str, write: Callable[[str], object]) -> None:
        async for text in self._client.tail_job_logs(job_id):
            write(text)

    def _ended(self, job_id: str, limit_s: float = float("inf")) -> JobDetails:
        begun = time.monotonic()
        while True:
            info = self.info(job_id)
            if info.status.is_terminal() or time.monotonic() - begun > limit_s:
                return info
            time.sleep(0.5)

    def _knock(self) -> None:
        """Ask for anything at all: Ray's client would wait for ever for a silent address."""
        try:
            urllib.request.urlopen(f"{self.address}/api/version", timeout=ANSWER_S).close()
        except urllib.error.HTTPError:
            return  # an answer, if only that a token is missing
        except (OSError, ValueError, HTTPException) as error:
            raise self._silent(error) from None

    @contextmanager
    def _asking(self) -> Iterator[None]:
        try:
            yield
        except AuthenticationError as error:
            raise self._refused(error.message) from None
        except (ConnectionError, RequestException) as error:
            raise self._silent(error) from None

    def _silent(self, error: Exception) -> Mistake:
        reason = str(getattr(error, "reason", error)).partition("\n")[0][:120]
        return Mistake(
            f"--address {self.address}: no Ray dashboard answers ({reason})",
            "is the cluster up? `ray dashboard cluster.yaml` forwards its dashboard to\n"
            "  http://127.0.0.1:8265",
        )

    def _refused(self, reason: str) -> Mistake:
        mode = os.environ.get("RAY_AUTH_MODE", "token")
        hidden = "" if mode == "token" else f"\n  RAY_AUTH_MODE={mode} keeps it from being shown"
        return Mistake(
            f"--address {self.address} wants the cluster's token: {reason.partition('. ')[0]}",
            "put what `ray get-auth-token` prints on the head into ~/.ray/auth_token here, or\n"
            f"  into RAY_AUTH_TOKEN{hidden}",
        )
