"""Host memory of training on a long log: the tables stay on disk, what else the process holds is measured.

    python benchmarks/train_memory.py 1000000 5000000 [--folder DISK]

For each number of events a training set is made (a hundred events a user, six items a request, as many items as fit a
catalogue of a fiftieth of the events, 100,000 at most), then training runs in a process of its own, whose memory is
sampled: it reads everything, takes STEPS steps as its one epoch, validates on a whole day, fits calibration and the
trend's weight there and writes the network. Anonymous memory is what the process holds beyond the tables; file memory
is what the kernel keeps of the mapped tables while there is room. Folder: where the data and the maps lie (a disk, not
memory).
Writes results/train_memory.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from record import row, write_result

from omnifeed.config import Config, DataConfig, TrainingConfig
from omnifeed.export.encode import DAY_US, EncodeSpec
from omnifeed.features.spec import ITEM_DENSE, USER_DENSE, digest
from omnifeed.features.training_set import TrainingSet
from omnifeed.home import write_json
from omnifeed.tables import EVENTS, ITEMS, USERS

START, DAYS, SLATE, STEPS, PART = 1_772_409_600_000_000, 30, 6, 30, 200_000
SCENARIOS = ("livestream", "short_video", "search")
LIMIT_GIB, SAMPLE_S = 6.0, 0.2
CONFIG = Config(data=DataConfig(scenarios=SCENARIOS), training=TrainingConfig(device="cpu", epochs=1))


def table(schema: pa.Schema, rows: int, values: dict[str, Any]) -> pa.Table:
    """These columns of a canonical table, nulls in the others."""
    columns = [
        pa.array(values[field.name]).cast(field.type) if field.name in values else pa.nulls(rows, field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def names(prefix: str, numbers: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    return np.char.add(prefix, numbers.astype(str))


def generate(folder: Path, events: int) -> None:
    """Write a training set; requests in the order of time, a tenth of the items clicked."""
    rng = np.random.default_rng(0)
    requests, users, items = events // SLATE, max(events // 100, 1), min(max(events // 50, 100), 100_000)
    ts = START + np.sort((rng.random(requests) * DAYS * DAY_US).astype(np.int64))
    user = rng.integers(0, users, requests).astype(np.int32)
    item = (items * rng.random((requests, SLATE)) ** 3).astype(np.int32)
    click = rng.random((requests, SLATE)) < 0.1
    ends = [START + days * DAY_US for days in (DAYS - 2, DAYS - 1, DAYS)]
    writer: pq.ParquetWriter | None = None
    for begin in range(0, requests, PART):
        part = np.arange(begin, min(begin + PART, requests)).repeat(SLATE)
        slot = np.tile(np.arange(SLATE), len(part) // SLATE)
        clicked, moment = click[part, slot], ts[part]
        values = {
            "event_id": names("e", part * SLATE + slot),
            "request_id": names("r", part),
            "user_id": names("u", user[part]),
            "item_id": names("i", item[part, slot]),
            "scenario": np.array(SCENARIOS[:2])[part % 2],
            "ts": moment,
            "position": slot,
            "served": np.ones(len(part), bool),
            "viewed": np.ones(len(part), bool),
            "click": clicked,
            "long_view": clicked & (slot % 2 == 0),
            "observed_ts": moment + 60_000_000,
        }
        rows = table(EVENTS, len(part), values)
        for feature in (*USER_DENSE, *ITEM_DENSE):
            rows = rows.append_column(feature.name, pa.array(rng.random(len(part), np.float32)))
        split = np.array(["train", "valid", "test"])[np.searchsorted(ends[:2], moment, side="right")]
        rows = rows.append_column("split", pa.array(split))
        writer = writer or pq.ParquetWriter(folder / "rows.parquet", rows.schema)
        writer.write_table(rows)
    assert writer is not None
    writer.close()
    write_history(folder, ts, user, item, click, users)
    everything, everybody = np.arange(items), np.arange(users)
    made = {"item_id": names("i", everything), "kind": np.full(items, "video"), "policy": np.full(items, "ALLOW")}
    made |= {"title": names("title ", everything % 997), "created_ts": np.full(items, START - DAY_US)}
    pq.write_table(table(ITEMS, items, made), folder / "items.parquet")
    pq.write_table(table(USERS, users, {"user_id": names("u", everybody)}), folder / "users.parquet")
    shape = (len(ends), len(SCENARIOS), items)
    day, scenario, item_of = (index.ravel() for index in np.indices(shape))
    features = pa.table(
        {
            "day_ts": pa.array(np.array(ends)[day]).cast(pa.timestamp("us", "UTC")),
            "item_id": names("i", item_of),
            "scenario": np.array(SCENARIOS)[scenario],
            **{feature.name: rng.random(len(day), np.float32) for feature in ITEM_DENSE},
        }
    )
    pq.write_table(features, folder / "item_features.parquet")
    meta = TrainingSet(
        folder=folder,
        window=(int(ts[0]), int(ts[-1])),
        train_end=ends[0],
        valid_end=ends[1],
        test_end=ends[2],
        now=ends[2],
        scenarios=SCENARIOS,
        rows={},
        left_out={},
        feature_digest=digest(),
        encode=EncodeSpec.from_config(CONFIG),
    )
    write_json(folder / "meta.json", meta.to_dict())


def write_history(folder: Path, ts: Any, user: Any, item: Any, click: Any, users: int) -> None:
    """All events of each user, a part of the users at a time."""
    order = np.argsort(user, kind="stable")
    bounds = np.searchsorted(user[order], np.arange(users + 1))
    writer: pq.ParquetWriter | None = None
    for begin in range(0, users, PART // 100):
        end = min(begin + PART // 100, users)
        request = order[bounds[begin] : bounds[end]].repeat(SLATE)
        slot = np.tile(np.arange(SLATE), len(request) // SLATE)
        offsets = pa.array(((bounds[begin : end + 1] - bounds[begin]) * SLATE).astype(np.int32))
        flat = {
            "item": names("i", item[request, slot]),
            "action": 1 + click[request, slot].astype(np.int64),
            "scenario": np.array(SCENARIOS[:2])[request % 2],
            "ts": ts[request],
            "observed_ts": ts[request] + 60_000_000,
        }
        lists = {f"history_{name}": pa.ListArray.from_arrays(offsets, pa.array(flat[name])) for name in flat}
        part = pa.table({"user_id": pa.array(names("u", np.arange(begin, end))), **lists})
        writer = writer or pq.ParquetWriter(folder / "history.parquet", part.schema)
        writer.write_table(part)
    assert writer is not None
    writer.close()


def train_some_steps(training_set: Path, out: Path) -> None:
    """Train with an epoch of STEPS steps; print when they began and ended, and how many there would be."""
    from omnifeed.training import loop

    whole, validate, said, found = loop.batches, loop.validate, {}, []

    def first(*given: Any) -> list[Any]:
        said.setdefault("read", time.monotonic())
        all_of_them = whole(*given)
        said["steps"] = len(all_of_them)
        return all_of_them[:STEPS]

    def progress(label: str, done: int, total: int) -> None:
        said["trained"] = time.monotonic()

    def once(*given: Any) -> Any:  # the one epoch is the best: validated again for the fit, it would say the same
        if not found:
            found.append(validate(*given))
        return found[0]

    loop.batches, loop.validate = first, once  # type: ignore[assignment]
    loop.train(training_set, out, CONFIG, progress)
    print(json.dumps(said))


def memory(pid: int) -> tuple[float, float]:
    """Anonymous and mapped memory of a process, GiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    size = {
        name: int(rest.split()[0]) / 2**20 for name, _, rest in (line.partition(":") for line in lines) if "Rss" in name
    }
    return size["RssAnon"] + size["RssShmem"], size["RssFile"]


def measure(events: int, folder: Path) -> dict[str, float]:
    """Generate, train, sample; both in processes of their own."""
    training_set = folder / "set"
    training_set.mkdir()
    subprocess.run([sys.executable, __file__, "--generate", str(training_set), str(events)], check=True)
    disk = sum(path.stat().st_size for path in training_set.iterdir()) / 2**30
    samples, begun = [], time.monotonic()
    command = [sys.executable, __file__, "--train", str(training_set), str(folder / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        while child.poll() is None:
            try:
                samples.append((time.monotonic(), *memory(child.pid)))
            except (OSError, KeyError):  # it has just ended
                break
            time.sleep(SAMPLE_S)
        assert child.stdout is not None
        output = child.stdout.read()
    if child.returncode:
        raise SystemExit(f"Training on {events:,} events ended with {child.returncode}.")
    said = json.loads(output)
    at, anonymous, mapped = np.array(samples).T
    read, trained = at < said["read"], at < said["trained"]
    return {
        "anonymous_gib": anonymous.max(),
        "anonymous_gib_reading": anonymous[read].max(),
        "anonymous_gib_steps": anonymous[trained & ~read].max(),
        "anonymous_gib_validation_and_fit": anonymous[~trained].max(),
        "mapped_gib": mapped.max(),
        "parquet_gib": disk,
        "read_s": said["read"] - begun,
        "steps_of_an_epoch": said["steps"],
        "seconds": at[-1] - begun,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("events", nargs="*", type=int, help="numbers of events")
    parser.add_argument("--folder", type=Path, help="where the data lies meanwhile")
    parser.add_argument("--generate", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--train", nargs=2, type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.generate:
        return generate(Path(given.generate[0]), int(given.generate[1]))
    if given.train:
        return train_some_steps(*given.train)
    rows = []
    for events in given.events:
        with tempfile.TemporaryDirectory(dir=given.folder) as folder:
            found = measure(events, Path(folder))
        rows += [row(name, value, events=events) for name, value in found.items()]
        print(f"{events:,} events:", ", ".join(f"{name} {value:,.2f}" for name, value in found.items()), flush=True)
    write_result(
        "train_memory",
        f"Training's host memory beyond the tables, GiB; at most {LIMIT_GIB:g} is asked for at 50M events",
        rows,
        data="generated: 100 events a user, 6 items a request, up to 100,000 items, histories of 100",
        seeds=[0],
        notes=[
            f"One process, the default model on a CPU: reading, an epoch cut to {STEPS} steps, validation on one day "
            "of the 30, the fit of calibration and of the trend's weight, and the writing of the network.",
            "anonymous_gib is the peak of what the process holds itself (with shared memory); mapped_gib is the "
            "kernel's cache of the arrays on disk that the process looks at, given up where memory is short.",
        ],
    )


if __name__ == "__main__":
    main()
