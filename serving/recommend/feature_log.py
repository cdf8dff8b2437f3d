"""The feature log: for a share of the requests, what the model was given and what it said of the items shown.

Monitoring compares these lines with the features computed again offline, and with those of other days. The lines hold
model inputs as they were used, so a fault anywhere between the feature store and the tensors shows. Which requests are
logged is a fixed function of their id; no more than so many an hour are, whatever the load.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from omnifeed.config import MonitoringConfig
from omnifeed.experiment.assignment import unit_interval
from omnifeed.export.encode import Floats, Ints, UserRow
from omnifeed.home import Home
from omnifeed.serving.recommend.contract import Answer, Request
from omnifeed.serving.recommend.index import Index
from omnifeed.serving.recommend.sink import Sink

HOUR_US = 3_600_000_000


@dataclass(frozen=True, slots=True)
class Inputs:
    """What the network saw and said in one request; the items are those of the answer, in its order."""

    user: UserRow
    user_dense: Floats  # [USER_DIMS]
    history_length: int  # events of the history that were used
    kinds: tuple[str, ...]  # [K]
    categories: tuple[str, ...]  # [K], the first level
    candidate_dense: Floats  # [K, CANDIDATE_DIMS]
    probabilities: Floats | None  # [K, len(tasks)]; None where the ranker did not answer
    tasks: tuple[str, ...]
    catalogue_ts: int  # the moment that the catalogue's snapshot describes, UTC microseconds


@dataclass(slots=True)
class Asked:
    """What a network was given and said in one request, over all its candidates; filled as the request goes on."""

    index: Index
    user_dense: Floats  # [USER_DIMS]
    history_length: int
    tasks: tuple[str, ...]
    rows: Ints | None = None  # [K], of the index
    candidate_dense: Floats | None = None  # [K, CANDIDATE_DIMS]
    probabilities: Floats | None = None  # [K, len(tasks)]

    def inputs(self, user: UserRow | None, places: Sequence[int]) -> Inputs | None:
        """The part that concerns the answer; None where the request went no further than the user.

        Args:
            places: of the answer's items, in the candidates' order.
        """
        if self.rows is None or self.candidate_dense is None or user is None:
            return None
        chosen, texts = list(places), self.index.catalogue.texts
        items = [int(self.rows[place]) - 1 for place in chosen]
        return Inputs(
            user=user,
            user_dense=self.user_dense,
            history_length=self.history_length,
            kinds=tuple(texts["kind"][item] or "" for item in items),
            categories=tuple((texts["category"][item] or "").split("/")[0] for item in items),
            candidate_dense=self.candidate_dense[chosen],
            probabilities=None if self.probabilities is None else self.probabilities[chosen],
            tasks=self.tasks,
            catalogue_ts=self.index.catalogue.now,
        )


class FeatureLog:
    """`<home>/experiments/<experiment>/features/<server start>-<process>.jsonl`.

    Args:
        started: when the server process started, UTC microseconds.
        config: which share, and how many an hour of request time.
    """

    def __init__(self, home: Home, started: int, config: MonitoringConfig) -> None:
        self._sink = Sink(home, "features", started)
        self._config = config
        self._hour, self._written = -1, 0
        self.lost = 0  # requests that were to be logged and could not be written

    def wants(self, request_id: str, ts: int) -> bool:
        """Whether a request is to be logged."""
        if unit_interval("features", request_id) >= self._config.log_share:
            return False
        if ts // HOUR_US != self._hour:
            self._hour, self._written = ts // HOUR_US, 0
        return self._written < self._config.log_per_hour

    def append(self, request: Request, answer: Answer, inputs: Inputs, query: str | None, ts: int) -> None:
        """Write one line.

        Args:
            query: as it was used (truncated).
            ts: of the request, UTC microseconds.
        """
        self._written += 1
        start = len(inputs.user.history_item) - inputs.history_length
        probabilities = inputs.probabilities
        line = {
            "request_id": answer.request_id,
            "user_id": request.user_id,
            "scenario": request.scenario,
            "query": query,
            "release": answer.release,
            "ts": ts,
            "degraded": list(answer.degraded),
            "user_dense": _numbers(inputs.user_dense),
            "user_daily_as_of": inputs.user.as_of.get("user_daily"),
            "user_history_as_of": inputs.user.as_of.get("user_history"),
            "history_given": request.history is not None,
            "history_item": list(inputs.user.history_item[start:]),
            "history_action": list(inputs.user.history_action[start:]),
            "history_scenario": list(inputs.user.history_scenario[start:]),
            "history_ts": list(inputs.user.history_ts[start:]),
            "item_id": list(answer.item_ids),
            "kind": list(inputs.kinds),
            "category": list(inputs.categories),
            "candidate_dense": [_numbers(row) for row in inputs.candidate_dense],
            "probabilities": None if probabilities is None else [_numbers(row) for row in probabilities],
            "tasks": list(inputs.tasks),
            "catalogue_ts": inputs.catalogue_ts,
        }
        self.lost += not self._sink.append(answer.experiment, [line])

    def close(self) -> None:
        """Close the files."""
        self._sink.close()


def _numbers(values: Floats) -> list[Any]:
    """Six significant digits: what float32 holds, in a third of the characters."""
    return [float(f"{value:.6g}") for value in values.tolist()]
