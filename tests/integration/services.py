"""Real upstreams as processes: Flask with gunicorn, FastAPI with uvicorn, the demo. Each reports what it received."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from tests.ports import free_port

FLASK_APP = """
import hashlib
from flask import Flask, jsonify, request
app = Flask(__name__)

def describe(field, name, data):
    return {"field": field, "name": name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}

@app.post("/upload")
def upload():
    files = []
    for field, file in request.files.items(multi=True):
        data = file.read()
        files.append(describe(field, file.filename, data))
    if not files:
        data = request.get_data()
        files.append(describe(None, None, data))
    return jsonify(files=files, fields=request.form.to_dict(), forwarded=request.headers.get("X-Forwarded-For"))

@app.get("/")
def hello():
    return "flask"
"""
FASTAPI_APP = """
import hashlib
from fastapi import FastAPI, Request
from starlette.datastructures import UploadFile
app = FastAPI()

def describe(field, name, data):
    return {"field": field, "name": name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}

@app.post("/upload")
async def upload(request: Request):
    files, fields = [], {}
    if request.headers["content-type"].startswith("multipart/"):
        async with request.form(max_files=1000) as form:
            for field, value in form.multi_items():
                if isinstance(value, UploadFile):
                    data = await value.read()
                    files.append(describe(field, value.filename, data))
                else:
                    fields[field] = value
    else:
        data = await request.body()
        files.append(describe(None, None, data))
    return {"files": files, "fields": fields, "forwarded": request.headers.get("x-forwarded-for")}

@app.get("/")
async def hello():
    return "fastapi"
"""
SERVICES = ("flask", "fastapi", "demo")


@contextlib.asynccontextmanager
async def run_service(name: str, directory: Path) -> AsyncIterator[str]:
    """Run a service and yield its URL."""
    port = free_port()
    (directory / "flask_app.py").write_text(FLASK_APP)
    (directory / "fastapi_app.py").write_text(FASTAPI_APP)
    python = [sys.executable, "-m"]
    commands = {
        "flask": [*python, "gunicorn", "--bind", f"127.0.0.1:{port}", "--log-level", "error", "flask_app:app"],
        "fastapi": [*python, "uvicorn", "--port", str(port), "--log-level", "error", "fastapi_app:app"],
        "demo": [*python, "gateway.demo", str(port)],
    }
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = await asyncio.create_subprocess_exec(
        *commands[name], cwd=directory, env=environment, start_new_session=True
    )
    try:
        async with asyncio.timeout(20):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                except OSError:
                    await asyncio.sleep(0.05)
                    continue
                writer.close()
                break
        yield f"http://127.0.0.1:{port}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        await process.wait()
