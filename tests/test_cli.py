"""The command line: exit codes, messages without traceback, and `run --demo`."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.cli import main
from tests.leaks import stray_lines
from tests.peers import TIMEOUT_SECONDS
from tests.ports import free_port

GOOD = "routes: [{name: a, match: {prefix: /a}, fetch: {allow: ['http://x/']}}]\n"


def test_check_of_a_valid_config_exits_with_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.yaml").write_text(GOOD)
    assert main(["check", "--config", str(tmp_path / "c.yaml")]) == 0
    assert capsys.readouterr().out.endswith("c.yaml: no problems found\n")


def test_contradicting_timeouts_are_warnings_and_the_config_is_valid(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.yaml").write_text(GOOD.replace("match:", "timeouts: {idle: 60s, total: 30s}, match:"))
    assert main(["check", "--config", str(tmp_path / "c.yaml")]) == 0
    output = capsys.readouterr()
    assert output.out.endswith("c.yaml: no problems found\n")
    assert "c.yaml: routes.a.timeouts.idle: warning: 60 s never pass" in output.err
    assert output.err.count("\n") == 1


@pytest.mark.parametrize("command", ["check", "run", "routes"])
def test_invalid_config_exits_with_2_and_reports_every_problem(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    (tmp_path / "c.yaml").write_text("listen: nowhere\nroutes: []\n")
    assert main([command, "--config", str(tmp_path / "c.yaml")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.rpartition("c.yaml:")[2].split(":")[0] for line in lines] == ["1", "2"]


@pytest.mark.parametrize("command", ["check", "run"])
def test_unknown_filter_exits_with_2_and_lists_the_known_filters(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    text = "upstreams: {up: {endpoints: [http://x]}}\nroutes: [{name: a, match: {prefix: /}, forward: {upstream: up}, "
    (tmp_path / "c.yaml").write_text(text + "filters: [digest, {shrink: {}}]}]")
    assert main([command, "--config", str(tmp_path / "c.yaml")]) == 2
    assert "routes.a.filters[1]: no filter 'shrink': use one of compress, decompress" in capsys.readouterr().err


def test_missing_config_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--config", "/does/not/exist.yaml"]) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_routes_are_printed_in_the_order_of_matching(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.yaml").write_text(
        "upstreams: {up: {endpoints: [http://x]}}\n"
        "routes:\n"
        "  - {name: all, match: {prefix: /}, forward: {upstream: up}}\n"
        "  - {name: one, match: {path: /a}, forward: {upstream: up}}\n"
    )
    assert main(["routes", "--config", str(tmp_path / "c.yaml")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["one", "all"]
    assert "forward -> up" in lines[0]


def test_schema_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "streaming-gateway config"


def test_invalid_arguments_exit_with_2() -> None:
    for arguments in ([], ["fly"], ["run", "--config"]):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2


def test_module_runs_as_a_command() -> None:
    done = subprocess.run([sys.executable, "-m", "gateway", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == __import__("gateway").__version__


@pytest.mark.slow
async def test_demo_prints_example_commands_and_stops_with_the_gateway(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    (tmp_path / "in").mkdir()
    demo_port = free_port()
    config.write_text(
        f"listen: 127.0.0.1:0\nops: {{listen: 127.0.0.1:0}}\n"
        f"upstreams: {{demo: {{endpoints: [http://127.0.0.1:{demo_port}], health: {{path: /, interval: 50ms}}}}}}\n"
        "routes:\n"
        "  - {name: proxy, match: {prefix: /proxy}, forward: {upstream: demo, rewrite: /}}\n"
        f"  - {{name: up, match: {{prefix: /up}}, store: {{directory: {tmp_path}/in}}}}\n"
        f"  - {{name: down, match: {{prefix: /files/}}, files: {{directory: {tmp_path}/in}}}}\n"
        "  - {name: get, match: {prefix: /fetch/}, fetch: {allow: ['http://x/']}}\n"
        "  - {name: odd, match: {regex: /odd.*}, forward: {upstream: demo}}\n"
    )
    pipe = asyncio.subprocess.PIPE
    command = [sys.executable, "-m", "gateway", "run", "--demo", "--config", str(config)]
    running = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe, start_new_session=True)
    try:
        assert running.stderr is not None
        banner = ""
        while "/fetch/http://x/..." not in banner:
            banner += (await asyncio.wait_for(running.stderr.readline(), TIMEOUT_SECONDS)).decode()
        base = banner.split(" at ")[1].split(",")[0]
        form = "-F 'file=hello;filename=hello.txt'"
        for curl in (f"{form} {base}/proxy", f"{form} {base}/up", f"{base}/files/hello.txt"):
            assert f"curl {curl}\n" in banner
        port = int(base.rpartition(":")[2])
        body = b"--B\r\nContent-Disposition: form-data; name=f; filename=x\r\n\r\nhello\r\n--B--\r\n"
        request = (
            b"POST /proxy HTTP/1.1\r\nHost: gw\r\nConnection: close\r\n"
            b"Content-Type: multipart/form-data; boundary=B\r\nContent-Length: %d\r\n\r\n" % len(body)
        )
        response = b""
        while b" 200 OK" not in response:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request + body)
            response = await asyncio.wait_for(reader.read(), TIMEOUT_SECONDS)
            writer.close()
        described = json.loads(response.partition(b"\r\n\r\n")[2])
        assert described["files"][0]["size"] == 5
    finally:
        running.send_signal(signal.SIGINT)
        output = b"".join(await asyncio.wait_for(running.communicate(), TIMEOUT_SECONDS))
    assert running.returncode == 0
    assert list(stray_lines(output.decode())) == []
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", demo_port)
    assert not any(f"gateway.demo\0{demo_port}" in _command(pid) for pid in os.listdir("/proc") if pid.isdigit())


def _command(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def test_help_is_printed_without_importing_aiohttp_or_yaml() -> None:
    """It took as long as a start of the gateway."""
    script = "import sys; from gateway.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    script += "print('imported:', *{'aiohttp', 'yaml'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1].strip() == "imported:"
