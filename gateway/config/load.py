"""Load a config file: return a Config, or raise one error with every problem in the file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, get_origin

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from gateway.config.check import Problem, cross_check
from gateway.config.document import Document, KeyPath, read_document
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
            try:
                config = Config.model_validate(document.tree)
            except ValidationError as exc:
                problems += _locate(_translate(exc), document, file)
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


def _locate(findings: Iterator[tuple[KeyPath, str]], document: Document, file: str) -> list[Problem]:
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


#: Messages by pydantic's error type: what is wrong and how to mend it.
_MESSAGES: Final = {
    "missing": "the key is missing: add it",
    "int_type": "{shown} is not a whole number: write one like 64",
    "int_parsing": "{shown} is not a whole number: write one like 64",
    "string_type": "{shown} is not a string: put it in quotes",
    "dict_type": "{shown} is not a mapping: indent its keys below it",
    "model_type": "{shown} is not a mapping: indent its keys below it",
    "tuple_type": "{shown} is not a list: write [a, b] or one `- item` per line",
    "greater_than": "{input:g} is too small: give more than {gt:g}",
    "too_short": "the list is empty: give at least one item",
    "literal_error": "{shown} is not a valid value: write {expected}",
    "greater_than_equal": "{shown} is too small: write {ge} or more",
}


def _translate(error: ValidationError) -> Iterator[tuple[KeyPath, str]]:
    for detail in error.errors():
        path = tuple(step for step in detail["loc"] if step != "[key]")
        if detail["type"] == "extra_forbidden":
            yield path, _unknown_key(path)
        else:
            yield path, _message(detail)


def _message(detail: ErrorDetails) -> str:
    if detail["type"] == "value_error":
        return detail["msg"].removeprefix("Value error, ")
    message = _MESSAGES.get(detail["type"])
    if message is None:
        return f"{detail['msg']} (got {_show(detail['input'])})"
    return message.format(input=detail["input"], shown=_show(detail["input"]), **detail.get("ctx", {}))


def _show(value: object) -> str:
    """Return a value for a message; collections are only named."""
    match value:
        case dict():
            return "a mapping"
        case list():
            return "a list"
        case _:
            return repr(value)


def _unknown_key(path: KeyPath) -> str:
    """Return a message with the keys allowed here: most unknown keys are typing mistakes."""
    model: Any = Config
    steps = iter(path[:-1])
    for step in steps:
        if isinstance(step, int) or step not in model.model_fields:
            continue
        annotation = model.model_fields[step].annotation
        model = _inner_model(annotation)
        if get_origin(annotation) is dict:
            # A name of the user's comes next, which may be that of a key.
            next(steps)
    known = ", ".join(sorted(model.model_fields))
    return f"unknown key: use one of {known}"


def _inner_model(annotation: Any) -> Any:
    """Return the section in a type. Unknown keys are only reported within one, so every step on the way has one."""
    queue = [annotation]
    while not hasattr(candidate := queue.pop(), "model_fields"):
        queue.extend(getattr(candidate, "__args__", ()))
    return candidate
