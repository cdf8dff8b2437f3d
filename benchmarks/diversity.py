"""What diversity and places for new items cost and give, on the simulated market.

    python benchmarks/diversity.py [law:seed ...]      (default: see MARKETS; what is not named stays as it was found)

The server's engine answers visits of held-out users in process; its candidates are caught before the slate is filled,
and each setting fills its own slate from them. What a slate earns is `World.expected`: exact over the luck of the
visit, the tiredness of what is repeated included. Writes results/diversity.json. About two minutes of one core a
market.

The rule by which the default was chosen, written down before the first run: of all methods and strengths, those under
which the release loses less than 1 % of expected GMV against the creators' limit alone, by the lower end of the 95 %
interval, in every market; of these the one with the largest distance within its slates (mean over the markets); where
methods differ by less than .01 in it, the one with less code: MMR with a sum, with a maximum, DPP, item vectors last.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from in_process import Engine, Market, Standing, UserTable, fitted, platform_log, prepare, sides
from record import ROOT, row, write_result

from omnifeed.config import Config, ServingConfig
from omnifeed.evaluation.metrics import poisson_weights
from omnifeed.serving.recommend import engine, slate
from omnifeed.serving.recommend.index import Index
from omnifeed.serving.recommend.newcomers import newcomers
from omnifeed.serving.recommend.retrieve import Candidates
from omnifeed.world.traffic import Visit

MARKETS = ("default:7", "default:11", "other:11")
NETWORK, TRENDING = "network", "trending"
VISITS, DAYS, RESAMPLES = 1_000, 2, 1_000
STRENGTHS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4)
EARNED = ("gmv", "clicks")
SHAPES = ("distance", "creators", "categories", "new_views")
LARGEST_LOSS = 0.01
KEPT = {
    False: 0,
    True: 10,
}  # whether new items have a quota among the candidates: new_every of the engine that finds them
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Caught:
    """One request as it reaches the slate."""

    index: Index
    candidates: Candidates
    now: int
    request_id: str
    k: int

    @property
    def authors(self) -> npt.NDArray[np.int64]:
        return self.index.catalogue.author[self.candidates.rows - 1]

    @property
    def likeness(self) -> npt.NDArray[np.float32]:
        return slate.likeness(self.authors, self.categories)

    @property
    def categories(self) -> npt.NDArray[np.int64]:
        paths = self.index.catalogue.texts["category"]
        return slate.category_levels(paths[row] for row in (self.candidates.rows - 1).tolist())

    @property
    def spread(self) -> float:
        return float(np.sort(self.candidates.scores)[-max(slate.DEPTH, 2 * self.k) :].std())


Method = Callable[[Caught, float], Floats]


def mmr_max(caught: Caught, strength: float) -> Floats:
    """As served: less the likeness to the most alike of those above (Carbonell and Goldstein 1998)."""
    return slate.diversified(caught.candidates.scores, caught.authors, caught.categories, caught.k, strength)


def mmr_sum(caught: Caught, strength: float) -> Floats:
    """Less the likeness to all of those above: each further item of a creator counts less."""
    return mmr(caught, strength, caught.likeness, np.add)


def mmr_vectors(caught: Caught, strength: float) -> Floats:
    """As served, with the item vectors' cosine as half of the likeness."""
    keys = caught.index.key[caught.candidates.rows]
    return mmr(caught, strength, 0.5 * caught.likeness + 0.5 * np.maximum(keys @ keys.T, 0), np.maximum)


def mmr(caught: Caught, strength: float, like: npt.NDArray[Any], joined: np.ufunc) -> Floats:
    """MMR by any likeness."""
    above = np.zeros(len(like))
    scores = caught.candidates.scores.astype(np.float64)

    def after(place: int) -> Floats:
        joined(above, like[place], out=above)
        return scores - strength * caught.spread * above

    return greedy(scores, caught.k, after)


def dpp(caught: Caught, strength: float) -> Floats:
    """Greedy MAP of a determinantal point process (Chen et al. 2018, algorithm 1) of .99 likeness + .01."""
    kernel = 0.99 * caught.likeness.astype(np.float64)
    np.fill_diagonal(kernel, 1.0)
    scores = caught.candidates.scores.astype(np.float64)
    rest, volume = np.zeros((len(scores), caught.k)), np.ones(len(scores))
    step = iter(range(caught.k))

    def after(place: int) -> Floats:
        number = next(step)
        part = (kernel[place] - rest[:, :number] @ rest[place, :number]) / np.sqrt(volume[place])
        rest[:, number] = part
        np.maximum(volume - part**2, 1e-9, out=volume)
        return scores + strength * caught.spread * np.log(volume)

    return greedy(scores, caught.k, after)


def greedy(scores: Floats, k: int, after: Callable[[int], Floats]) -> Floats:
    """The best in each of k steps; `after` gives everybody's score once it is taken."""
    now, result, taken = scores.copy(), scores.copy(), np.zeros(len(scores), bool)
    for _ in range(min(k, len(scores))):
        place = int(np.where(taken, -np.inf, now).argmax())
        result[place], taken[place] = now[place], True
        now = after(place)
    return np.where(taken, result, np.minimum(now, result[taken].min()))


METHODS: dict[str, Method] = {
    "MMR, sum": mmr_sum,
    "MMR, maximum": mmr_max,
    "DPP": dpp,
    "MMR, maximum, with item vectors": mmr_vectors,
}


@dataclass(frozen=True)
class Setting:
    """How a slate is filled."""

    method: str
    strength: float = 0.0
    limit: int = ServingConfig().creator_limit
    new_every: int = 0

    @property
    def name(self) -> str:
        strength = f" {self.strength:g}" if self.strength else ""
        return self.method + strength + (f", one place in {self.new_every} for new items" if self.new_every else "")


ALONE = Setting("creators' limit alone")
SERVED = Setting("MMR, maximum", ServingConfig().diversity, new_every=ServingConfig().new_every)
KEPT_PLACES = (*(replace(ALONE, new_every=every) for every in (10, 5)), SERVED)
SETTINGS = (
    Setting("no limit", limit=1_000),
    ALONE,
    *(Setting(method, strength) for method in METHODS for strength in STRENGTHS),
)


def filled(setting: Setting, caught: Caught, config: ServingConfig) -> list[int]:
    """Places in the candidates' order."""
    method = METHODS.get(setting.method)
    scores = method(caught, setting.strength) if method else caught.candidates.scores
    new = newcomers(caught.index.catalogue, caught.candidates.rows - 1, caught.now, config.new_views)
    chosen = slate.fill(
        scores,
        caught.authors,
        new,
        caught.k,
        creator_limit=setting.limit,
        new_every=setting.new_every,
        temperature=config.explore_temperature,
        request_id=caught.request_id,
        sampled=False,
    )
    return list(chosen.places)


class Catching:
    """Keeps what the engine would fill a slate from."""

    def __init__(self) -> None:
        self.last: Caught | None = None
        inner = engine._Call._slate

        def slate_of(call: engine._Call, index: Index, candidates: Candidates) -> None:
            self.last = Caught(index, candidates, call.now, call.request.request_id, call.request.k)
            inner(call, index, candidates)

        engine._Call._slate = slate_of  # type: ignore[method-assign]


def asked(market: Market) -> Iterator[tuple[int, list[Visit]]]:
    """Visits of held-out users, day by day."""
    rng = np.random.default_rng(0)
    first = market.config.world.history_days
    for day in range(first, first + DAYS):
        visits = market.world.visits(day)
        chosen = np.sort(rng.permutation(len(visits))[: VISITS // DAYS])
        yield day, [visits[place] for place in chosen]


def played(market: Market, settings: dict[str, tuple[Setting, ...]]) -> tuple[list[str], list[str], dict[Any, Floats]]:
    """Users, scenarios, and by (arm, setting) what each visit gave: float [visits, EARNED + SHAPES]."""
    config, world = market.config, market.world
    catching = Catching()
    days = dict(asked(market))
    users = sorted({visit.user_id for visits in days.values() for visit in visits})
    table = UserTable(market, users)
    released = {TRENDING: None, NETWORK: fitted(market, NETWORK, config)}
    serving = replace(config.serving, explore_share=0.0, user_burst=0, repeats=0, diversity=0.0)
    live = Standing(config, sides(list(released)), released)
    engines = {kept: Engine(market, live, table, replace(serving, new_every=every)) for kept, every in KEPT.items()}
    events = [platform_log(market, config.world.history_days + DAYS - 1)]
    found: dict[Any, list[list[float]]] = {}
    for day, visits in days.items():
        midnight = world.day_start(day)
        engines[False].midnight(events, midnight)
        table.midnight(events, midnight)
        for user, history in table.histories(events, midnight).items():
            table.put(user, history)
        for visit in visits:
            for arm in released:
                for kept, asking in engines.items():
                    asking.ask(visit, arm, visit.visit_id)
                    assert catching.last is not None
                    for setting in settings[arm]:
                        if bool(setting.new_every) == kept:
                            line = outcome(market, visit, catching.last, filled(setting, catching.last, serving))
                            found.setdefault((arm, setting), []).append(line)
    visits = [visit for day in days.values() for visit in day]
    lines = {key: np.array(values) for key, values in found.items()}
    return [visit.user_id for visit in visits], [visit.scenario for visit in visits], lines


def outcome(market: Market, visit: Visit, caught: Caught, places: list[int]) -> list[float]:
    """What one slate earns, and how it is made."""
    catalogue, rows = caught.index.catalogue, caught.candidates.rows[places] - 1
    earned = market.world.expected(visit, [str(catalogue.texts["item_id"][int(item)]) for item in rows])
    new = newcomers(catalogue, rows, caught.now, ServingConfig().new_views)
    like = caught.likeness[np.ix_(places, places)]
    pairs = ~np.eye(len(places), dtype=bool)
    return [
        *(float(getattr(earned, name).sum()) for name in EARNED),
        float(1 - like[pairs].mean()),
        float(len(set(catalogue.author[rows].tolist()))),
        float(len({catalogue.texts["category"][int(item)] for item in rows})),
        float(earned.views[0, new].sum()),
    ]


def compared(weights: Floats, lines: Floats, baseline: Floats) -> dict[str, Floats]:
    """By number: its mean, and for what is earned the change against the baseline; the first is the value."""
    mean, before = (weights @ values / weights.sum(1, keepdims=True) for values in (lines, baseline))
    found = {name: mean[:, len(EARNED) + place] for place, name in enumerate(SHAPES)}
    changes = {f"{name}_change": mean[:, n] / before[:, n] - 1 for n, name in enumerate(EARNED)}
    return {"gmv": mean[:, 0], **found} if lines is baseline else {**found, **changes}


def rows_of(market: Market, **labels: Any) -> list[dict[str, Any]]:
    """Every number of one market."""
    users, scenarios, lines = played(market, {NETWORK: (*SETTINGS, *KEPT_PLACES), TRENDING: (ALONE, *KEPT_PLACES)})
    user = np.unique(users, return_inverse=True)[1]
    found = []
    for scenario in ("all", *market.config.data.scenarios):
        part = np.array([scenario in ("all", name) for name in scenarios])
        drawn = poisson_weights(user.max() + 1, RESAMPLES, 1)
        weights = np.concatenate([np.ones((1, user.max() + 1)), drawn])[:, user[part]]
        for (arm, setting), values in lines.items():
            before = values[part] if setting == ALONE else lines[arm, ALONE][part]
            mine = before if setting == ALONE else values[part]
            for name, draws in compared(weights, mine, before).items():
                if name not in shown(setting, scenario):
                    continue
                low, high = np.quantile(draws[1:], (0.025, 0.975)).tolist()
                named = {"arm": arm, "setting": setting.name, "scenario": scenario}
                found.append(row(name, float(draws[0]), low, high, **named, **labels))
    return found


def shown(setting: Setting, scenario: str) -> tuple[str, ...]:
    """Which numbers go into the result: few enough for a table that is read."""
    swept = setting not in (ALONE, *KEPT_PLACES)
    if scenario != "all":
        return () if swept else ("gmv_change", "new_views")
    few = ("gmv_change", "distance", "creators")
    return few if swept else (*few, "categories", "clicks_change", "new_views", "gmv")


def chosen(rows: list[dict[str, Any]]) -> tuple[Setting, dict[Setting, float]]:
    """The setting that the rule above names, and every admitted one's mean distance."""
    admitted: dict[Setting, float] = {}
    for setting in SETTINGS:
        labels = {"arm": NETWORK, "scenario": "all", "setting": setting.name}
        own = [each for each in rows if labels.items() <= each.items()]
        change, distance = ([each for each in own if each["metric"] == name] for name in ("gmv_change", "distance"))
        if setting.strength and change and all(each["low"] > -LARGEST_LOSS for each in change):
            admitted[setting] = float(np.mean([each["value"] for each in distance]))
    best = {method: max((s for s in admitted if s.method == method), key=admitted.__getitem__, default=ALONE)
            for method in METHODS}  # fmt: skip
    largest = max(admitted.values(), default=0.0)
    named = [setting for setting in best.values() if admitted.get(setting, -1.0) > largest - 0.01]
    return (named or [ALONE])[0], admitted


def times() -> list[dict[str, Any]]:
    """What a slate of 50 out of 200 costs, microseconds: the median over rounds in turn."""
    rng, rounds, asked = np.random.default_rng(0), 30, 20
    took: dict[str, list[float]] = {}
    scores, authors = np.exp(rng.normal(size=200)).astype(np.float32), rng.integers(0, 60, 200)
    categories, new = rng.integers(1, 20, (200, 3)), rng.random(200) < 0.1
    config = ServingConfig()
    for _ in range(rounds):
        for name, strength, every, sampled in (
            ("creators' limit alone", 0.0, 0, False),
            ("as served", config.diversity, config.new_every, False),
            ("as served, explored", config.diversity, config.new_every, True),
        ):
            start = time.perf_counter()
            for number in range(asked):
                slate.fill(
                    slate.diversified(scores, authors, categories, 50, strength), authors, new, 50,
                    creator_limit=config.creator_limit, new_every=every, temperature=config.explore_temperature,
                    request_id=str(number), sampled=sampled,
                )  # fmt: skip
            took.setdefault(name, []).append((time.perf_counter() - start) / asked * 1e6)
    return [
        row("slate_us", float(np.median(values)), min(values), max(values), setting=name)
        for name, values in took.items()
    ]


def former(wanted: list[str]) -> list[dict[str, Any]]:
    """What an earlier run found of other markets."""
    path = ROOT / "results" / "diversity.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    return [each for each in rows if "law" in each and f"{each['law']}:{each['seed']}" not in wanted]


def main() -> None:
    torch.set_num_threads(1)
    began = time.time()
    wanted = sys.argv[1:] or list(MARKETS)
    rows = [*times(), *former(wanted)]
    base = Config.load(ROOT / "pipelines" / "configs" / "world.toml")
    for name in wanted:
        law, seed = name.split(":")
        labels: dict[str, Any] = {"law": law, "seed": int(seed)}
        config = replace(base, world=replace(base.world, **labels))
        with tempfile.TemporaryDirectory(prefix="omnifeed-diversity-") as folder:
            rows += rows_of(prepare(config, Path(folder)), **labels)
        print(f"{name}: {time.time() - began:.0f} s", flush=True)
    markets = sorted({f"{each['law']}:{each['seed']}" for each in rows if "law" in each})
    setting, admitted = chosen([each for each in rows if "scenario" in each])
    named = "; ".join(f"{setting.name} {distance:.3f}" for setting, distance in admitted.items())
    print(setting.name, named, sep=": ")
    write_result(
        "diversity",
        "Diversity and places for new items: what slates earn and how alike their items are",
        rows,
        data=f"the simulated market, law:seed {', '.join(markets)}",
        seeds=sorted({int(name.split(":")[1]) for name in markets}),
        notes=[
            "Served in process by the server's own engine; networks in PyTorch, one training seed. Every setting fills "
            "its slate from the same candidates of the same visits; those with places for new items from candidates "
            f"among which these have a quota. {VISITS:,} visits of held-out users on the {DAYS} days after the log.",
            "Earned: World.expected, exact over luck. The market tires of what a slate repeats: log-odds of a click "
            "fall by .25 for every earlier item of the creator and .06 of the category. *_change: relative to the "
            "creators' limit alone on the same visits. Intervals: 95 %, bootstrap over users.",
            "distance: mean over pairs of a slate of 1 - likeness, which MMR with a sum works on most directly; "
            "creators and categories: distinct ones among 10 items. new_views: expected views of new items a slate.",
            f"By the rule in the script, written down before the first run: {setting.name}. Admitted, with their "
            f"mean distance: {named}. DPP and item vectors live in the script alone.",
            "Served is MMR with a maximum at 0.1, which the rule named when it was first read; with networks of later "
            "commits it may name another that is hardly different. slate_us on a busy machine: compare the least.",
            "What variety and knowledge of new items are worth beyond one slate no number here shows: the market does "
            "not come back more often for it.",
        ],
    )


if __name__ == "__main__":
    main()
