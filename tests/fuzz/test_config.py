"""Configs of any text: exit code 0, or 2 with a message for each problem, and never anything else."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import strategies as st

from gateway.cli import main
from gateway.config.schema import json_schema
from tests.fuzz.explore import explore

pytestmark = pytest.mark.slow

EXAMPLE = (Path(__file__).parents[2] / "config/gateway.yaml").read_bytes()
WORDS = ["", "off", "auto", "unlimited", "1KiB", "30s", "-1s", "1e999", "http://[", "http://a", "/a", "*", "a" * 300]
WORDS += ["${A}", "${", "${A:-${B}}", "127.0.0.1:99999", "[::]:0", "s3://x", ".inf", "\0", "(", "!!python/object:os"]
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(WORDS),
)
PIECES = b"- |: |&a |*a|<<: |{|[|}|\t|\n|\"|'|!!set |---\n|${A}|\xff|\xef\xbb\xbf|\0|? |%YAML 9.9\n|#".split(b"|")
TEXTS = st.sampled_from([*PIECES, b"|\n", b"1" * 5000, b"[" * 200])


def names_of(schema: Any) -> set[str]:
    """Return every key that the schema names."""
    found: set[str] = set()
    if isinstance(schema, dict):
        found |= set(schema.get("properties", {}))
        for value in schema.values():
            found |= names_of(value)
    elif isinstance(schema, list):
        for value in schema:
            found |= names_of(value)
    return found


KEYS = st.sampled_from(sorted(names_of(json_schema())))
TREES: st.SearchStrategy[Any] = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.one_of(KEYS, SCALARS), inner, max_size=4)),
    max_leaves=12,
)


@st.composite
def documents(draw: Any) -> bytes:
    """Return a config: the example with a few nodes replaced, or with a few bytes changed."""
    if draw(st.booleans()):
        text = bytearray(EXAMPLE)
        for _ in range(draw(st.integers(1, 4))):
            at = draw(st.integers(0, len(text)))
            text[at : at + draw(st.sampled_from([0, 0, 1, 5]))] = draw(st.one_of(TEXTS, st.binary(max_size=3)))
        return bytes(text)
    tree = copy.deepcopy(yaml.safe_load(EXAMPLE))
    for _ in range(draw(st.integers(1, 4))):
        node: Any = tree
        while True:
            keys = list(node) if isinstance(node, dict) else range(len(node))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(node[key], dict | list) and draw(st.booleans()):
                node = node[key]
                continue
            if isinstance(node, dict) and draw(st.booleans()):
                key = draw(KEYS)
            node[key] = draw(TREES)
            break
    return yaml.safe_dump(tree, allow_unicode=True).encode("utf-8", "surrogatepass")


def test_check_exits_with_0_or_with_2_and_a_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "gateway.yaml"

    def check(text: bytes) -> None:
        file.write_bytes(text)
        code = main(["check", "--config", str(file)])
        output, problems = capsys.readouterr()
        if code == 0:
            assert output
            assert main(["routes", "--config", str(file)]) == 0
            capsys.readouterr()
            return
        assert code == 2
        assert problems.startswith(f"{file}:")
        assert "Traceback" not in problems

    explore(documents(), check, examples=150)
