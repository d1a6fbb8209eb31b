"""docs/architecture.md names files and functions: each of them exists."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "architecture.md").read_text()
NAMES = sorted(set(re.findall(r"`([a-z_/]+\.py)(?::([A-Za-z_.]+))?`", TEXT)))


def definitions(tree: ast.Module) -> Iterator[str]:
    """Yield every function and class of a module, methods as Class.method."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        if isinstance(node, ast.ClassDef):
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef):
                    yield f"{node.name}.{inner.name}"


@pytest.mark.parametrize(("file", "name"), NAMES)
def test_what_the_architecture_page_names_exists(file: str, name: str) -> None:
    # In the drawing and in sentences a file may stand without its package.
    found = [path for path in (ROOT / "gateway").rglob("*.py") if str(path).endswith("/" + file)]
    assert found, file
    if name:
        assert any(name in set(definitions(ast.parse(path.read_text()))) for path in found), f"{file}:{name}"


def test_the_page_walks_through_functions() -> None:
    assert len([name for _, name in NAMES if name]) > 30
