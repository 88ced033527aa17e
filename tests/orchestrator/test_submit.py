"""Jobs on a real head, and what is said where something is wrong."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import time
from collections.abc import Iterator

import pytest
from heads import FOREVER, TOKEN, Head, running

from orchestrator import jobs, submit
from orchestrator.__main__ import parser
from workloads.mistakes import Mistake


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with running() as one:
        yield one


def test_follow_shows_the_log_and_ends_as_the_job_does(head: Head) -> None:
    code, stdout, stderr = head.submit(
        *("demo", "--trials", "4", "--data", "~/my clips", "--store", "/s;false", "--follow"),
    )
    assert (code, stderr) == (3, "")
    args, files = (
        json.loads(line.partition(" ")[2])
        for line in stdout.splitlines()
        if line.startswith(("args", "files"))
    )
    assert args[:4] == ["run", "demo", "--address", "auto"]
    assert args[args.index("--data") + 1] == f"{head.env['HOME']}/my clips"
    assert args[args.index("--store") + 1] == "/s;false"
    assert files == [".gitignore", "orchestrator/__main__.py", "pyproject.toml", "sub/kept.csv"]
    assert "FAILED, exit code 3" in stdout
    assert TOKEN not in stdout


@pytest.mark.parametrize(
    ("env", "named"),
    [
        ({"RAY_AUTH_TOKEN_PATH": ""}, "Missing authentication token"),
        ({"RAY_AUTH_TOKEN_PATH": "/no/token"}, "/no/token"),
        ({"RAY_AUTH_TOKEN": "wrong"}, "Invalid authentication token"),
        ({"RAY_AUTH_MODE": "disabled"}, "RAY_AUTH_MODE=disabled keeps it from being shown"),
    ],
)
def test_without_the_token_the_remedy_is_named(head: Head, env: dict[str, str], named: str) -> None:
    code, stdout, stderr = head.submit("--status", "raysubmit_x", **env)
    assert (code, stdout) == (2, "")
    assert named in stderr
    assert "~/.ray/auth_token" in stderr
    assert "Traceback" not in stderr


def test_an_unknown_job_is_a_mistake_whatever_ray_address_says(head: Head) -> None:
    code, _, stderr = head.submit("--logs", "raysubmit_x", RAY_ADDRESS="http://127.0.0.1:1")
    assert code == 2
    assert f"no job raysubmit_x at {head.address}" in stderr


@pytest.mark.slow
def test_a_job_is_asked_after_stopped_and_read(head: Head) -> None:
    sent = head.answer("demo", "--trials", str(FOREVER))
    assert sent.keys() == {"job_id", "status", "address", "exit_code"}
    assert sent["status"] in ("PENDING", "RUNNING")
    job_id = sent["job_id"]
    while head.answer("--status", job_id)["status"] == "PENDING":
        time.sleep(0.5)
    stopped = head.answer("--stop", job_id)
    assert (stopped["status"], stopped["exit_code"]) == ("STOPPED", 1)
    code, stdout, _ = head.submit("--logs", job_id)
    assert (code, "tick" in stdout) == (0, True)
    assert head.submit("--stop", job_id)[0] == 0  # again does no harm


@pytest.mark.slow
def test_json_gives_what_the_run_printed_last(head: Head) -> None:
    answer = head.answer("demo", "--trials", "1", "--follow")
    assert answer["status"] == "SUCCEEDED"
    assert answer["exit_code"] == 0
    assert answer["summary"] == {"front": [1]}


@pytest.mark.slow
def test_ctrl_c_leaves_the_job_running_and_says_how_to_stop_it(head: Head) -> None:
    following = head.start("demo", "--trials", str(FOREVER), "--follow")
    assert following.stdout is not None
    job_id = next(line for line in following.stdout if line.startswith("job")).split()[1].strip(":")
    while "tick" not in following.stdout.readline():
        pass
    following.send_signal(signal.SIGINT)
    rest, stderr = following.communicate(timeout=30)
    assert following.returncode == 130
    assert f"runs on; to stop it: paretoken submit --stop {job_id}" in rest
    assert "Traceback" not in stderr
    assert head.answer("--status", job_id)["status"] == "RUNNING"
    head.submit("--stop", job_id)


@pytest.mark.slow
def test_too_large_a_folder_names_what_is_large(head: Head) -> None:
    large = head.root / "clips" / "one.mp4"
    large.parent.mkdir()
    large.write_bytes(os.urandom(110 << 20))
    try:
        code, _, stderr = head.submit("demo")
    finally:
        shutil.rmtree(large.parent)
    assert code == 2
    assert "clips (110 MiB)" in stderr
    assert ".gitignore" in stderr


@pytest.mark.slow
def test_a_shell_without_python_is_explained(head: Head) -> None:
    code, stdout, _ = head.submit("demo", "--trials", "128", "--follow")
    assert code == 127
    assert "has no `python`" in stdout


@pytest.mark.slow
def test_a_head_that_dies_ends_the_following_but_is_no_error_of_ours() -> None:
    with running() as doomed:
        following = doomed.start("demo", "--trials", str(FOREVER), "--follow")
        assert following.stdout is not None
        while "tick" not in following.stdout.readline():
            pass
        doomed.kill()
        _, stderr = following.communicate(timeout=60)
    assert following.returncode == 1
    assert "may run on, but cannot be followed" in stderr
    assert "Traceback" not in stderr


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("demo",), "needs --address"),
        (("demo", "--address", "127.0.0.1:6379"), "127.0.0.1:6379 is no URL"),
        (("--address", "http://h:1"), "a STUDY or one of"),
        (("demo", "--stop", "j", "--address", "http://h:1"), "a STUDY or one of"),
        (("deno", "--address", "http://h:1"), 'did you mean "demo"'),
        (("demo", "--store", "here", "--address", "http://h:1"), "'~/here'"),
        (("demo", "--address", "http://127.0.0.1:1"), "http://127.0.0.1:1: no Ray dashboard"),
    ],
)
def test_a_mistake_is_named_before_anything_is_sent(words: tuple[str, ...], named: str) -> None:
    with pytest.raises(Mistake, match=re.escape(named)):
        submit.submit(parser().parse_args(["submit", *words]))


def test_an_address_that_accepts_but_never_answers_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(jobs, "ANSWER_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(Mistake, match=r"no Ray dashboard answers \(timed out\)"):
            jobs.Jobs(address)
