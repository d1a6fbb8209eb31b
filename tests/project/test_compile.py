"""deploy/compile.py: what it compiles is there, and what it says to a wrong call. `make test` runs what it compiles."""

from __future__ import annotations

import subprocess
import sys

import pytest

from deploy import compile as compiler
from tests.project.test_project import PACKAGE, ROOT


def test_modules_that_are_compiled_exist_and_are_in_order() -> None:
    assert list(compiler.MODULES) == sorted(set(compiler.MODULES))
    for module in compiler.MODULES:
        assert (PACKAGE / f"{module}.py").is_file(), module


@pytest.mark.parametrize("missing", ["compiler", "headers", "mypyc"])
def test_what_is_missing_is_said_before_anything_is_compiled(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    patches = {
        "compiler": ("shutil.which", lambda _: None, "there is no C compiler"),
        "headers": ("sysconfig.get_path", lambda _: "/nowhere", "there are no headers of Python"),
        "mypyc": ("importlib.util.find_spec", lambda _: None, "mypyc is not installed"),
    }
    for name, (target, replacement, _) in patches.items():
        monkeypatch.setattr(target, replacement if name == missing else lambda _: str(ROOT))
    monkeypatch.setattr("pathlib.Path.exists", lambda path: str(path).startswith(str(ROOT)))
    assert (compiler.what_is_missing() or "").startswith(patches[missing][2])


def test_wrong_call_is_answered_with_the_usage() -> None:
    done = subprocess.run([sys.executable, "deploy/compile.py"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "usage: python deploy/compile.py DIRECTORY | --check\n")
