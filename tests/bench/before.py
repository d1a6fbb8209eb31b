"""Runs the gateway of another commit as the peer `before`, so that one run compares two revisions.

The revision is checked out into a temporary git worktree and started with the same interpreter and the same libraries.
Two runs one after the other are no substitute: on a shared machine the figures of two runs differ by more than 5 %.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

#: The repository this file belongs to.
ROOT = Path(__file__).parents[2]


@contextlib.contextmanager
def checkout(revision: str) -> Iterator[Path]:
    """Check out a revision into a temporary worktree and remove it afterwards."""
    with tempfile.TemporaryDirectory(prefix="bench-before-") as directory:
        tree = Path(directory) / "tree"
        _git("worktree", "add", "--quiet", "--detach", str(tree), revision)
        try:
            yield tree
        finally:
            _git("worktree", "remove", "--force", str(tree))


def describe(tree: Path) -> str:
    """Return the short hash and the subject of the commit that is checked out in a tree."""
    return _git("-C", str(tree), "log", "-1", "--format=%h %s")


def environment_of(tree: Path) -> dict[str, str]:
    """Return the environment in which `python -m gateway`, started in `tree`, imports the gateway of that tree."""
    return os.environ | {"PYTHONPATH": str(tree)}


def check_import(tree: Path, python: str = sys.executable) -> Path:
    """Return the path of the package that a peer of this tree imports. Raises RuntimeError if it is another tree's."""
    command = [python, "-c", "import gateway; print(gateway.__file__)"]
    done = subprocess.run(command, cwd=tree, env=environment_of(tree), capture_output=True, text=True, check=True)
    found = Path(done.stdout.strip()).resolve()
    expected = (tree / "gateway" / "__init__.py").resolve()
    if found != expected:
        raise RuntimeError(f"a gateway started in {tree} imports {found}, not {expected}: check sys.path")
    return found


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"git {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout.strip()
