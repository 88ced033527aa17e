"""The doctor finds what is wrong, says what to do about it, and never falls ill itself."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import paretoken

from orchestrator import checks, cluster, machine
from orchestrator.checks import Finding
from orchestrator.doctor import CHECKS, WIDTH, doctor
from workloads import readers


def test_on_this_machine_all_checks_run_and_none_breaks() -> None:
    ended = paretoken("doctor", "--json", timeout=60)
    answer = ended.answer
    found = {check["name"]: check for check in answer["checks"]}
    assert list(found) == [check.__name__.replace("_", " ") for check in CHECKS]
    assert ended.code == int(not answer["ok"])
    for name in ("python", "decoders", "attention", "telemetry", "start ray"):
        assert found[name]["ok"], found[name]
    assert "first task" in found["start ray"]["found"]
    assert all(check["remedy"] for check in answer["checks"] if not check["ok"])
    assert ended.out.count("\n") == 1
    assert "start ray" in ended.err


def test_a_broken_installation_is_reported_check_by_check() -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'ray', 'numpy', 'packaging', 'av'): sys.modules[name] = None\n"
        "from orchestrator.__main__ import main\n"
        "sys.exit(main(['doctor', '--json']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    wrong = {check["name"] for check in json.loads(done.stdout)["checks"] if not check["ok"]}
    assert wrong >= {"packages", "decoders", "devices", "attention", "start ray"}
    assert "Traceback" not in done.stderr


def test_a_check_that_raises_is_wrong_and_the_others_go_on() -> None:
    def breaks() -> Finding:
        raise OSError("no such thing\nand more")

    def fine_one() -> Finding:
        return Finding("fine", True, "could be better")

    lines: list[str] = []
    code, answer = doctor(lines.append, (breaks, fine_one))
    assert code == 1
    assert answer["ok"] is False
    assert answer["checks"][0]["found"] == "OSError: no such thing"
    assert answer["checks"][1] == {
        "name": "fine one",
        "found": "fine",
        "ok": True,
        "remedy": "could be better",
    }
    assert lines[0].startswith("WRONG  breaks")
    assert any(line.endswith("-> could be better") for line in lines)
    assert lines[-1] == "1 of 2 are wrong: breaks"


def test_long_findings_are_folded_and_remedies_are_not() -> None:
    lines: list[str] = []
    command = "rm " + "x" * WIDTH
    code, _ = doctor(lines.append, (lambda: Finding("word " * 50, True, command),))
    assert code == 0
    assert lines[-1] == "all is well"
    assert lines[-2].endswith(command)
    assert max(map(len, lines[:-2])) <= WIDTH


def test_packages_that_are_not_as_in_the_lock_are_named(tmp_path: Path) -> None:
    lock = tmp_path / "requirements.lock"
    here = checks.packages(lock)
    assert here.ok
    assert "no requirements.lock" in here.found
    lock.write_text(
        "numpy==0.1  # old\n\nno-such-package==1\nelse==1 ; platform_machine == 'none'\n"
        f"pytest=={pytest.__version__}\n"
    )
    found = checks.packages(lock)
    assert not found.ok
    assert found.found.startswith("1 of 3 as in the lock, but numpy ")
    assert "no no-such-package" in found.found
    assert str(lock) in found.remedy


def test_missing_byte_code_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "pycache_prefix", str(tmp_path))
    found = checks.byte_code()
    assert not found.ok
    assert found.found.startswith("0%")
    assert "compileall" in found.remedy


def test_a_decoder_that_gives_other_frames_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = readers.read

    def shifted(path: Path, indices: list[int], *, decoder: readers.Decoder) -> np.ndarray:
        """Read as decord did in open GOPs, where it seeks: some frames are others."""
        late = decoder == "decord" and "open" in path.name and indices != sorted(indices)
        return whole(path, [min(i + late * (i % 12 > 9), 29) for i in indices], decoder=decoder)

    assert checks.decoders().ok
    monkeypatch.setattr(readers, "read", shifted)
    monkeypatch.setattr(readers, "versions", lambda: {"pyav": "1", "decord": "0"})
    found = checks.decoders()
    assert not found.ok
    assert found.found == "pyav 1, decord 0; decord: 2 of 8 frames wrong at random (open GOPs)"


def test_where_decord_is_absent_the_doctor_says_what_it_would_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(readers, "versions", lambda: {"pyav": "1"})
    alone = checks.decoders()
    assert alone.ok
    assert "decord" in alone.remedy


def test_a_gpu_that_torch_cannot_use_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "driver" in machine.devices().remedy
    (tmp_path / "nvidia-smi").unlink()
    assert machine.devices().ok


def test_too_little_room_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = tmp_path / "not" / "yet" / "there"
    assert machine.disk(store).found.endswith(f"free at {tmp_path.resolve()}")
    assert machine.shared_memory(store).ok  # no such thing here, as on a Mac
    monkeypatch.setattr(machine, "STORE_BYTES", 2**60)
    monkeypatch.setattr(machine, "SHARED_BYTES", 2**60)
    assert "--store" in machine.disk(store).remedy
    assert "--shm-size" in machine.shared_memory(tmp_path).remedy


@pytest.mark.parametrize(
    ("env", "rights", "ok", "named"),
    [
        ({}, None, True, "Ray makes one"),
        ({}, 0o600, True, ""),
        ({}, 0o644, True, "chmod 600"),
        ({"RAY_AUTH_MODE": "disabled"}, 0o600, True, "unset RAY_AUTH_MODE"),
        ({"RAY_AUTH_TOKEN": "secret"}, None, True, ""),
        ({"RAY_AUTH_TOKEN_PATH": "/no/token"}, 0o600, False, "write it to /no/token"),
    ],
)
def test_the_token_is_looked_for_where_ray_looks(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    env: dict[str, str],
    rights: int | None,
    ok: bool,
    named: str,
) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    for name, value in (env | {"HOME": str(tmp_path)}).items():
        monkeypatch.setenv(name, value)
    if rights is not None:
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text("secret")
        (tmp_path / ".ray" / "auth_token").chmod(rights)
    found = machine.token()
    assert (found.ok, named in found.remedy) == (ok, True)
    assert "secret" not in found.found


def test_telemetry_that_somebody_switched_on_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.telemetry().ok
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "false")
    monkeypatch.setenv("DO_NOT_TRACK", "false")
    found = machine.telemetry()
    assert not found.ok
    assert "unset RAY_USAGE_STATS_ENABLED MLFLOW_DISABLE_TELEMETRY" in found.remedy


def test_ray_that_does_not_start_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(address: str | None) -> str:
        raise RuntimeError("The node died.\nA long story")

    monkeypatch.setattr(cluster, "join", fails)
    found = machine.start_ray()
    assert not found.ok
    assert found.found == "RuntimeError: The node died."
    assert "session_latest" in found.remedy
