"""YAML with line numbers: the tree as plain Python values, and the line of every key path.

PyYAML's resolver of YAML 1.1 is replaced by the core schema of YAML 1.2, so that `off` is a string, not false, and
1:30 is a string, not a number in base 60. Values are made here, not by PyYAML's constructors: those raise whatever
int() raises, and merge keys and aliases nested in each other grow exponentially there.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, cast

import yaml
import yaml.reader

from gateway.config.variables import Variables, shorten

KeyPath = tuple[str | int, ...]

#: A reference to an environment variable, anywhere in a scalar.
VARIABLE: Final = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")


#: Values that aliases may repeat, all together. Nested aliases multiply: ten levels of ten are 10,000,000,000 values.
_MAX_REPEATED: Final = 200_000
#: Neither a file's name nor a header can have them, and the latter cannot be written as UTF-8.
_UNUSABLE: Final = re.compile("[\0\ud800-\udfff]")
#: Digits of an integer that fits into a float.
_MAX_DIGITS: Final = 100
_TOO_DEEP: Final = "values are nested too deeply: a config needs about ten levels"
_STRING: Final = "tag:yaml.org,2002:str"
_MERGE: Final = "tag:yaml.org,2002:merge"
_COLLECTIONS: Final = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")


@dataclass(slots=True)
class Document:
    """A parsed file: its tree, the line of every key path (from 1), its problems as YAML, and the variables used."""

    tree: Any = None
    lines: dict[KeyPath, int] = field(default_factory=dict)
    problems: list[tuple[KeyPath, int, str]] = field(default_factory=list)
    variables: Variables = field(default_factory=Variables)


class _UnusableError(Exception):
    """The file makes no tree: a line, and a message."""


class _Loader(yaml.SafeLoader):
    """SafeLoader with the scalar types of YAML 1.2's core schema."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (as PyYAML types it)


class _FastLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # a class either way
    """The same with libyaml's parser, ten times as fast, where PyYAML has it. Its messages are less clear."""

    yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


for _tag, _words, _first in (
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("int", r"^[-+]?[0-9]+$", "-+0123456789"),
    ("float", r"^[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?$", "-+0123456789."),
    ("merge", r"^(?:<<)$", "<"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_words), list(_first))


def read_document(text: str, environment: Mapping[str, str] | None = None) -> Document:
    """Parse YAML and replace `${NAME}` and `${NAME:-default}` in scalars. Problems are collected, never raised."""
    document = Document()
    try:
        node = _compose(text)
        if node is None:
            document.problems.append(((), 1, "the file is empty: begin with `routes:`, see config/ for examples"))
        else:
            document.tree = _TreeBuilder(document, os.environ if environment is None else environment).build(node, ())
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark or exc.context_mark
        line = mark.line + 1 if mark else 1
        what = ", ".join(part for part in (exc.context, exc.problem) if part)
        # A frequent mistake is `{directory: ${UPLOADS}}`: within { } and [ ] a brace must be quoted.
        hint = (
            '; put "${...}" in quotes within { } and [ ]' if "${" in "".join(text.splitlines()[line - 1 : line]) else ""
        )
        document.problems.append(((), line, f"not YAML: {what}{hint}"))
    except yaml.reader.ReaderError as exc:
        line = text.count("\n", 0, exc.position) + 1
        document.problems.append(((), line, f"not YAML: {_describe_character(text[exc.position])}"))
    except _UnusableError as exc:
        document.problems.append(((), exc.args[0], exc.args[1]))
    return document


def _compose(text: str) -> yaml.Node | None:
    """Return the nodes of a file, None if it is empty. Raises YAMLError, with the messages of PyYAML's own parser."""
    try:
        return cast("yaml.Node | None", _FastLoader(text).get_single_node())
    except (yaml.YAMLError, RecursionError):
        pass
    loader = _Loader(text)
    try:
        return loader.get_single_node()
    except RecursionError:
        raise _UnusableError(loader.get_mark().line + 1, _TOO_DEEP) from None


class _TreeBuilder:
    """Builds plain Python values from YAML nodes, and records lines and problems in the document."""

    def __init__(self, document: Document, environment: Mapping[str, str]) -> None:
        self._document = document
        self._environment = environment
        self._resolver = _Loader("")
        #: Nodes built once; and those being built, by which an alias that contains itself is found.
        self._built: set[int] = set()
        self._open: set[int] = set()
        self._repeated = 0
        self._merged: dict[int, _Pairs] = {}

    def build(self, node: yaml.Node, path: KeyPath) -> Any:
        """Return the value of a node. Raises _UnusableError."""
        line = node.start_mark.line + 1
        self._document.lines.setdefault(path, line)
        if id(node) in self._built:
            self._repeated += 1
            if self._repeated > _MAX_REPEATED:
                message = f"aliases repeat more than {_MAX_REPEATED} values: nest them less deeply"
                raise _UnusableError(line, message)
        self._built.add(id(node))
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        if node.tag not in _COLLECTIONS:
            self._document.problems.append((path, line, f"the tag {node.tag!r} is not supported: remove it"))
        self._enter(node)
        try:
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, path)
            return [self.build(item, (*path, index)) for index, item in enumerate(node.value)]
        except RecursionError:
            raise _UnusableError(line, _TOO_DEEP) from None
        finally:
            self._open.discard(id(node))

    def _enter(self, node: yaml.Node) -> None:
        if id(node) in self._open:
            raise _UnusableError(node.start_mark.line + 1, "an alias contains itself: remove it")
        self._open.add(id(node))

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        # A key merged with << may be repeated: only the mapping's own keys must be unique.
        pairs = self._merge(node)
        first: dict[str, int] = {}
        for key_node, value_node in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            line = key_node.start_mark.line + 1
            if not isinstance(key, str):
                self._document.problems.append((path, line, "a key must be a string: write a name"))
            elif key_node.tag == _MERGE:
                continue
            elif found := _UNUSABLE.search(key):
                self._document.problems.append((path, line, _describe_character(found[0])))
            elif key in first:
                self._document.problems.append(
                    ((*path, key), line, f"duplicate key, first on line {first[key]}: remove one")
                )
            else:
                first[key] = line
                pairs[key] = key_node, value_node
        mapping = {}
        for key, (key_node, value_node) in pairs.items():
            self._document.lines[(*path, key)] = key_node.start_mark.line + 1
            mapping[key] = self.build(value_node, (*path, key))
        return mapping

    def _merge(self, node: yaml.MappingNode) -> _Pairs:
        """Return what `<<` brings into a mapping; of several sources the first that has a key counts."""
        pairs: _Pairs = {}
        for key_node, value_node in node.value:
            if key_node.tag != _MERGE:
                continue
            for source in value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]:
                if not isinstance(source, yaml.MappingNode):
                    raise _UnusableError(source.start_mark.line + 1, "<< takes a mapping, or a list of mappings")
                if id(source) not in self._merged:
                    self._merged[id(source)] = self._all_pairs(source)
                for key, pair in self._merged[id(source)].items():
                    pairs.setdefault(key, pair)
        return pairs

    def _all_pairs(self, node: yaml.MappingNode) -> _Pairs:
        """Return the pairs of a mapping that is merged into another: its own, and those that it merges."""
        self._enter(node)
        own = {key.value: (key, value) for key, value in node.value if _is_name(key)}
        pairs = self._merge(node) | own
        self._open.discard(id(node))
        return pairs

    def _scalar(self, node: yaml.ScalarNode, path: KeyPath) -> Any:
        line = node.start_mark.line + 1
        text, tag = node.value, node.tag
        if "${" in text:
            text = VARIABLE.sub(lambda found: self._variable(found, line, path), text)
            # "" with libyaml.
            plain = not node.style
            tag = self._resolver.resolve(yaml.ScalarNode, text, (plain, not plain))  # type: ignore[no-untyped-call]  # types-PyYAML leaves it out
        if found := _UNUSABLE.search(text):
            self._document.problems.append((path, line, _describe_character(found[0])))
            return None
        make = _MAKERS.get(tag)
        if make is None:
            self._document.problems.append((path, line, f"the tag {tag!r} is not supported: remove it"))
            return None
        try:
            return make(text)
        except (ValueError, KeyError):
            # A number is too large, or an explicit tag is wrong.
            self._document.problems.append(
                (path, line, f"not a value of the type {tag.rpartition(':')[2]}: {shorten(repr(text))}")
            )
            return None

    def _variable(self, found: re.Match[str], line: int, path: KeyPath) -> str:
        name, default = found[1], found[2]
        given = self._environment.get(name)
        if given:
            self._document.variables.add(name, given)
            return given
        if default is None:
            message = f"the environment variable {name} is not set: set it, or give a default with ${{{name}:-value}}"
            self._document.problems.append((path, line, message))
        return default or ""


def _describe_character(character: str) -> str:
    return f"the character U+{ord(character):04X} is not allowed: remove it"


#: By key.
_Pairs = dict[str, tuple[yaml.Node, yaml.Node]]


def _is_name(key: yaml.Node) -> bool:
    return isinstance(key, yaml.ScalarNode) and key.tag != _MERGE


def _make_integer(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise ValueError
    return int(text)


def _make_float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError
    return number


_MAKERS: Final[Mapping[str, Callable[[str], Any]]] = {
    _STRING: str,
    # As a value it is no more than a string.
    _MERGE: str,
    "tag:yaml.org,2002:int": _make_integer,
    "tag:yaml.org,2002:float": _make_float,
    "tag:yaml.org,2002:bool": lambda text: {"true": True, "false": False}[text.lower()],
    "tag:yaml.org,2002:null": lambda text: None,
}
