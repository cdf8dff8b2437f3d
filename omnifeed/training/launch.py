"""Where a training runs: in this process, or in several of this machine that torch's elastic agent starts and watches.

A process that dies takes the others down with it; the agent starts all of them again, and they go on from the last
checkpoint. On several machines torchrun does the same: `torchrun ... -m omnifeed.training`.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from pathlib import Path
from typing import Any

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from omnifeed.config import Config
from omnifeed.errors import OmnifeedError
from omnifeed.training.loop import Progress, TrainResult, train

RESTARTS = 3
#: Processes that are started again must not meet in the store of those before them: they would find their addresses.
AGENT = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}


def run_training(
    training_set: Path, out_dir: Path, config: Config, progress: Progress, former: Path | None
) -> TrainResult:
    """`train` in `training.processes` processes of this machine.

    Raises:
        OmnifeedError: what `train` raises, or processes died more often than RESTARTS times.
    """
    count = config.training.processes
    if count == 1:
        return train(training_set, out_dir, config, progress, former)
    os.environ |= AGENT
    queue = multiprocessing.get_context("spawn").SimpleQueue()
    reader = threading.Thread(target=_relay, args=(queue, progress), daemon=True)
    reader.start()
    launch = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=out_dir.name,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=RESTARTS,
        monitor_interval=0.5,
    )
    try:
        results = elastic_launch(launch, _work)(training_set, out_dir, config, former, queue)
    except ChildFailedError as error:
        raise OmnifeedError(
            f"Training in {count} processes failed {RESTARTS + 1} times: {error.get_first_failure()[1].message}.",
            "Mend the cause and run again; it goes on from the last checkpoint.",
        ) from error
    finally:
        queue.put(None)
        reader.join()
    result = results[0]
    if isinstance(result, OmnifeedError):
        raise result
    return result  # type: ignore[no-any-return]


def _work(training_set: Path, out_dir: Path, config: Config, former: Path | None, queue: Any) -> object:
    """What one process does; an error that another start would meet again is handed back as its result."""

    def tell(*news: object) -> None:
        if os.environ["RANK"] == "0":
            queue.put(news)

    try:
        return train(training_set, out_dir, config, tell, former)
    except OmnifeedError as error:
        return error


def _relay(queue: Any, progress: Progress) -> None:
    while (news := queue.get()) is not None:
        progress(*news)
