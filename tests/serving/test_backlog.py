"""What waits beyond the limit is refused, once each, shared by the processes; the real queue is in test_operations."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from omnifeed.serving.recommend.backlog import Backlog

PAGE = """nv_inference_pending_request_count{model="ranker_1",version="1"} 900
nv_inference_pending_request_count{model="recommend",version="1"} %d
nv_inference_request_success{model="recommend",version="1"} 12
"""


class Metrics(ThreadingHTTPServer):
    """Shows that so many wait."""

    waiting = 0
    asked = 0


@pytest.fixture
def metrics() -> Iterator[Metrics]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server.asked += 1
            body = (PAGE % server.waiting).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    server = Metrics(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(("waiting", "refused"), [(0, 0), (128, 0), (228, 50), (1_128, 500)])
def test_each_process_refuses_its_share_of_what_is_too_many(metrics: Metrics, waiting: int, refused: int) -> None:
    backlog = Backlog(f"127.0.0.1:{metrics.server_port}", limit=128, instances=2)
    assert not backlog.refuses()
    metrics.waiting = waiting
    backlog.look()
    assert [backlog.refuses() for _ in range(refused + 20)] == [True] * refused + [False] * 20


def test_an_idle_process_does_not_look_and_forgets_what_it_saw(metrics: Metrics) -> None:
    backlog = Backlog(f"127.0.0.1:{metrics.server_port}", limit=128, instances=2)
    backlog.look()
    assert metrics.asked == 0
    backlog.refuses()
    metrics.waiting = 1_000
    backlog.look()
    backlog.look()  # nobody came in between
    assert metrics.asked == 1
    assert not backlog.refuses()


def test_without_metrics_nothing_is_refused() -> None:
    backlog = Backlog("127.0.0.1:9", limit=0, instances=1)
    backlog.refuses()
    with pytest.raises(OSError, match="refused"):
        backlog.look()
    assert not backlog.refuses()
