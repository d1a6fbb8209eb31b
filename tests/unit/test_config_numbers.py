"""Numbers in the config: the schema, by which editors check a file, accepts those that the gateway reads."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from gateway.config import parse_config
from gateway.config.document import read_document
from gateway.config.kinds import Findings, whole_schema
from gateway.config.schema import json_schema
from gateway.config.section import Key, Section

DOCUMENT = json_schema()
SECTIONS: dict[str, type[Section]] = {each.__name__: each for each in Section.__subclasses__()}
#: The schema of each key.
SCHEMAS: dict[str, dict[str, Any]] = {
    f"{title}.{name}": schema
    for title, definition in [("Config", DOCUMENT), *DOCUMENT["$defs"].items()]
    for name, schema in definition["properties"].items()
}
WHOLE_NUMBERS = [name for name, schema in SCHEMAS.items() if '"integer"' in json.dumps(schema)]
OTHER_NUMBERS = [name for name, schema in SCHEMAS.items() if '"number"' in json.dumps(schema)]


def key_of(name: str) -> Key:
    title, _, key = name.partition(".")
    return SECTIONS[title].keys[key]


def is_read(name: str, value: object) -> bool:
    findings: Findings = []
    key_of(name).read(value, (name,), findings)
    return not findings


def disagreements(name: str, values: list[Any]) -> list[tuple[object, bool]]:
    """Return the values that only one accepts, with whether the gateway does."""
    validator = jsonschema.Draft202012Validator(SCHEMAS[name])
    return [(value, is_read(name, value)) for value in values if validator.is_valid(value) != is_read(name, value)]


def test_every_key_of_a_number_is_found() -> None:
    assert {"Config.workers", "Config.max_connections", "Limits.max_parts", "Compress.level"} <= set(WHOLE_NUMBERS)
    assert {"Limits.max_body", "Upstream.max_in_flight", "Retries.budget", "RouteTimeouts.idle"} <= set(OTHER_NUMBERS)


@pytest.mark.parametrize("name", WHOLE_NUMBERS)
def test_schema_accepts_the_whole_numbers_that_the_gateway_reads(name: str) -> None:
    """It refused numbers in quotes, as after `${NAME}` in the place of one."""
    numbers = [*range(-2, 300), 999, 1000, 2560, 10**17]
    forms = ["{}", " {} ", "+{}", "-{}", "007{}", "{}.0", "{}x", "{} {}", "--{}"]
    texts = [form.format(number, number) for form in forms for number in numbers]
    others = ["", " ", "x", "on", "${", 1.5, True, False, None, [], {}, "\N{ARABIC-INDIC DIGIT THREE}", "auto"]
    assert disagreements(name, [*numbers, *texts, *others]) == []
    assert is_read(name, "3")
    assert key_of(name).kind.show(key_of(name).default) == SCHEMAS[name]["default"]


@pytest.mark.parametrize("limit", [1, 7, 10, 19, 100, 256, 305, 999, 1000])
@pytest.mark.parametrize("lowest", [0, 1])
def test_schema_of_whole_numbers_holds_the_bounds_for_text(lowest: int, limit: int) -> None:
    validator = jsonschema.Draft202012Validator(whole_schema(lowest, limit))
    accepted = [number for number in range(-2, 1100) if validator.is_valid(str(number))]
    assert accepted == list(range(lowest, limit + 1))


@pytest.mark.parametrize("name", OTHER_NUMBERS)
def test_schema_accepts_the_numbers_that_the_gateway_reads(name: str) -> None:
    """It accepted those below 0, and times of 0 s."""
    assert disagreements(name, [-1, -0.5, 0, 0.0, 0.5, 1, 1.0, 99, 100, 100.5, 101, 2**40, True, False]) == []


def test_number_in_quotes_is_accepted_by_schema_and_gateway() -> None:
    text = 'workers: "3"\nroutes: [{name: a, match: {}, files: {directory: .}}]\n'
    assert jsonschema.Draft202012Validator(DOCUMENT).is_valid(read_document(text).tree)
    assert parse_config(text).workers == 3
