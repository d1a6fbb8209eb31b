"""The configs of the gateway and its peers: one worker each, settings for large bodies, an access log and metrics.

The metrics of HAProxy and Envoy are always counted. All add X-Forwarded-For and X-Request-Id, as the gateway does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

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

#: What a proxy's config has where TLS is spoken on both sides, and where it is not.
TLS = {
    "nginx": {"tls": "ssl", "certificate": "ssl_certificate {pem}; ssl_certificate_key {pem};", "scheme": "https"},
    "haproxy": {"tls": "ssl crt {pem}", "to": "ssl verify none"},
}
PLAIN = {"nginx": {"tls": "", "certificate": "", "scheme": "http"}, "haproxy": {"tls": "", "to": ""}}


def gateway_config(ports: tuple[int, int], directory: Path, files: Path, certificate: Path | None) -> dict[str, Any]:
    """Return a config with a route for each case, in front of an upstream; `ports` are its own and the upstream's."""
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
