"""Says whether Triton still answers, by one real request to `recommend` when asked; loads again what has died.

Triton's health endpoints stay at 200 when a model's process has crashed, and every call then fails. Every two seconds
the canary looks for such a model, takes it out and puts it in again. Where that does not help, the kubelet restarts the
server: it asks `/answers` here as the liveness probe; `/` is the canary's own.
"""

from __future__ import annotations

import argparse
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from omnifeed.serving.healing import DEADLINE_S, Healer, probe

LOOK_S = 2.0


def fault(client: InferenceServerClient) -> str | None:
    """None if `recommend` answers, refuses, or a live server says that it is busy or has no champion yet; else what is
    wrong. A restart would not help the former: a full queue is load, and more of it after a restart.
    """
    try:
        probe(client)
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


def heal(triton: str, key: str, stop: threading.Event) -> None:
    """Look until told to stop; `key` is that of the server's restricted protocols."""
    with InferenceServerClient(triton) as client:
        healer = Healer(client, {"triton-grpc-protocol-admin": key})
        while not stop.wait(LOOK_S):
            for name in healer.look():
                print(f"{name} had died and was loaded again", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--triton", required=True)
    parser.add_argument("--port", type=int, required=True)
    arguments = parser.parse_args()
    threading.Thread(
        target=heal, args=(arguments.triton, os.environ["TRITON_ADMIN_KEY"], threading.Event()), daemon=True
    ).start()
    server(arguments.triton, arguments.port).serve_forever()
