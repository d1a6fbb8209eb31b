"""YAML with line numbers: the tree as plain Python values, and the line of every key path.

PyYAML's resolver of YAML 1.1 is replaced by the core schema of YAML 1.2, so that `off` is a string, not false, and
1:30 is a string, not a number in base 60.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, cast

import yaml

KeyPath = tuple[str | int, ...]

_VARIABLE: Final = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")


@dataclass(slots=True)
class Document:
    """A parsed file: its tree, the line of every key path (from 1), and its problems as YAML."""

    tree: Any = None
    lines: dict[KeyPath, int] = field(default_factory=dict)
    problems: list[tuple[KeyPath, int, str]] = field(default_factory=list)


class _Loader(yaml.SafeLoader):
    """SafeLoader with the scalar types of YAML 1.2's core schema."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (as PyYAML types it)


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
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            document.problems.append(((), 1, "the file is empty: begin with `routes:`, see config/ for examples"))
        else:
            builder = _TreeBuilder(document, loader, os.environ if environment is None else environment)
            document.tree = builder.build(node, ())
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark or exc.context_mark
        line = mark.line + 1 if mark else 1
        what = ", ".join(part for part in (exc.context, exc.problem) if part)
        # A frequent mistake is `{directory: ${UPLOADS}}`: within { } and [ ] a brace must be quoted.
        hint = (
            '; put "${...}" in quotes within { } and [ ]' if "${" in "".join(text.splitlines()[line - 1 : line]) else ""
        )
        document.problems.append(((), line, f"not YAML: {what}{hint}"))
    except yaml.YAMLError as exc:
        document.problems.append(((), 1, f"not YAML: {str(exc).splitlines()[0]}"))
    except RecursionError:
        document.problems.append(((), 1, "an alias contains itself: remove it"))
    return document


class _TreeBuilder:
    """Builds plain Python values from YAML nodes, and records lines and problems in the document."""

    def __init__(self, document: Document, loader: _Loader, environment: Mapping[str, str]) -> None:
        self._document = document
        self._loader = loader
        self._environment = environment

    def build(self, node: yaml.Node, path: KeyPath) -> Any:
        self._document.lines.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.build(item, (*path, index)) for index, item in enumerate(node.value)]
        # PyYAML has three kinds of node: this is the third.
        return self._scalar(cast("yaml.ScalarNode", node), path)

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        # Keys merged with << may be repeated: only the mapping's own keys must be unique.
        own = {id(key) for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"}
        self._loader.flatten_mapping(node)
        mapping: dict[str, Any] = {}
        first: dict[str, int] = {}
        for key_node, value_node in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            line = key_node.start_mark.line + 1
            if not isinstance(key, str):
                self._document.problems.append((path, line, "a key must be a string: write a name"))
                continue
            if id(key_node) in own:
                if key in first:
                    self._document.problems.append(
                        ((*path, key), line, f"duplicate key, first on line {first[key]}: remove one")
                    )
                    continue
                first[key] = line
            self._document.lines[(*path, key)] = line
            mapping[key] = self.build(value_node, (*path, key))
        return mapping

    def _scalar(self, node: yaml.ScalarNode, path: KeyPath) -> Any:
        if "${" in node.value:
            value = _VARIABLE.sub(lambda found: self._variable(found, node, path), node.value)
            plain = node.style is None
            tag = self._loader.resolve(yaml.ScalarNode, value, (plain, not plain))  # type: ignore[no-untyped-call]  # types-PyYAML leaves it out
            node = yaml.ScalarNode(tag, value, node.start_mark, node.end_mark, style=node.style)
        return self._loader.construct_object(node, deep=True)

    def _variable(self, found: re.Match[str], node: yaml.Node, path: KeyPath) -> str:
        name, default = found[1], found[2]
        value = self._environment.get(name) or default
        if value is None:
            self._document.problems.append(
                (
                    path,
                    node.start_mark.line + 1,
                    f"the environment variable {name} is not set: set it, or give a default with ${{{name}:-value}}",
                )
            )
            return ""
        return value
