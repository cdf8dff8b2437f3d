"""Is the simulated market worth believing: speed, a policy ladder in two laws, power, and marginals beside real logs.

    python benchmarks/world_validity.py

Writes results/world_validity.json. Takes about five minutes of one core.
"""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
from record import row, write_result

from omnifeed.config import Config, DataConfig, ExperimentConfig, WorldConfig
from omnifeed.datasets.source import load_tables
from omnifeed.export.encode import text_vector
from omnifeed.tables import Tables
from omnifeed.world.laws import LAWS
from omnifeed.world.market import Visit, World

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
POLICIES = ("oracle", "affinity", "popularity", "random")
#: The laws were tuned by looking at seed 7, the demo's; the other seeds were first run when they were finished.
SEEDS = (7, 11, 12)
DAYS = range(14, 28)
SLATE = 10
RESAMPLES = 1_000
SPLITS = 400
TEXT_DIMS = 256
MATCH_SHARPNESS = 6.0  # log-score of a perfect match between query and title
RANK = 7  # of the smoothed user-by-category matrix
MARGINALS = ("click", "long_view", "like", "follow", "share", "comment", "hide")
Floats = npt.NDArray[np.float64]


class Learnt:
    """What counting alone learns from the log: rates of items, creators and kinds, and each user's categories."""

    def __init__(self, tables: Tables) -> None:
        items = tables.items.to_pandas().set_index("item_id")
        seen = tables.events.to_pandas()
        seen = seen[seen["viewed"]].join(items[["author_id", "category", "kind", "title"]], on="item_id")
        points = (seen["click"] + 5 * seen["long_view"] + 20 * seen["order"]).astype(float)
        kind = points.groupby([seen["scenario"], seen["kind"]]).mean()
        self.kind = kind.to_dict()
        expected = kind.reindex(pd.MultiIndex.from_frame(seen[["scenario", "kind"]])).to_numpy()
        self.author = self._relative(points, expected, seen["author_id"], 100)
        expected = expected * seen["author_id"].map(self.author).to_numpy()
        self.item = self._relative(points, expected, seen["item_id"], 30)
        expected = expected * seen["item_id"].map(self.item).to_numpy()
        locale = dict(zip(tables.users["user_id"].to_pylist(), tables.users["locale"].to_pylist(), strict=True))
        self.locale = locale
        script = seen["title"].map(is_chinese)
        pair = list(zip(seen["user_id"].map(locale), script, strict=True))
        self.script = self._relative(points, expected, pd.Series(pair, index=seen.index), 30)
        self.users = {user: place for place, user in enumerate(locale)}
        self.categories = {name: place for place, name in enumerate(sorted(items["category"].unique()))}
        taste = np.zeros((len(self.users), len(self.categories)))
        views = np.zeros_like(taste)
        where = (seen["user_id"].map(self.users).to_numpy(), seen["category"].map(self.categories).to_numpy())
        looks = (seen["click"] + 2 * seen["long_view"]).astype(float)
        usual = looks.groupby([seen["scenario"], seen["kind"]]).transform("mean")
        np.add.at(taste, where, (looks - usual).to_numpy())
        np.add.at(views, where, 1)
        shrunk = taste / (views + 3)
        left, strength, right = np.linalg.svd(shrunk, full_matrices=False)
        self.taste = np.clip(shrunk + (left[:, :RANK] * strength[:RANK]) @ right[:RANK], -1.5, 2.5)

    @staticmethod
    def _relative(points: pd.Series, expected: Floats, by: pd.Series, weight: float) -> dict[Any, float]:
        frame = pd.DataFrame({"points": points, "expected": expected}).groupby(by).sum()
        prior = weight * float(np.mean(expected))
        return dict(((frame["points"] + prior) / (frame["expected"] + prior)).to_dict())


def is_chinese(title: str) -> bool:
    return any("\u4e00" <= letter <= "\u9fff" for letter in title)


@dataclass
class Day:
    """The catalogue of one day as arrays, with the scores that do not depend on the user."""

    ids: npt.NDArray[Any]
    begins: npt.NDArray[np.int64]
    ends: npt.NDArray[np.int64]
    unpersonal: dict[str, Floats]  # by scenario
    category: npt.NDArray[np.int64]
    chinese: npt.NDArray[np.bool_]
    home: dict[str, npt.NDArray[np.bool_]]
    text: npt.NDArray[np.float32]


def day_of(world: World, day: int, learnt: Learnt, texts: dict[str, npt.NDArray[np.float32]]) -> Day:
    table = world.catalogue(world.day_start(day))
    frame = table.to_pandas()
    usable = (frame["policy"] != "DROP") & ~((frame["kind"] == "product") & (frame["stock"] == 0))
    begins, ends = (
        table[name].cast(pa.int64()).fill_null(bound).to_numpy()[usable]
        for name, bound in (("live_from", 0), ("live_until", 2**62))
    )
    frame = frame[usable]
    item = frame["item_id"].map(lambda name: learnt.item.get(name, 1.0)).to_numpy()
    author = frame["author_id"].map(lambda name: learnt.author.get(name, 1.0)).to_numpy()
    for name, title in zip(frame["item_id"], frame["title"], strict=True):
        if name not in texts:
            texts[name] = text_vector(title, TEXT_DIMS, "")
    homes = {"livestream": "livestream", "short_video": "video", "search": "product"}
    return Day(
        ids=frame["item_id"].to_numpy(),
        begins=begins,
        ends=ends,
        unpersonal={
            scenario: item * author * frame["kind"].map(lambda k, s=scenario: learnt.kind.get((s, k), 0.0)).to_numpy()
            for scenario in homes
        },
        category=frame["category"].map(learnt.categories).to_numpy(),
        chinese=frame["title"].map(is_chinese).to_numpy(),
        home={scenario: (frame["kind"] == kind).to_numpy() for scenario, kind in homes.items()},
        text=np.stack([texts[name] for name in frame["item_id"]]),
    )


def scores(
    world: World, learnt: Learnt, day: Day, visit: Visit, rows: npt.NDArray[np.int64], luck: Floats
) -> dict[str, Floats]:
    popular = day.unpersonal[visit.scenario][rows]
    if visit.query:
        match = day.text[rows] @ text_vector(visit.query, TEXT_DIMS, "")
        popular = popular * np.exp(MATCH_SHARPNESS * match)
    locale = learnt.locale[visit.user_id]
    script = np.where(
        day.chinese[rows], learnt.script.get((locale, True), 1.0), learnt.script.get((locale, False), 1.0)
    )
    taste = np.exp(1.2 * learnt.taste[learnt.users[visit.user_id]][day.category[rows]])
    return {
        "oracle": world.value(visit.user_id, visit.scenario, visit.query, visit.ts, day.ids[rows].tolist()),
        "affinity": popular * script * taste,
        "popularity": popular,
        "random": luck + day.home[visit.scenario][rows],
    }


def ladder(law: str, seed: int, requests: int) -> tuple[pd.DataFrame, dict[str, float], Tables]:
    """Each policy's totals by user; the speeds; and the logs that were learnt from."""
    asked: list[tuple[Visit, list[str]]] = []
    begin = time.process_time()
    world = World(WorldConfig(law=law, seed=seed))
    tables = world.tables()
    events_per_s = tables.events.num_rows / (time.process_time() - begin)
    learnt = Learnt(tables)
    rng = np.random.default_rng(0)
    texts: dict[str, npt.NDArray[np.float32]] = {}
    rows: list[tuple[Any, ...]] = []
    answering = 0.0
    for number in DAYS:
        day = day_of(world, number, learnt, texts)
        visits = world.visits(number)
        share = min(len(visits), round(requests / len(DAYS)))
        for place in sorted(rng.permutation(len(visits))[:share]):
            visit = visits[place]
            here = np.flatnonzero((day.begins <= visit.ts) & (visit.ts < day.ends))
            for name, score in scores(world, learnt, day, visit, here, rng.random(len(here))).items():
                slate = day.ids[here[np.argsort(-score, kind="stable")[:SLATE]]].tolist()
                begin = time.process_time()
                answer = world.respond(visit, slate)
                asked.append((visit, slate))
                answering += time.process_time() - begin
                gmv = sum(response.gmv for response in answer)
                orders = sum(response.outcomes["order"] for response in answer)
                clicks = sum(response.outcomes["click"] for response in answer)
                rows.append((visit.user_id, visit.scenario, name, gmv, orders, clicks))
    frame = pd.DataFrame(rows, columns=["user_id", "scenario", "policy", "gmv", "orders", "clicks"])
    begin = time.process_time()
    for visit, slate in asked[-2_000:]:
        world.respond(visit, slate)
    speeds = {
        "events_per_cpu_s": events_per_s,
        "slates_answered_per_cpu_s": 2_000 / (time.process_time() - begin),
        "slates_answered_per_cpu_s_between_other_work": len(rows) / answering,
    }
    return frame, speeds, tables


def interval(draws: Floats) -> tuple[float, float]:
    low, high = np.quantile(draws, (0.025, 0.975))
    return float(low), float(high)


def ladder_rows(law: str, seed: int, frame: pd.DataFrame) -> list[dict[str, Any]]:
    rng = np.random.default_rng(1)
    found = []
    for metric, unit in (("gmv", "USD"), ("orders", "1"), ("clicks", "1")):
        by_user = frame.pivot_table(index="user_id", columns="policy", values=metric, aggfunc="sum")[list(POLICIES)]
        totals = by_user.to_numpy()
        picks = rng.integers(0, len(totals), (RESAMPLES, len(totals)))
        means = np.stack([totals[pick].mean(0) for pick in picks])
        for place, policy in enumerate(POLICIES):
            labels = {"law": law, "seed": seed, "policy": policy, "unit": unit}
            found.append(
                row(f"{metric}_per_user", float(totals[:, place].mean()), *interval(means[:, place]), **labels)
            )
        for better, worse in (("oracle", "popularity"), ("affinity", "popularity"), ("popularity", "random")):
            left, right = POLICIES.index(better), POLICIES.index(worse)
            labels = {"law": law, "seed": seed, "policy": f"{better} over {worse}", "unit": "ratio"}
            value = float(totals[:, left].mean() / totals[:, right].mean())
            found.append(row(f"{metric}_ratio", value, *interval(means[:, left] / means[:, right]), **labels))
    for scenario, part in frame.groupby("scenario"):
        means_ = part.groupby("policy")["gmv"].mean()
        for policy in POLICIES:
            labels = {"law": law, "seed": seed, "policy": policy, "scenario": scenario, "unit": "USD"}
            found.append(row("gmv_per_request", float(means_[policy]), **labels))
    return found


def power_rows(law: str, seed: int, frame: pd.DataFrame) -> list[dict[str, Any]]:
    """How often a two-sided test on a fresh half-and-half split of resampled users calls affinity over popularity."""
    rng = np.random.default_rng(2)
    found = []
    for metric in ("orders", "gmv"):
        by_user = frame.pivot_table(index="user_id", columns="policy", values=metric, aggfunc="sum")
        if metric == "gmv":
            by_user = by_user.clip(upper=ExperimentConfig().gmv_cap)
        new, old = by_user["affinity"].to_numpy(), by_user["popularity"].to_numpy()
        called = []
        for _ in range(SPLITS):
            side = rng.random(len(by_user)) < 0.5
            drawn = rng.integers(0, len(by_user), len(by_user))
            a, b = new[drawn[side]], old[drawn[~side]]
            called.append((a.mean() - b.mean()) / np.sqrt(a.var(ddof=1) / len(a) + b.var(ddof=1) / len(b)) > 1.959964)
        share = float(np.mean(called))
        half = 1.96 * np.sqrt(share * (1 - share) / SPLITS)
        labels = {
            "law": law,
            "seed": seed,
            "policy": "affinity over popularity",
            "unit": "share",
            "users": len(by_user),
        }
        found.append(row(f"power_{metric}_per_user", share, max(share - half, 0.0), min(share + half, 1.0), **labels))
    return found


def marginal_rows(label: str, events: pd.DataFrame, users: int, days: int) -> list[dict[str, Any]]:
    seen = events[events["viewed"]]
    rng = np.random.default_rng(3)
    codes = seen["user_id"].astype("category").cat.codes.to_numpy()
    count = codes.max() + 1
    weights = rng.multinomial(count, np.full(count, 1 / count), 200).astype(float)
    views = np.bincount(codes, minlength=count)
    found = []
    for name in MARGINALS:
        hits = np.bincount(codes, weights=seen[name].astype(float), minlength=count)
        labels = {"world": label, "unit": "per viewed impression"}
        found.append(
            row(f"{name}_rate", hits.sum() / views.sum(), *interval((weights @ hits) / (weights @ views)), **labels)
        )
    ordered = seen[["user_id", "ts"]].sort_values(["user_id", "ts"])
    gap = ordered.groupby("user_id")["ts"].diff()
    sessions = int((gap.isna() | (gap > pd.Timedelta(minutes=30))).sum())
    active = seen.groupby(["user_id", seen["ts"].dt.floor("D")]).ngroups
    found.append(row("sessions_per_user_day", sessions / (users * days), world=label, unit="1"))
    found.append(row("sessions_per_active_user_day", sessions / active, world=label, unit="1"))
    found.append(row("viewed_impressions_per_session", len(seen) / sessions, world=label, unit="1"))
    return found


def shortfalls(rows: list[dict[str, Any]]) -> list[str]:
    """Where the market misses its targets of 90 % power and 40 % more orders for a taste-aware ranking."""
    found = []
    for entry in rows:
        label = f"{entry['metric']} of {entry.get('policy')}, law {entry.get('law')}, seed {entry.get('seed')}"
        if entry["metric"].startswith("power_") and entry["value"] < 0.9:
            found.append(f"Target of 0.90 missed: {label}: {entry['value']:.2f}.")
        if entry["metric"] == "orders_ratio" and entry["policy"].startswith("affinity") and entry["value"] < 1.4:
            found.append(f"Target of 1.40 missed: {label}: {entry['value']:.2f}.")
    return found


def main() -> None:
    rows: list[dict[str, Any]] = []
    for law, seed in itertools.product(sorted(LAWS), SEEDS):
        frame, speeds, tables = ladder(law, seed, ExperimentConfig().max_requests)
        rows += ladder_rows(law, seed, frame) + power_rows(law, seed, frame)
        if seed == SEEDS[0]:
            rows += [row(name, speed, law=law, seed=seed, unit="1/CPU-s") for name, speed in speeds.items()]
            config = WorldConfig()
            rows += marginal_rows(f"world, {law}", tables.events.to_pandas(), config.users, config.history_days)
    notes = [
        "Speeds are per second of CPU time on one thread, world construction included for events, because the machine "
        "was shared while they were taken; wall-clock speed is at most that.",
        "The ladder answers the same visits of held-out users on days 14 to 27 with every policy; luck is shared by "
        "(visit, item). Intervals are 95 % percentile bootstraps over users.",
        "Oracle knows the expected GMV of every item. Affinity and popularity count the log of days 0 to 13 and differ "
        "by the user's factors alone (title script by locale, smoothed category rates); neither is retrained. Both use "
        "creator rates for new items and the text match in search. Random keeps to the scenario's own kind of item.",
        "Power: share of half-and-half splits of resampled users in which a Welch z test at 5 % calls affinity better. "
        "Its interval covers the splits alone; each seed has one ladder's effect behind it, so compare the seeds.",
        "Both laws were tuned by hand on seed 7 and the very days of its ladder (oracle at least 3 times popularity in "
        "GMV, affinity about 40 % above it in orders), so seed 7 may flatter; seeds 11 and 12 were unseen.",
        "The parameters of both laws were set by hand until the marginals were plausible and personal taste mattered; "
        "they are no estimates. That the ladder holds is by construction of the market; its steps are measured.",
    ]
    folder = SHARED / "kuairand_pure"
    if folder.is_dir():
        source = load_tables(Config(data=DataConfig(source="kuairand", path=str(folder))))
        log = source.tables.events.to_pandas()
        log = log[log["arm"] == "log"].drop_duplicates("event_id")
        rows += marginal_rows("KuaiRand-Pure", log, source.tables.users.num_rows, 14)
        notes.append(
            "KuaiRand-Pure keeps 7,583 videos of a far larger log, so its sessions are thinned and its impressions a "
            "session far too few; its click and long_view rates stand far above the world's, its hide rate far below."
        )
    notes += shortfalls(rows)
    write_result(
        "world_validity",
        "The simulated market: speed, policy ladder by law, power, marginals beside KuaiRand-Pure",
        rows,
        data="the simulated market (laws default and other); ../shared/data/kuairand_pure",
        seeds=list(SEEDS),
        notes=notes,
        libraries=("numpy", "pandas", "pyarrow"),
    )
    for entry in rows:
        labels = ", ".join(str(entry[name]) for name in ("law", "seed", "world", "policy", "scenario") if name in entry)
        low, high = entry["low"], entry["high"]
        spread = "" if low is None else f"  [{low:.4g}, {high:.4g}]"
        print(f"{entry['metric']:32} {labels:44} {entry['value']:.4g}{spread}")


if __name__ == "__main__":
    main()
