"""The house keeps its shape: imports point down, files stay short, torch code needs no Ray."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("workloads", "search_spaces", "orchestrator")

# Lowest first. A module may import those of lower layers alone, none of its own. A pattern stands
# for what is not named itself: a new reducer, model, data set or study needs no line here.
LAYERS = (
    # torch and pixels
    "workloads workloads.reducers workloads.mistakes workloads.containers",
    "workloads.knobs workloads.readers",
    "workloads.tokens workloads.frames workloads.metrics workloads.stage "
    "workloads.datasets.manifest workloads.datasets.shapes workloads.datasets.lists "
    "workloads.names",
    "workloads.attention workloads.parts workloads.reducers.base "
    "workloads.augment workloads.optim workloads.cache workloads.merging workloads.datasets.splits "
    "workloads.barcodes workloads.isolation workloads.probe",
    "workloads.trace workloads.proof workloads.footage",
    "workloads.blocks",
    "workloads.reducers.* workloads.vit workloads.clips workloads.decoder workloads.datasets.*",
    "workloads.models workloads.losses workloads.normalise",
    "workloads.models.* workloads.cost workloads.datasets workloads.composition workloads.mae "
    "workloads.branches workloads.sampling workloads.load workloads.shelf workloads.examine "
    "workloads.datasets.published",
    "workloads.layouts workloads.training",
    "workloads.folder",
    "workloads.finetune workloads.evaluate workloads.pretrain workloads.pretrained "
    "workloads.survey",
    "workloads.predict workloads.timing",
    # what may vary
    "search_spaces.objectives search_spaces.fit",
    "search_spaces.space search_spaces.equal",
    "search_spaces.stage",
    "search_spaces.study",
    "search_spaces.started",
    "search_spaces.demo",  # whose trained model other studies evaluate
    "search_spaces search_spaces.*",
    # Ray, Optuna, MLflow
    "orchestrator orchestrator.environment orchestrator.credentials orchestrator.files "
    "orchestrator.failures orchestrator.interrupts "
    "orchestrator.lock orchestrator.ledger orchestrator.words orchestrator.twins "
    "orchestrator.arguments orchestrator.sources orchestrator.journal",
    "orchestrator.race orchestrator.front orchestrator.samplers orchestrator.store "
    "orchestrator.cluster orchestrator.chart orchestrator.display orchestrator.tracking "
    "orchestrator.checks orchestrator.intervals orchestrator.inventory "
    "orchestrator.room",
    "orchestrator.stream",
    "orchestrator.board orchestrator.data orchestrator.train orchestrator.memory "
    "orchestrator.figure orchestrator.page orchestrator.machine orchestrator.parcel "
    "orchestrator.served orchestrator.predict orchestrator.registry orchestrator.examiners",
    "orchestrator.stages orchestrator.pool orchestrator.summary orchestrator.report "
    "orchestrator.checkpoint orchestrator.doctor orchestrator.jobs orchestrator.advise",
    "orchestrator.tables orchestrator.trial orchestrator.crew orchestrator.submit "
    "orchestrator.publish orchestrator.card orchestrator.confirmed orchestrator.ingest",
    "orchestrator.search orchestrator.export orchestrator.verdict",
    "orchestrator.controls orchestrator.racer orchestrator.confirmation",
    "orchestrator.run",
    "orchestrator.confirm",
    "orchestrator.__main__",
)

MOST_LINES, MOST_LINES_OF_A_REDUCER, MOST_LINES_OF_A_FUNCTION = 350, 199, 40
# What they print, a person asked for.
COMMANDS = {"orchestrator/__main__.py", "orchestrator/submit.py", "workloads/composition.py"}

FUNCTION = ast.FunctionDef | ast.AsyncFunctionDef
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
}
TREES = {name: ast.parse(path.read_text()) for name, path in FILES.items()}


def shown(name: str) -> str:
    return FILES[name].relative_to(ROOT).as_posix()


def layers_of(name: str) -> list[int]:
    """Return the layers that name a module, or else those with a pattern for it."""
    named = [i for i, layer in enumerate(LAYERS) if name in layer.split()]
    patterns = [i for i, layer in enumerate(LAYERS) if any(fnmatch(name, p) for p in layer.split())]
    return named or patterns


def imported(tree: ast.AST) -> Iterator[str]:
    """Yield the full name of whatever is imported anywhere in a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def modules_of_ours(name: str) -> set[str]:
    """Return our modules that a module imports; of `from module import thing`, the module."""
    found = set()
    for full in imported(TREES[name]):
        parent = full.rpartition(".")[0]
        found |= {full} & FILES.keys() or {parent} & FILES.keys()
    return found - {name}


def packages(tree: ast.AST) -> set[str]:
    return {full.partition(".")[0] for full in imported(tree)}


def at_import(node: ast.AST) -> set[str]:
    """Return the packages that are imported when a module is: not those inside functions."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        return packages(ast.Module([node], []))
    children = [c for c in ast.iter_child_nodes(node) if not isinstance(c, FUNCTION)]
    return set().union(*map(at_import, children))


def test_every_module_is_in_one_layer() -> None:
    assert {name: layers_of(name) for name in FILES if len(layers_of(name)) != 1} == {}


def test_every_name_in_the_layers_is_a_module() -> None:
    names = [name for layer in LAYERS for name in layer.split() if "*" not in name]
    assert len({*names}) == len(names)
    assert {*names} <= FILES.keys()


def test_imports_point_down() -> None:
    """Imports inside functions and for type checkers count: they tie modules all the same."""
    upwards = {
        (name, other)
        for name in FILES
        for other in modules_of_ours(name)
        if layers_of(other) >= layers_of(name)
    }
    assert upwards == set()


def test_nobody_imports_what_is_private_to_another() -> None:
    private = {
        (name, full)
        for name, tree in TREES.items()
        for full in imported(tree)
        if full.partition(".")[0] in PACKAGES
        for part in full.split(".")
        if part.startswith("_") and not part.startswith("__")
    }
    assert private == set()


def test_ray_optuna_and_mlflow_are_the_orchestrators_alone() -> None:
    users = {name for name, tree in TREES.items() if packages(tree) & {"ray", "optuna", "mlflow"}}
    assert {name for name in users if not name.startswith("orchestrator.")} == set()


def test_decoders_are_fetched_where_something_is_decoded() -> None:
    """The GPU machine has none: an import at the top would need one."""
    assert {name for name, tree in TREES.items() if at_import(tree) & {"decord", "av"}} == set()


def test_files_and_functions_keep_their_budgets() -> None:
    over = set()
    for name, path in FILES.items():
        is_reducer = name.startswith("workloads.reducers.") and not name.endswith(".base")
        most = MOST_LINES_OF_A_REDUCER if is_reducer else MOST_LINES
        if len(path.read_text().splitlines()) > most:
            over.add(shown(name))
        for node in ast.walk(TREES[name]):
            if isinstance(node, FUNCTION):
                assert node.end_lineno is not None
                if node.end_lineno - node.lineno + 1 > MOST_LINES_OF_A_FUNCTION:
                    over.add(f"{shown(name)}: {node.name}")
    assert not over


def test_only_commands_print() -> None:
    printing = {
        shown(name)
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"
    }
    assert printing <= COMMANDS


def test_code_is_ascii() -> None:
    assert {name for name, path in FILES.items() if not path.read_bytes().isascii()} == set()


def test_every_module_says_what_it_is() -> None:
    assert {name for name, tree in TREES.items() if not ast.get_docstring(tree)} == set()


def test_workloads_need_no_ray_no_tracker_and_no_decoder() -> None:
    """Each of its modules is imported in a process in which those cannot be."""
    modules = [name for name in FILES if name.partition(".")[0] == "workloads"]
    code = (
        "import importlib, sys\n"
        "for name in ('ray', 'mlflow', 'optuna', 'decord', 'av'): sys.modules[name] = None\n"
        f"for name in {modules!r}: importlib.import_module(name)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
