"""Continuous integration and pre-commit call targets of the Makefile that exist; the package is typed."""

from __future__ import annotations

import re
import tomllib

import pytest
import yaml

from tests.project.test_project import PACKAGE, ROOT

TARGETS = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.mark.parametrize(
    "name", [".github/workflows/test.yml", ".pre-commit-config.yaml", "docs/releasing.md", ".ci/run"]
)
def test_make_targets_that_are_called_exist(name: str) -> None:
    called = set(re.findall(r"(?:run: |entry: |`|^)make ([a-z]+)", (ROOT / name).read_text(), re.MULTILINE))
    assert called
    assert called <= TARGETS


def test_unit_tests_of_the_makefile_exist() -> None:
    text = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    for path in re.search(r"^UNIT := (.*)$", text, re.MULTILINE)[1].split():  # type: ignore[index]  # it is there
        assert (ROOT / path).exists(), path


def test_workflow_tests_from_the_oldest_supported_python() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text())
    versions = workflow["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert PROJECT["project"]["requires-python"] == f">={versions[0]}"


def test_package_has_its_marker_of_types_and_ships_it() -> None:
    assert (PACKAGE / "py.typed").exists()
    assert "py.typed" in PROJECT["tool"]["setuptools"]["package-data"]["gateway"]
