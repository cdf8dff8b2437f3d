"""The path of one request: route, read the user, retrieve, filter, rank, value, diversify, explore, log, answer.

When a part fails the answer degrades in this order and says so: a challenger that cannot is answered by the champion
(the user stays the challenger's: intention to treat); without features a user counts as new; without a ranker the
order is retrieval's; without a model it is what trends. Nothing is returned that the filters would not pass.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from omnifeed.config import ServingConfig
from omnifeed.errors import InputError, UnavailableError
from omnifeed.export.affinity import affinity
from omnifeed.export.catalogue_state import Bools
from omnifeed.export.delta import POLICIES
from omnifeed.export.encode import (
    ACTIONS,
    MAX_QUERY_CHARS,
    Floats,
    Ints,
    UserRow,
    candidate_dense,
    encode_request,
    text_vector,
)
from omnifeed.serving.recommend import retrieve, slate
from omnifeed.serving.recommend.contract import Answer, Reason, Request, Source, Stage, check
from omnifeed.serving.recommend.exposures import ExposureLog
from omnifeed.serving.recommend.feature_log import Asked, FeatureLog
from omnifeed.serving.recommend.index import Index
from omnifeed.serving.recommend.limits import Limits
from omnifeed.serving.recommend.live import Live, Loaded, State
from omnifeed.serving.recommend.metrics import Metrics, Stages
from omnifeed.serving.recommend.newcomers import newcomers
from omnifeed.serving.recommend.retrieve import Candidates
from omnifeed.serving.recommend.routing import Route

log = logging.getLogger(__name__)


class Features(Protocol):
    """Reads one user's row."""

    def user(self, user_id: str, timeout_s: float) -> UserRow:
        """The row; an unknown user's is empty. Raises UnavailableError after the deadline."""
        ...


class _PartFailedError(Exception):
    """A release cannot answer; carries the reason."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason = reason


class Recommender:
    """Answers requests from the live state.

    Args:
        features: None answers every user as one whose features are not to be had.
        exposures: where answers are logged.
        clock: UTC microseconds now.
        simulated_clock: whether requests may carry their own `now`.
        feature_log: where a share of the requests leaves the model's inputs and outputs; None: nowhere.
        metrics: what is counted; None: counts that nobody reads.
    """

    def __init__(
        self,
        live: Live,
        features: Features | None,
        exposures: ExposureLog,
        config: ServingConfig,
        clock: Callable[[], int],
        simulated_clock: bool,
        feature_log: FeatureLog | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self._live = live
        self._features = features
        self._exposures = exposures
        self._config = config
        self._clock = clock
        self._simulated = simulated_clock
        self._feature_log = feature_log
        self._limits = Limits(config)
        self._metrics = metrics or Metrics(())

    def recommend(self, request: Request) -> Answer:
        """Answer one request and log its exposures.

        Raises:
            InputError: the request breaks a limit, names no arm that there is, or carries `now` on a real clock.
            UnavailableError: there is no catalogue or no champion yet.
        """
        stage = Stages()
        with stage(Stage.TOTAL):
            answer = self._answered(request, stage)
        if not request.probe:
            self._metrics.answered(request, answer)
        return answer

    def _answered(self, request: Request, stage: Stages) -> Answer:
        check(request)
        if not request.probe:
            self._limits.admit(request)
        if request.now is not None and not self._simulated:
            raise InputError("now was given to a server with a real clock.", "Leave it out.")
        now = request.now if request.now is not None else self._clock()
        state = self._live.state
        route = state.routing.route(request.user_id, request.arm, now)
        if state.catalogue is None or state.trending is None:
            raise UnavailableError("The server has no catalogue yet.", "Write a snapshot, or ask again in a second.")
        call = _Call(self._config, self._features, state, request, now, stage)
        call.answer(route)
        answer = Answer(
            item_ids=tuple(call.item_ids),
            scores=tuple(call.scores),
            sources=tuple(call.sources),
            propensities=call.propensities,
            interstitial=tuple(call.interstitial),
            tail_creators=tuple(call.tail_creators),
            degraded=tuple(dict.fromkeys(call.degraded)),
            arm=route.arm,
            release=call.release,
            experiment=route.experiment,
            request_id=request.request_id,
            elapsed_ms=stage.elapsed_ms(),
            stages=stage.ms,
        )
        if request.probe:
            return answer
        with stage(Stage.LOG):
            return self._logged(request, answer, call, now)

    def _logged(self, request: Request, answer: Answer, call: _Call, now: int) -> Answer:
        if call.row is not None:
            self._metrics.read(call.row.as_of, now)
        if not self._exposures.append(request, answer, call.query, now):
            answer = replace(answer, degraded=(*answer.degraded, Reason.EXPOSURES_NOT_LOGGED))
        log_features = self._feature_log
        if log_features is not None and log_features.wants(request.request_id, now):
            inputs = call.asked.inputs(call.row, call.places) if call.asked is not None else None
            if inputs is not None:
                lost = log_features.lost
                log_features.append(request, answer, inputs, call.query, now)
                self._metrics.feature_log_lost(log_features.lost - lost)
        return answer


class _Call:
    """One request on its way."""

    def __init__(
        self,
        config: ServingConfig,
        features: Features | None,
        state: State,
        request: Request,
        now: int,
        stage: Stages,
    ) -> None:
        self.config, self.features, self.state, self.request, self.now = config, features, state, request, now
        self.stage = stage
        self.degraded: list[Reason] = []
        self.query = (request.query or "")[:MAX_QUERY_CHARS] or None
        if request.query is not None and len(request.query) > MAX_QUERY_CHARS:
            self.degraded.append(Reason.QUERY_TRUNCATED)
        self.count = max(config.retrieve, request.k)
        self.row: UserRow | None = None
        self.asked: Asked | None = None  # the network that answered; None where none did
        self.places: tuple[int, ...] = ()  # of the answer's items, in the candidates' order
        self.release = ""
        self.item_ids: list[str] = []
        self.scores: list[float] = []
        self.sources: list[Source] = []
        self.propensities: tuple[float, ...] | None = None
        self.interstitial: list[bool] = []
        self.tail_creators: list[bool | None] = []

    def answer(self, route: Route) -> None:
        """Fill the slate from the route's release, its fallback, or what trends."""
        for number in dict.fromkeys((route.release, route.fallback)):
            try:
                index, candidates = self._from_release(number, strict=number != route.fallback)
            except _PartFailedError as failure:
                self.degraded.append(failure.reason)
                if number != route.fallback:
                    self.degraded.append(Reason.CHAMPION_ANSWER)
                continue
            self.release = number
            break
        else:
            assert self.state.trending is not None
            self.release = route.fallback
            self.degraded.append(Reason.TRENDING_ORDER)
            index, candidates = self.state.trending, self._trending(self.state.trending)
        with self.stage(Stage.SLATE):
            self._slate(index, candidates)

    def _from_release(self, number: str, strict: bool) -> tuple[Index, Candidates]:
        loaded = self.state.loaded.get(number)
        if loaded is None:
            raise _PartFailedError(Reason.RELEASE_REFUSED if number in self.state.refused else Reason.INDEX_NOT_READY)
        if self.request.scenario not in loaded.index.spec.scenarios:
            self.degraded.append(Reason.UNKNOWN_SCENARIO)
        if loaded.parts is None:
            return loaded.index, self._trending(loaded.index)
        if strict and (part := loaded.parts.resting()):
            raise _PartFailedError(Reason.RANKER_FAILED if part == "ranker" else Reason.USER_ENCODER_FAILED)
        return loaded.index, self._network(loaded, strict)

    def _trending(self, index: Index) -> Candidates:
        with self.stage(Stage.RETRIEVAL):
            return self._what_trends(index)

    def _what_trends(self, index: Index) -> Candidates:
        mask, query = self._mask(index), self._query_vector(index)
        if self.request.candidates is None:
            new = slate.generator("new", self.request.request_id).permutation(self._new(index))
            return retrieve.trending(index, self.request.scenario, query, mask, self.count, new)
        rows = self._own(index, mask)
        scores = retrieve.own_trending(index, rows, self.request.scenario, query)
        return Candidates(rows, scores, retrieve.source_of(Source.CANDIDATE, len(rows)))

    def _network(self, loaded: Loaded, strict: bool) -> Candidates:
        index, parts = loaded.index, loaded.parts
        assert parts is not None
        encoded: dict[str, npt.NDArray[Any]] = self._encoded(index)
        query = encoded["query"][0] if self.query else None
        inputs = {name: value for name, value in encoded.items() if name not in ("hist_row", "hist_ts")}
        inputs["hist_vec"] = index.vec[encoded["hist_row"]]
        try:
            with self.stage(Stage.USER_ENCODER):
                user = parts.user_encoder(inputs)
        except Exception as error:
            log.error("user encoder of release %s: %s", loaded.release.number, type(error).__name__)
            raise _PartFailedError(Reason.USER_ENCODER_FAILED) from None
        if not (np.isfinite(user["user_vec"]).all() and np.isfinite(user["trend_weight"]).all()):
            raise _PartFailedError(Reason.NAN_SCORES)
        history = int(inputs["hist_mask"].sum())
        asked = Asked(index, inputs["user_dense"][0], history, loaded.release.tasks)
        user_vec, weight = user["user_vec"][0], np.float32(user["trend_weight"].item())
        with self.stage(Stage.RETRIEVAL):
            found = self._found(index, user_vec, query, weight)
        self.asked = asked
        if not len(found.rows):
            return found
        asked.rows = found.rows
        asked.candidate_dense = self._candidate_dense(index, found, encoded)
        try:
            given = {
                "states": user["states"],
                "states_mask": user["states_mask"],
                "request_state": user["request_state"],
                "scenario": inputs["scenario"],
                "cand_vec": index.vec[found.rows][None],
                "cand_dense": asked.candidate_dense[None],
            }
            with self.stage(Stage.RANKER):
                ranked = parts.ranker(given)["probabilities"][0]
            reason = None if np.isfinite(ranked).all() else Reason.NAN_SCORES
        except Exception as error:
            log.error("ranker of release %s: %s", loaded.release.number, type(error).__name__)
            reason = Reason.RANKER_FAILED
        if reason is not None:
            if strict:
                self.asked = None
                raise _PartFailedError(reason)
            self.degraded += [reason, Reason.RETRIEVAL_ORDER]
            return found
        asked.probabilities = ranked
        config, tasks, price = self.config, loaded.release.tasks, index.catalogue.price[found.rows - 1]
        settings = config.value, price, config.price_power, found.scores, config.retrieval_prior
        return replace(found, scores=slate.values(ranked, tasks, *settings))

    def _found(self, index: Index, user_vec: Floats, query: Floats | None, weight: np.float32) -> Candidates:
        mask, scenario = self._mask(index), self.request.scenario
        if self.request.candidates is None:
            return retrieve.dense(index, user_vec, scenario, query, mask, self.count, weight, self._new(index))
        return retrieve.own_dense(index, self._own(index, mask), user_vec, scenario, weight)

    def _new(self, index: Index) -> Ints:
        """Rows from 0 of new items; none where the answer has no place that is kept for them."""
        wanted = 0 < self.config.new_every <= self.request.k
        return index.new(self.now, self.config.new_views) if wanted else retrieve.NO_ROWS

    def _encoded(self, index: Index) -> dict[str, npt.NDArray[Any]]:
        request = self.request
        for user in (self._user_row(), UserRow({})):
            try:
                with self.stage(Stage.ENCODE):
                    return encode_request(
                        request.user_id, request.scenario, self.query, self.now, user, index.rows, index.spec
                    )
            except (ValueError, TypeError, OverflowError):
                self.degraded.append(Reason.NO_FEATURES)  # a stored row that cannot be read
        raise _PartFailedError(Reason.USER_ENCODER_FAILED)

    def _user_row(self) -> UserRow:
        """The stored row, once a request, under what the request itself says."""
        if self.row is not None:
            return self.row
        request = self.request
        stored = UserRow({})
        try:
            if self.features is None:
                raise UnavailableError("No feature server is configured.", "Start one.")
            with self.stage(Stage.FEATURES):
                stored = self.features.user(request.user_id, self.config.feature_deadline_ms / 1000)
            if not stored.values and not stored.history_item:
                self.degraded.append(Reason.UNKNOWN_USER)
        except UnavailableError:
            self.degraded.append(Reason.NO_FEATURES)
        said = {name: value for name, value in (("locale", request.locale), ("device", request.device)) if value}
        self.row = replace(stored, values={**said, **stored.values})
        if request.history is not None:
            self.row = replace(
                self.row,
                history_item=request.history.items,
                history_action=tuple(1 + ACTIONS.index(action) for action in request.history.actions),
                history_scenario=request.history.scenarios,
                history_ts=request.history.ts,
            )
        return self.row

    def _mask(self, index: Index) -> Bools:
        """What may be shown to this user now: not excluded, not done away with by the user, and of the locale."""
        rejected: list[str] = []
        if self.config.seen or len(index.catalogue.locales) > 1:
            row = self._user_row()
            hidden = {1 + ACTIONS.index(action) for action in self.config.seen}
            done = zip(row.history_item, row.history_action, strict=False)
            rejected = [item for item, action in done if action in hidden]
            locale = self.request.locale or row.values.get("locale")
        else:
            locale = self.request.locale
        return retrieve.allowed(index, self.now, (*self.request.exclude, *rejected), locale)

    def _query_vector(self, index: Index) -> Floats | None:
        return text_vector(self.query, index.spec.text_dims, index.spec.salt) if self.query else None

    def _own(self, index: Index, mask: Bools) -> npt.NDArray[np.int64]:
        asked = self.request.candidates or ()
        rows = retrieve.own(index, asked, mask)
        if len(rows) < len(set(asked)):
            self.degraded.append(Reason.UNKNOWN_CANDIDATES)
        return rows

    def _candidate_dense(self, index: Index, found: Candidates, encoded: dict[str, npt.NDArray[Any]]) -> Floats:
        catalogue, items = index.catalogue, found.rows - 1
        query = encoded["query"][0]
        texts = index.texts.dense(found.rows) if self.query else np.zeros((len(items), len(query)), np.float32)
        before = affinity(index.keys, encoded, found.rows[None], encoded["scenario"], np.array([self.now], np.int64))
        return candidate_dense(
            catalogue.features.rows(self.request.scenario, items),
            catalogue.created_ts[items],
            catalogue.on_air(self.now, items),
            texts,
            query,
            self.now,
            index.plain[found.rows],
            before[0],
        )

    def _slate(self, index: Index, candidates: Candidates) -> None:
        request, config, catalogue, rows = self.request, self.config, index.catalogue, candidates.rows - 1
        authors, texts = catalogue.author[rows], catalogue.texts
        categories = slate.category_levels(texts["category"][row] for row in rows.tolist())
        free = request.candidates is None  # what the caller names is ranked, and nothing else
        chosen = slate.fill(
            slate.diversified(candidates.scores, authors, categories, request.k, config.diversity),
            authors,
            newcomers(catalogue, rows, self.now, config.new_views),
            request.k,
            creator_limit=config.creator_limit,
            new_every=config.new_every if free else 0,
            temperature=config.explore_temperature,
            request_id=request.request_id,
            sampled=free and slate.explored(request.request_id, config.explore_share),
        )
        self.places, places = chosen.places, list(chosen.places)
        shown = rows[places]
        self.item_ids = [str(texts["item_id"][row]) for row in shown.tolist()]
        self.scores = candidates.scores[places].tolist()
        self.sources = np.where(chosen.kept, np.array(Source.NEW, np.object_), candidates.sources[places]).tolist()
        self.propensities = chosen.propensities
        self.tail_creators = catalogue.of_tail(shown)
        self.interstitial = (catalogue.policy[shown] == POLICIES.index("INTERSTITIAL")).tolist()
        if len(self.item_ids) < request.k:
            self.degraded.append(Reason.FEWER_THAN_K)
