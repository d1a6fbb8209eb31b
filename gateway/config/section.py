"""Sections of the config: mappings with the keys that their class declares. And the types of names, paths and hosts.

    class Limits(Section):
        max_parts: int = config_key(64, ge=1, description="Parts of a multipart body.")

The annotation of a key decides how its value is read, see `kinds`; its description is the reference text.
"""

from __future__ import annotations

import inspect
import ipaddress
import re
from typing import Annotated, Any, ClassVar, Final, Self, get_type_hints

from gateway.config.document import KeyPath
from gateway.config.kinds import (
    WHOLE,
    Check,
    Definitions,
    Findings,
    Kind,
    Parser,
    kind_of,
    parse_text,
    quote,
    whole_schema,
)

_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
#: IPv4 addresses as a socket bound to `[::]` sees them.
_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")
_REQUIRED: Final = object()


class Key:
    """A key of a section."""

    #: How its values are read.
    kind: Kind

    def __init__(self, default: Any, description: str, bounds: dict[str, int], min_length: int) -> None:
        self.default = default
        self.description = description
        self._bounds = bounds
        self._min_length = min_length

    @property
    def is_required(self) -> bool:
        """Whether a section without it is refused."""
        return self.default is _REQUIRED

    def read(self, value: Any, path: KeyPath, findings: Findings) -> Any:
        """Return the value of the key, see `Kind.read`."""
        count = len(findings)
        read = self.kind.read(value, path, findings)
        if len(findings) == count and (problem := self._find_problem(value, read)):
            findings.append((path, problem))
        return read

    def schema(self, name: str, definitions: Definitions) -> dict[str, Any]:
        """Return the JSON Schema of the key's value."""
        schema: dict[str, Any] = {"title": name.replace("_", " ").title()}
        if self.kind is WHOLE:
            schema |= whole_schema(**self._bounds)
        else:
            schema |= self.kind.schema(definitions) | {_BOUNDS[bound]: limit for bound, limit in self._bounds.items()}
        if self._min_length:
            schema["minItems"] = self._min_length
        if not self.is_required:
            schema["default"] = self.kind.show(self.default)
        return schema | {"description": self.description}

    def _find_problem(self, given: Any, value: Any) -> str | None:
        """Return why a value that could be read is not allowed."""
        bounds = self._bounds
        if self._min_length and len(value) < self._min_length:
            return "the list is empty: give at least one item"
        if "le" in bounds and value > bounds["le"]:
            return f"{quote(given)} is too large: write {bounds['le']} or less"
        if "ge" in bounds and value < bounds["ge"]:
            return f"{quote(given)} is too small: write {bounds['ge']} or more"
        if "gt" in bounds and value <= bounds["gt"]:
            return f"{quote(given)} is too small: write more than {bounds['gt']}"
        return None


#: What they are called in JSON Schema.
_BOUNDS: Final = {"ge": "minimum", "le": "maximum", "gt": "exclusiveMinimum"}


def config_key(default: Any = _REQUIRED, *, description: str, min_length: int = 0, **bounds: int) -> Any:
    """Declare a key of a section; without a default it is required. `bounds` of a number are ge, le and gt."""
    return Key(default, description, bounds, min_length)


class Section:  # noqa: PLW1641 (mappings in it have no hash)
    """A mapping of the config: immutable; an unknown key is an error."""

    keys: ClassVar[dict[str, Key]] = {}
    #: The keys that were given.
    written: frozenset[str]

    def __init_subclass__(cls) -> None:
        cls.keys = {name: each for name, each in vars(cls).items() if isinstance(each, Key)}
        types = get_type_hints(cls, include_extras=True)
        for name, each in cls.keys.items():
            # Not an attribute of the class, which a section without the key would have.
            delattr(cls, name)
            each.kind = kind_of(types[name])

    def __init__(self, /, **values: Any) -> None:
        """Make a section of values as `read` returns them; they are not checked."""
        keys = type(self).keys
        if unknown := values.keys() - keys:
            raise TypeError(f"{type(self).__name__} has no {', '.join(unknown)}")
        if missing := [name for name, each in keys.items() if each.is_required and name not in values]:
            raise TypeError(f"{type(self).__name__} needs {', '.join(missing)}")
        state = vars(self)
        for name, each in keys.items():
            state[name] = values.get(name, each.default)
        state["written"] = frozenset(values)

    @classmethod
    def read(cls, value: Any, path: KeyPath, findings: Findings) -> Self | None:
        """Return the section that a mapping of the YAML tree describes; None with what is wrong in the findings."""
        if not isinstance(value, dict):
            findings.append((path, f"{quote(value)} is not a mapping: indent its keys below it"))
            return None
        count = len(findings)
        values = {}
        for name, given in value.items():
            declared = cls.keys.get(name)
            if declared is not None:
                values[name] = declared.read(given, (*path, name), findings)
            else:
                findings.append(((*path, name), f"unknown key: use one of {', '.join(sorted(cls.keys))}"))
        for name, declared in cls.keys.items():
            if declared.is_required and name not in value:
                findings.append(((*path, name), "the key is missing: add it"))
        return cls(**values) if len(findings) == count else None

    def show(self) -> dict[str, Any]:
        """Return the section for a JSON document, without keys that are null."""
        shown = {}
        for name, each in self.keys.items():
            value = vars(self)[name]
            if value is not None:
                shown[name] = each.kind.show(value)
        return shown

    @classmethod
    def schema(cls, definitions: Definitions) -> dict[str, Any]:
        """Return the JSON Schema of the section: a reference to its definition."""
        if cls.__name__ not in definitions:
            definitions[cls.__name__] = {}
            definitions[cls.__name__] |= cls.define(definitions)
        return {"$ref": f"#/$defs/{cls.__name__}"}

    @classmethod
    def define(cls, definitions: Definitions) -> dict[str, Any]:
        """Return the definition of the section in a JSON Schema."""
        return {
            "type": "object",
            "title": cls.__name__,
            "description": inspect.cleandoc(cls.__doc__ or ""),
            "properties": {name: each.schema(name, definitions) for name, each in cls.keys.items()},
            "required": [name for name, each in cls.keys.items() if each.is_required],
            "additionalProperties": False,
        }

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is immutable")

    def __eq__(self, other: object) -> bool:
        """Return whether it has the same values, written or by default."""
        if type(self) is not type(other):
            return NotImplemented
        return all(vars(self)[name] == vars(other)[name] for name in self.keys)


def _parse_path(value: str) -> str:
    if not value.startswith("/"):
        raise ValueError(f"{value!r} does not begin with a slash: write /{value}")
    return value


def _parse_regex(value: object) -> re.Pattern[str]:
    text = parse_text(value)
    try:
        return re.compile(text)
    except (re.error, OverflowError) as exc:
        raise ValueError(f"{value!r} is not a regular expression: {exc}") from exc
    except RecursionError:
        raise ValueError(f"{value!r} has too many groups within each other: write fewer") from None


def _parse_method(value: str) -> str:
    if not _TOKEN.fullmatch(value):
        raise ValueError(f"{value!r} is not an HTTP method: write a name like GET or POST")
    return value.upper()


def _parse_host(value: str) -> str:
    if not re.fullmatch(r"(\*\.)?[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\]", value):
        raise ValueError(f"{value!r} is not a host: write a name without port (asr.example) or *.asr.example")
    return value.lower()


def _parse_network(value: object) -> Network:
    text = parse_text(value)
    try:
        network = ipaddress.ip_network(text)
        if isinstance(network, ipaddress.IPv6Network) and network.subnet_of(_MAPPED):
            # Peers are compared as IPv4, see `gateway.http.client.peer_address`.
            return ipaddress.IPv4Network((int(network.network_address) & 0xFFFFFFFF, network.prefixlen - 96))
        return network
    except ValueError as exc:
        raise ValueError(f"{value!r} is not a network: write an address or CIDR like 10.0.0.0/8 ({exc})") from exc


def _parse_name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}", value):
        raise ValueError(f"{value!r} is not a name: write up to 63 letters, digits, dots, dashes or underscores")
    return value


def _parse_header_name(value: str) -> str:
    if not _TOKEN.fullmatch(value):
        raise ValueError(f"{value!r} is not a header name: write a name like X-File-Name")
    return value


def _parse_s3_url(value: str) -> str:
    if not re.fullmatch(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[^?#]*)?", value):
        raise ValueError(f"{value!r} is not a bucket URL: write s3://bucket/prefix")
    return value


S3Url = Annotated[str, Check(_parse_s3_url)]
HeaderName = Annotated[str, Check(_parse_header_name)]
UrlPath = Annotated[str, Check(_parse_path)]
Name = Annotated[str, Check(_parse_name)]
NetworkText = Annotated[Network, Parser(_parse_network, {"type": "string"}, show=str)]
Regex = Annotated[
    re.Pattern[str],
    Parser(_parse_regex, {"type": "string", "format": "regex"}, show=lambda regex: regex.pattern),
]
Method = Annotated[str, Check(_parse_method)]
Host = Annotated[str, Check(_parse_host)]
