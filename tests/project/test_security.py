"""SECURITY.md names only tests that exist."""

from __future__ import annotations

import ast
import re

from tests.project.test_project import ROOT


def test_every_test_named_in_the_threat_model_exists() -> None:
    rows = [
        line for line in (ROOT / "SECURITY.md").read_text().splitlines() if line.startswith("| ") and "`tests/" in line
    ]
    assert len(rows) >= 20
    for row in rows:
        for path, name in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row):
            tree = ast.parse((ROOT / path).read_text())
            functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
            assert name in functions, f"{path}::{name}"


def test_every_threat_names_a_test() -> None:
    table = (ROOT / "SECURITY.md").read_text().partition("| threat | defence | test |")[2].partition("\n\n")[0]
    for row in table.splitlines()[2:]:
        assert "::test_" in row.rsplit("|", 2)[1], row
