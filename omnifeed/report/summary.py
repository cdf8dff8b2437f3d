"""What a run hands to its report: every section may be missing, because every step may be where a run ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSummary:
    """One step of the loop, as it went."""

    name: str
    seconds: float
    rows_in: int | None = None
    rows_out: int | None = None
    note: str = ""  # what a reader should know: "skipped: same inputs", "6,412 quarantined"
    state: str = "done"  # done, skipped, stopped or failed


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """One item of an answer, as a shopper would see it."""

    item_id: str
    title: str
    kind: str = ""  # livestream, video, product
    price: float | None = None
    currency: str = ""
    source: str = ""  # why it is in the answer: dense, trending, ...


@dataclass(frozen=True, slots=True, kw_only=True)
class UserSample:
    """What one user was answered by both releases."""

    user_id: str
    scenario: str
    query: str | None = None
    recent: tuple[str, ...] = ()  # titles of the latest items of the history, newest first
    champion: tuple[Slot, ...] = ()
    challenger: tuple[Slot, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """One run. The dicts are the `to_dict()`s of the steps' results."""

    title: str  # "Simulated market, run 20260316-101500"
    now: int  # UTC microseconds
    description: str = ""  # of the data
    command: str = ""
    git_commit: str = ""
    config_digest: str = ""
    steps: tuple[StepSummary, ...] = ()
    quality: dict[str, Any] | None = None  # QualityReport
    losses: dict[str, Any] | None = None  # losses.json of the training
    evaluation: dict[str, Any] | None = None  # Evaluation
    release: dict[str, Any] | None = None  # Release
    infra: dict[str, Any] | None = None  # InfraReport
    decision: dict[str, Any] | None = None  # Decision
    lift: dict[str, Any] | None = None  # Lift: where there is a hold-back group
    samples: tuple[UserSample, ...] = ()
    ledger: tuple[dict[str, Any], ...] = ()  # the last entries, oldest first
    failure: str = ""  # what ended the run, when something did
