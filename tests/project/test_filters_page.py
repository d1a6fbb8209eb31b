"""The example of docs/filters.md is run as it is printed there."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest

from gateway.config.filters import BuiltInFilters
from gateway.filters.testing import run_all_chunkings
from tests.peers import OK, RawUpstream, form, forward_config, post, problem_of, responding, run_gateway, split_response

PAGE = Path(__file__).parents[2] / "docs" / "filters.md"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run the page's Python as one module, and bring its filter by an entry point."""
    names: dict[str, Any] = {}
    for code in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        exec(compile(code, str(PAGE), "exec"), names)

    class FileResult:
        name = "lines"

        def load(self) -> Any:
            return names["make"]

    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: [FileResult()])
    return names


async def test_test_printed_on_the_page_passes(example: dict[str, Any]) -> None:
    assert inspect.iscoroutinefunction(example["test_lines_are_counted"])
    await example["test_lines_are_counted"]()


async def test_filter_of_the_page_works_in_a_gateway(example: dict[str, Any]) -> None:
    async with RawUpstream(responding(OK)) as upstream:
        async with run_gateway(forward_config(upstream.url, filters=[{"lines": {"most": 2}}])) as gateway:
            status, headers, _ = split_response(
                await gateway.request(post(form(('name="f"; filename="a"', b"1\n2\n"))))
            )
            assert (status, headers["x-lines"]) == (200, "2")
            assert (await gateway.wait_log_line())["parts"][0]["lines"] == 2
            problem = problem_of(await gateway.request(post(form(('name="f"; filename="a"', b"\n" * 3)))))
            assert (problem["status"], problem["detail"]) == (413, "There are more than 2 lines in part 1: send fewer.")


async def test_transform_of_the_page_does_not_depend_on_chunk_boundaries(example: dict[str, Any]) -> None:
    assert (await run_all_chunkings(example["Redact"](), b"call 0123 now")).data == b"call #### now"


async def test_testing_kit_finds_a_filter_that_depends_on_chunk_boundaries() -> None:
    class Minding:
        async def transform(self, file: Any, chunks: Any) -> Any:
            async for chunk in chunks:
                yield chunk + b"|"

    with pytest.raises(AssertionError, match="the output differs"):
        await run_all_chunkings(Minding(), b"x" * 100)


def test_every_filter_of_the_config_is_on_the_page() -> None:
    for name in BuiltInFilters.keys:
        assert f"| `{name}` |" in PAGE.read_text()
