"""Kinds of values: how the value of a key is read from YAML, shown in a document, and described by JSON Schema.

A kind reads any value that YAML may give. What is wrong with it is added to the findings, with the key path, and
reading goes on: one run finds every problem of a file. What was read is only used if there is no finding.

Kinds are made from the annotations of a section's keys, by `kind_of`, once. Rejected: pydantic, which does the same and
more. It takes 10 MiB of every process and 0.05 to 0.1 s of its start, for the milliseconds in which a config is read,
and its messages had to be replaced by ours, which say how to mend a value. Also rejected: to read the config in a
process of its own, which takes as long at each start and reload.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, Protocol, Union, get_args, get_origin

from gateway.config.document import VARIABLE, KeyPath

#: A key, and what is wrong with its value and how to mend it.
Finding = tuple[KeyPath, str]
#: What reading adds to.
Findings = list[Finding]
#: The sections of a JSON Schema, by name.
Definitions = dict[str, Any]

_WHOLE: Final = re.compile(r"\s*[+-]?[0-9]{1,18}\s*")
_POSITIVE: Final = "[1-9][0-9]{0,17}"


class Kind(Protocol):
    """A kind of values. The class of a section is the kind of its instances."""

    def read(self, value: Any, path: KeyPath, findings: Findings) -> Any:
        """Return a value of the YAML tree in the form that the gateway uses. Without one, add a finding."""
        ...

    def show(self, value: Any, /) -> Any:
        """Return a value that was read, for a JSON document, as it may be written in the config."""
        ...

    def schema(self, definitions: Definitions) -> dict[str, Any]:
        """Return the JSON Schema of the values; sections are added to the definitions."""
        ...


class Parser:
    """The kind of an annotation `Annotated[T, Parser(...)]`: values that a function reads."""

    def __init__(
        self, parse: Callable[[Any], Any], schema: dict[str, Any], show: Callable[[Any], Any] = lambda value: value
    ) -> None:
        """`parse` returns the T of a value of the YAML tree, or raises ValueError with how to mend it."""
        self.parse = parse
        self.show = show
        self._schema = schema

    def read(self, value: Any, path: KeyPath, findings: Findings) -> Any:
        """Read any value."""
        return _call(self.parse, value, path, findings)

    def schema(self, _definitions: Definitions) -> dict[str, Any]:
        """Return what was given."""
        return self._schema


class Check:
    """A further step of an annotation `Annotated[T, Check(...)]`: a function of a value that was read."""

    def __init__(self, check: Callable[[Any], Any]) -> None:
        """`check` returns the value, or another in place of it, or raises ValueError with how to mend it."""
        self.check = check


def kind_of(annotation: Any) -> Kind:
    """Return the kind of the values of a type."""
    arguments = get_args(annotation)
    kind: Kind
    match get_origin(annotation):
        case None:
            kind = _PLAIN.get(annotation, annotation)
        case origin if origin is Annotated:
            steps = annotation.__metadata__
            kind = steps[0] if isinstance(steps[0], Parser) else kind_of(arguments[0])
            for step in steps:
                kind = _Checked(kind, step.check) if isinstance(step, Check) else kind
        case origin if origin is Literal:
            kind = Parser(partial(_parse_word, arguments), or_variable({"type": "string", "enum": list(arguments)}))
        case origin if origin in (Union, UnionType):
            (inner,) = (each for each in arguments if each is not NoneType)
            kind = _Optional(kind_of(inner))
        case origin if origin is tuple:
            kind = _List(kind_of(arguments[0]))
        case origin if origin is dict:
            kind = _Mapping(*map(kind_of, arguments))
        case _:
            raise TypeError(f"no kind reads values of {annotation}")
    return kind


def parse_text(value: object) -> str:
    """Return a string. Raises ValueError for other values."""
    if not isinstance(value, str):
        raise ValueError(f"{quote(value)} is not a string: put it in quotes")
    return value


def parse_whole(value: object) -> int:
    """Return a whole number. Raises ValueError for other values."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    # In quotes, for example "${PARTS}".
    if isinstance(value, str) and _WHOLE.fullmatch(value):
        return int(value)
    raise ValueError(f"{quote(value)} is not a whole number: write one like 64")


def or_variable(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the JSON Schema of scalars that are not any string, with `${NAME}` allowed in their place."""
    return {"anyOf": [schema, {"type": "string", "pattern": VARIABLE.pattern}]}


def whole_schema(ge: int, le: int | None = None) -> dict[str, Any]:
    """Return the JSON Schema of whole numbers from `ge`, which is 0 or 1, to `le`, as numbers or as text."""
    bounds = {"minimum": ge} if le is None else {"minimum": ge, "maximum": le}
    positive = rf"\+?0*({_POSITIVE if le is None else _up_to(le)})"
    text = positive if ge else rf"{positive}|[+-]?0+"
    return or_variable({"anyOf": [{"type": "integer", **bounds}, {"type": "string", "pattern": rf"^\s*({text})\s*$"}]})


def _up_to(limit: int) -> str:
    """Return a regular expression of the numbers from 1 to a limit. Not every validator has lookahead."""
    digits = str(limit)
    forms = [digits] if len(digits) == 1 else [digits, f"[1-9][0-9]{{0,{len(digits) - 2}}}"]
    for index, digit in enumerate(digits):
        lowest = 0 if index else 1
        if int(digit) > lowest:
            rest = f"[0-9]{{{len(digits) - index - 1}}}"
            forms.append(f"{digits[:index]}[{lowest}-{int(digit) - 1}]{rest}")
    return "|".join(forms)


def quote(value: object) -> str:
    """Return a value for a message, as it is written in YAML; collections are only named."""
    match value:
        case None | bool():
            return json.dumps(value)
        case dict():
            return "a mapping"
        case list():
            return "a list"
        case _:
            return repr(value)


def _parse_word(words: tuple[str, ...], value: object) -> str:
    if isinstance(value, str) and value in words:
        return value
    *others, last = map(repr, words)
    raise ValueError(f"{quote(value)} is not a valid value: write {', '.join(others)} or {last}")


#: Its schema in a key depends on the key's bounds, see `whole_schema`.
WHOLE: Final = Parser(parse_whole, or_variable({"type": "integer"}))
_PLAIN: Final[dict[Any, Kind]] = {str: Parser(parse_text, {"type": "string"}), int: WHOLE}


def _call(function: Callable[[Any], Any], value: Any, path: KeyPath, findings: Findings) -> Any:
    try:
        return function(value)
    except ValueError as exc:
        findings.append((path, str(exc)))
        return None


class _Checked:
    """A kind with a step after it."""

    def __init__(self, inner: Kind, check: Callable[[Any], Any]) -> None:
        self._inner = inner
        self._check = check
        self.show = inner.show
        self.schema = inner.schema

    def read(self, value: Any, path: KeyPath, findings: Findings) -> Any:
        count = len(findings)
        read = self._inner.read(value, path, findings)
        return _call(self._check, read, path, findings) if len(findings) == count else None


class _Optional:
    """A kind, or null."""

    def __init__(self, inner: Kind) -> None:
        self._inner = inner

    def read(self, value: Any, path: KeyPath, findings: Findings) -> Any:
        return None if value is None else self._inner.read(value, path, findings)

    def show(self, value: Any) -> Any:
        return None if value is None else self._inner.show(value)

    def schema(self, definitions: Definitions) -> dict[str, Any]:
        return {"anyOf": [self._inner.schema(definitions), {"type": "null"}]}


class _List:
    """Items of one kind; read to a tuple."""

    def __init__(self, inner: Kind) -> None:
        self._inner = inner

    def read(self, value: Any, path: KeyPath, findings: Findings) -> Any:
        if not isinstance(value, list):
            findings.append((path, f"{quote(value)} is not a list: write [a, b] or one `- item` per line"))
            return None
        return tuple(self._inner.read(item, (*path, index), findings) for index, item in enumerate(value))

    def show(self, value: Any) -> Any:
        return [self._inner.show(item) for item in value]

    def schema(self, definitions: Definitions) -> dict[str, Any]:
        return {"type": "array", "items": self._inner.schema(definitions)}


class _Mapping:
    """Keys and values of one kind each."""

    def __init__(self, name: Kind, inner: Kind) -> None:
        self._name = name
        self._inner = inner

    def read(self, value: Any, path: KeyPath, findings: Findings) -> Any:
        if not isinstance(value, dict):
            findings.append((path, f"{quote(value)} is not a mapping: indent its keys below it"))
            return None
        return {
            self._name.read(name, (*path, name), findings): self._inner.read(item, (*path, name), findings)
            for name, item in value.items()
        }

    def show(self, value: Any) -> Any:
        return {name: self._inner.show(item) for name, item in value.items()}

    def schema(self, definitions: Definitions) -> dict[str, Any]:
        return {"type": "object", "additionalProperties": self._inner.schema(definitions)}
