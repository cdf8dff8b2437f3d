"""A tuned LightGBM with hand-made features for KuaiRand-Pure: what the one network is held against.

Every feature of a day's impressions is a function of two things: what was observed before that day's midnight
(`Past`), and the impressions without their labels (`Asked`). Nothing else is passed, so a feature cannot see a label of
its own day or of a later one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

Ints = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]
Array = npt.NDArray[Any]

DAY_US = 86_400_000_000
TASKS = ("click", "long_view")
SWEEPS = 8  # of the random effects' backfitting
SIZES = {"user": 5.0, "item": 20.0, "author": 20.0, "user_tab": 5.0, "item_tab": 10.0, "tab_tag": 20.0}
VECTORS = 32  # dimensions of the factorised history
#: Crossed keys whose smoothed rates are features, each drawn to the rate of its first key by so many impressions.
RATES: dict[tuple[str, ...], float] = {
    ("tab",): 50.0,
    ("user",): 5.0,
    ("item",): 20.0,
    ("author",): 20.0,
    ("tag",): 50.0,
    ("music",): 20.0,
    ("duration",): 50.0,
    ("user", "tab"): 3.0,
    ("item", "tab"): 10.0,
    ("tag", "tab"): 20.0,
    ("user", "tag"): 3.0,
    ("user", "author"): 2.0,
    ("user", "item"): 1.0,
    ("user", "duration"): 3.0,
    ("duration", "tab"): 20.0,
    ("hour", "tab"): 20.0,
}


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Codes of what is known of users and videos whatever the day; index by user and item."""

    item: dict[str, Ints]  # author, tag, music, duration (bucket), ...
    item_plain: dict[str, Doubles]
    user_plain: dict[str, Doubles]


@dataclass(frozen=True, slots=True)
class Asked:
    """Impressions without labels."""

    user: Ints
    item: Ints
    tab: Ints
    ts: Ints  # UTC microseconds

    def __len__(self) -> int:
        return len(self.user)

    def take(self, rows: Array) -> Asked:
        return Asked(self.user[rows], self.item[rows], self.tab[rows], self.ts[rows])


@dataclass(frozen=True, slots=True)
class Past:
    """Impressions with what was observed of them, in the order in which it became known."""

    asked: Asked
    observed: Ints
    labels: dict[str, Doubles]  # click, long_view, like: 0 or 1

    def take(self, rows: Array) -> Past:
        return Past(self.asked.take(rows), self.observed[rows], {k: v[rows] for k, v in self.labels.items()})


class Groups:
    """Sums over the values of a key, looked up for other rows; zero for a value that never occurred."""

    def __init__(self, key: Ints, asked: Ints) -> None:
        self.values, self.index = np.unique(key, return_inverse=True)
        place = np.searchsorted(self.values, asked).clip(max=max(len(self.values) - 1, 0))
        self.found = self.values[place] == asked if len(self.values) else np.zeros(len(asked), bool)
        self.place = place

    def sum(self, weights: Doubles | None = None) -> Doubles:
        total = np.bincount(self.index, weights, len(self.values)).astype(np.float64)
        return np.where(self.found, total[self.place], 0.0) if len(total) else np.zeros(len(self.found))

    def last(self, ts: Ints) -> Doubles:
        latest = np.full(len(self.values), -np.inf)
        np.maximum.at(latest, self.index, ts.astype(np.float64))
        return np.where(self.found, latest[self.place], np.nan) if len(latest) else np.full(len(self.found), np.nan)


def keys(asked: Asked, catalogue: Catalogue) -> dict[str, Ints]:
    of_item = {name: code[asked.item] for name, code in catalogue.item.items()}
    hour = (asked.ts // 3_600_000_000 + 8) % 24  # of China
    return {"user": asked.user, "item": asked.item, "tab": asked.tab, "hour": hour, **of_item}


def cross(columns: dict[str, Ints], names: Sequence[str]) -> Ints:
    result = np.zeros(len(next(iter(columns.values()))), np.int64)
    for name in names:
        result = result * 100_003 + columns[name] + 2
    return result


def rates(past: Past, asked: Asked, catalogue: Catalogue) -> dict[str, Doubles]:
    """Smoothed rates and counts of every key in RATES, of all days and of the last one; the tab's rate is the root."""
    mine, theirs = keys(past.asked, catalogue), keys(asked, catalogue)
    result: dict[str, Doubles] = {}
    overall = {task: float(past.labels[task].mean()) if len(past.observed) else 0.3 for task in TASKS}
    for names, weight in RATES.items():
        groups = Groups(cross(mine, names), cross(theirs, names))
        views, name = groups.sum(), "_".join(names)
        result[f"{name}_views"] = np.log1p(views)
        for task in TASKS:
            parent = result.get(f"{names[0]}_{task}", np.full(len(asked), overall[task])) if len(names) > 1 else None
            prior = parent if parent is not None else np.full(len(asked), overall[task])
            result[f"{name}_{task}"] = (groups.sum(past.labels[task]) + weight * prior) / (views + weight)
    return result


def effects(past: Past, asked: Asked, catalogue: Catalogue) -> dict[str, Doubles]:
    """Random effects of users, items, authors and their crosses with the tab, refitted on all of the past.

    The best linear unbiased prediction of a linear mixed model, by backfitting: each effect is the sum of what the
    others leave over (views + SIZES).
    """
    mine, theirs = keys(past.asked, catalogue), keys(asked, catalogue)
    names = {name: tuple(name.split("_")) for name in SIZES}
    groups = {name: Groups(cross(mine, parts), cross(theirs, parts)) for name, parts in names.items()}
    result: dict[str, Doubles] = {}
    for task in TASKS:
        if not len(past.observed):
            result |= {f"effect_{name}_{task}": np.zeros(len(asked)) for name in (*SIZES, "all")}
            continue
        tab_mean = np.bincount(past.asked.tab, past.labels[task], 16) / np.maximum(
            np.bincount(past.asked.tab, minlength=16), 1
        )
        left = past.labels[task] - tab_mean[past.asked.tab]
        fitted = {name: np.zeros(len(group.values)) for name, group in groups.items()}
        for _ in range(SWEEPS):
            for name, group in groups.items():
                left = left + fitted[name][group.index]
                views = np.bincount(group.index, minlength=len(group.values))
                fitted[name] = np.bincount(group.index, left, len(group.values)) / (views + SIZES[name])
                left = left - fitted[name][group.index]
        total = tab_mean[asked.tab]
        for name, group in groups.items():
            value = np.where(group.found, fitted[name][group.place], 0.0)
            result[f"effect_{name}_{task}"] = value
            total = total + value
        result[f"effect_all_{task}"] = total
    return result


def lists(history: Past, past: Past, asked: Asked, catalogue: Catalogue) -> dict[str, Doubles]:
    """What the user's list of earlier history and the past log say of the user, the video, and of both."""
    result: dict[str, Doubles] = {}
    both = Past(
        Asked(
            *(
                np.concatenate([getattr(history.asked, f), getattr(past.asked, f)])
                for f in ("user", "item", "tab", "ts")
            )
        ),
        np.concatenate([history.observed, past.observed]),
        {k: np.concatenate([history.labels[k], past.labels[k]]) for k in ("long_view", "like")},
    )
    theirs = keys(asked, catalogue)
    for source, events in (("list", history), ("both", both)):
        mine = keys(events.asked, catalogue)
        overall = float(events.labels["long_view"].mean())
        root: dict[str, Doubles] = {}
        for names, weight in (
            (("user",), 5.0), (("item",), 20.0), (("author",), 20.0), (("tag",), 50.0), (("user", "tag"), 3.0),
            (("user", "author"), 2.0), (("user", "item"), 1.0), (("user", "duration"), 3.0), (("user", "music"), 2.0),
        ):  # fmt: skip
            groups, name = Groups(cross(mine, names), cross(theirs, names)), "_".join(names)
            views = groups.sum()
            prior = root.get(names[0], np.full(len(asked), overall))
            result[f"{source}_{name}_views"] = np.log1p(views)
            root[name] = (groups.sum(events.labels["long_view"]) + weight * prior) / (views + weight)
            result[f"{source}_{name}_long"] = root[name]
            if len(names) == 1:
                result[f"{source}_{name}_like"] = (groups.sum(events.labels["like"]) + 0.02 * weight) / (views + weight)
            elif source == "both":
                result[f"{source}_{name}_gap"] = np.log1p((asked.ts - groups.last(events.asked.ts)) / 1e6)
    groups = Groups(past.asked.user, asked.user)
    result["user_gap"] = np.log1p((asked.ts - groups.last(past.asked.ts)) / 1e6)
    recent = past.asked.ts >= (past.observed.max(initial=0) // DAY_US) * DAY_US
    result["user_last_day_views"] = np.log1p(groups.sum(recent.astype(np.float64)))
    return result


def likeness(history: Past, past: Past, asked: Asked, users: int, items: int) -> dict[str, Doubles]:
    """How like the video is to what the user watched long, and to what they watched at all: a truncated SVD."""
    from scipy.sparse import csr_matrix
    from scipy.sparse.linalg import svds

    user = np.concatenate([history.asked.user, past.asked.user])
    item = np.concatenate([history.asked.item, past.asked.item])
    long = np.concatenate([history.labels["long_view"], past.labels["long_view"]])
    seen = csr_matrix((np.ones(len(user)), (user, item)), (users, items))
    seen.data[:] = 1.0
    weight = 1 / np.sqrt(np.maximum(np.asarray(seen.sum(0)).ravel(), 1) + 10)
    scaled = seen.multiply(weight[None, :]).tocsr()
    _, _, vectors = svds(scaled, k=VECTORS, v0=np.ones(min(scaled.shape)))
    vector = vectors.T * weight[:, None]
    vector = vector / np.maximum(np.linalg.norm(vector, axis=1, keepdims=True), 1e-9)
    result: dict[str, Doubles] = {}
    means = {}
    for name, chosen in (("seen", np.ones(len(user))), ("long", long), ("short", 1 - long)):
        matrix = csr_matrix((chosen, (user, item)), (users, items))
        means[name] = (matrix @ vector) / np.maximum(np.asarray(matrix.sum(1)), 1)
        result[f"like_{name}"] = (means[name][asked.user] * vector[asked.item]).sum(1)
    result["like_difference"] = result["like_long"] - result["like_short"]
    for dimension in range(8):
        result[f"item_vector_{dimension}"] = vector[asked.item, -1 - dimension]
    return result


def day_features(history: Past, past: Past, asked: Asked, catalogue: Catalogue) -> dict[str, Doubles]:
    """All features of one day's impressions, from what was observed before its midnight."""
    theirs = keys(asked, catalogue)
    users, items = len(next(iter(catalogue.user_plain.values()))), len(next(iter(catalogue.item.values())))
    return {
        "tab": asked.tab.astype(np.float64),
        "hour": theirs["hour"].astype(np.float64),
        "weekday": (asked.ts // DAY_US % 7).astype(np.float64),
        **{name: theirs[name].astype(np.float64) for name in ("tag", "duration")},
        **{name: value[asked.item] for name, value in catalogue.item_plain.items()},
        **{name: value[asked.user] for name, value in catalogue.user_plain.items()},
        **rates(past, asked, catalogue),
        **effects(past, asked, catalogue),
        **lists(history, past, asked, catalogue),
        **likeness(history, past, asked, users, items),
    }


def features(history: Past, log: Past, catalogue: Catalogue) -> tuple[Array, list[str]]:
    """The features of every impression of the log, day by day, float32 [N, F], and their names."""
    day = log.asked.ts // DAY_US
    blocks: dict[int, dict[str, Doubles]] = {}
    for one in np.unique(day).tolist():
        known = log.take(log.observed < one * DAY_US)
        blocks[one] = day_features(history, known, log.asked.take(day == one), catalogue)
    names = list(next(iter(blocks.values())))
    result = np.empty((len(day), len(names)), np.float32)
    for one, block in blocks.items():
        result[day == one] = np.stack([block[name] for name in names], 1)
    return result, names


DURATIONS_S = (0.5, 5, 8, 11, 15, 20, 30, 45, 60, 90, 120, 180, 300)
CATEGORICAL = ("tab", "hour", "tag", "upload_type", "music_type")
ROUNDS, PATIENCE = 1500, 100
#: Chosen on the validation day; every configuration that was tried is in benchmarks/kuairand_trials.jsonl.
SETTINGS: dict[str, Any] = {
    "learning_rate": 0.03,
    "num_leaves": 31,
    "min_data_in_leaf": 200,
    "feature_fraction": 0.3,
    "bagging_fraction": 0.8,
    "lambda_l2": 10.0,
    "cat_smooth": 50.0,
}


def codes(column: pl.Series) -> Ints:
    """Numbers for the values of a column, equal for equal values; their order means nothing."""
    return column.cast(pl.String).fill_null("").rank("dense").to_numpy().astype(np.int64)


def catalogue(folder: Path) -> Catalogue:
    """The tables of videos and users as KuaiRand ships them; the statistics of videos, which leak, are not read."""
    videos = pl.read_parquet(folder / "video_features_basic_pure.parquet").sort("video_id")
    users = pl.read_parquet(folder / "user_features_pure.parquet").sort("user_id")
    for table, name in ((videos, "video_id"), (users, "user_id")):
        assert (table[name].to_numpy() == np.arange(len(table))).all(), f"{name} are not 0.."
    seconds = videos["video_duration"].fill_null(0).to_numpy() / 1000
    named = {"author": "author_id", "tag": "tag", "music": "music_id"}
    return Catalogue(
        item={
            **{name: codes(videos[column]) for name, column in named.items()},
            "duration": np.digitize(seconds, DURATIONS_S).astype(np.int64),
        },
        item_plain={
            "seconds": seconds,
            "upload_type": codes(videos["upload_type"]).astype(np.float64),
            "music_type": videos["music_type"].fill_null(-1).to_numpy().astype(np.float64),
            "upload_day": codes(videos["upload_dt"]).astype(np.float64),
            "portrait": (videos["server_height"] / videos["server_width"]).to_numpy().astype(np.float64),
        },
        user_plain={
            name: users[name].fill_null(-999).to_numpy().astype(np.float64)
            if users[name].dtype.is_numeric()
            else codes(users[name]).astype(np.float64)
            for name in users.columns
            if name != "user_id"
        },
    )


def read_log(accepted: Path) -> tuple[Past, Past, list[str]]:
    """The earlier history, the log, and the log's event ids, in the order in which events happened."""
    parts = [pl.read_parquet(path) for path in sorted((accepted / "events").glob("day=*/*.parquet"))]
    events = pl.concat(parts, how="vertical_relaxed").sort("ts", "event_id")
    tab = pl.col("scenario").str.extract(r"^tab_(\d+)$").cast(pl.Int64).fill_null(-1)
    events = events.with_columns(tab=tab, **{name: pl.col(name).cast(pl.Int64) for name in ("user_id", "item_id")})

    def past(part: pl.DataFrame) -> Past:
        ts, observed = (part[name].cast(pl.Int64).to_numpy() for name in ("ts", "observed_ts"))
        asked = Asked(*(part[name].to_numpy() for name in ("user_id", "item_id", "tab")), ts)
        labels = {name: part[name].fill_null(False).to_numpy().astype(np.float64) for name in (*TASKS, "like")}
        return Past(asked, observed, labels)

    history, log = events.filter(pl.col("arm") == "history"), events.filter(pl.col("arm") != "history")
    return past(history), past(log), log["event_id"].to_list()


def fit_predict(
    x: Array, names: Sequence[str], y: Doubles, train: Array, valid: Array, seed: int, settings: dict[str, Any]
) -> tuple[Doubles, int]:
    """Probabilities of all rows, and the number of trees: trained on one set of rows, stopped on another."""
    import lightgbm

    columns = [name for name in names if name in CATEGORICAL]
    parts = [
        lightgbm.Dataset(x[rows], y[rows], feature_name=list(names), categorical_feature=columns, free_raw_data=False)
        for rows in (train, valid)
    ]
    fixed = {"objective": "binary", "metric": "binary_logloss", "bagging_freq": 1, "verbose": -1, "num_threads": 1}
    model = lightgbm.train(
        {**fixed, **settings, "seed": seed},
        parts[0],
        ROUNDS,
        [parts[1]],
        callbacks=[lightgbm.early_stopping(PATIENCE, verbose=False)],
    )
    return np.asarray(model.predict(x), np.float64), int(model.best_iteration)
