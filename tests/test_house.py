"""Imports point one way: pipelines → components → omnifeed; serving and feature_repo need no more than numpy of it."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
STACKS = {"kfp", "kubernetes", "tritonclient", "triton_python_backend_utils"}
UPSTAIRS = {"omnifeed.serving", "omnifeed.components", "omnifeed.pipelines", "omnifeed.feature_repo"}
LIGHT = (
    "omnifeed.errors",
    "omnifeed.home",
    "omnifeed.config",
    "omnifeed.features.spec",
    "omnifeed.features.online",
    "omnifeed.features.serve",
    "omnifeed.export.affinity",
    "omnifeed.export.encode",
    "omnifeed.export.release",
    "omnifeed.export.catalogue",
    "omnifeed.export.catalogue_state",
    "omnifeed.export.delta",
    "omnifeed.export.following",
    "omnifeed.export.rows",
    "omnifeed.export.strings",
    "omnifeed.export.golden",
    "omnifeed.export.trending",
    "omnifeed.experiment.assignment",
    "omnifeed.experiment.ledger",
)


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def within(name: str, packages: set[str] | tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


@pytest.mark.parametrize("path", sorted((ROOT / "omnifeed").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_the_library_knows_nothing_of_its_surroundings(path: Path) -> None:
    assert not [name for name in imports(path) if within(name, STACKS | UPSTAIRS)]


@pytest.mark.parametrize(
    "path",
    sorted([*(ROOT / "serving").rglob("*.py"), *(ROOT / "feature_repo").rglob("*.py")]),
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_serving_and_features_need_no_more_of_the_library_than_numpy(path: Path) -> None:
    own = {name for name in imports(path) if within(name, ("omnifeed",))}
    allowed = (*LIGHT, "omnifeed.serving", "omnifeed.feature_repo")
    modules = {name for name in own if not any(other.startswith(f"{name}.") for other in own)} | own
    assert not [
        name for name in modules if not within(name, allowed) and not any(m.startswith(f"{name}.") for m in LIGHT)
    ]


@pytest.mark.parametrize("folder", ["components", "serving"])
def test_lower_floors_do_not_import_the_pipelines(folder: str) -> None:
    for path in (ROOT / folder).rglob("*.py"):
        assert not [name for name in imports(path) if within(name, ("omnifeed.pipelines",))], path


def test_the_light_modules_load_with_numpy_alone() -> None:
    code = f"""
import sys
for name in {LIGHT!r}:
    __import__(name)
heavy = set(sys.modules) & {{"pyarrow", "pandas", "torch", "feast", "duckdb", "ibis", "kfp", "scipy", "onnxruntime"}}
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_component_imports_only_kfp_at_its_top() -> None:
    for path in (ROOT / "components").glob("*/component.py"):
        top = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
        names = {node.module if isinstance(node, ast.ImportFrom) else node.names[0].name for node in top}
        assert names <= {"kfp.dsl", "omnifeed.components.step", "typing"}, path


def test_the_command_line_answers_help_without_heavy_imports() -> None:
    code = """
import sys
from omnifeed.pipelines.cli import main
try:
    main(["--help"])
except SystemExit:
    pass
heavy = set(sys.modules) & {"kfp", "torch", "feast", "great_expectations", "pandas", "pyarrow"}
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
