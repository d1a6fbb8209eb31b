"""The benchmark of small requests: its load generator, and a run on every peer this machine has.

No test here depends on a time.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.bench import half_load, page, profile, profiled, small_requests
from tests.bench.before import ROOT
from tests.bench.generator import Generator, Load, LoadError, Mode, Timing, run_generator
from tests.bench.interpreter import Build, describe
from tests.bench.machine import StolenTime, Usage, describe_others, other_share
from tests.bench.peers import COPY, PROFILED, Setting, available, cpu_seconds, start_peers
from tests.bench.small import Cost, cases, run, table
from tests.conftest import require_tool

EMPTY_RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


@pytest.fixture(scope="module")
def generator() -> Iterator[Generator]:
    require_tool("gcc")
    with run_generator() as running:
        yield running


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["warm", "cold", "even", "random"])
@pytest.mark.parametrize("kind", ["GET", "JSON", "FORM", "JSON_WITH_HEADERS"])
def test_load_generator_responds_to_itself(generator: Generator, mode: Mode, kind: str) -> None:
    load = Load(getattr(small_requests, kind), 50, 8, mode, rate=10_000.0)
    timing = generator.run(generator.port, load)
    assert timing.rate > 0
    assert 0 < timing.p50 <= timing.p99
    assert generator.run(generator.port, load).rate > 0, "a second run on the same process"


@pytest.mark.slow
def test_load_generator_sends_on_connections_that_stay_open(generator: Generator) -> None:
    with contextlib.ExitStack() as stack:
        address = ("127.0.0.1", generator.port)
        socks = [stack.enter_context(socket.create_connection(address)) for _ in range(8)]
        for some in (socks, socks[3:], socks):
            assert generator.run_on(some, small_requests.GET, 50).rate > 0
    assert generator.run(generator.port, Load(small_requests.GET, 50, 8)).rate > 0, "and it opens its own afterwards"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("response", "reason"),
    [
        (b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n", "a response is not 200"),
        (b"", "the proxy closed a connection"),
    ],
)
def test_load_generator_reports_a_response_that_is_not_200(generator: Generator, response: bytes, reason: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with listener.accept()[0] as sock:
                sock.recv(65536)
                sock.sendall(response)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(LoadError, match=reason):
            generator.run(listener.getsockname()[1], Load(small_requests.GET, 1, 1))
        thread.join()
    assert generator.run(generator.port, Load(small_requests.GET, 1, 1)).rate > 0, "and it is of use afterwards"


@pytest.mark.slow
def test_load_generator_reports_that_nothing_listens(generator: Generator) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(LoadError, match="cannot connect"):
        generator.run(port, Load(small_requests.GET, 1, 1))


@pytest.mark.slow
# Ten measurements of a process each, and a start of seven peers.
@pytest.mark.timeout(180)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_each_case_of_small_requests_runs_on_each_peer() -> None:
    for name in ("gcc", "nginx", "haproxy"):
        require_tool(name)
    peers = ("gateway", "before", COPY, *(name for name in available() if name not in ("gateway", "kernel alone")))
    chosen = cases(count=64)
    costs = run(chosen, Setting(peers, sys.executable, ROOT, starts=1, rounds=1))
    assert set(costs) == {(case.name, peer) for case in chosen for peer in case.peers & set(peers)}
    lines = table(chosen, costs, peers).splitlines()
    assert len(lines) == 2 + len(chosen)
    assert all(line.count("|") == lines[0].count("|") for line in lines)


def test_ratio_is_the_median_of_the_ratios_of_the_rounds() -> None:
    case = cases(count=1)[0]
    costs = {(case.name, "gateway"): Cost(cpu=[10.0, 40.0, 12.0]), (case.name, "envoy"): Cost(cpu=[5.0, 10.0, 4.0])}
    assert "| 12.0 | 5.0 | 3.00 (2.00-4.00) |" in table([case], costs, ("gateway", "envoy"))


def test_other_work_is_what_this_process_and_its_children_did_not_do() -> None:
    before, after = Usage(at=50.0, busy=100.0, own=1.0), Usage(at=60.0, busy=110.0, own=5.0)
    assert other_share(before, after, cores=2) == pytest.approx(6 / 20)
    assert "% of the machine" in describe_others(Usage.now())


def test_cpu_clock_of_a_process_is_the_sum_of_schedstat() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        tasks = Path(f"/proc/{process.pid}/task")

        def schedstat() -> float:
            return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks.iterdir()) / 1e9

        # Until it waits for its input: the clock is exact at all times, schedstat only of what does not run.
        earlier, clock, later = 0.0, 0.0, -1.0
        while earlier != later:
            earlier, clock, later = schedstat(), cpu_seconds(process.pid), schedstat()
        assert clock == pytest.approx(earlier, abs=1e-8)
        process.communicate()


def test_python_is_described_with_its_version_and_how_it_was_built() -> None:
    build = describe(sys.executable)
    assert build.minor == sys.version_info[:2]
    assert f"{sys.version_info.major}.{sys.version_info.minor}" in str(build)
    assert str(Build("p", (3, 11), "3.11.2", ("PGO", "LTO"), "its configure options")).endswith(
        "built with PGO and LTO (its configure options)"
    )
    assert str(Build("p", (3, 11), "3.11.7", (), "its configure options")).endswith("built without PGO and LTO")


@pytest.mark.slow
def test_requests_that_are_due_begin_when_each_connection_was_used_once(generator: Generator) -> None:
    """Otherwise a short run measures how a proxy accepts connections."""
    received = list[bytes]()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            socks = [listener.accept()[0] for _ in range(3)]
            for sock in (*socks, None):
                # The request that is measured may come on any of them.
                (ready,) = [sock] if sock is not None else select.select(socks, [], [])[0]
                received.append(ready.recv(65536))
                ready.sendall(EMPTY_RESPONSE)
            for sock in socks:
                sock.close()

        thread = threading.Thread(target=serve)
        thread.start()
        timing = generator.run(listener.getsockname()[1], Load(small_requests.GET, 1, 3, "even", rate=1000.0))
        thread.join()
    assert received == [small_requests.GET] * 4
    assert timing.p50 == timing.p99, "one was measured"


@contextlib.contextmanager
def paused(generator: Generator) -> Iterator[None]:
    """Stop the load generator until the end of the block."""
    os.kill(generator.pid, signal.SIGSTOP)
    # Its state in /proc/PID/stat.
    while b") T " not in Path(f"/proc/{generator.pid}/stat").read_bytes():
        pass
    yield
    os.kill(generator.pid, signal.SIGCONT)


@pytest.mark.slow
def test_run_ends_with_its_last_response_whatever_the_proxy_closes_then(generator: Generator) -> None:
    """If both came together, it failed: "the proxy closed a connection, after 1 responses" of 1."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            socks = [listener.accept()[0] for _ in range(3)]
            socks[0].recv(65536)
            with paused(generator):
                socks[0].sendall(EMPTY_RESPONSE)
                for sock in socks:
                    sock.close()

        thread = threading.Thread(target=serve)
        thread.start()
        assert generator.run(listener.getsockname()[1], Load(small_requests.GET, 1, 3)).rate > 0
        thread.join()


@pytest.mark.slow
def test_load_generator_reports_for_how_long_it_was_paused(generator: Generator) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with listener.accept()[0] as sock:
                sock.recv(65536)
                with paused(generator):
                    began = time.monotonic()
                    while time.monotonic() < began + 0.01:
                        pass
                    sock.sendall(EMPTY_RESPONSE)

        thread = threading.Thread(target=serve)
        thread.start()
        timing = generator.run(listener.getsockname()[1], Load(small_requests.GET, 1, 1))
        thread.join()
    assert timing.paused >= 10_000


def make_slice(p99: float, *, alone: float = 10.0, paused: float = 0.0, alone_paused: float = 0.0) -> half_load.Slice:
    return half_load.Slice(Timing(1.0, 1.0, p99, paused), Timing(1.0, 1.0, alone, alone_paused), seconds=1.0)


def test_slice_in_which_the_load_generator_was_paused_is_left_out() -> None:
    row = half_load.Row("GET", "random")
    kept = [make_slice(110.0), make_slice(111.0, alone=11.0, paused=2000.0, alone_paused=1000.0), make_slice(130.0)]
    left_out = [make_slice(900.0, paused=2001.0), make_slice(900.0, alone_paused=1001.0)]
    lates = {
        (row, "gateway"): half_load.Late([5000.0], [*kept, *left_out]),
        (row, "envoy"): half_load.Late([4000.0], [make_slice(210.0), make_slice(210.0)]),
        (row, "nginx"): half_load.Late([6000.0], [make_slice(210.0)]),
    }
    found = half_load.Found(lates, "Nothing was stolen.")
    lines = half_load.table(found, ("gateway", "nginx", "envoy")).splitlines()
    cells = "100 (100-110) at 5000 | - at 6000 | 200 (200-200) at 4000 | 0.50 | 1-3"
    assert lines[2] == f"| GET, random intervals | {cells} |"
    text = half_load.describe_slices(found)
    assert "2 of all 8 are left out" in text
    assert text.endswith("10 us (median). Nothing was stolen.")


def test_time_that_the_host_took_is_a_share_of_each_core() -> None:
    assert str(StolenTime()).count("%") == os.cpu_count()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_half_load_is_measured_at_even_and_random_intervals_and_at_the_same_rate() -> None:
    for name in ("gcc", "nginx"):
        require_tool(name)
    peers = ("gateway", "nginx")
    setting = Setting(peers, sys.executable, starts=1)
    found = half_load.run(["GET", "form"], setting, count=128, slices=2, seconds=0.02)
    rows = half_load.rows_of(["GET", "form"], peers)
    assert set(found.lates) == {(row, peer) for row in rows for peer in peers}
    assert all(len(late.slices) == 2 for late in found.lates.values())
    common = half_load.Row("form", "random", is_common=True)
    assert len({found.lates[common, peer].rates[0] for peer in peers}) == 1
    lines = half_load.table(found, peers).splitlines()
    assert len(lines) == 2 + 6
    assert "GET, random intervals |" in lines[3]
    assert "form, random intervals, the same rate for all |" in lines[7]


@pytest.mark.interpreted(reason="the profile is of Python's functions")
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_profile_has_time_and_calls_of_the_modules_a_request_passes() -> None:
    require_tool("gcc")
    with run_generator() as generator:
        with start_peers(Setting((PROFILED,), sys.executable), generator.port) as (peer,):
            found = profile.take(peer, generator, Load(small_requests.FORM, 200, 4))
    rows = profile.rows_of(found, is_fine=True)
    assert sum(row.us for row in rows.values()) == pytest.approx(found.total_us)
    # One call per request of the function that begins an exchange, whatever else the module does.
    assert rows["gateway/downstream/exchange"].python_calls > 1
    assert rows["gateway/http/whole_request"].c_calls > 1
    lines = profile.table({"form": found}).splitlines()
    assert lines[-1].startswith("| together |")
    assert all(line.count("|") == 4 for line in lines)


def test_time_is_charged_to_the_innermost_function_of_gateway_aiohttp_or_asyncio() -> None:
    def frame_in(file: str, function: str, call: str) -> tuple[str, str]:
        scope: dict[str, Any] = {"sys": sys, "locate": profiled.locate}
        exec(compile(f"def {function}(): return {call}", file, "exec"), scope)
        found: tuple[str, str] = scope[function]()
        return found

    assert frame_in("/x/gateway/http/headers.py", "parse", "locate(sys._getframe())")[1] == "parse"
    assert frame_in("/x/lib/json/encoder.py", "encode", "locate(sys._getframe())")[1] != "encode"


@pytest.mark.parametrize(
    ("file", "part", "module"),
    [
        ("/x/gateway/upstream/pool.py", "gateway/upstream", "gateway/upstream/pool"),
        ("/x/gateway/handler.py", "gateway/handler", "gateway/handler"),
        ("/lib/aiohttp/web_protocol.py", "aiohttp: server", "aiohttp: server"),
        ("/lib/aiohttp/client_proto.py", "aiohttp: client", "aiohttp: client"),
        ("/lib/aiohttp/streams.py", "aiohttp: both sides", "aiohttp: both sides"),
        ("/lib/json/encoder.py", "other libraries", "other libraries"),
    ],
)
def test_file_belongs_to_a_part(file: str, part: str, module: str) -> None:
    assert profile.part_of(file, is_fine=False) == part
    assert profile.part_of(file, is_fine=True) == module


def test_part_of_the_page_is_replaced_and_the_rest_stays(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    text = "a\n<!-- begin: {0}, written by `make bench` -->\n{1}\n<!-- end: {0} -->\n"
    path.write_text(text.format("x", "old") + text.format("y", "kept"))
    page.write("x", "new", path)
    assert path.read_text() == text.format("x", "\nnew\n") + text.format("y", "kept")
    with pytest.raises(ValueError, match="no part 'z'"):
        page.write("z", "new", path)


@pytest.mark.parametrize(
    ("path", "part"),
    [
        *(
            (page.PAGE, part)
            for part in (page.BODIES, page.SMALL, page.HALF_LOAD, page.PROFILE, page.STORE, page.START)
        ),
        *((page.SCALING, part) for part in (page.WORKER_CPU, page.WORKER_RATE, page.SUPERVISOR)),
    ],
)
def test_page_has_each_part(path: Path, part: str, tmp_path: Path) -> None:
    copy = tmp_path / "page.md"
    copy.write_text(path.read_text())
    page.write(part, "new", copy)
    assert "\nnew\n" in copy.read_text()
