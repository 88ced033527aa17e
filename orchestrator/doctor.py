"""`paretoken doctor`: is everything here that a study needs? A line a thing, with its remedy."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from orchestrator import checks, machine
from orchestrator.checks import Finding

WIDTH = 100
INDENT = " " * 22

# `token` comes before Ray is started, which would make one.
CHECKS: tuple[Callable[[], Finding], ...] = (
    checks.python,
    checks.packages,
    checks.byte_code,
    checks.decoders,
    machine.devices,
    machine.attention,
    machine.disk,
    machine.shared_memory,
    machine.token,
    machine.telemetry,
    machine.start_ray,
)


def doctor(
    say: Callable[[str], None], to_check: tuple[Callable[[], Finding], ...] = CHECKS
) -> tuple[int, dict[str, Any]]:
    """Run the checks and say what each found; the exit code is 1 where something is wrong."""
    results = []
    for check in to_check:
        name, finding = check.__name__.replace("_", " "), _examined(check)
        results.append({"name": name, **asdict(finding)})
        for line in _lines(name, finding):
            say(line)
    wrong = [result["name"] for result in results if not result["ok"]]
    say(f"{len(wrong)} of {len(results)} are wrong: {', '.join(wrong)}" if wrong else "all is well")
    return int(bool(wrong)), {"checks": results, "ok": not wrong}


def _examined(check: Callable[[], Finding]) -> Finding:
    try:
        return check()
    except Exception as error:  # a check that breaks has found something, whatever it is
        first_line = f"{type(error).__name__}: {error}".partition("\n")[0][:160]
        is_missing = isinstance(error, ImportError)
        remedy = "rm -r .venv && make setup" if is_missing else "please report this line"
        return Finding(first_line, False, remedy)


def _lines(name: str, finding: Finding) -> list[str]:
    """Lay a finding out; the remedy is not broken, so that it can be copied."""
    state = "ok" if finding.ok else "WRONG"
    text = textwrap.fill(f"{state:<6} {name:<14} {finding.found}", WIDTH, subsequent_indent=INDENT)
    return [*text.split("\n"), *([f"{INDENT}-> {finding.remedy}"] if finding.remedy else [])]
