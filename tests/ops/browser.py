"""A headless Chromium with the live page."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from playwright.async_api import Browser, ConsoleMessage, Page, async_playwright

from tests.conftest import require_tool

#: Without these, it asks hosts of its maker at every start; root has no sandbox.
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
PHONE = {"width": 390, "height": 844}
DESKTOP = {"width": 1440, "height": 1000}
#: What a broken or refused connection to the gateway logs: tests stop gateways.
_EXPECTED = ("Failed to load resource", "net::ERR_")


@contextlib.asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """Run Chromium; skip the test where there is none."""
    executable = require_tool("chromium")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=executable, args=list(FLAGS))
        try:
            yield browser
        finally:
            await browser.close()


@contextlib.asynccontextmanager
async def open_page(browser: Browser, url: str, **options: Any) -> AsyncIterator[Page]:
    """Open the page; at the end, assert that it reported no error: of a script, or of the Content-Security-Policy."""
    problems: list[str] = []

    def keep(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and not message.text.startswith(_EXPECTED):
            problems.append(message.text)

    context = await browser.new_context(**{"viewport": DESKTOP, **options})
    try:
        page = await context.new_page()
        page.set_default_timeout(15_000)
        page.on("console", keep)
        page.on("pageerror", lambda error: problems.append(str(error)))
        await page.goto(url)
        yield page
        assert problems == []
    finally:
        await context.close()
