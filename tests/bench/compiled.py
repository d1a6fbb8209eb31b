"""Compiles the gateway of this tree as the container image has it, for the peer `compiled` (see deploy/compile.py)."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.bench.before import ROOT
from tests.bench.interpreter import Build


@contextlib.contextmanager
def compiled_tree(build: Build) -> Iterator[Path | None]:
    """Yield a directory with a gateway that is compiled for an interpreter; None, with a message, if there is none."""
    with tempfile.TemporaryDirectory(prefix="bench-compiled-") as directory:
        reason = _compile(Path(directory), build)
        if reason is not None:
            print(f"bench: no compiled gateway: {reason}", file=sys.stderr, flush=True)
        yield Path(directory) if reason is None else None


def _compile(directory: Path, build: Build) -> str | None:
    """Compile the gateway in a directory; return why that cannot be done."""
    if build.minor != sys.version_info[:2]:
        return f"libraries made by Python {sys.version_info.major}.{sys.version_info.minor} do not fit {build.version}"
    shutil.copytree(ROOT / "gateway", directory / "gateway", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    shutil.copytree(ROOT / "config", directory / "config")
    command = [sys.executable, str(ROOT / "deploy" / "compile.py"), str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stderr.strip() or "the compiler failed" if done.returncode else None
