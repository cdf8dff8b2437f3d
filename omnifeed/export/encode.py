"""From a request to tensors: the one function for training, evaluation and serving.

numpy and the standard library only, the same to the bit on numpy 1.26 and 2.x. Ids are strings at the edge; here they
become integers. Hashing is the first 8 bytes of SHA-256 with the release's salt (never Python's `hash`). Index 0 of
every vocabulary means missing or unknown.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from omnifeed.config import Config
from omnifeed.features.spec import ITEM_DENSE, ITEM_PLAIN_FEATURES, REQUEST_TIME_FEATURES, USER_DENSE, Feature

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Columns = Mapping[str, Sequence[Any]]

#: What a user did with an item, one token an event; a later name wins over an earlier. 0 is padding.
ACTIONS = ("none", "click", "long_view", "engage", "cart", "order", "reject")
KIND_IDS = {"livestream": 1, "video": 2, "product": 3}
GAP_BUCKETS = 32
CATEGORY_LEVELS = 3
PROFILE = ("locale", "country", "age_band", "device")
USER_DIMS = len(USER_DENSE)
CANDIDATE_DIMS = len(ITEM_DENSE) + len(REQUEST_TIME_FEATURES)
ITEM_DIMS = len(ITEM_PLAIN_FEATURES)
MAX_QUERY_CHARS = 256  # of a longer query the rest is ignored
DAY_US = 86_400_000_000


@dataclass(frozen=True, slots=True)
class EncodeSpec:
    """What a release must remember to encode as it was trained. Kept in release.json."""

    salt: str
    scenarios: tuple[str, ...]
    history_length: int
    id_buckets: int
    author_buckets: int
    category_buckets: int
    user_buckets: int
    profile_buckets: int
    text_dims: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {**asdict(self), "scenarios": list(self.scenarios)}

    @staticmethod
    def from_config(config: Config) -> EncodeSpec:
        """The encoding that a configuration asks for."""
        features = config.features
        return EncodeSpec(
            salt=features.salt,
            scenarios=config.data.scenarios,
            history_length=features.history_length,
            id_buckets=features.id_buckets,
            author_buckets=features.author_buckets,
            category_buckets=features.category_buckets,
            user_buckets=features.user_buckets,
            profile_buckets=features.profile_buckets,
            text_dims=features.text_dims,
        )

    @staticmethod
    def from_dict(raw: Mapping[str, Any]) -> EncodeSpec:
        """The inverse of `to_dict`."""
        return EncodeSpec(**{**raw, "scenarios": tuple(raw["scenarios"])})

    def scenario_id(self, name: str | None) -> int:
        """1.. for a known scenario, 0 for an unknown one."""
        return self.scenarios.index(name) + 1 if name in self.scenarios else 0


def bucket(value: str | None, buckets: int, salt: str) -> int:
    """Hash a string into 1..buckets-1; 0 for None and the empty string."""
    if not value:
        return 0
    digest = hashlib.sha256(f"{salt}\0{value}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") % (buckets - 1) + 1


@lru_cache(maxsize=1 << 18)
def _gram(gram: str, dims: int, salt: str) -> tuple[int, float]:
    digest = hashlib.sha256(f"{salt}\0gram\0{gram}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") % dims, 1.0 if digest[8] & 1 else -1.0


def text_vector(text: str | None, dims: int, salt: str) -> Floats:
    """Hashed bag of words and character 3- and 4-grams, signed, of unit length; any script.

    Returns:
        float32 [dims]; zeros for an empty text. Weinberger et al. 2009, Feature Hashing, eq. 1.
    """
    vector = np.zeros(dims, np.float64)
    for word in (text or "")[:MAX_QUERY_CHARS].casefold().split():
        padded = f"<{word}>"
        grams = [padded, *(padded[i : i + n] for n in (3, 4) for i in range(len(padded) - n + 1))]
        for gram in grams:
            index, sign = _gram(gram, dims, salt)
            vector[index] += 3.0 * sign if gram == padded else sign
    norm = float(np.sqrt(np.dot(vector, vector)))
    return (vector / norm if norm > 0 else vector).astype(np.float32)


def action_ids(outcomes: Mapping[str, npt.NDArray[np.bool_]]) -> Ints:
    """The action token of each event.

    Args:
        outcomes: bool [N] by outcome name (`omnifeed.tables.OUTCOMES`); absent names count as false.

    Returns:
        int64 [N], 1 + index in ACTIONS of the strongest action.
    """
    length = len(next(iter(outcomes.values())))
    groups = (
        ("click",),
        ("long_view",),
        ("like", "follow", "share", "comment"),
        ("cart",),
        ("order",),
        ("hide", "report"),
    )
    result = np.ones(length, np.int64)
    for identifier, names in enumerate(groups, start=2):
        for name in names:
            if name in outcomes:
                result[np.asarray(outcomes[name], bool)] = identifier
    return result


def gap_buckets(gap_us: npt.ArrayLike) -> Ints:
    """Bucket a time gap: the exponent of two of (seconds + 1), 0 below one second, at most GAP_BUCKETS - 1."""
    seconds = np.maximum(np.asarray(gap_us, np.int64), 0) // 1_000_000
    exponents = np.frexp((seconds + 1).astype(np.float64))[1] - 1
    buckets: Ints = np.minimum(exponents, GAP_BUCKETS - 1).astype(np.int64)
    return buckets


def dense(columns: Columns, features: Sequence[Feature], rows: int) -> Floats:
    """Stack feature columns in the specification's order, defaults filled in, counts as log(1 + x).

    Returns:
        float32 [rows, len(features)].
    """
    result = np.empty((rows, len(features)), np.float32)
    for index, feature in enumerate(features):
        values = columns.get(feature.name)
        column = (
            np.full(rows, np.nan)
            if values is None
            else np.array([np.nan if value is None else value for value in values], np.float64)
            if not isinstance(values, np.ndarray)
            else values.astype(np.float64)
        )
        column = np.where(np.isfinite(column), column, float(feature.default or 0.0))
        result[:, index] = np.log1p(np.maximum(column, 0.0)) if feature.transform == "log1p" else column
    return result


def encode_items(items: Columns, spec: EncodeSpec) -> dict[str, npt.NDArray[Any]]:
    """The item encoder's inputs, one row an item.

    Args:
        items: columns of the canonical items table; item_id is required, the others may be absent or null.

    Returns:
        id_bucket int64 [N, 2] (two independent hashes), author_bucket int64 [N], category_bucket int64 [N, 3],
        kind int64 [N], text float32 [N, text_dims], item_dense float32 [N, 4]
        (ITEM_PLAIN_FEATURES).
    """
    ids = items["item_id"]
    count = len(ids)

    def column(name: str) -> Sequence[Any]:
        return items[name] if name in items else [None] * count

    categories = np.zeros((count, CATEGORY_LEVELS), np.int64)
    for row, path in enumerate(column("category")):
        levels = (path or "").split("/")
        for level in range(min(CATEGORY_LEVELS, len(levels))):
            prefix = "/".join(levels[: level + 1])
            categories[row, level] = bucket(prefix, spec.category_buckets, spec.salt + "category")
    plain = []
    for name in ("price", "duration_s"):
        value = np.array([np.nan if one is None else one for one in column(name)], np.float64)
        known = np.isfinite(value)
        plain += [np.log1p(np.where(known, np.maximum(value, 0), 0)), known]
    return {
        "id_bucket": np.array(
            [[bucket(str(i), spec.id_buckets, f"{spec.salt}item{n}") for n in (0, 1)] for i in ids], np.int64
        ).reshape(count, 2),
        "author_bucket": np.array(
            [bucket(a, spec.author_buckets, spec.salt + "author") for a in column("author_id")], np.int64
        ).reshape(count),
        "category_bucket": categories,
        "kind": np.array([KIND_IDS.get(kind or "", 0) for kind in column("kind")], np.int64).reshape(count),
        "text": np.array(
            [text_vector(title, spec.text_dims, spec.salt) for title in column("title")], np.float32
        ).reshape(count, spec.text_dims),
        "item_dense": np.stack(plain, 1).astype(np.float32),
    }


def unknown_item(spec: EncodeSpec) -> dict[str, npt.NDArray[Any]]:
    """One row of item-encoder inputs that stands for an item nobody knows: all zeros. It is row 0 of every index."""
    return {name: np.zeros_like(value) for name, value in encode_items({"item_id": ["?"]}, spec).items()}


@dataclass(frozen=True, slots=True)
class UserRow:
    """What the feature store knows of a user at a time. Missing features are absent; an unknown user has none."""

    values: Mapping[str, Any]  # scalars of user_profile and user_daily
    history_item: Sequence[str] = ()
    history_action: Sequence[int] = ()
    history_scenario: Sequence[str] = ()
    history_ts: Sequence[int] = ()
    as_of: Mapping[str, int] = field(default_factory=dict)  # by view: when its row was computed, UTC microseconds


def encode_request(
    user_id: str,
    scenario: str,
    query: str | None,
    now_us: int,
    user: UserRow,
    item_rows: Mapping[str, int],
    spec: EncodeSpec,
) -> dict[str, npt.NDArray[Any]]:
    """The user encoder's inputs for one request, batch of one.

    Args:
        now_us: time of the request, UTC microseconds.
        item_rows: row of each known item in the index; row 0 is the unknown item.

    Returns:
        hist_row int64 [1, L] (rows of the index; the caller gathers item vectors from it), hist_action int64 [1, L],
        hist_scenario int64 [1, L], hist_gap int64 [1, L] (to the event before; 0 for the first), hist_mask bool
        [1, L], hist_ts int64 [1, L] (for `omnifeed.export.affinity`), user_bucket int64 [1], profile int64 [1, 4],
        user_dense float32 [1, U], scenario int64 [1], now_gap int64 [1], hour int64 [1], query float32 [1, text_dims].
        L is at least 1: an empty history is one masked token.
    """
    length = min(len(user.history_item), spec.history_length)
    start = len(user.history_item) - length
    size = max(length, 1)
    names = ("hist_row", "hist_action", "hist_scenario", "hist_gap", "hist_ts")
    hist = {name: np.zeros((1, size), np.int64) for name in names}
    ts = np.array(user.history_ts[start:], np.int64)
    if length:
        hist["hist_row"][0] = [item_rows.get(item, 0) for item in user.history_item[start:]]
        hist["hist_action"][0] = user.history_action[start:]
        hist["hist_scenario"][0] = [spec.scenario_id(name) for name in user.history_scenario[start:]]
        hist["hist_gap"][0, 1:] = gap_buckets(np.diff(ts))
        hist["hist_ts"][0] = ts
    profile = [bucket(user.values.get(name), spec.profile_buckets, f"{spec.salt}{name}") for name in PROFILE]
    return {
        **hist,
        "hist_mask": np.full((1, size), bool(length)),
        "user_bucket": np.array([bucket(user_id, spec.user_buckets, spec.salt + "user")], np.int64),
        "profile": np.array([profile], np.int64),
        "user_dense": dense({name: [value] for name, value in user.values.items()}, USER_DENSE, 1),
        "scenario": np.array([spec.scenario_id(scenario)], np.int64),
        "now_gap": gap_buckets([now_us - int(ts[-1])]) if length else np.full(1, GAP_BUCKETS - 1, np.int64),
        "hour": np.array([now_us % DAY_US // 3_600_000_000], np.int64),
        "query": text_vector(query, spec.text_dims, spec.salt)[None],
    }


def candidate_dense(
    item_features: Floats,
    created_us: Ints,
    is_live: npt.NDArray[np.bool_],
    text: Floats,
    query: Floats,
    now_us: int,
    item_plain: Floats,
    affinities: Floats,
) -> Floats:
    """The ranker's dense features of K candidates in one request.

    Args:
        item_features: float32 [K, len(ITEM_DENSE)], from `dense`, of the request's scenario.
        created_us: int64 [K].
        is_live: bool [K], on air now.
        text: float32 [K, text_dims].
        query: float32 [text_dims].
        item_plain: float32 [K, ITEM_DIMS], `item_dense` of the item encoder's inputs.
        affinities: float32 [K, len(AFFINITY_FEATURES)], `omnifeed.export.affinity.affinity`.

    Returns:
        float32 [K, CANDIDATE_DIMS].
    """
    age = np.log1p(np.maximum(now_us - created_us, 0) / DAY_US)
    match = (text.astype(np.float64) * query.astype(np.float64)).sum(1)
    extra = np.stack([age, is_live.astype(np.float64), match], 1).astype(np.float32)
    return np.concatenate([item_features, extra, item_plain, affinities], axis=1)
