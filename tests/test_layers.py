"""Imports point downwards only; the folder of a module is its layer."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# What each layer may import beside itself: a folder is a layer, and the modules beside the folders are the ground.
GROUND = {"package", "ground"}
BELOW = {
    "package": set(),
    "ground": {"package"},
    "data": GROUND,
    "science": GROUND | {"data"},
    "storage": GROUND,
    "jobs": GROUND | {"data", "storage"},
    "report": GROUND | {"data", "science", "storage", "jobs"},
    "cluster": GROUND,
    "stages": GROUND | {"data", "science", "storage", "jobs", "report", "cluster"},
    "models": GROUND | {"data", "science", "storage", "jobs", "report"},
    "upkeep": GROUND | {"data", "storage", "jobs", "report", "cluster", "stages"},
    "bench": GROUND | {"data", "science", "storage", "jobs", "stages"},
    "cli": GROUND | {"data", "science", "storage", "jobs", "report", "cluster", "stages", "models", "upkeep", "bench"},
}
ENTRY = {"cli", "data_cli", "__main__"}  # the modules beside the folders that stand on top of everything

# Science takes tensors and plain values: it opens no store, reads no configuration file, talks to no server.
FOREIGN_TO_SCIENCE = {"app.config", "boto3", "botocore", "click", "typer", "yaml"}


def layer_of(module: str) -> str:
    """The layer of a module: the folder that it lies in, else the ground, or the entry on top."""
    parts = module.split(".")
    if len(parts) == 1:
        return "package"
    if parts[1] in BELOW or len(parts) > 2:
        return parts[1]
    return "cli" if parts[1] in ENTRY else "ground"


def modules(root: Path) -> dict[str, Path]:
    """Every module of the package with its file: {"app.data": …/app/data/__init__.py, …}."""
    found = {}
    for path in sorted((root / "app").rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported_names(source: str, *, module: str, is_package: bool) -> Iterator[str]:
    """Full dotted names that the source imports anywhere: inside functions, relative, or by importlib.

    ``from a import b`` gives ``a.b``; whether ``b`` is a module is for the caller to find out.
    """
    package = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = [*base, *([node.module] if node.module else [])]
            yield from (".".join([*stem, alias.name]) for alias in node.names)
        elif isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", None)
            if called in {"import_module", "__import__"}:
                if not (node.args and isinstance(node.args[0], ast.Constant)):
                    raise ValueError(f"{module}, line {node.lineno}: an import by a computed name cannot be checked")
                yield str(node.args[0].value)


def imports(source: str, *, module: str, is_package: bool, known: set[str]) -> set[str]:
    """The modules of the package (and the top names of others) that the source imports."""
    found = set()
    for name in imported_names(source, module=module, is_package=is_package):
        if name.split(".")[0] != "app":
            found.add(name.split(".")[0])
            continue
        while name not in known and "." in name:
            name = name.rpartition(".")[0]
        found.add(name)
    return found - {module}


def wrong_imports(module: str, imported: set[str]) -> list[str]:
    """One line for each import that does not point downwards."""
    layer = layer_of(module)
    assert layer in BELOW, f"{module}: say in BELOW what the folder app/{layer} may import"
    wrong = []
    for name in sorted(imported):
        if layer == "science" and name in FOREIGN_TO_SCIENCE:
            wrong.append(f"{module} (science) imports {name}")
            continue
        other = layer_of(name) if name.split(".")[0] == "app" else None
        if other is not None and other != layer and other not in BELOW[layer]:
            wrong.append(f"{module} ({layer}) imports {name} ({other})")
    return wrong


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    files = modules(ROOT)
    return {
        module: imports(path.read_text("utf-8"), module=module, is_package=path.name == "__init__.py", known=set(files))
        for module, path in files.items()
    }


def test_every_folder_is_a_layer(graph: dict[str, set[str]]) -> None:
    assert "app.errors" in graph
    assert {layer_of(module) for module in graph} == set(BELOW)


def test_imports_point_downwards(graph: dict[str, set[str]]) -> None:
    assert [line for module, imported in graph.items() for line in wrong_imports(module, imported)] == []


def test_the_s3_store_alone_knows_boto3(graph: dict[str, set[str]]) -> None:
    known = {"app.storage.address", "app.storage.answers"}
    assert {module for module, imported in graph.items() if imported & {"boto3", "botocore"}} == known


def test_no_module_is_longer_than_400_lines() -> None:
    lengths = {name: len(path.read_text("utf-8").splitlines()) for name, path in modules(ROOT).items()}
    assert {name: length for name, length in lengths.items() if length > 400} == {}


def test_no_import_cycles(graph: dict[str, set[str]]) -> None:
    inside = {module: {name for name in imported if name in graph} for module, imported in graph.items()}
    try:
        TopologicalSorter(inside).prepare()
    except CycleError as error:
        pytest.fail("import cycle: " + " ← ".join(error.args[1]))


KNOWN = {
    "app",
    "app.errors",
    "app.storage",
    "app.config",
    "app.science",
    "app.science.byol",
    "app.data",
    "app.data.npz",
    "app.stages.plan",
    "app.cli",
}


@pytest.mark.parametrize(
    ("module", "source", "wrong"),
    [
        ("app.science.byol", "import app.storage", "app.storage"),
        ("app.science.byol", "from app import storage", "app.storage"),
        ("app.science.byol", "from app.storage import Store", "app.storage"),
        ("app.science.byol", "from .. import storage", "app.storage"),
        ("app.science.byol", "from ..storage import Store as S", "app.storage"),
        ("app.science.byol", "def train():\n    from app.storage import Store", "app.storage"),
        ("app.science.byol", "if TYPE_CHECKING:\n    from app.storage import Store", "app.storage"),
        ("app.science.byol", "import importlib\nimportlib.import_module('app.storage')", "app.storage"),
        ("app.science.byol", "import boto3.session", "boto3"),
        ("app.science.byol", "from app.config import Config", "app.config"),
        ("app.data.npz", "from ..storage import Store", "app.storage"),
        ("app.storage", "import app.data.npz", "app.data.npz"),
        ("app.storage", "from app.data import npz", "app.data.npz"),
        ("app.data.npz", "from app.science import byol", "app.science.byol"),
        ("app.stages.plan", "from app.cli import main", "app.cli"),
        ("app.errors", "from app.storage import Store", "app.storage"),
        ("app", "from app.errors import AppError", "app.errors"),
    ],
)
def test_a_wrong_import_is_found(module: str, source: str, wrong: str) -> None:
    found = imports(source, module=module, is_package=module == "app", known=KNOWN)
    assert [line.split(" imports ")[1].split(" (")[0] for line in wrong_imports(module, found)] == [wrong]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        (
            "app.science.byol",
            "import math\nfrom app.data.npz import load\nfrom app.errors import InputError\nimport torch",
        ),
        ("app.storage", "from app import __version__\nfrom app.errors import StorageError\nimport boto3"),
        ("app.stages.plan", "from app.science import byol\nfrom app import storage\nfrom app.data import npz"),
        ("app.cli", "def plan():\n    from app.stages import plan"),
    ],
)
def test_a_right_import_passes(module: str, source: str) -> None:
    assert wrong_imports(module, imports(source, module=module, is_package=False, known=KNOWN)) == []


def test_an_import_that_cannot_be_checked_is_refused() -> None:
    with pytest.raises(ValueError, match=r"app\.cli, line 2: an import by a computed name"):
        list(imported_names("name = 'app.x'\nimport_module(name)", module="app.cli", is_package=False))


def test_a_folder_that_is_no_layer_is_refused() -> None:
    assert layer_of("app.utils.strings") == "utils"
    assert layer_of("app.database") == "ground"  # not app.data
    with pytest.raises(AssertionError, match=r"app\.utils\.strings: say in BELOW"):
        wrong_imports("app.utils.strings", set())
