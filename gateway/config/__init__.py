"""Read a YAML file into a frozen, checked `Config`, and report every problem at once.

Pure except for reading the config file and checking that the files it names exist. `document` parses YAML and keeps
line numbers; `section` and `kinds` read mappings with declared keys; `values` and `section` have the types of sizes,
times, addresses and names; `model`, `actions`, `upstream`, `limits` and `filters` declare the keys and their defaults;
`check` checks keys against each other; `load` runs all of these in order. `contradictions` finds timeouts of a valid
config that have no effect.
"""

from gateway.config.actions import FileBody, FormFields, HostMode, IfExists, Naming
from gateway.config.check import Problem
from gateway.config.filters import FilterChoice
from gateway.config.limits import Limits, RouteTimeouts
from gateway.config.load import ConfigError, load_config, parse_config
from gateway.config.model import Config, Lanes, Route
from gateway.config.upstream import FramingMode, Policy, Upstream

__all__ = [
    "Config",
    "ConfigError",
    "FileBody",
    "FilterChoice",
    "FormFields",
    "FramingMode",
    "HostMode",
    "IfExists",
    "Lanes",
    "Limits",
    "Naming",
    "Policy",
    "Problem",
    "Route",
    "RouteTimeouts",
    "Upstream",
    "load_config",
    "parse_config",
]
