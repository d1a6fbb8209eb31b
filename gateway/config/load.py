"""Load a config file: return a Config, or raise one error with every problem in the file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from gateway.config.check import Problem, cross_check
from gateway.config.document import Document, KeyPath, read_document
from gateway.config.kinds import Finding, Findings
from gateway.config.model import Config
from gateway.config.variables import shorten

#: Far more than any config: 50,000 routes. Each byte of a file takes up to a hundred in memory.
_MAX_BYTES: Final = 8 * 2**20


class ConfigError(Exception):
    """The config cannot be used. `problems` has all its problems in the order of the file."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


def load_config(path: Path, environment: Mapping[str, str] | None = None) -> Config:
    """Read and check a config file. `environment` replaces os.environ. Raises ConfigError with every problem."""
    return parse_config(_read_text(path), str(path), environment)


def _read_text(path: Path) -> str:
    """Return the text of a file. Raises ConfigError."""
    line = 0
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        if len(data) <= _MAX_BYTES:
            return data.decode()
        reason = f"it has more than {_MAX_BYTES} bytes"
    except OSError as exc:
        reason = exc.strerror or str(exc)
    except UnicodeDecodeError as exc:
        line = data.count(b"\n", 0, exc.start) + 1
        reason = f"it is not UTF-8 text, see its byte {exc.start}"
    raise ConfigError([Problem(str(path), line, "", f"cannot be read: {reason}; give another file with --config")])


def parse_config(text: str, file: str = "config", environment: Mapping[str, str] | None = None) -> Config:
    """Check the text of a config. `file` is the file name in problems. Raises ConfigError with every problem."""
    document = read_document(text, environment)
    problems = [_problem(path, line, message, document, file) for path, line, message in document.problems]
    config: Config | None = None
    if document.tree is not None:
        if isinstance(document.tree, dict):
            findings: Findings = []
            config = Config.read(document.tree, (), findings)
            problems += _locate(findings, document, file)
            problems += _locate(cross_check(document.tree), document, file)
        else:
            problems.append(
                Problem(file, 1, "", "a config is a mapping: begin with `routes:`, see config/ for examples")
            )
    elif not problems:
        problems.append(
            Problem(file, 1, "", "the file contains only null: begin with `routes:`, see config/ for examples")
        )
    if config is None or problems:
        # A key with a YAML problem has no usable value: further problems of it would mislead.
        unread = {_key_text(path, document) for path, _, _ in document.problems if path}
        first = len(document.problems)
        rest = [problem for problem in problems[first:] if problem.key not in unread]
        raise ConfigError(sorted({*problems[:first], *rest}))
    config.record_variables(document.variables)
    return config


def _locate(findings: Iterable[Finding], document: Document, file: str) -> list[Problem]:
    return [_problem(path, _line(path, document), message, document, file) for path, message in findings]


def _problem(path: KeyPath, line: int, message: str, document: Document, file: str) -> Problem:
    hide = document.variables.hide
    return Problem(file, line, shorten(hide(_key_text(path, document))), shorten(hide(message)))


def _line(path: KeyPath, document: Document) -> int:
    """Return the line of the key, or of the nearest enclosing mapping."""
    while path not in document.lines and path:
        path = path[:-1]
    return document.lines.get(path, 1)


def _key_text(path: KeyPath, document: Document) -> str:
    """Return a key path as text, with a route's name in place of its index, as in error responses."""
    shown = ""
    tree: Any = document.tree
    for step in path:
        tree = _child(tree, step)
        name = tree.get("name") if isinstance(tree, dict) and isinstance(step, int) else None
        if isinstance(name, str) and shown == "routes":
            shown += f".{name}"
        elif isinstance(step, int):
            shown += f"[{step}]"
        else:
            shown += f".{step}" if shown else step
    return shown


def _child(tree: Any, step: str | int) -> Any:
    try:
        return tree[step]
    except (KeyError, IndexError, TypeError):
        return None
