"""Says whether Triton still answers: one real request to `recommend`, each time somebody asks.

Triton's health endpoints stay at 200 when a model's process has crashed, and every call then fails. The kubelet asks
`/answers` here as the server's liveness probe; `/` is the canary's own. The request is a probe: it is answered in full
and logged nowhere.
"""

from __future__ import annotations

import argparse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from omnifeed.serving.recommend.contract import INPUT_TYPES
from omnifeed.serving.wire import MODEL, tensor

DEADLINE_S = 5.0
REQUEST = {"user_id": ["canary"], "scenario": ["canary"], "k": [1], "probe": [True]}  # of an unknown user


def fault(client: InferenceServerClient) -> str | None:
    """None if `recommend` answers, refuses, or a live server says that it is busy or has no champion yet; else what is
    wrong. A restart would not help the former: a full queue is load, and more of it after a restart.
    """
    try:
        client.infer(
            MODEL,
            [tensor(name, value, INPUT_TYPES[name]) for name, value in REQUEST.items()],
            client_timeout=DEADLINE_S,
        )
    except InferenceServerException as error:
        if "INVALID_ARGUMENT" in str(error.status()) or ("UNAVAILABLE" in str(error.status()) and _live(client)):
            return None
        return f"{error.status()}: {error.message()}"
    return None


def _live(client: InferenceServerClient) -> bool:
    try:
        return bool(client.is_server_live(client_timeout=DEADLINE_S))
    except InferenceServerException:
        return False


def server(triton: str, port: int) -> ThreadingHTTPServer:
    """The HTTP server, bound but not yet serving; port 0 takes a free one."""
    client = InferenceServerClient(triton)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wrong = fault(client) if self.path == "/answers" else None
            body = (wrong or "ok").encode()
            self.send_response(503 if wrong else 200)
            self.send_header("Content-Type", "text/plain; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            if not str(args[1] if len(args) > 1 else "").startswith("2"):
                super().log_message(format, *args)

    return ThreadingHTTPServer(("", port), Handler)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--triton", required=True)
    parser.add_argument("--port", type=int, required=True)
    arguments = parser.parse_args()
    server(arguments.triton, arguments.port).serve_forever()
