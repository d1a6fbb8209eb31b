"""From YAML to a frozen, checked `Config`, with every problem found at once.

Pure but for one read of the file. `document` knows YAML and positions, `values` the words for sizes and times,
`section` what mappings are made of, `filters` and `model` the keys and their defaults, `check` what no single key can
know, `load` puts them in order.
"""

from gateway.config.check import Problem
from gateway.config.filters import FilterChoice
from gateway.config.load import ConfigError, load_config, parse_config
from gateway.config.model import (
    Config,
    FileBody,
    FormFields,
    Framing,
    IfExists,
    Lanes,
    Limits,
    Naming,
    Policy,
    Route,
    RouteTimeouts,
    Upstream,
)
from gateway.config.schema import json_schema

__all__ = [
    "Config",
    "ConfigError",
    "FileBody",
    "FilterChoice",
    "FormFields",
    "Framing",
    "IfExists",
    "Lanes",
    "Limits",
    "Naming",
    "Policy",
    "Problem",
    "Route",
    "RouteTimeouts",
    "Upstream",
    "json_schema",
    "load_config",
    "parse_config",
]
