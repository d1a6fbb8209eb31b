"""The pod of deploy/kubernetes.yaml, stopped as the kubelet stops it: with processes, and without a cluster."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from pathlib import Path

import pytest
import yaml

from tests.integration.services import run_service
from tests.ops.test_ops import fetch, process
from tests.peers import TIMEOUT_SECONDS, split_response
from tests.ports import free_port


@pytest.mark.slow
async def test_upload_in_flight_completes_when_the_kubelet_stops_the_pod(tmp_path: Path) -> None:
    """The kubelet stops the containers of a pod before its native sidecars: uploads died with the service."""
    manifests = list(yaml.safe_load_all((Path(__file__).parents[2] / "deploy/kubernetes.yaml").read_text()))
    spec = next(m for m in manifests if m["kind"] == "Deployment")["spec"]["template"]["spec"]
    hook = spec["containers"][0]["lifecycle"]["preStop"]["httpGet"]
    text = next(m for m in manifests if m["metadata"]["name"] == "asr-gateway")["data"]["gateway.yaml"]
    config = yaml.safe_load(text)  # it reads `on` as true
    assert hook["port"] == int(config["ops"]["listen"].rpartition(":")[2])
    port, ops_port = free_port(), free_port()
    config |= {"listen": f"127.0.0.1:{port}", "drain_delay": "100ms"}
    config["ops"]["listen"] = f"127.0.0.1:{ops_port}"
    path = tmp_path / "gateway.yaml"

    async with contextlib.AsyncExitStack() as pod:
        service = await pod.enter_async_context(run_service("flask", tmp_path))
        config["upstreams"]["asr"] |= {"endpoints": [service], "health": {"path": "/", "interval": "100ms"}}
        path.write_text(json.dumps(config))
        async with process(path) as gateway:
            assert gateway.stdout is not None
            assert b"listening on" in await asyncio.wait_for(gateway.stdout.readline(), TIMEOUT_SECONDS)
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            size = 3_000_000
            head = f"POST /upload HTTP/1.1\r\nHost: asr\r\nContent-Length: {size}\r\n\r\n"
            writer.write(head.encode() + b"x" * (size // 2))
            await writer.drain()
            # 1. The preStop hook of the service, while the upload is in flight.
            asking = asyncio.create_task(fetch(f"http://127.0.0.1:{ops_port}{hook['path']}"))
            ready = f"http://127.0.0.1:{ops_port}/readyz"
            while (await fetch(ready))[0] == 200:
                pass
            writer.write(b"x" * (size - size // 2))
            response = await asyncio.wait_for(reader.read(), TIMEOUT_SECONDS)
            writer.close()
            assert split_response(response)[0] == 200
            assert json.loads(split_response(response)[2])["files"][0]["size"] == size
            assert (await asking)[0] == 200
            # 2. SIGTERM to the service, and its end.
            await pod.aclose()
            # 3. SIGTERM to the gateway.
            gateway.send_signal(signal.SIGTERM)
            await asyncio.wait_for(gateway.communicate(), TIMEOUT_SECONDS)
            assert gateway.returncode == 0
