"""What every request reads and none waits for: routing, catalogue, and each routed release's index.

`refresh` looks whether anything changed and builds the next state beside the current one; a request takes the state
once and sees one catalogue and one split to its end. A thread of the server calls `refresh`; tests call it themselves.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from omnifeed.config import Config
from omnifeed.errors import IntegrityError, OmnifeedError
from omnifeed.export.catalogue import Catalogue, current_version, load_snapshot
from omnifeed.export.encode import EncodeSpec
from omnifeed.export.release import Release, load_release
from omnifeed.features.spec import digest
from omnifeed.home import Home
from omnifeed.serving.recommend.index import Index, build_index
from omnifeed.serving.recommend.parts import Parts
from omnifeed.serving.recommend.routing import Routing, read_routing, routing_stamp

log = logging.getLogger(__name__)

MAX_PAUSE = 16  # rounds; hashing a bundle and encoding a catalogue are too dear to repeat in each


@dataclass(frozen=True, slots=True)
class Loaded:
    """One verified release on one catalogue."""

    release: Release
    parts: Parts | None  # None: the release has no network
    index: Index


@dataclass(frozen=True, slots=True)
class State:
    """What one request sees."""

    routing: Routing = field(default_factory=lambda: Routing(None, None))
    catalogue: Catalogue | None = None
    trending: Index | None = None  # without a model: the last resort
    loaded: Mapping[str, Loaded] = field(default_factory=dict)
    refused: frozenset[str] = frozenset()  # releases whose bundle is not what was exported


class Live:
    """Holds the current state and makes the next one.

    Args:
        open_parts: gives the parts of a release's number; called once a release.
    """

    def __init__(self, home: Home, config: Config, open_parts: Callable[[str], Parts]) -> None:
        self._home = home
        self._spec = EncodeSpec.from_config(config)
        self._open_parts = open_parts
        self._stamp: tuple[int, ...] | None = None
        self._bundles: dict[str, tuple[Release, Parts | None]] = {}
        self._said: set[str] = set()
        self._round = 0
        self._pauses: dict[str, int] = {}  # rounds that a release which failed is left alone, doubled each time
        self._due: dict[str, int] = {}  # and the round in which it is tried again
        self.state = State()

    def refresh(self) -> bool:
        """Read what changed; what cannot be read or built leaves its former state in place and is tried again.

        Returns:
            whether every routed release has an index on the current catalogue.
        """
        self._round += 1
        routing = self._routing()
        catalogue = self._catalogue()
        if catalogue is None:
            self.state = State(routing=routing)
            return False
        former = self.state
        trending = former.trending
        if trending is None or trending.catalogue is not catalogue:
            trending = build_index(self._spec, catalogue, None, trending)
        loaded = {number: former.loaded[number] for number in routing.releases() if number in former.loaded}
        refused: set[str] = set()
        self.state = State(routing, catalogue, trending, dict(loaded), former.refused)
        for number in routing.releases():
            if self._due.get(number, 0) > self._round:
                refused |= {number} & former.refused
                continue
            try:
                loaded[number] = self._load(number, catalogue, trending, former.loaded.get(number))
                self._pauses.pop(number, None)
            except IntegrityError as error:
                self._postpone(number)
                self._say(f"release {number} refused: {error}")
                loaded.pop(number, None)
                refused.add(number)
            except Exception as error:
                self._postpone(number)
                self._say(f"release {number} has no index yet: {error}")
            self.state = State(routing, catalogue, trending, dict(loaded), frozenset(refused))
        return all(number in loaded and loaded[number].index.catalogue is catalogue for number in routing.releases())

    def _postpone(self, number: str) -> None:
        self._pauses[number] = min(2 * self._pauses.get(number, 1), MAX_PAUSE)
        self._due[number] = self._round + self._pauses[number]

    def _say(self, what: str) -> None:
        """Log a problem once, however often it is tried again."""
        if what not in self._said:
            self._said.add(what)
            log.warning("%s", what)

    def _routing(self) -> Routing:
        stamp = routing_stamp(self._home)
        if stamp == self._stamp:
            return self.state.routing
        try:
            routing = read_routing(self._home)
        except OmnifeedError as error:
            self._say(f"routing kept as it was: {error}")
            return self.state.routing
        self._stamp = stamp
        self._bundles = {number: held for number, held in self._bundles.items() if number in routing.releases()}
        return routing

    def _catalogue(self) -> Catalogue | None:
        former = self.state.catalogue
        try:
            if former is not None and former.version == current_version(self._home):
                return former
            return load_snapshot(self._home)
        except OmnifeedError as error:
            self._say(f"catalogue kept as it was: {error}")
            return former

    def _load(self, number: str, catalogue: Catalogue, trending: Index, former: Loaded | None) -> Loaded:
        if former is not None and former.index.catalogue is catalogue:
            return former
        if number not in self._bundles:
            release = load_release(self._home.releases / number)
            if release.feature_digest != digest():
                raise IntegrityError(
                    f"Release {number} was made with another list of features.", "Train and export a new one."
                )
            self._bundles[number] = (release, self._open_parts(number) if release.kind == "network" else None)
        release, parts = self._bundles[number]
        spec = EncodeSpec.from_dict(release.encode)
        if parts is None and spec == trending.spec:
            return Loaded(release, None, trending)
        return Loaded(release, parts, build_index(spec, catalogue, parts, former.index if former else None))
