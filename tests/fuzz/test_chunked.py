"""Chunked bodies: our decoder and aiohttp's parser read the same data, or refuse."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import strategies as st

from tests.fuzz.explore import explore
from tests.unit import test_chunked

pytestmark = pytest.mark.slow


def test_decoder_and_the_parser_of_aiohttp_agree_on_any_elements() -> None:
    test: Any = test_chunked.test_decoder_and_the_parser_of_aiohttp_agree
    elements = st.lists(st.one_of(test_chunked.ELEMENTS, st.binary(max_size=3)), max_size=30)
    explore(
        st.tuples(elements, st.booleans()),
        lambda case: test.hypothesis.inner_test(elements=case[0], is_response=case[1]),
        examples=200,
    )
