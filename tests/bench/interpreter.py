"""Chooses the Python that the gateway and its Python peers run on, and describes how it was built.

A Python built with PGO and LTO takes 8 to 15 % less CPU for a small request than one built without, as pyenv's are.
If the running one is not optimised but the system's is, the benchmark creates a virtual environment from the system's,
with the gateway's dependencies only and those of the filters that are measured.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

from tests.bench.before import ROOT

#: Where the virtual environment is created; a relative path is below the repository.
VENV_VARIABLE = "BENCH_VENV"
_DEFAULT_VENV = ".venv-bench"
_EXTRAS = ("sniff", "crc32c", "blake3")
_SYSTEM_PYTHON = Path("/usr/bin/python3")
_QUESTION = """
import json, os, platform, sys, sysconfig
base = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
options = sysconfig.get_config_var("CONFIG_ARGS") or ""
print(json.dumps([sys.version_info[:2], platform.python_version(), base, options]))
"""


@dataclass(frozen=True)
class Build:
    """An interpreter and how it was built, as far as it can be seen."""

    python: str
    minor: tuple[int, int]
    version: str
    #: "PGO", "LTO", both, or nothing.
    optimisations: tuple[str, ...]
    #: Where that is known from.
    source: str

    def __str__(self) -> str:
        how = " and ".join(self.optimisations)
        built = f"built with {how} ({self.source})" if how else "built without PGO and LTO"
        return f"Python {self.version}, {built}"


def describe(python: str) -> Build:
    """Return how an interpreter was built. Raises OSError or subprocess.SubprocessError if it does not run."""
    done = subprocess.run([python, "-c", _QUESTION], capture_output=True, text=True, check=True)
    minor, version, base, options = json.loads(done.stdout)
    found = tuple(
        name
        for name, option in (("PGO", "--enable-optimizations"), ("LTO", "--with-lto"))
        if option in options and f"{option}=no" not in options
    )
    source = "its configure options"
    if not found and base.startswith("/usr/bin/") and Path("/etc/debian_version").exists():
        # debian/rules passes the flags to make, where sysconfig does not record them.
        found, source = ("PGO", "LTO"), "the distribution's package"
    return Build(python, (minor[0], minor[1]), version, found, source)


@functools.cache
def choose() -> Build:
    """Return the interpreter for the gateway: the running one, or an optimised one in an environment of its own."""
    here = describe(sys.executable)
    if here.optimisations:
        return here
    try:
        system = describe(str(_SYSTEM_PYTHON))
        if not system.optimisations or system.minor < (3, 11):
            return here
        return describe(_environment_of(system))
    except (OSError, subprocess.SubprocessError) as error:
        print(f"bench: no environment with an optimised Python, use {sys.executable}: {error}", file=sys.stderr)
        return here


def venv_directory() -> Path:
    """Return where the virtual environment of the benchmark is, or would be."""
    return ROOT / (os.environ.get(VENV_VARIABLE) or _DEFAULT_VENV)


def _environment_of(system: Build) -> str:
    """Create the virtual environment unless it is there with the dependencies of today; return its Python."""
    directory = venv_directory()
    python = str(directory / "bin" / "python")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = (project["optional-dependencies"][name] for name in _EXTRAS)
    needed = [*project["dependencies"], *itertools.chain.from_iterable(extras)]
    mark = directory / "bench-dependencies.json"
    content = json.dumps([system.version, needed])
    if not mark.exists() or mark.read_text() != content:
        print(f"bench: create {directory} with {system}", file=sys.stderr, flush=True)
        # Without --clear: `make bench` may have installed Envoy there.
        subprocess.run([system.python, "-m", "venv", str(directory)], check=True, stdout=subprocess.DEVNULL)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *needed], check=True, stderr=subprocess.DEVNULL)
        mark.write_text(content)
    return python
