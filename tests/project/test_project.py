"""Rules of the project: which modules may import which, what may not be called, what the docs must contain."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.aiohttp_seam.selftest import NAMES
from gateway.config import load_config
from gateway.errors import FaultKind
from tests.project.reference import TABLES, with_table

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "gateway"

#: design order: a module imports only from rows above its own.
ROWS = (
    ("",),
    ("errors", "memory", "sharing", "signals", "systemd"),
    ("config", "garbage", "threads"),
    ("http", "cores"),
    ("multipart",),
    ("observe",),
    ("aiohttp_seam",),
    ("transfer",),
    ("filters",),
    ("downstream", "upstream"),
    ("storage",),
    ("actions",),
    ("runtime", "listener"),
    ("express",),
    ("handler", "ops"),
    ("drain", "process_view"),
    ("server", "top"),
    ("workers",),
    ("demo", "run"),
    ("cli",),
    ("__main__",),
)
RANK = {name: rank for rank, row in enumerate(ROWS) for name in row}
SOURCES = sorted(PACKAGE.rglob("*.py"))


def package_of(path: Path) -> str:
    """Return the row name of a file: its module or package right below gateway, "" for gateway itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return "" if parts == ("__init__",) else parts[0]


def imports_of(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "gateway":
            if node.module == "gateway":
                yield from ((alias.name if (PACKAGE / f"{alias.name}.py").exists() else "") for alias in node.names)
            else:
                yield node.module.split(".")[1]
        elif isinstance(node, ast.Import):
            yield from (alias.name.split(".")[1] for alias in node.names if alias.name.startswith("gateway."))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_module_imports_only_from_rows_above_its_own(path: Path) -> None:
    own = package_of(path)
    for other in imports_of(path):
        assert other == own or RANK[other] < RANK[own], f"{own} imports {other}"


def test_files_of_a_package_do_not_import_each_other_in_a_circle() -> None:
    for package in (path for path in PACKAGE.iterdir() if (path / "__init__.py").exists()):
        edges: dict[str, set[str]] = {}
        for path in package.glob("*.py"):
            if path.stem == "__init__":
                continue
            text = path.read_text()
            edges[path.stem] = set(re.findall(rf"from gateway\.{package.name}\.(\w+) import", text))
        while edges:
            leaves = {name for name, others in edges.items() if not others & edges.keys()}
            assert leaves, f"a circle in {package.name}: {edges}"
            edges = {name: others for name, others in edges.items() if name not in leaves}


@pytest.mark.parametrize(
    ("library", "packages"),
    [
        (r"from aiohttp import web\b|aiohttp\.web", {"aiohttp_seam", "downstream", "handler", "ops", "demo"}),
        (r"aiohttp\.Client|aiohttp\.client|ClientSession", {"aiohttp_seam", "upstream", "top"}),
        (r"prometheus_client", {"observe"}),
        (r"\bos\.(?:open|pread|write|fsync)\b", {"storage"}),
    ],
)
def test_libraries_are_used_only_in_their_packages(library: str, packages: set[str]) -> None:
    for path in SOURCES:
        code = ast.unparse(_without_docstrings(ast.parse(path.read_text())))
        if re.search(library, code):
            assert package_of(path) in packages, path


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(
            node
        ):
            node.body[0] = ast.Pass()
    return tree


def private_names(path: Path) -> set[str]:
    """Return the private names of other code that a file of the gateway uses.

    These are attributes and imports with a leading underscore that the file does not define; names of aiohttp's and
    asyncio's classes that a class derived from them sets or overrides; and `transport.max_size`.
    """
    tree = ast.parse(path.read_text())
    own = _names_defined_in(tree)
    used = _private_names_of_bases(path, tree)
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(attr="_exit", value=ast.Name(id="os")):
                pass  # documented under this name
            case ast.Attribute(attr=name) if _is_private(name):
                is_foreign = not _is_self(node.value) and name in _SEAM_NAMES
                used |= {name} if name not in own or is_foreign else set()
            case ast.Attribute(attr="max_size", value=owner) if ast.unparse(owner).endswith("transport"):
                used.add("max_size")
            case ast.Call(
                func=ast.Name(id="getattr" | "setattr" | "hasattr"), args=[_, ast.Constant(value=str(name)), *_]
            ):
                used |= {name} if _is_private(name) and name not in own else set()
            case ast.ImportFrom(module=str(module)) if module.split(".")[0] in _LIBRARIES:
                used |= {alias.name for alias in node.names if _is_private(alias.name)}
                used |= {part for part in module.split(".") if _is_private(part)}
            case _:
                pass
    return used


_LIBRARIES = ("aiohttp", "asyncio")
_SEAM_NAMES = {name for _, names in NAMES for name in names}


def _is_private(name: str) -> bool:
    """Neither `__dunder__` nor enum's `_sunder_`."""
    return name.startswith("_") and not name.endswith("_")


def _is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def _names_defined_in(tree: ast.AST) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                names.add(name)
            case ast.Name(id=name, ctx=ast.Store()):
                names.add(name)
            case ast.Attribute(attr=name, value=owner, ctx=ast.Store()) if _is_self(owner):
                names.add(name)
            case ast.Assign(targets=[ast.Name(id="__slots__")], value=value):
                names |= set(ast.literal_eval(value))
            case _:
                pass
    return names


def _private_names_of_bases(path: Path, tree: ast.Module) -> set[str]:
    """Return the private names of aiohttp's and asyncio's classes that the classes of a file touch on themselves."""
    module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))
    touched: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            bases = [base for base in getattr(module, node.name).__mro__ if base.__module__.split(".")[0] in _LIBRARIES]
            of_bases = {name for base in bases for name in _names_defined_in(ast.parse(inspect.getsource(base)))}
            names = {name.attr for name in ast.walk(node) if isinstance(name, ast.Attribute) and _is_self(name.value)}
            touched |= (names | _names_defined_in(node)) & {name for name in of_bases if _is_private(name)}
    return touched


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_the_seam_uses_private_names_of_aiohttp_and_asyncio(path: Path) -> None:
    if package_of(path) != "aiohttp_seam":
        assert not private_names(path)


@pytest.mark.parametrize("package", ["errors", "config", "http"])
def test_pure_modules_neither_await_nor_import_aiohttp(package: str) -> None:
    for path in SOURCES:
        if package_of(path) == package:
            tree = ast.parse(path.read_text())
            assert not any(isinstance(node, ast.Await | ast.AsyncFunctionDef) for node in ast.walk(tree)), path
            assert "import aiohttp" not in path.read_text()
            assert "from aiohttp" not in path.read_text()


def test_no_call_reads_a_whole_body() -> None:
    """`request.read()`, `.text()`, `.json()`, `.post()` and `.multipart()` hold bodies in memory or on disk."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                target = ast.unparse(node.func.value)
                if node.func.attr in {"read", "text", "json", "post", "multipart"}:
                    # An UpstreamResponse is a source: its `read` returns one chunk.
                    owners = "request" if node.func.attr == "read" else "request|response"
                    assert not re.search(rf"\b_?({owners})$", target), f"{path}: {ast.unparse(node)}"


@pytest.mark.interpreted(reason="imports modules again")
@pytest.mark.slow
@pytest.mark.timeout(120)
def test_every_module_can_be_imported_alone() -> None:
    """Without the others of its package, that is: those of the rows above are there, and none of them imports it."""
    sources = sorted(SOURCES, key=lambda path: RANK[package_of(path)])
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in sources]
    code = "import importlib, sys\nfor name in sys.argv[1:]:\n    package = '.'.join(name.split('.')[:2])\n    [sys.modules.pop(m) for m in list(sys.modules) if f'{m}.'.startswith(f'{package}.')]\n    importlib.import_module(name)"  # noqa: E501 (a program)
    names.remove("gateway.__main__")
    subprocess.run([sys.executable, "-W", "error", "-c", code, *names], check=True, cwd=ROOT, timeout=120)


def test_every_fault_is_raised_somewhere() -> None:
    text = "".join(path.read_text() for path in SOURCES if path.name != "errors.py")
    for kind in FaultKind:
        assert f"FaultKind.{kind.name}" in text, kind


@pytest.mark.parametrize("name", TABLES)
def test_reference_pages_match_the_code(name: str) -> None:
    assert with_table(name) == (ROOT / "docs" / name).read_text(), "run `make docs`"


@pytest.mark.parametrize("path", sorted((ROOT / "config").glob("*.yaml")), ids=lambda path: path.name)
def test_example_configs_are_valid(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_UPLOADS", str(tmp_path))
    monkeypatch.setenv("GATEWAY_FILES", str(tmp_path))
    assert load_config(path).routes


def test_links_in_the_docs_exist() -> None:
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_readme_gives_the_two_commands_and_the_curls_of_the_default_config() -> None:
    text = (ROOT / "README.md").read_text()
    assert "make run" in text
    assert "make test" in text
    prefixes = re.findall(r"curl .*http://127\.0\.0\.1:8080(/[a-z]+)", text)
    assert {"/proxy", "/convert", "/upload", "/files", "/fetch"} <= set(prefixes)


def test_no_module_is_named_util_helper_common_base_or_manager() -> None:
    for path in SOURCES:
        assert not re.search(r"util|helper|common|base|manager", path.stem), path


def test_modules_have_at_most_420_lines() -> None:
    for path in SOURCES:
        assert len(path.read_text().splitlines()) <= 420, path


@pytest.mark.interpreted(reason="the coverage is of Python's lines")
@pytest.mark.slow
@pytest.mark.timeout(120)
def test_pure_modules_are_covered_completely_by_their_own_tests(tmp_path: Path) -> None:
    packages = ["errors", "config", "http"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/unit", "--cov-branch"]
    command += [f"--cov=gateway.{package}" for package in packages] + [
        "--cov-report=term-missing",
        "--cov-fail-under=100",
    ]
    environment = {"COVERAGE_FILE": str(tmp_path / "coverage"), "PATH": os.environ["PATH"]}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=110)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
