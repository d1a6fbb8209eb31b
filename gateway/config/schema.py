"""The JSON Schema of a config file, for completion and checks in editors."""

from __future__ import annotations

from typing import Any

from gateway.config.kinds import Definitions
from gateway.config.model import Config


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of a config file."""
    definitions: Definitions = {}
    return {
        **Config.define(definitions),
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "streaming-gateway config",
        "$defs": definitions,
    }
