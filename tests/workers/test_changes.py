"""Reload, drain and signals with several workers."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.peers import OK, RawUpstream, Wire, forward_config, responding, split_response, wait_until
from tests.workers.processes import Processes, children, close_clients, is_running, name_of, run_processes

GET = b"GET / HTTP/1.1\r\nHost: gw\r\nConnection: close\r\n\r\n"
KEPT_GET = b"GET / HTTP/1.1\r\nHost: gw\r\n\r\n"
#: A worker whose process id is in a file cannot prepare another config, or dies when it is to do so.
REFUSING = """
import os, pathlib
import gateway.server
prepare = gateway.server.prepare
def prepare_or_refuse(config, limits):
    path = pathlib.Path(os.environ["REFUSE"])
    what, _, pid = path.read_text().partition(" ") if path.exists() else ("", "", "")
    if pid == str(os.getpid()):
        if what == "die":
            os._exit(1)
        raise OSError("no disk for this one")
    return prepare(config, limits)
gateway.server.prepare = prepare_or_refuse
"""

pytestmark = pytest.mark.slow


async def hold(wire: Wire) -> None:
    """Send the half of a response and wait for the end."""
    await wire.read_head()
    await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nha")
    await wire.read_to_end()


async def held_clients(gateway: Processes, workers: set[int]) -> dict[int, Wire]:
    """Open one connection to each worker, with a response under way; return them by worker."""
    clients: dict[int, Wire] = {}
    spare = []
    while clients.keys() != workers:
        client = await gateway.connect()
        await client.send(KEPT_GET)
        await client.read_until(b"ha")
        worker = gateway.worker_of(client)
        if worker in clients:
            spare.append(client)
        else:
            clients[worker] = client
    await close_clients(gateway, spare)
    return clients


async def release(upstream: RawUpstream) -> None:
    """Send the other half of each response under way."""
    for wire in upstream.wires:
        await wire.send_all([b"lf"])


async def statuses_of_workers(gateway: Processes, target: bytes) -> dict[int, set[int]]:
    """Send requests until each worker has responded to some; return the statuses by worker."""
    found: dict[int, set[int]] = {pid: set() for pid in gateway.workers}
    while not all(found.values()):
        clients = [await gateway.connect() for _ in range(4)]
        for client in clients:
            await client.send(b"GET " + target + b" HTTP/1.1\r\nHost: gw\r\n\r\n")
        for client in clients:
            head = await client.read_head()
            found[gateway.worker_of(client)].add(int(head.split()[1]))
            await client.close()
    return found


def route_for(upstream: RawUpstream, path: str) -> dict[str, Any]:
    return forward_config(upstream.url, match={"path": path})


async def test_reload_takes_place_in_all_workers(tmp_path: Path) -> None:
    async with RawUpstream(responding(OK)) as upstream:
        async with run_processes(tmp_path, {**route_for(upstream, "/a"), "workers": 3}) as gateway:
            await gateway.wait_started()
            workers = gateway.workers
            gateway.write_config(**route_for(upstream, "/b"))
            gateway.hang_up()
            await gateway.wait_log("the config was replaced")
            assert await statuses_of_workers(gateway, b"/b") == {pid: {200} for pid in workers}
            assert await statuses_of_workers(gateway, b"/a") == {pid: {404} for pid in workers}


async def test_reload_that_one_worker_refuses_takes_place_in_none(tmp_path: Path) -> None:
    refuse = tmp_path / "refuse"
    async with RawUpstream(responding(OK)) as upstream:
        config = {**route_for(upstream, "/a"), "workers": 3}
        async with run_processes(tmp_path, config, prelude=REFUSING, environment={"REFUSE": str(refuse)}) as gateway:
            await gateway.wait_started()
            workers = gateway.workers
            refuse.write_text(f"refuse {workers[1]}")
            gateway.write_config(**route_for(upstream, "/b"))
            gateway.hang_up()
            await gateway.wait_log("the config stays as it was: no disk for this one")
            assert await statuses_of_workers(gateway, b"/a") == {pid: {200} for pid in workers}
            assert await statuses_of_workers(gateway, b"/b") == {pid: {404} for pid in workers}
            # What was prepared is dropped: the next reload takes place.
            refuse.unlink()
            gateway.hang_up()
            await gateway.wait_log("the config was replaced")
            assert await statuses_of_workers(gateway, b"/b") == {pid: {200} for pid in workers}


async def test_worker_that_dies_during_a_reload_decides_nothing(tmp_path: Path) -> None:
    refuse = tmp_path / "refuse"
    async with RawUpstream(responding(OK)) as upstream:
        config = {**route_for(upstream, "/a"), "workers": 3}
        async with run_processes(tmp_path, config, prelude=REFUSING, environment={"REFUSE": str(refuse)}) as gateway:
            await gateway.wait_started()
            refuse.write_text(f"die {gateway.workers[1]}")
            gateway.write_config(**route_for(upstream, "/b"))
            gateway.hang_up()
            await gateway.wait_log("the config was replaced")
            await gateway.wait_log("serves")
            assert await statuses_of_workers(gateway, b"/b") == {pid: {200} for pid in gateway.workers}


async def test_reload_with_problems_changes_nothing(tmp_path: Path) -> None:
    async with RawUpstream(responding(OK)) as upstream:
        async with run_processes(tmp_path, route_for(upstream, "/a")) as gateway:
            await gateway.wait_started()
            gateway.write_config(listen="127.0.0.1:1")
            gateway.hang_up()
            await gateway.wait_log("the config stays as it was: reload: listen: cannot change")
            gateway.write_config(listen="127.0.0.1:0", routes=[])
            gateway.hang_up()
            await gateway.wait_log("routes: the list is empty")
            gateway.write_config(workers=1)
            gateway.write_config(**route_for(upstream, "/b"))
            gateway.hang_up()
            await gateway.wait_log("the config stays as it was: reload: workers: cannot change from or to 1")
            assert await statuses_of_workers(gateway, b"/a") == {pid: {200} for pid in gateway.workers}


async def test_number_of_workers_follows_the_config_and_those_that_are_too_many_drain(tmp_path: Path) -> None:
    async with RawUpstream(hold) as upstream:
        async with run_processes(tmp_path, forward_config(upstream.url)) as gateway:
            await gateway.wait_started()
            first = set(gateway.workers)
            gateway.write_config(workers=4)
            gateway.hang_up()
            await gateway.wait_log("serves", 2)
            assert len(gateway.workers) == 4
            clients = await held_clients(gateway, set(gateway.workers))
            gateway.write_config(workers=2)
            gateway.hang_up()
            await gateway.wait_log("drain started", 2)
            # New connections go to the workers that stay.
            for _ in range(4):
                client = await gateway.connect()
                await client.send(KEPT_GET)
                await client.read_until(b"ha")
                assert gateway.worker_of(client) in first
                await client.close()
            await release(upstream)
            for client in clients.values():
                assert await client.read_exactly(2) == b"lf"
                await client.close()
            await wait_until(lambda: set(gateway.workers) == first)
            assert not [line for line in gateway.log if "died" in line.get("message", "")]


async def test_worker_that_is_sent_sigterm_is_replaced_first_and_then_drains(tmp_path: Path) -> None:
    async with RawUpstream(hold) as upstream:
        async with run_processes(tmp_path, forward_config(upstream.url)) as gateway:
            await gateway.wait_started()
            clients = await held_clients(gateway, set(gateway.workers))
            leaving = gateway.workers[0]
            os.kill(leaving, signal.SIGTERM)
            await gateway.wait_log("drain started")
            assert len(gateway.workers) == 3
            await release(upstream)
            for client in clients.values():
                assert await client.read_exactly(2) == b"lf"
                await client.close()
            await wait_until(lambda: leaving not in gateway.workers)
            assert len(gateway.workers) == 2
            assert not [line for line in gateway.log if "died" in line.get("message", "")]


async def test_sigterm_drains_all_workers(tmp_path: Path) -> None:
    async with RawUpstream(hold) as upstream:
        async with run_processes(tmp_path, forward_config(upstream.url)) as gateway:
            await gateway.wait_started()
            clients = await held_clients(gateway, set(gateway.workers))
            # A terminal sends its signals to every process of the group.
            os.killpg(gateway.supervisor, signal.SIGINT)
            await gateway.wait_log("drain started", 2)
            await gateway.wait_refused()
            assert (await gateway.ops("/readyz"))[0] == 503
            await release(upstream)
            for client in clients.values():
                assert await client.read_to_end() == b"lf"
                await client.close()
            assert await gateway.wait_exit() == 0
            exchanges = [line for line in gateway.log if line["event"] == "exchange" and line["outcome"] == "complete"]
            assert len(exchanges) == 2


async def test_second_sigterm_cuts_what_is_left(tmp_path: Path) -> None:
    async with RawUpstream(hold) as upstream:
        async with run_processes(tmp_path, forward_config(upstream.url)) as gateway:
            await gateway.wait_started()
            clients = await held_clients(gateway, set(gateway.workers))
            gateway.process.send_signal(signal.SIGTERM)
            await gateway.wait_log("drain started", 2)
            assert await gateway.terminate() == 0
            for client in clients.values():
                assert await client.read_to_end() == b""
                await client.close()


async def test_drain_on_the_ops_port_drains_all_and_reports_what_is_left(tmp_path: Path) -> None:
    async with RawUpstream(hold) as upstream:
        config = forward_config(upstream.url, top={"drain_timeout": "100ms"})
        async with run_processes(tmp_path, config) as gateway:
            await gateway.wait_started()
            clients = await held_clients(gateway, set(gateway.workers))
            assert await gateway.ops("/drain") == (200, "drained, 2 exchanges left\n")
            assert await gateway.ops("/drain") == (200, "drained, 2 exchanges left\n")
            assert (await gateway.ops("/healthz"))[0] == 200
            # What is left goes on until SIGTERM.
            await release(upstream)
            for client in clients.values():
                assert await client.read_exactly(2) == b"lf"
                await client.close()
            assert len(gateway.workers) == 2
            assert await gateway.terminate() == 0


async def test_drain_on_the_ops_port_lets_an_upload_end_and_responds_after_it(tmp_path: Path) -> None:
    async with RawUpstream(responding(OK)) as upstream:
        async with run_processes(tmp_path, forward_config(upstream.url)) as gateway:
            await gateway.wait_started()
            client = await gateway.connect()
            await client.send(b"PUT / HTTP/1.1\r\nHost: gw\r\nContent-Length: 8\r\n\r\nhalf")
            await wait_until(lambda: bool(upstream.wires))
            draining = asyncio.create_task(gateway.ops("/drain"))
            await gateway.wait_log("drain started", 2)
            assert (await gateway.ops("/readyz"))[0] == 503
            await gateway.wait_refused()
            assert not draining.done()
            await client.send(b"half")
            head, _, body = (await client.read_to_end()).partition(b"\r\n\r\n")
            await client.close()
            assert (split_response(head + b"\r\n\r\n")[0], body) == (200, b"ok")
            assert await draining == (200, "drained, 0 exchanges left\n")
            # Every process stays until SIGTERM.
            assert (await gateway.ops("/healthz"))[0] == 200
            assert len(gateway.workers) == 2
            assert await gateway.terminate() == 0
            (exchange,) = await gateway.wait_exchanges(1)
            assert (exchange["outcome"], exchange["upload_bytes"]) == ("complete", 8)


async def test_worker_that_dies_while_the_gateway_drains_is_not_replaced(tmp_path: Path) -> None:
    async with RawUpstream(hold) as upstream:
        async with run_processes(tmp_path, forward_config(upstream.url)) as gateway:
            await gateway.wait_started()
            workers = gateway.workers
            clients = await held_clients(gateway, set(workers))
            gateway.process.send_signal(signal.SIGTERM)
            await gateway.wait_log("drain started", 2)
            os.kill(workers[0], signal.SIGKILL)
            await gateway.wait_log("died")
            assert gateway.workers == workers[1:]
            await release(upstream)
            assert await clients[workers[1]].read_to_end() == b"lf"
            assert await gateway.wait_exit() == 0
            for client in clients.values():
                await client.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("stage", ["gateway-templat", "gateway-supervi", "gateway-worker"])
async def test_signal_during_the_start_ends_it_without_a_trace(
    tmp_path: Path, stage: str, number: signal.Signals
) -> None:
    def has_reached() -> bool:
        templates = children(gateway.supervisor)
        processes = [gateway.supervisor, *templates, *(pid for each in templates for pid in children(each))]
        return stage in map(name_of, filter(is_running, processes))

    # A worker that was told to stop while it started waited for the delay, and was killed.
    config = forward_config("http://127.0.0.1:9", top={"drain_delay": "15s"})
    async with run_processes(tmp_path, config) as gateway:
        await wait_until(has_reached)
        # As a terminal does.
        os.killpg(gateway.supervisor, number)
        assert await gateway.wait_exit() == 0
        await gateway.wait_end_of_output()
        assert gateway.stderr == b""
        assert not [line for line in gateway.log if "died" in line.get("message", "")]


@pytest.mark.soak
@pytest.mark.timeout(600)
async def test_signal_after_any_delay_ends_the_start_without_a_trace(tmp_path: Path) -> None:
    for number in range(150):
        async with run_processes(tmp_path, forward_config("http://127.0.0.1:9")) as gateway:
            await wait_until(lambda: name_of(gateway.supervisor).startswith("python"))
            await wait_until(lambda: b"_asyncio" in Path(f"/proc/{gateway.supervisor}/maps").read_bytes())
            await asyncio.sleep(number * 0.01)
            os.killpg(gateway.supervisor, signal.SIGTERM)
            assert await gateway.wait_exit() == 0
            await gateway.wait_end_of_output()
            assert gateway.stderr == b""


async def test_sighup_during_the_start_reloads_after_it(tmp_path: Path) -> None:
    async with run_processes(tmp_path, forward_config("http://127.0.0.1:9")) as gateway:
        await wait_until(lambda: name_of(gateway.supervisor) == "gateway-supervi")
        os.killpg(gateway.supervisor, signal.SIGHUP)
        await gateway.wait_started()
        await gateway.wait_log("the config was replaced")
        assert all(map(is_running, gateway.workers))


async def test_lowest_number_of_workers_keeps_its_connections_in_the_queue_of_the_others(tmp_path: Path) -> None:
    """One worker is drained: a client in the queue of the shared socket is served by another."""
    async with RawUpstream(responding(OK)) as upstream:
        async with run_processes(tmp_path, {**forward_config(upstream.url), "workers": 3}) as gateway:
            await gateway.wait_started()
            for count in (2, 3, 2, 3):
                gateway.write_config(workers=count)
                gateway.hang_up()
                responses = await asyncio.gather(*(gateway.request(GET) for _ in range(50)))
                assert {split_response(response)[0] for response in responses} == {200}
