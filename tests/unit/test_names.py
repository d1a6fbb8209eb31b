"""File names in a store: made safe for every file system, numbered, random."""

from __future__ import annotations

import pytest

from gateway.storage.names import numbered, random_name, safe_name


@pytest.mark.parametrize(
    "name", ["a", "日本", "x" * 400, "é" * 300 + ".wav", "." * 50, " . ", "\ud800", "a" * 250 + "." + "b" * 40]
)
def test_safe_name_is_valid_on_every_file_system(name: str) -> None:
    safe = safe_name(name)
    assert 0 < len(numbered(safe, 9999).encode()) <= 255
    assert "/" not in safe
    assert not safe.startswith(".")


def test_random_names_differ_and_keep_the_extension() -> None:
    assert random_name("a.wav") != random_name("a.wav")
    assert random_name("a.wav").endswith(".wav")
