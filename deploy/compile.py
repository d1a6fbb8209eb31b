"""Compile the modules that a small request passes with mypyc: it takes half of the Python of an exchange away.

    python deploy/compile.py DIRECTORY
    python deploy/compile.py --check        only say what is missing to do so

puts a library beside each of these modules of the package `gateway` in DIRECTORY, such as the site-packages of an
environment. Python imports it in place of the source; where there is none, the source. Both behave alike: tests run in
both forms (`make tests COMPILED=1`). The container image has the compiled one.

They are one group: what stays interpreted between them costs more than it did before. Not among them are subclasses
of aiohttp's and asyncio's classes (`aiohttp_seam`), and `observe/stats.py`, whose objects are copied by their slots.
Needs a C compiler, Python's headers, mypy, setuptools, and what the gateway itself needs.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import platform
import shutil
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any, Final

MODULES: Final = (
    "actions/request_head",
    "actions/whole_forward",
    "downstream/access_log",
    "downstream/body",
    "downstream/exchange",
    "downstream/parts",
    "downstream/response",
    "express/__init__",
    "express/exchange",
    "express/lane",
    "handler",
    "http/client",
    "http/framing",
    "http/headers",
    "http/plain_lines",
    "http/routing",
    "http/whole_request",
    "http/whole_response",
    "multipart/quick",
    "observe/waits",
    "transfer/whole",
    "upstream/balancing",
    "upstream/capacity",
    "upstream/pool",
    "upstream/request_head",
    "upstream/retries",
)


def compile_package(directory: Path) -> None:
    """Compile the modules of the package in a directory. Raises SystemExit, with what the compiler says."""
    from mypyc.build import mypycify  # noqa: PLC0415 (needed here only: `what_is_missing` says where it is missing)
    from setuptools import setup  # noqa: PLC0415 (as above)

    target, messages = directory.resolve(), io.StringIO()
    with tempfile.TemporaryDirectory() as build:
        # Elsewhere: mypy analyses no site-packages, and setuptools would read the project's settings.
        built = shutil.ignore_patterns("*.so", "__pycache__")
        shutil.copytree(target / "gateway", Path(build, "gateway"), ignore=built)
        os.chdir(build)
        paths = [f"gateway/{module}.py" for module in MODULES]
        options = ["--config-file=", "--ignore-missing-imports", "--python-executable", sys.executable]
        with contextlib.redirect_stdout(messages), contextlib.redirect_stderr(messages):
            extensions: Any = mypycify([*options, *paths], opt_level="3", debug_level="0", group_name="gateway")
        if "warning:" in messages.getvalue():
            # For example of a default that would not be set.
            raise SystemExit(f"compile: mypyc warns:\n{messages.getvalue()}")
        build_ext = ["--quiet", "build_ext", "--build-lib", str(target), "--build-temp", build]
        setup(name="gateway", packages=[], ext_modules=extensions, script_args=build_ext)
        _record(target, [Path(*extension.name.split(".")) for extension in extensions])


def _record(target: Path, modules: list[Path]) -> None:
    """Have pip remove the libraries together with the sources: it would leave them beside those of the next version."""
    for record in target.glob("streaming_gateway-*.dist-info/RECORD"):
        libraries = [str(module.with_suffix(sysconfig.get_config_var("EXT_SUFFIX"))) for module in modules]
        known = record.read_text().splitlines()
        record.write_text("".join(f"{line}\n" for line in [*known, *(f"{name},," for name in libraries)]))


def what_is_missing() -> str | None:
    """Return what this machine lacks to compile, None if it has it all."""
    if shutil.which(os.environ.get("CC", "cc")) is None:
        return "there is no C compiler"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return f"there are no headers of Python {platform.python_version()} (Debian: python3-dev)"
    missing = [name for name in ("mypyc", "setuptools") if importlib.util.find_spec(name) is None]
    return f"{missing[0]} is not installed" if missing else None


if __name__ == "__main__":
    if len(sys.argv) != 2:  # noqa: PLR2004 (the program and the directory)
        raise SystemExit("usage: python deploy/compile.py DIRECTORY | --check")
    if (reason := what_is_missing()) is not None:
        raise SystemExit(f"compile: {reason}")
    if sys.argv[1] != "--check":
        compile_package(Path(sys.argv[1]))
