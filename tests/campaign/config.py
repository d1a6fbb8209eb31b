"""The config of a campaign."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.certificates import Certificate

_PREFIXES = ("stored", "served")


def make_config(
    urls: tuple[str, str], directory: Path, lanes: str, generation: int = 0, certificate: Certificate | None = None
) -> dict[str, Any]:
    """Return the config of a campaign: every action, and short timeouts.

    The URLs are those of the upstream and of the bucket.
    """
    url, endpoint = urls
    stored, served = (
        {"url": f"s3://bucket/{prefix}", "endpoint": endpoint, "region": "us-east-1"} for prefix in _PREFIXES
    )
    here, up = {"directory": str(directory)}, {"upstream": "up"}
    actions: dict[str, dict[str, Any]] = {
        "inspect": {"forward": up},
        "opaque": {"forward": {**up, "multipart": "opaque"}},
        "strict": {"forward": {**up, "multipart": "strict"}},
        "unwrap": {"forward": {**up, "body": "raw"}},
        "wrap": {"forward": {**up, "body": "multipart"}},
        "digest": {"forward": up, "filters": [{"digest": {"algorithm": "sha256"}}]},
        "packed": {"forward": up, "filters": ["compress"]},
        "mirror": {"forward": {**up, "mirror": {"upstream": "copies"}}},
        "tee": {"forward": {**up, "mirror": {"directory": str(directory / "tee")}}},
        "split": {"split": up},
        "split-raw": {"split": {**up, "body": "raw", "on_error": "stop"}},
        "store": {"store": here},
        "replace": {"store": {**here, "if_exists": "replace"}},
        "bucket-store": {"store": stored},
        "bucket-replace": {"store": {**stored, "if_exists": "replace"}},
        "bucket-files": {"files": served},
        "files": {"files": {"directory": str(directory.parent / "served")}},
        "fetch": {"fetch": {"allow": [url + "/"], "private_networks": "allow"}},
    }
    timeouts = {"idle": "1s", "min_rate": 0}
    limits = {"connect": "2s", "response": "1s", "idle": "1s"}
    return {
        "lanes": "auto" if lanes == "tls" else lanes,
        **({"tls": {"certificate": str(certificate.path), "key": str(certificate.key)}} if certificate else {}),
        "trusted_proxies": ["127.0.0.0/8"],
        "upstreams": {
            # A key that changes with each reload makes another pool of connections.
            "up": {"endpoints": [url], "timeouts": {**limits, "idle": f"{1000 + generation}ms"}},
            "copies": {"endpoints": [url], "timeouts": limits, "max_in_flight": 4},
        },
        "routes": [
            {"name": name, "match": {"prefix": f"/{name}"}, "timeouts": timeouts, **_with_limits(action)}
            for name, action in actions.items()
        ],
    }


def _with_limits(action: dict[str, Any]) -> dict[str, Any]:
    """Return a route's action; fetch has timeouts of its own."""
    if "fetch" in action:
        return {"fetch": {**action["fetch"], "timeouts": {"connect": "2s", "response": "1s", "idle": "1s"}}}
    return action
