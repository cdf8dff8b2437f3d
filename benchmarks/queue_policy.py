"""What a queue policy of Triton does to `recommend`: answers that stall, by policy, instances and clients.

    python benchmarks/queue_policy.py [--seconds 2]

See docs/decisions/0006.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from record import row, write_result
from serving_stack import asked, settings, stack
from thread_sweep import Setting, Swept

from omnifeed.errors import UnavailableError
from omnifeed.home import write_atomic
from omnifeed.serving.client import Client

ITEMS = 2_000
STALL_MS = 300.0
BOUNDED = "dynamic_batching { default_queue_policy { max_queue_size: 128 %s } }"
POLICIES = {
    "none": "",
    "dynamic batching without a policy": "dynamic_batching { }",
    "at most 128 waiting": BOUNDED % "",
    "at most 128 waiting, 2 s each": BOUNDED % "default_timeout_microseconds: 2000000 timeout_action: REJECT",
}


class Queued(Swept):
    """A server whose `recommend` has a queue policy."""

    policy = ""

    def _assemble(self, environment: Path) -> None:
        super()._assemble(environment)
        path = self._folder / "repository" / "recommend" / "config.pbtxt"
        write_atomic(path, path.read_text(encoding="utf-8") + self.policy + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    options = parser.parse_args()
    folder, config = Path(tempfile.mkdtemp(prefix="omnifeed-queue-")), settings()
    home, now = stack(folder, ITEMS, config)
    rows: list[dict[str, Any]] = []
    for instances in (1, 2):
        for name, policy in POLICIES.items():
            Queued.policy = policy
            with (
                Queued(home, config, Setting(instances), simulated_clock=True, features=False) as server,
                Client(server.url, deadline_s=20) as client,
            ):
                for clients in (1, 4, 16):
                    end = time.perf_counter() + options.seconds

                    def one(number: int, end: float = end, client: Client = client) -> list[float]:
                        times: list[float] = []
                        while time.perf_counter() < end:
                            request = asked(number * 10**6 + len(times), now, config, "queue-")
                            begun = time.perf_counter()
                            with contextlib.suppress(UnavailableError):  # refused: it waited all the same
                                client.recommend(**request)
                            times.append((time.perf_counter() - begun) * 1_000)
                        return times

                    with ThreadPoolExecutor(clients) as pool:
                        times = [ms for part in pool.map(one, range(clients)) for ms in part]
                    labels = {"policy": name, "instances": instances, "clients": clients}
                    stalls = sum(ms > STALL_MS for ms in times)
                    rows.append(row("answers", len(times), **labels))
                    rows.append(row(f"of them after more than {STALL_MS:g} ms", stalls, **labels))
                    rows.append(row("ms, p50", float(np.median(times)), **labels))
                    rows.append(row("ms, longest", max(times), **labels))
                    print(f"{instances} {name:<34} {clients:>2} clients {len(times):>5} {stalls:>4}", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    write_result(
        "queue_policy",
        "Queue policies of Triton 2.51 for `recommend`: answers that stall",
        rows,
        data=f"simulated market, tiny, its items repeated to {ITEMS:,}; random weights; no feature server",
        seeds=[0],
        notes=["max_batch_size is 0: `recommend` takes its requests one by one."],
        libraries=("numpy", "tritonclient"),
    )


if __name__ == "__main__":
    main()
