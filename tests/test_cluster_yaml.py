"""cluster.yaml is what Ray accepts, and keeps what we promise about it: each slip is named."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray.autoscaler
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "cluster.yaml").read_text()
SCHEMA = json.loads((Path(ray.autoscaler.__path__[0]) / "ray-schema.json").read_text())
TOKEN = "~/.ray/auth_token"

Config = dict[str, Any]


def mistakes(text: str) -> list[str]:
    """Return what is wrong with a cluster file, a line each."""
    try:
        config = yaml.safe_load(text)
    except yaml.YAMLError as error:
        return [f"no YAML: {' '.join(str(error).split())}"]
    wrong = wrong_by_schema(config)
    if wrong:
        return wrong  # the rest relies on the types
    return wrong_nodes(config) + wrong_starts(config) + wrong_mounts(config)


def wrong_by_schema(config: Any) -> list[str]:
    errors = jsonschema.Draft7Validator(SCHEMA).iter_errors(config)
    return [f"{'.'.join(map(str, e.absolute_path)) or 'file'}: {e.message}" for e in errors]


def wrong_nodes(config: Config) -> list[str]:
    types, head = config.get("available_node_types", {}), config.get("head_node_type")
    if head not in types:
        return [f"head_node_type: {head!r} is none of available_node_types"]
    spot = {name for name, node in types.items() if is_spot(node)}
    wrong = [f"{head}: the head is on spot, and the driver goes with it"] if head in spot else []
    workers = types.keys() - {head}
    wrong += [f"{name}: a worker is not on spot" for name in sorted(workers - spot)]
    room = sum(types[name].get("max_workers", 0) for name in workers)
    if config.get("max_workers", 2) < room:
        wrong.append(
            f"max_workers: {config.get('max_workers', 2)} is less than {room} of the types"
        )
    images = {node["node_config"].get("ImageId") for node in types.values()}
    if len(images) > 1 or None in images:
        wrong.append("ImageId: all machines need one image; Ray's own is too old for the lock")
    return wrong


def is_spot(node: Config) -> bool:
    options = node["node_config"].get("InstanceMarketOptions", {})
    return bool(options.get("MarketType") == "spot")


def wrong_starts(config: Config) -> list[str]:
    head = " ".join(config.get("head_start_ray_commands", []))
    worker = " ".join(config.get("worker_start_ray_commands", []))
    wrong = [
        f"{name}_start_ray_commands: no RAY_AUTH_MODE=token"
        for name, command in (("head", head), ("worker", worker))
        if not re.search(r"export [^;]*\bRAY_AUTH_MODE=token\b[^;]*;.*\bray start\b", command)
    ]
    host = re.search(r"--dashboard-host=(\S+)", head)
    if host is None or host[1] not in ("127.0.0.1", "localhost"):
        wrong.append(f"dashboard: listens on {host[1] if host else 'whatever is default'}")
    if "--disable-usage-stats" not in head:
        wrong.append("head_start_ray_commands: no --disable-usage-stats")
    return wrong


def wrong_mounts(config: Config) -> list[str]:
    mounts = config.get("file_mounts", {})
    wrong = [] if TOKEN in mounts else [f"file_mounts: no {TOKEN}, so no machine has the token"]
    missing = [local for local in mounts.values() if not local.startswith("~")]
    wrong += [f"file_mounts: no {local} here" for local in missing if not (ROOT / local).exists()]
    locks = [remote for remote, local in mounts.items() if local == "requirements.lock"]
    if not any(f"-r {lock}" in " ".join(config.get("setup_commands", [])) for lock in locks):
        wrong.append("setup_commands: the lock is not installed")
    return wrong


def test_the_file_has_no_mistakes() -> None:
    assert mistakes(TEXT) == []


def test_ray_accepts_the_file_with_its_defaults_filled_in() -> None:
    config = prepare_config(yaml.safe_load(TEXT))
    validate_config(config)
    assert config["head_node_type"] == "head"
    assert config["setup_commands"][:1] == ["chmod 600 ~/.ray/auth_token"]  # ours, not defaults


def test_every_command_is_one_that_bash_can_read() -> None:
    config = yaml.safe_load(TEXT)
    lists = [lines for name, lines in config.items() if name.endswith("_commands")]
    assert len(lists) == 4
    for line in itertools.chain(*lists):
        subprocess.run(["bash", "-n", "-c", line], check=True)


def test_every_place_to_fill_in_says_so() -> None:
    assert TEXT.count("FILL IN:") == 4
    assert "ami-0000" in TEXT
    assert "fs-0000" in TEXT


@pytest.mark.parametrize(
    ("before", "after", "named"),
    [
        ("max_workers: 8\nidle", "max_workers: eight\nidle", "max_workers: 'eight' is not of type"),
        ("provider:\n  type: aws", "provider:\n  kind: aws", "provider: 'type' is a required"),
        ("cluster_name: paretoken", "name: paretoken", "'cluster_name' is a required property"),
        ("auth:", "auth: [", "no YAML"),
        ("head_node_type: head", "", "head_node_type: None is none of"),
        ("head_node_type: head", "head_node_type: haed", "head_node_type: 'haed' is none of"),
        (
            "InstanceType: m6i.xlarge",
            "InstanceType: m6i.xlarge\n      InstanceMarketOptions: {MarketType: spot}",
            "head: the head is on spot",
        ),
        ("InstanceMarketOptions: {MarketType: spot}", "", "gpu: a worker is not on spot"),
        ("max_workers: 8\nidle", "max_workers: 4\nidle", "max_workers: 4 is less than 8"),
        ("ImageId:", "KeyName:", "ImageId: all machines need one image"),
        ("--dashboard-host=127.0.0.1", "--dashboard-host=0.0.0.0", "listens on 0.0.0.0"),
        ("--dashboard-host=127.0.0.1", "", "listens on whatever is default"),
        ("--disable-usage-stats", "", "no --disable-usage-stats"),
        ("RAY_AUTH_MODE=token; ulimit", "; ulimit", "worker_start_ray_commands: no RAY_AUTH_MODE"),
        ("RAY_AUTH_MODE=token; ulimit", "; ulimit", "head_start_ray_commands: no RAY_AUTH_MODE"),
        ("~/.ray/auth_token: ~/.ray/auth_token", "", "no ~/.ray/auth_token, so no machine"),
        (": requirements.lock", ": requirements.txt", "no requirements.txt here"),
        ("install --quiet --no-compile -r", "install", "the lock is not installed"),
    ],
)
def test_a_slip_is_named(before: str, after: str, named: str) -> None:
    assert before in TEXT
    found = mistakes(TEXT.replace(before, after))
    assert any(named in line for line in found), found
