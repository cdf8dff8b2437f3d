"""Serves the metrics of the last monitoring run: one file of the home, as it is now, each time Prometheus asks.

A pipeline's step ends long before anybody could ask it; the volume is what remains.
"""

from __future__ import annotations

import argparse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


def server(path: Path, port: int) -> ThreadingHTTPServer:
    """The HTTP server, bound but not yet serving; port 0 takes a free one. Without a file there are no metrics."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = self.path in ("/", "/metrics")
            body = path.read_bytes() if self.path == "/metrics" and path.exists() else b""
            self.send_response(200 if known else 404)
            self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            if not str(args[1] if len(args) > 1 else "").startswith("2"):
                super().log_message(format, *args)

    return ThreadingHTTPServer(("", port), Handler)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--file", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    arguments = parser.parse_args()
    server(arguments.file, arguments.port).serve_forever()
