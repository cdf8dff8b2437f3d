"""A feature server that does as it is told: Feast's protocol, so that the real server meets a slow or a broken one."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from omnifeed.features.spec import of
from omnifeed.serving.server import LocalServer

NAMES = [feature.name for view in ("user_profile", "user_daily", "user_history") for feature in of(view)]


def body(values: dict[str, object]) -> bytes:
    """Feast's answer about one user."""
    results = [{"values": [values.get(name)], "statuses": ["PRESENT"]} for name in NAMES]
    return json.dumps({"metadata": {"feature_names": NAMES}, "results": results}).encode()


KNOWN = {
    "locale": "de",
    "history_item": ["i1", "i2"],
    "history_action": [2, 3],
    "history_scenario": ["search", "search"],
    "history_ts": [1, 2],
}


class FeatureDouble:
    """Listens on a port; `answer` gives status and body and may take its time."""

    def __init__(self, port: int) -> None:
        self.answer: Callable[[], tuple[int, bytes]] = self.fine
        double = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                status, raw = double.answer()
                try:
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(raw)))
                    self.end_headers()
                    self.wfile.write(raw)
                except OSError:
                    self.close_connection = True  # whoever asked has gone

            def log_message(self, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @staticmethod
    def fine() -> tuple[int, bytes]:
        return 200, body(KNOWN)

    @staticmethod
    def slow() -> tuple[int, bytes]:
        time.sleep(1)
        return 200, body(KNOWN)

    @staticmethod
    def nulls() -> tuple[int, bytes]:
        return 200, body({})

    @staticmethod
    def unreadable() -> tuple[int, bytes]:
        return 200, body({**KNOWN, "history_ts": ["yesterday", "today"]})

    @staticmethod
    def failing() -> tuple[int, bytes]:
        return 500, b"out of order"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Served(LocalServer):
    """The real server, whose feature server does as the test says."""

    features: FeatureDouble

    def _start_features(self) -> None:
        self.features = FeatureDouble(self.config.serving.features_port)

    def stop(self) -> None:
        """As always, and the feature server with it."""
        super().stop()
        if "features" in vars(self):
            self.features.close()
            del self.features
