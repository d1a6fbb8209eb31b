"""Starts the gateway and its peers, each with one worker and its best settings, and reads what they cost."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.before import ROOT, environment_of
from tests.bench.interpreter import venv_directory

NGINX = """
daemon off; worker_processes 1; pid {dir}/pid; error_log {dir}/error.log crit;
events {{ worker_connections 1024; }}
http {{
  log_format json escape=json '{{"time":"$time_iso8601","client":"$remote_addr","method":"$request_method",'
    '"target":"$request_uri","status":$status,"request_bytes":$request_length,"response_bytes":$bytes_sent,'
    '"seconds":$request_time,"upstream":"$upstream_addr","upstream_seconds":"$upstream_response_time",'
    '"request_id":"$request_id"}}';
  access_log {dir}/access.log json; client_max_body_size 0; sendfile on; tcp_nodelay on; keepalive_requests 1000000;
  client_body_temp_path {dir}/b; proxy_temp_path {dir}/p; fastcgi_temp_path {dir}/f;
  uwsgi_temp_path {dir}/u; scgi_temp_path {dir}/s;
  client_body_buffer_size 1m; proxy_buffer_size 256k; proxy_buffers 4 256k;
  upstream up {{ server 127.0.0.1:{up}; keepalive 64; keepalive_requests 1000000; }}
  server {{
    listen 127.0.0.1:{port} {tls} backlog=512; {certificate}
    location /files/ {{ alias {files}/; }}
    location = /stub_status {{ stub_status; }}
    location / {{
      proxy_pass {scheme}://up; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; proxy_set_header X-Forwarded-Proto $scheme;
      proxy_set_header X-Request-Id $request_id; proxy_set_header Host $http_host;
      proxy_request_buffering off; proxy_buffering off;
    }}
  }}
}}
"""
HAPROXY = """
global
  nbthread 1
  log stdout format raw local0
  tune.pipesize 1048576
defaults
  mode http
  option splice-auto
  option forwardfor
  log global
  log-format '{{"time":"%t","client":"%ci","method":"%HM","target":"%HU","status":%ST,\
"request_bytes":%U,"response_bytes":%B,"milliseconds":%Ta,"upstream":"%s","waits":"%Th/%Tw/%Tc/%Tr/%Td",\
"outcome":"%ts","request_id":"%ID"}}'
  unique-id-format %[uuid()]
  unique-id-header X-Request-Id
  timeout connect 5s
  timeout client 60s
  timeout server 60s
frontend f
  bind 127.0.0.1:{port} {tls} backlog 512
  default_backend b
backend b
  http-reuse always
  server s 127.0.0.1:{up} {to}
"""
ENVOY = """
static_resources:
  listeners:
  - address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
    per_connection_buffer_limit_bytes: 1048576
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: bench
          stream_idle_timeout: 0s
          use_remote_address: true
          access_log:
          - name: envoy.access_loggers.file
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog
              path: {dir}/access.log
              log_format:
                json_format:
                  time: "%START_TIME%"
                  client: "%DOWNSTREAM_REMOTE_ADDRESS%"
                  method: "%REQ(:METHOD)%"
                  target: "%REQ(:PATH)%"
                  status: "%RESPONSE_CODE%"
                  request_bytes: "%BYTES_RECEIVED%"
                  response_bytes: "%BYTES_SENT%"
                  milliseconds: "%DURATION%"
                  upstream: "%UPSTREAM_HOST%"
                  outcome: "%RESPONSE_FLAGS%"
                  request_id: "%REQ(X-REQUEST-ID)%"
          route_config:
            virtual_hosts:
            - {{name: all, domains: ["*"], routes: [{{match: {{prefix: "/"}}, route: {{cluster: up, timeout: 0s}}}}]}}
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
  clusters:
  - name: up
    type: STATIC
    per_connection_buffer_limit_bytes: 1048576
    load_assignment:
      cluster_name: up
      endpoints:
      - lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {up}}}}}}}}}]
"""


@dataclass(frozen=True)
class Peer:
    """A running proxy."""

    name: str
    port: int
    pid: int
    access_log: Path | None = None

    def cpu_seconds(self) -> float:
        """User and system time of all its processes so far."""
        return sum(cpu_seconds(pid) for pid in self.pids())

    def peak_bytes(self) -> int:
        """Sum of the peak resident sets of its processes."""
        return sum(_peak(pid) for pid in self.pids())

    def pids(self) -> list[int]:
        """The process and what it started."""
        found = [self.pid]
        for pid in found:
            children = Path(f"/proc/{pid}/task/{pid}/children")
            with contextlib.suppress(OSError):
                found += map(int, children.read_text().split())
        return found


@contextlib.contextmanager
def cores_apart(peer: Peer) -> Iterator[None]:
    """Keep a proxy to one core and this process, with its clients and upstreams, to another, if there are two.

    On shared cores the cost of a wake-up falls on either process by chance, and a thread that computes beside the
    loop is interrupted for the others.
    """
    cores = os.sched_getaffinity(0)
    if len(cores) > 1:
        ours, theirs, *_ = ({core} for core in sorted(cores))
        keep_to(theirs, peer.pids())
        keep_to(ours, [os.getpid()])
    try:
        yield
    finally:
        keep_to(cores, [os.getpid(), *peer.pids()])


def keep_to(cores: set[int], pids: list[int]) -> None:
    """Keep all threads of these processes to these cores."""
    for thread in (int(path.name) for pid in pids for path in Path(f"/proc/{pid}/task").iterdir()):
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(thread, cores)


def cpu_seconds(pid: int) -> float:
    """Return the CPU seconds of all threads of a process, ended ones included, with nanosecond resolution.

    The clock id is the kernel's MAKE_PROCESS_CPUCLOCK(pid, CPUCLOCK_SCHED): the sum of the first numbers of
    /proc/PID/task/*/schedstat and of the same of threads that ended. /proc/PID/stat counts ticks of 10 ms, which is
    several percent of one measurement.
    """
    return time.clock_gettime((~pid << 3) | 2)


def _peak(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def free_port() -> int:
    """Return a free port."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def available() -> list[str]:
    """Return the peers this machine has."""
    names = ["gateway", "naive", "kernel alone", "aiohttp alone"]
    names += [name for name in ("nginx", "haproxy") if _which(name)]
    return [*names, "envoy"] if _which("envoy") else names


def _which(name: str) -> str | None:
    here = f"{Path(sys.executable).parent}:{venv_directory() / 'bin'}"
    return shutil.which(name) or shutil.which(name, path=f"{here}:/usr/sbin:/usr/local/sbin")


#: What a proxy's config has where TLS is spoken on both sides, and where it is not.
_TLS = {
    "nginx": {"tls": "ssl", "certificate": "ssl_certificate {pem}; ssl_certificate_key {pem};", "scheme": "https"},
    "haproxy": {"tls": "ssl crt {pem}", "to": "ssl verify none"},
}
_PLAIN = {"nginx": {"tls": "", "certificate": "", "scheme": "http"}, "haproxy": {"tls": "", "to": ""}}


@contextlib.contextmanager
def run_peer(
    name: str,
    up: int,
    files: Path,
    certificate: Path | None = None,
    *,
    tree: Path = ROOT,
    workers: int = 1,
    python: str = sys.executable,
) -> Iterator[Peer]:
    """Run one proxy in front of port `up`, serving `files`; with a certificate, TLS on both sides.

    `workers` are those of the gateway. `tree` is the checkout whose Python code it runs: the gateway of another commit
    for the peer `before`. `python` runs the peers that are Python programs. Each peer writes an access log to a file.
    """
    port = free_port()
    with tempfile.TemporaryDirectory() as directory, (Path(directory) / "access.log").open("ab") as log:
        os.chmod(directory, 0o755)
        process = subprocess.Popen(
            _command(name, (port, up), Path(directory), files, certificate, workers=workers, python=python),
            cwd=tree,
            env=environment_of(tree) | ({"SSL_CERT_FILE": str(certificate)} if certificate else {}),
            # Where the gateway and HAProxy write their access log; nginx and Envoy open the file themselves.
            stdout=log,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            _wait_port(name, process, port)
            yield Peer(name, port, process.pid, Path(log.name))
        finally:
            process.terminate()
            process.wait()


def _command(
    name: str,
    ports: tuple[int, int],
    directory: Path,
    files: Path,
    certificate: Path | None,
    *,
    workers: int,
    python: str,
) -> list[str]:
    port, up = ports
    texts = {"nginx": NGINX, "haproxy": HAPROXY, "envoy": ENVOY}
    config = directory / "conf.yaml"
    if name in ("gateway", "before"):
        settings = _gateway_config((port, up), directory, files, certificate)
        # The gateway of an older commit has no such key.
        config.write_text(json.dumps({**settings, **({"workers": workers} if workers > 1 else {})}))
        return [python, "-m", "gateway", "run", "--config", str(config)]
    if name == "naive":
        return [
            python,
            "-m",
            "tests.bench.naive",
            str(port),
            str(up),
            *([str(certificate)] if certificate else []),
        ]
    if name.endswith(" alone"):
        kind = name.removesuffix(" alone")
        return [python, "-m", "tests.bench.alone", kind, str(port), str(up), str(files)]
    tls = {key: text.format(pem=certificate) for key, text in (_TLS if certificate else _PLAIN).get(name, {}).items()}
    config.write_text(texts[name].format(dir=directory, port=port, up=up, files=files, **tls))
    program = _which(name) or name
    if name == "nginx":
        return [program, "-c", str(config)]
    if name == "haproxy":
        return [program, "-db", "-f", str(config)]
    base = str(os.getpid() % 30000 + port % 1000)
    return [program, "-c", str(config), "--concurrency", "1", "--base-id", base, "--log-level", "off"]


def _gateway_config(ports: tuple[int, int], directory: Path, files: Path, certificate: Path | None) -> dict[str, Any]:
    port, up = ports
    scheme = "https" if certificate else "http"
    limits = {"max_body": "100GiB", "max_part": "50GiB"}
    return {
        **({"tls": {"certificate": str(certificate), "key": str(certificate)}} if certificate else {}),
        "listen": f"127.0.0.1:{port}",
        "ops": {"listen": "127.0.0.1:0"},
        "upstreams": {"up": {"endpoints": [f"{scheme}://127.0.0.1:{up}"]}},
        "routes": [
            {"name": "files", "match": {"prefix": "/files/"}, "files": {"directory": str(files)}},
            {
                "name": "store",
                "match": {"prefix": "/store"},
                # Not the directory that `files` serves: the first peer would read a file just written from the disk.
                "store": {"directory": str(directory), "if_exists": "replace"},
            },
            {
                "name": "split",
                "match": {"prefix": "/split"},
                "split": {"upstream": "up", "body": "raw"},
                "limits": limits,
            },
            {
                "name": "digest",
                "match": {"prefix": "/digest"},
                "forward": {"upstream": "up"},
                "filters": ["digest"],
                "limits": limits,
            },
            {
                "name": "sniff",
                "match": {"prefix": "/sniff"},
                "forward": {"upstream": "up"},
                "filters": [{"sniff": {"allow": ["*"]}}],
                "limits": limits,
            },
            {
                "name": "all",
                "match": {"prefix": "/"},
                "forward": {"upstream": "up"},
                "limits": limits,
            },
        ],
    }


def _wait_port(name: str, process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if process.poll() is not None:
                raise RuntimeError(f"{name} exited with {process.returncode} before it accepted connections") from None
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
            continue
        return
