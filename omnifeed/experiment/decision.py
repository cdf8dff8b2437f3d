"""The verdict as data: what was decided, by which rules, on which numbers."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

from omnifeed.config import ExperimentConfig
from omnifeed.experiment.assignment import Experiment
from omnifeed.experiment.evidence import Evidence, LogCounts


class Verdict(StrEnum):
    """What to do with the challenger."""

    PROMOTE = "PROMOTE"
    HOLD = "HOLD"
    REJECT = "REJECT"
    INVALID = "INVALID"


class Code(StrEnum):
    """Machine-readable reasons."""

    NO_DATA = "NO_DATA"
    LOG_BROKEN = "LOG_BROKEN"
    CONFIG_CHANGED = "CONFIG_CHANGED"
    ARM_MISSING = "ARM_MISSING"
    UNIT_NOT_USER = "UNIT_NOT_USER"
    ASSIGNMENT_MISMATCH = "ASSIGNMENT_MISMATCH"
    SAMPLE_RATIO_MISMATCH = "SAMPLE_RATIO_MISMATCH"
    EXCLUSION_UNEVEN = "EXCLUSION_UNEVEN"
    LOG_INCOMPLETE = "LOG_INCOMPLETE"
    CLOCK_SKEW = "CLOCK_SKEW"
    LATE_LOGGING = "LATE_LOGGING"
    INSTRUMENTATION_CHANGED = "INSTRUMENTATION_CHANGED"
    BEFORE_HORIZON = "BEFORE_HORIZON"
    EARLY_HARM = "EARLY_HARM"
    GUARDRAIL_HARM = "GUARDRAIL_HARM"
    SCENARIO_HARM = "SCENARIO_HARM"
    NON_INFERIORITY_NOT_SHOWN = "NON_INFERIORITY_NOT_SHOWN"
    QUALITY_INFERIOR = "QUALITY_INFERIOR"
    SUCCESS_INFERIOR = "SUCCESS_INFERIOR"
    SUCCESS_SUPERIOR = "SUCCESS_SUPERIOR"
    SUPERIORITY_NOT_SHOWN = "SUPERIORITY_NOT_SHOWN"


State = Literal["passed", "failed", "open", "not reached"]
Role = Literal["success", "guardrail", "quality"]
Outcome = Literal["superior", "inferior", "non-inferior", "harm", "not shown", "no harm shown", "not judged"]


@dataclass(frozen=True, slots=True)
class Reason:
    """Why: a code for machines, a sentence for people."""

    code: Code
    text: str


@dataclass(frozen=True, slots=True)
class Rule:
    """One step of the verdict's path, in the order of the rules."""

    name: str
    state: State
    text: str


@dataclass(frozen=True, slots=True)
class MetricResult:
    """One metric in one scope. Relative numbers are fractions of the champion's mean; None where not estimable."""

    name: str
    title: str
    role: Role
    scenario: str | None  # None: all traffic
    lower_is_better: bool
    users_champion: int
    users_challenger: int
    champion: float  # mean a user, or ratio of two; CUPED-adjusted where the period before is known
    challenger: float
    relative: float | None
    low: float | None  # two-sided (1 - 2 alpha): each end is a one-sided alpha bound
    high: float | None
    margin: float | None  # relative loss tolerated: a guardrail's, or a scenario's; None for success and quality
    p_value: float  # one-sided, null: the challenger is not better
    p_adjusted: float | None  # Holm over the success metrics, all traffic; None elsewhere
    p_harm: float  # one-sided, null: the challenger is not worse
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class DayPoint:
    """A metric over all traffic from the start to the end of one day; for the picture, never for the verdict."""

    metric: str
    day: int  # from 0
    users: int
    relative: float | None
    low: float | None  # fixed-horizon interval, two-sided 1 - 2 alpha
    high: float | None
    sequence_low: float | None  # confidence sequence at 1 - alpha
    sequence_high: float | None


@dataclass(frozen=True, slots=True)
class Split:
    """Users by arm in one group, against the plan."""

    scenario: str | None  # of the dimension "scenario"
    champion: int
    challenger: int
    planned_champion_share: float
    p_value: float
    threshold: float
    dimension: str = "all"  # all, scenario, day (of the first exposure), device or excluded (as bots)
    value: str = ""

    @property
    def mismatched(self) -> bool:
        """Whether the users do not split as planned."""
        return self.p_value <= self.threshold


_LISTS = ("reasons", "path", "metrics", "with_bots", "splits", "daily")


@dataclass(frozen=True, slots=True)
class Decision:
    """The verdict with everything that it rests on."""

    verdict: Verdict
    final: bool  # the experiment is over
    experiment: str
    champion: str  # release
    challenger: str  # release
    start_ts: int  # of the stage that was judged; the experiment's where there is no ramp
    end_ts: int  # of the experiment
    now: int  # when it was decided, UTC microseconds
    days_elapsed: float
    config_digest: str
    alpha: float
    reasons: tuple[Reason, ...]
    path: tuple[Rule, ...]
    metrics: tuple[MetricResult, ...]
    splits: tuple[Split, ...]
    daily: tuple[DayPoint, ...]
    evidence: Evidence
    with_bots: tuple[MetricResult, ...]  # all traffic with the users that were left out; empty where there were none
    registered: Experiment
    section: ExperimentConfig
    paragraph: str

    @property
    def counts(self) -> LogCounts:
        """What was read from the logs, and what was left out."""
        return self.evidence.counts

    @property
    def srm_p_value(self) -> float | None:
        """The sample-ratio test over all traffic; None when there is no traffic in both arms."""
        return next((split.p_value for split in self.splits if split.dimension == "all"), None)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form, with no NaN in it, and all that is needed to compute the decision again."""
        body = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in ("evidence", "registered", "section", *_LISTS)
        }
        for name in _LISTS:
            body[name] = [dataclasses.asdict(each) for each in getattr(self, name)]
        registration = {"experiment": self.registered.to_dict(), "section": dataclasses.asdict(self.section)}
        return {**body, "srm_p_value": self.srm_p_value, "registration": registration, **self.evidence.to_dict()}

    @property
    def ruling(self) -> Ruling:
        """What acting on it needs."""
        return Ruling.of(self.to_dict())


@dataclass(frozen=True, slots=True)
class Ruling:
    """What acting on a decision needs of it, from the decision itself or from the JSON that the gate left."""

    verdict: Verdict
    final: bool
    experiment: str
    champion: str  # release
    challenger: str  # release
    paragraph: str
    body: dict[str, Any]  # `Decision.to_dict()`, as it goes into the ledger

    @staticmethod
    def of(body: dict[str, Any]) -> Ruling:
        """From `Decision.to_dict()`."""
        return Ruling(
            verdict=Verdict(body["verdict"]),
            final=bool(body["final"]),
            experiment=str(body["experiment"]),
            champion=str(body["champion"]),
            challenger=str(body["challenger"]),
            paragraph=str(body["paragraph"]),
            body=body,
        )

    @property
    def digest(self) -> str:
        """SHA-256 of the decision's canonical JSON, hexadecimal."""
        text = json.dumps(self.body, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()
