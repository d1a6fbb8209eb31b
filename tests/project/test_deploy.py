"""Files in deploy/ pass the checkers of the tools that read them: hadolint, Kubernetes schemas, promtool, systemd."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from gateway.config import parse_config
from gateway.errors import Blame, FaultKind, Outcome
from gateway.observe.prometheus import METRICS
from tests.conftest import require_tool

DEPLOY = Path(__file__).parents[2] / "deploy"
DOCS = DEPLOY.parent / "docs"
MANIFESTS: list[dict[str, Any]] = list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()))


def run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def series_names() -> set[str]:
    """Return every name a query may use."""
    names = set()
    for metric in METRICS.values():
        suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}.get(metric.kind, [""])
        names |= {metric.name + suffix for suffix in suffixes}
    return names


def test_dockerfile_passes_hadolint() -> None:
    run(str(Path(sys.executable).parent / "hadolint"), str(DEPLOY / "Dockerfile"))


@pytest.mark.parametrize(
    "manifest", MANIFESTS, ids=lambda manifest: f"{manifest['kind']}/{manifest['metadata']['name']}"
)
@pytest.mark.parametrize("version", ["1.29", "1.33"])
def test_manifests_are_valid(manifest: dict[str, Any], version: str) -> None:
    kubernetes_validate.validate(manifest, version, strict=True)


def test_gateway_is_a_native_sidecar_with_a_valid_config() -> None:
    deployment = next(manifest for manifest in MANIFESTS if manifest["kind"] == "Deployment")
    spec = deployment["spec"]["template"]["spec"]
    gateway = next(container for container in spec["initContainers"] if container["name"] == "gateway")
    assert gateway["restartPolicy"] == "Always"
    assert {"startupProbe", "livenessProbe", "readinessProbe"} <= gateway.keys()
    text = next(m for m in MANIFESTS if m["metadata"]["name"] == "asr-gateway")["data"]["gateway.yaml"]
    config = parse_config(text)
    assert config.drain_delay + config.drain_timeout < spec["terminationGracePeriodSeconds"]
    # The kubelet stops the service before the gateway.
    service = spec["containers"][0]
    assert service["lifecycle"]["preStop"]["httpGet"] == {"path": "/drain", "port": config.ops.listen.port}
    assert config.ops.drain
    ports = {port["containerPort"] for port in gateway["ports"]}
    assert {config.listen.port, config.ops.listen.port} == ports


def test_flask_service_of_the_manifest_compiles() -> None:
    compile(next(m for m in MANIFESTS if m["metadata"]["name"] == "asr-service")["data"]["app.py"], "app.py", "exec")


def test_prometheus_config_and_rules_pass_promtool() -> None:
    promtool = require_tool("promtool")
    run(promtool, "check", "config", str(DEPLOY / "prometheus" / "prometheus.yaml"))
    run(promtool, "test", "rules", str(DEPLOY / "prometheus" / "alerts_test.yaml"))


def alerts() -> list[dict[str, Any]]:
    rules = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yaml").read_text())
    return [rule for group in rules["groups"] for rule in group["rules"]]


def test_runbook_has_a_section_for_each_alert() -> None:
    names = [rule["alert"] for rule in alerts()]
    runbook = (DOCS / "runbook.md").read_text()
    assert re.findall(r"^## (Gateway\w+)$", runbook, re.MULTILINE) == names
    for rule in alerts():
        assert rule["annotations"]["runbook"] == f"docs/runbook.md#{rule['alert'].lower()}"
    # Each fires in the unit tests of promtool.
    assert set(re.findall(r'alertname="(\w+)"', (DEPLOY / "prometheus" / "alerts_test.yaml").read_text())) == set(names)


def test_every_fault_of_the_gateway_fires_an_alert() -> None:
    text = " ".join(rule["expr"] for rule in alerts())
    patterns = re.findall(r'code=~?"([^"]+)"', text)
    for kind in FaultKind:
        # A shutdown and an operator cut exchanges on purpose.
        if kind.info.blame is Blame.GATEWAY and kind.info.outcome is not Outcome.CANCELLED:
            assert any(re.fullmatch(pattern, kind.code) for pattern in patterns), kind.code


def test_rules_use_metrics_that_exist() -> None:
    rules = [(DEPLOY / "prometheus" / name).read_text() for name in ("alerts.yaml", "recording_rules.yaml")]
    # Names of recorded series have a colon before.
    used = set(re.findall(r"(?<![:\w])gateway_\w+", " ".join(rules)))
    assert used - series_names() == set()


def test_systemd_unit_passes_systemd_analyze(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        # `make tools` does not install systemd: without it only the presence of the command is checked.
        unit = (DEPLOY / "streaming-gateway.service").read_text()
        assert "ExecStart=" in unit
        return
    # systemd-analyze checks that the program exists on this machine, so another one stands for it.
    text = (DEPLOY / "streaming-gateway.service").read_text().replace("/opt/gateway/bin/gateway", "/bin/true")
    unit_path = tmp_path / "streaming-gateway.service"
    unit_path.write_text(text)
    socket_path = tmp_path / "streaming-gateway.socket"
    socket_path.write_text((DEPLOY / "streaming-gateway.socket").read_text())
    run(analyze, "verify", str(unit_path), str(socket_path))
    # An exposure of 3.0 of 10 at most.
    run(analyze, "security", "--offline=true", "--threshold=30", "--no-pager", str(unit_path))


def test_systemd_unit_allows_the_calls_that_look_at_the_page_cache() -> None:
    """mincore is in none of systemd's sets: with @system-service alone, no file was sent by the kernel."""
    allowed: set[str] = set()
    for line in (DEPLOY / "streaming-gateway.service").read_text().splitlines():
        key, _, value = line.partition("=")
        if key == "SystemCallFilter":
            names = system_calls(value.removeprefix("~").split())
            allowed = allowed - names if value.startswith("~") else allowed | names
    # The others are in a set, which only systemd-analyze knows.
    of_sets = {"preadv2", "sendfile", "splice"} if shutil.which("systemd-analyze") is not None else set[str]()
    assert {"mincore", "cachestat"} | of_sets <= allowed


def system_calls(names: list[str]) -> set[str]:
    """Return system calls, with those of systemd's sets, which begin with @, where they are known."""
    found = {name for name in names if not name.startswith("@")}
    for name in set(names) - found if shutil.which("systemd-analyze") is not None else ():
        done = subprocess.run(
            ["systemd-analyze", "syscall-filter", name], capture_output=True, text=True, check=True, timeout=20
        )
        lines = [line.strip() for line in done.stdout.splitlines()[1:]]
        found |= system_calls([line for line in lines if line and not line.startswith("#")])
    return found
