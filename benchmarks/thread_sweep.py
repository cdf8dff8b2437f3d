"""How many instances of `recommend`, onnxruntime threads and bytes of shared memory two cores want.

    python benchmarks/thread_sweep.py [--items 100000] [--rounds 3] [--seconds 3] [--instances 1 2 3] [--threads 1 2]
        [--shared 1 16]

One server a combination, one after the other, each asked by 1, 4 and 16 clients in rounds; a noisy minute falls on one
of them, so run it on a quiet machine. Threads are those of the user encoder and the ranker. Shared memory is the
region, in MiB, through which Triton and one Python process hand tensors to each other; where it is too small it grows.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import shutil
import tempfile
from pathlib import Path
from typing import Any

from record import row, write_result
from serving_latency import compare, memory_mib, rows_of
from serving_stack import settings, stack
from web_sides import Side

from omnifeed.config import Config
from omnifeed.home import Home, write_atomic
from omnifeed.serving.client import Client
from omnifeed.serving.server import LocalServer


@dataclasses.dataclass(frozen=True, slots=True)
class Setting:
    """One combination."""

    instances: int = 2  # of `recommend`
    threads: int = 1  # of onnxruntime, a model
    shared_mib: int = 1  # Triton's default

    @property
    def name(self) -> str:
        """As a table shows it."""
        return f"{self.instances} instances, {self.threads} threads, {self.shared_mib} MiB"


class Swept(LocalServer):
    """A server with another setting; the bundles stay as they are, the server's copies of their models do not."""

    def __init__(self, home: Home, config: Config, setting: Setting, **options: Any) -> None:
        super().__init__(home, config, **options)
        self._setting = setting

    def _assemble(self, environment: Path) -> None:
        super()._assemble(environment)
        self._rewrite(self._folder / "repository" / "recommend", "count: 2,", f"count: {self._setting.instances},")

    def _link(self, number: str) -> None:
        super()._link(number)
        for name in self._models(number):
            link = self._folder / "repository" / name
            source = link.resolve()
            link.unlink()
            shutil.copytree(source, link)
            said = 'key: "intra_op_thread_count" value { string_value: "%d" }'
            self._rewrite(link, said % self.config.serving.threads, said % self._setting.threads)

    def _extra_arguments(self) -> tuple[str, ...]:
        size = self._setting.shared_mib * 2**20
        return (*super()._extra_arguments(), f"--backend-config=python,shm-default-byte-size={size}")

    @staticmethod
    def _rewrite(model: Path, former: str, new: str) -> None:
        path = model / "config.pbtxt"
        text = path.read_text(encoding="utf-8")
        if former not in text:
            raise RuntimeError(f"{path} does not say {former!r}")
        write_atomic(path, text.replace(former, new))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--instances", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--shared", type=int, nargs="+", default=[1, 16], help="MiB")
    parser.add_argument("--folder", type=Path, help="kept and used again; default: a temporary one")
    options = parser.parse_args()
    folder, config = options.folder or Path(tempfile.mkdtemp(prefix="omnifeed-sweep-")), settings()
    home, now = stack(folder / str(options.items), options.items, config)
    rows: list[dict[str, Any]] = []
    for chosen in itertools.product(options.instances, options.threads, options.shared):
        setting = Setting(*chosen)
        with (
            Swept(home, config, setting, simulated_clock=True) as server,
            Client(server.url, deadline_s=30) as client,
        ):
            side = Side(setting.name, lambda client=client: lambda request: client.recommend(**request))  # type: ignore[misc]
            compare([side], options.rounds, options.seconds, now, config)
            rows += [*rows_of([side]), row("MiB", memory_mib(server.children[0].pid), side=side.name)]
    if options.folder is None:
        shutil.rmtree(folder, ignore_errors=True)
    write_result(
        "serving_sweep",
        f"Instances, threads and shared memory of `recommend`: k 50, 200 candidates, {options.items:,} items, 2 cores",
        rows,
        data="simulated market, tiny, its items repeated; histories of 100; random weights of the default model",
        seeds=[0],
        notes=["One server after the other: a noisy minute falls on one of them."],
        libraries=("numpy", "onnxruntime", "tritonclient"),
    )


if __name__ == "__main__":
    main()
