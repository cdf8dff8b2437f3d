"""One frozen tree of settings, read from TOML, checked once at the edge.

Every field has a default that suits the demo; a TOML file names only what differs. Units stand in the field's name or
comment. An unknown table or key is an error that names it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tomllib
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omnifeed.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """Where the canonical tables come from, and which part of them is used."""

    source: str = "world"  # one of omnifeed.datasets.source.SOURCES
    path: str = ""  # folder of the source's files; unused by world
    scenarios: tuple[str, ...] = ("livestream", "short_video", "search")  # the open vocabulary
    valid_days: int = 1  # whole UTC days at the end of the training window for early stopping
    test_days: int = 1  # whole UTC days after that, read once, for the offline comparison
    observation_delay_s: int = 60  # observed_ts = ts + this where a source has no observed_ts


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldConfig:
    """The simulated market."""

    law: str = "default"  # behaviour law: default or other
    seed: int = 7
    start: str = "2026-03-02"  # UTC date of the first simulated day
    users: int = 4_000
    holdout_share: float = 0.5  # users whose rows never train a model and who receive the A/B traffic
    creators: int = 150
    items: int = 1_500  # items that exist on the first day
    new_items_per_day: int = 30  # products and videos
    livestreams_per_day: int = 120  # each on air for 1.5 to 5 hours
    history_days: int = 14  # logged days before the first experiment
    requests_per_user_day: float = 0.5
    slate: int = 10  # items an answer
    bot_share: float = 0.003


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityConfig:
    """The data contract's bounds."""

    max_bad_share: float = 0.05  # of a table's rows; above it the pipeline stops
    max_null_share: float = 0.5  # of an optional column that the last accepted run had filled
    max_volume_change: float = 0.5  # relative, rows a day, against the last accepted run
    max_label_change: float = 0.5  # relative, each outcome's rate, against the last accepted run


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureConfig:
    """Aggregates, histories and the hashed vocabularies."""

    salt: str = "omnifeed"
    history_length: int = 100  # events, oldest first
    id_buckets: int = 16_384
    author_buckets: int = 4_096
    category_buckets: int = 1_024
    user_buckets: int = 16_384
    profile_buckets: int = 256  # locale, country, age band, device
    text_dims: int = 256  # hashed character n-grams of title and query
    online_store: str = "sqlite"  # names feature_repo/<online_store>/feature_store.yaml


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Trunk and heads."""

    width: int = 64
    blocks: int = 2
    heads: int = 2
    dropout: float = 0.2  # of attention's and feed-forwards' outputs
    user_dropout: float = 0.5  # share of user-id embeddings replaced by "unknown" in training
    item_dropout: float = 0.5  # share of item-id embeddings replaced by "unknown" in training
    experts: int = 4
    expert_dropout: float = 0.5  # of what the experts hand to the tasks
    members: int = 1  # of the ranking head: one network read with this many sign patterns, trained apart, averaged
    temperature: float = 0.07  # of the cosine logits
    init_std: float = 0.03
    tasks: tuple[str, ...] = ("click", "long_view", "cart", "order", "hide")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """The loop."""

    seed: int = 0
    warm_start: bool = False  # begin with the champion's weights, where the champion is a network
    epochs: int = 4  # at most; early stopping on the validation days keeps the best
    batch_tokens: int = 1_024  # history tokens a step, padding included
    negatives: int = 512  # uniform, shared by the batch
    lr: float = 3e-3
    weight_decay: float = 0.01
    beta2: float = 0.98
    warmup_steps: int = 60
    ranking_trunk_gradient: float = 1.0  # scale of the ranker's gradient into the trunk
    retrieval_weight: float = 1.0  # of its loss; 0 trains the ranking head alone
    ranking_weight: float = 1.0  # of its loss; 0 trains the retrieval head alone
    checkpoint_every: int = 50  # steps
    processes: int = 1  # of this machine, one a GPU where there are some; they share each batch
    shard_rows: int = 1_000_000  # rows from which on an embedding table is divided among the processes
    threads: int = 1  # of one process; with more, a busy machine slows down many times over
    device: str = "auto"  # auto, cpu or cuda


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationConfig:
    """Offline comparison with the champion."""

    top_k: tuple[int, ...] = (10, 50, 200)
    bootstrap: int = 200  # resamples of users
    min_auc: float = 0.55  # absolute floor of click AUC
    max_relative_loss: float = 0.01  # of the primary metrics against the champion, on the interval's kinder end


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingConfig:
    """The server and what `recommend` does with the model's outputs."""

    grpc_port: int = 8001
    http_port: int = 8000
    metrics_port: int = 8002
    features_port: int = 6566  # of the feature server
    feature_deadline_ms: int = 100
    retrieve: int = 200  # candidates a request
    exact_up_to: int = 150_000  # items of a catalogue; in a larger one retrieval is approximate; decisions/0004
    explore_share: float = 0.02  # requests answered by a sampled slate with logged propensities
    explore_temperature: float = 0.5
    value: dict[str, float] = field(  # weight of each task's probability in the value model
        default_factory=lambda: {"click": 0.1, "long_view": 0.2, "cart": 0.5, "order": 4.0, "hide": -1.0}
    )
    price_power: float = 0.5  # order's weight is multiplied by price to this power, where a price is known
    retrieval_prior: float = 1.5  # the value is multiplied by exp(this x retrieval score); decisions/0002
    diversity: float = 0.1  # weight of an item's likeness to those above it, in standard deviations of the best scores
    creator_limit: int = 3  # items of one creator in a slate
    new_every: int = 10  # the last of so many places is kept for a new item that was hardly seen; 0: none
    new_views: int = 20  # in the seven days since it is there, from which on it was seen enough
    seen: tuple[str, ...] = ("reject",)  # what a user did with an item, in the history, so that it is not shown again
    user_burst: int = 200  # requests of one user at once, by server process; 0: no limit
    user_rate: float = 20.0  # and a second in the long run
    repeats: int = 5  # times that a request may be asked again under the same request_id; 0: no limit
    queue_limit: int = 128  # requests that may wait for `recommend`; the rest is refused as it comes up; decisions/0006
    part_ms: int = 100  # that a release's user encoder, or ranker, may take; infra validation refuses a slower one
    threads: int = 1  # onnxruntime threads a model instance
    shipped_logs: str = ""  # URI of the store that servers ship their logs to; the gate's step fetches them from there


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentConfig:
    """The A/B test that a release must win."""

    name: str = ""  # default: release-<challenger>-vs-<champion>
    challenger_share: float = 0.5
    ramp: tuple[float, ...] = ()  # the challenger's shares before challenger_share, ascending; harm is looked for
    ramp_hours: int = 24  # of each share in ramp
    days: int = 14  # horizon, after the ramp; whole weeks
    holdback: float = 0.0  # share of all users who are never shown a tested or promoted release; 0: no such group
    attribution_hours: int = 48
    success: tuple[str, ...] = ("gmv_per_user", "orders_per_user")
    guardrails: tuple[str, ...] = ("hides_per_user", "clicks_per_user")
    guardrail_margins: tuple[float, ...] = (0.50, 0.10)  # relative, one for each guardrail; hides are rare
    quality: tuple[str, ...] = ()  # metrics that may not be shown to be worse; no margin, and never a reason to promote
    min_effect: float = 0.05  # smallest relative change of a success metric worth finding; the plan is made for it
    alpha: float = 0.05
    beta: float = 0.10
    srm_alpha: float = 0.001
    gmv_cap: float = 500.0  # of one user over the experiment, in the row's currency
    caps: dict[str, float] = field(default_factory=dict)  # the same for other per-user metrics, by metric
    unit: str = "user"  # or row: the log knows no users; intervals are shown, and nothing is ever promoted
    max_requests_per_day: int = 500  # a user with more on any day is a bot: left out of both arms
    bot_views: int = 50  # a user who viewed at least so many items and clicked every one is a bot: left out
    max_lost_share: float = 0.02  # of exposures, of outcomes without exposure, of wrong clocks; above it: INVALID
    max_requests: int = 9_600  # of the simulated traffic
    clients: int = 2  # concurrent gRPC clients of the simulated traffic
    scenario_harm_margin: float = 0.10  # relative loss of the first success metric in one scenario


@dataclass(frozen=True, slots=True, kw_only=True)
class MonitoringConfig:
    """What is compared after a promotion, and how far it may move before it is an alarm."""

    log_share: float = 0.05  # of answered requests whose features and predictions are logged
    log_per_hour: int = 1_000  # such requests at most, by server process and hour of request time
    reference_days: int = 14  # whole UTC days that a day is compared with: the champion's first, and those before it
    history_days: int = 42  # days before, by whose own differences it is judged how much quiet days differ; at least 10
    min_requests: int = 30  # a scenario with fewer on a day is not tested on that day, except for its volume
    alpha: float = 0.01  # chance of any false alarm in one interval, over all of its checks together
    max_psi: float = 0.2  # population stability index beyond that of usual days
    max_volume_change: float = 0.5  # relative, requests a day
    max_label_change: float = 0.3  # relative, each outcome's rate
    max_degraded_change: float = 0.05  # absolute, share of answers with a reason
    max_calibration_change: float = 0.3  # relative, observed / predicted
    max_skew_share: float = 0.01  # of logged requests in which a feature differs from its offline recomputation
    skew_tolerance: float = 1e-4  # absolute below 1, relative above
    max_age_hours: dict[str, float] = field(  # of the newest row that the interval's last request could read
        default_factory=lambda: {"user_daily": 26.0, "user_history": 26.0, "catalogue": 26.0}
    )
    retrain_pause_days: int = 7  # after a retraining that drift opened, before drift opens another


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The whole tree."""

    data: DataConfig = field(default_factory=DataConfig)
    world: WorldConfig = field(default_factory=WorldConfig)
    quality: QualityConfig = field(default_factory=QualityConfig)
    features: FeatureConfig = field(default_factory=FeatureConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    serving: ServingConfig = field(default_factory=ServingConfig)
    experiment: ExperimentConfig = field(default_factory=ExperimentConfig)
    monitoring: MonitoringConfig = field(default_factory=MonitoringConfig)

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, no spaces; the text that `digest` hashes."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True, separators=(",", ":"))

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON, hexadecimal."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @staticmethod
    def from_json(text: str) -> Config:
        """The inverse of `to_json`."""
        return typing.cast(Config, _build(Config, json.loads(text), ""))

    @staticmethod
    def load(path: Path) -> Config:
        """Read a TOML file.

        Raises:
            InputError: the file is missing, is not TOML, or has an unknown key or a value of the wrong type.
        """
        try:
            raw = tomllib.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InputError(f"{path} does not exist.", "Give the path of a TOML file.") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InputError(f"{path} is not TOML: {error}.", "Correct the file.") from error
        return typing.cast(Config, _build(Config, raw, ""))


def _build(kind: type, raw: Any, where: str) -> Any:
    if not isinstance(raw, dict):
        raise InputError(f"Setting {where or 'root'} must be a table, not {raw!r}.", "Write it as [section].")
    hints = typing.get_type_hints(kind)
    unknown = sorted(set(raw) - set(hints))
    if unknown:
        raise InputError(
            f"Setting {'.'.join(filter(None, (where, unknown[0])))} is unknown.",
            f"Known here: {', '.join(sorted(hints))}.",
        )
    return kind(
        **{name: _value(hints[name], value, ".".join(filter(None, (where, name)))) for name, value in raw.items()}
    )


def _value(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return _build(typing.cast(type, hint), value, where)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_value(arguments[0], element, where) for element in value)
    if origin is dict and isinstance(value, dict):
        return {str(key): _value(arguments[1], element, where) for key, element in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    plain = isinstance(hint, type) and not isinstance(hint, types.GenericAlias)
    if plain and isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise InputError(f"Setting {where} is {value!r}, which is not {hint}.", "Correct the value.")
