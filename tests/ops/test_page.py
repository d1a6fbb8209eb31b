"""The live page in a real Chromium: what it shows moves, turns and ends with what happens."""

from __future__ import annotations

import contextlib

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Page, expect

from tests.ops.browser import DESKTOP, PHONE, chromium, open_page
from tests.ops.live import read_all, upload
from tests.peers import OK, RawUpstream, Wire, forward_config, problem_of, read_request, run_gateway

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]
expect.set_options(timeout=40_000)
GET = b"GET /x HTTP/1.1\r\nHost: gw\r\nConnection: close\r\n\r\n"


async def serious_violations(page: Page) -> list[str]:
    results = await Axe().run(page)
    return [
        f"{violation['id']}: {violation['help']}: {[node['html'] for node in violation['nodes']]}"
        for violation in results.response["violations"]
        if violation["impact"] in ("serious", "critical")
    ]


async def test_slow_upload_moves_is_cancelled_and_both_peers_are_cut() -> None:
    async with RawUpstream(read_all) as upstream, run_gateway(forward_config(upstream.url)) as gateway:
        async with chromium() as browser, open_page(browser, gateway.ops_url) as page:
            await expect(page.get_by_text("Nothing is under way.", exact=True)).to_be_visible()
            async with upload(gateway, b"x" * 100_000, 1_000_000, "/slow.bin?<img/src=x>") as client:
                row = page.locator(".transfers tbody tr")
                await expect(row).to_have_count(1)
                await expect(row).to_contain_text("/slow.bin?<img/src=x>")
                await expect(row).to_contain_text("client to send")
                await expect(row.get_by_role("progressbar")).to_have_attribute("aria-valuenow", "10")
                await client.send(b"x" * 500_000)
                await expect(row.get_by_role("progressbar")).to_have_attribute("aria-valuenow", "60")
                await expect(page.get_by_role("img", name="Upload: now").locator("canvas")).to_be_visible()
                await expect(page.locator("section[aria-label=Upload] .pointed")).to_contain_text("kB/s")
                # By keyboard: asked first, and Escape keeps it.
                await row.get_by_role("button", name="Cancel").focus()
                await page.keyboard.press("Enter")
                await expect(page.get_by_role("dialog")).to_contain_text("600 kB of 1.0 MB")
                assert not await serious_violations(page)
                await page.keyboard.press("Escape")
                await expect(page.get_by_role("dialog")).to_have_count(0)
                await row.get_by_role("button", name="Cancel").click()
                await page.get_by_role("button", name="Cancel the upload").click()
                assert problem_of(await client.read_to_end())["code"] == "operator_cancelled"
                await upstream.wait_finished()
                await expect(row).to_have_count(0)
                await expect(page.locator(".failures")).to_contain_text("operator_cancelled")


@pytest.mark.expected_log("gateway.upstream", "is down", reason="the upstream is stopped")
async def test_upstream_that_stops_turns_and_a_sentence_says_so() -> None:
    health = {"path": "/", "interval": "50ms", "fails": 1, "timeout": "20s"}
    is_stopping = False

    async def script(wire: Wire) -> None:
        while True:
            await read_request(wire)
            if is_stopping:
                # During a check: asyncio leaves a connection open that it has accepted just before.
                upstream._server.close()
            await wire.send(OK)

    async with RawUpstream(script) as upstream:
        config = forward_config(upstream.url, upstream_keys={"health": health})
        async with run_gateway(config) as gateway:
            async with chromium() as browser, open_page(browser, gateway.ops_url) as page:
                card = page.locator("[data-upstream=up]")
                await expect(card.locator(".state")).to_have_text("up")
                await expect(page.locator(".verdict.fine")).to_be_visible()
                is_stopping = True
                await expect(card.locator(".state")).to_have_text("down")
                await expect(card).to_contain_text("1 check failed: connection refused")
                await expect(page.locator(".verdict.error")).to_contain_text(f"Upstream up is down ({upstream.url}")


async def swallow(wire: Wire) -> None:
    await read_request(wire)
    await wire.read_to_end()


async def test_page_has_no_serious_accessibility_violation_in_any_size_and_scheme() -> None:
    async with RawUpstream(swallow) as upstream:
        config = forward_config(upstream.url, upstream_keys={"max_in_flight": 2, "queue_timeout": "off"})
        # Names as long as those of some deployments: they once made the page wider than a phone.
        gone, broken = "gone-" * 12, "broken-" * 9
        config["upstreams"][gone] = {"endpoints": ["http://127.0.0.1:9"]}
        config["routes"].append({"name": broken, "match": {"prefix": "/b"}, "forward": {"upstream": gone}})
        async with run_gateway(config) as gateway, contextlib.AsyncExitStack() as stack:
            for _ in range(2):
                await gateway.request(GET.replace(b"/x", b"/b" + b"/long" * 40))
            for length in (0, 1000, 1000):
                await stack.enter_async_context(upload(gateway, b"", length))
            async with chromium() as browser:
                for size, scheme in ((DESKTOP, "light"), (DESKTOP, "dark"), (PHONE, "light")):
                    async with open_page(browser, gateway.ops_url, color_scheme=scheme, viewport=size) as page:
                        await expect(page.locator(".transfers tbody tr")).to_have_count(3)
                        await expect(page.locator(".verdict.error")).to_contain_text(f"2 requests failed on {broken}")
                        await expect(page.locator(".failures tbody tr")).to_have_count(1)
                        await expect(page.locator(".failures")).to_contain_text("connect_refused 2 times")
                        await page.get_by_role("button", name="Show each of the 2").click()
                        await expect(page.locator(".failures tbody tr")).to_have_count(2)
                        await page.get_by_text("Config in force").click()
                        await expect(page.locator("pre")).to_contain_text("prefix: /b")
                        assert not await serious_violations(page)
                        surplus = await page.evaluate("document.documentElement.scrollWidth - innerWidth")
                        assert surplus <= 0, "the page is wider than the window"


async def test_a_thousand_transfers_are_sorted_and_shown_in_pages() -> None:
    async with RawUpstream(read_all) as upstream:
        keys = {"max_in_flight": 1, "max_queued": 1000, "queue_timeout": "off"}
        config = forward_config(upstream.url, upstream_keys=keys)
        config["routes"].append({"name": "other", "match": {"prefix": "/other"}, "forward": {"upstream": "up"}})
        async with run_gateway(config) as gateway, contextlib.AsyncExitStack() as stack:
            for number in range(1000):
                target = f"/other/{number}" if number % 100 == 0 else f"/{number:04}"
                await stack.enter_async_context(upload(gateway, b"", 10, target))
            async with chromium() as browser, open_page(browser, gateway.ops_url) as page:
                await expect(page.locator("#transfer-count")).to_have_text("1000")
                await expect(page.locator(".transfers tbody tr")).to_have_count(15)
                await expect(page.locator("nav.pages")).to_contain_text("1–15 of 1,000")
                await page.get_by_role("button", name="Next").click()
                await expect(page.locator("nav.pages")).to_contain_text("16–30 of 1,000")
                await page.get_by_role("button", name="Previous").click()
                await page.get_by_role("button", name="Transfer", exact=True).click()
                await expect(page.locator(".transfers tbody tr").first).to_contain_text("/0999")
                await page.locator(".verdict").get_by_role("button", name="other").first.click()
                await expect(page.locator(".transfers tbody tr")).to_have_count(10)
                await expect(page.locator(".verdict")).to_contain_text("990 requests on r wait for upstream up")
                # Those that a problem is about.
                await expect(page.locator(".transfers .marked")).to_have_count(10)


async def test_page_says_that_it_is_stale_and_connects_again() -> None:
    config = forward_config("http://127.0.0.1:9")
    async with chromium() as browser:
        async with run_gateway(config) as gateway:
            port = gateway.gateway.ops_address.port
            context = open_page(browser, gateway.ops_url)
            page = await context.__aenter__()
            await expect(page.locator("#connection")).to_have_text("live")
        try:
            await expect(page.get_by_role("alert")).to_contain_text("No data for")
            await expect(page.locator("#connection")).to_have_text("connecting")
            async with run_gateway(config | {"ops": {"listen": f"127.0.0.1:{port}"}}):
                await expect(page.locator("#connection")).to_have_text("live")
                await expect(page.get_by_role("alert")).to_have_count(0)
        finally:
            await context.__aexit__(None, None, None)


async def test_page_asks_for_the_token() -> None:
    config = forward_config("http://127.0.0.1:9", top={"ops": {"listen": "127.0.0.1:0", "token": "sesame"}})
    async with run_gateway(config) as gateway:
        async with chromium() as browser, open_page(browser, gateway.ops_url) as page:
            prompt = page.get_by_role("dialog")
            await expect(prompt).to_contain_text("ops.token")
            assert not await serious_violations(page)
            await page.keyboard.type("wrong")
            await page.keyboard.press("Enter")
            await expect(prompt).to_contain_text("That was not the token.")
            await prompt.get_by_label("Token").fill("sesame")
            await page.keyboard.press("Enter")
            await expect(prompt).to_have_count(0)
            await expect(page.locator("#connection")).to_have_text("live")
