"""One server under load for as long as asked: does memory, do file handles, does shared memory grow?

    python benchmarks/soak.py [--minutes 2] [--items 5000]

Growth is the least-squares slope over the second half of the run, after caches and allocators have settled, in the unit
an hour, beside the level at its start.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from record import row, write_result
from serving_stack import asked, settings, stack

from omnifeed.errors import OmnifeedError
from omnifeed.serving.client import Client
from omnifeed.serving.server import LocalServer

CLIENTS = 4
EVERY_S = 2.0


def shared_memory_mib() -> float:
    """What Triton's processes hold in /dev/shm."""
    files = Path("/dev/shm").glob("triton_python_backend_shm_region_*")
    return sum(path.stat().st_blocks * 512 for path in files) / 2**20


def look(pid: int) -> tuple[float, float, float]:
    """MiB of memory (shared pages shared out), open file handles, MiB of shared memory."""
    processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    memory = sum(process.memory_full_info().pss for process in processes) / 2**20
    return memory, sum(process.num_fds() for process in processes), shared_memory_mib()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--items", type=int, default=5_000)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="omnifeed-soak-"))
    config = settings()
    home, now = stack(folder, options.items, config)
    said: Counter[str] = Counter()
    stop = threading.Event()
    seen: list[tuple[float, float, float, float]] = []
    with LocalServer(home, config, simulated_clock=True) as server, Client(server.url, deadline_s=5) as client:

        def load(number: int) -> None:
            n = number * 10**9
            while not stop.is_set():
                request: dict[str, Any] = asked(n, now, config, "soak-")
                request["arm"] = ("champion", "challenger")[n % 2]
                if n % 17 == 0:
                    request["k"] = 0  # refused
                try:
                    answer = client.recommend(**request)
                    said["degraded" if answer.degraded else "answered"] += 1
                except OmnifeedError as error:
                    said[type(error).__name__] += 1
                n += 1

        threads = [threading.Thread(target=load, args=(number,)) for number in range(CLIENTS)]
        for thread in threads:
            thread.start()
        begun = time.monotonic()
        pid = server.children[0].pid
        while time.monotonic() - begun < options.minutes * 60:
            time.sleep(EVERY_S)
            seen.append((time.monotonic() - begun, *look(pid)))
        stop.set()
        for thread in threads:
            thread.join()
    shutil.rmtree(folder, ignore_errors=True)
    half = np.array(seen[len(seen) // 2 :])
    rows = [row("requests", count, outcome=outcome) for outcome, count in sorted(said.items())]
    for column, name in enumerate(("memory, MiB", "file handles", "shared memory, MiB"), start=1):
        slope = float(np.polyfit(half[:, 0] / 3_600, half[:, column], 1)[0])
        rows.append(row("level at half time", float(half[0, column]), of=name))
        rows.append(row("level at the end", float(half[-1, column]), of=name))
        rows.append(row("growth an hour, second half", slope, of=name))
        print(f"{name:<20} {half[0, column]:9.1f} -> {half[-1, column]:9.1f}, {slope:+9.2f} an hour")
    print({**said})
    write_result(
        "soak",
        f"{options.minutes:g} minutes of load on one server: does anything grow?",
        rows,
        data=f"simulated market, tiny, its items repeated to {options.items:,}; random weights; both arms",
        seeds=[0],
        notes=[
            f"{CLIENTS} clients without pause; one request in 17 is refused. Triton and its processes, not Feast's.",
            "Exposure files and the page cache grow by design and are not memory of the processes.",
        ],
        libraries=("numpy", "tritonclient"),
    )


if __name__ == "__main__":
    main()
