"""What every request reads and none waits for: routing, catalogue, and each routed release's index.

Two clocks. `follow` reads routing, snapshot and deltas, and puts what may be shown into force at once for every index,
whatever state its encoding is in; it is quick. `build` encodes what is new, and may take as long as an item encoder
does, or fail. A thread of the server calls each; a request takes the state once and sees one catalogue and one split to
its end.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from omnifeed.config import Config
from omnifeed.errors import IntegrityError, OmnifeedError
from omnifeed.export.catalogue import current_version
from omnifeed.export.catalogue_state import Catalogue
from omnifeed.export.encode import EncodeSpec
from omnifeed.export.following import applied, bridged, later, load_catalogue
from omnifeed.export.release import Release, load_release
from omnifeed.features.spec import digest
from omnifeed.home import Home
from omnifeed.serving.recommend.index import Index, build_index
from omnifeed.serving.recommend.nearest import with_near
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

    @property
    def bases(self) -> set[str]:
        """The snapshots that some index stands on."""
        indexes = [loaded.index for loaded in self.loaded.values()] + ([self.trending] if self.trending else [])
        return {index.catalogue.base for index in indexes}


class Live:
    """Holds the current state and makes the next one.

    Args:
        open_parts: gives the parts of a release's number; called once a release.
    """

    def __init__(self, home: Home, config: Config, open_parts: Callable[[str], Parts]) -> None:
        self._home = home
        self._spec = EncodeSpec.from_config(config)
        self._exact_up_to = config.serving.exact_up_to
        self._open_parts = open_parts
        self._stamp: tuple[int, ...] | None = None
        self._bundles: dict[str, tuple[Release, Parts | None]] = {}
        self._said: set[str] = set()
        self._round = 0
        self._pauses: dict[str, int] = {}  # rounds that a release which failed is left alone, doubled each time
        self._due: dict[str, int] = {}  # and the round in which it is tried again
        self._latest: dict[str, Catalogue] = {}  # by snapshot: today's, and those on which an index still stands
        self._building = ""  # the snapshot that `build` is at work on
        self._publishing = threading.Lock()
        self.state = State()

    def refresh(self) -> bool:
        """`follow`, then `build`."""
        self.follow()
        return self.build()

    def follow(self) -> None:
        """Put routing and catalogue as they are now into force; what cannot be read stays as it was."""
        routing, catalogue = self._routing(), self._catalogue()
        with self._publishing:
            state = self.state
            kept = {} if catalogue is None else self._followed(catalogue, state.bases | {self._building})
            self._latest = kept
            loaded = {number: one for number, one in state.loaded.items() if number in routing.releases()}
            self.state = State(
                routing,
                catalogue,
                self._fresh(state.trending) if state.trending else None,
                {number: replace(one, index=self._fresh(one.index)) for number, one in loaded.items()},
                state.refused,
            )

    def build(self) -> bool:
        """Encode what is new, release by release; one that fails keeps its former index and is tried again.

        Returns:
            whether every routed release has an index of the whole current catalogue.
        """
        self._round += 1
        with self._publishing:
            routing, catalogue = self.state.routing, self.state.catalogue
            self._building = catalogue.base if catalogue is not None else ""
        self._bundles = {number: held for number, held in self._bundles.items() if number in routing.releases()}
        if catalogue is None:
            return False
        former = self.state.trending
        if former is None or former.catalogue.base != catalogue.base or not former.complete:
            trending = build_index(self._spec, catalogue, None, former)
            with self._publishing:
                self.state = replace(self.state, trending=self._fresh(trending))
        for number in routing.releases():
            if self._due.get(number, 0) > self._round:
                continue
            try:
                self._publish(number, self._load(number, catalogue, self.state.loaded.get(number)))
                self._pauses.pop(number, None)
            except IntegrityError as error:
                self._postpone(number)
                self._say(f"release {number} refused: {error}")
                self._publish(number, None)
            except Exception as error:
                self._postpone(number)
                self._say(f"release {number} has no index yet: {error}")
        self._building = ""
        loaded = self.state.loaded
        return all(number in loaded and self._done(loaded[number].index) for number in routing.releases())

    def _done(self, index: Index) -> bool:
        catalogue = self.state.catalogue
        return catalogue is not None and index.catalogue.base == catalogue.base and index.complete

    def _publish(self, number: str, loaded: Loaded | None) -> None:
        """Put a release into the state, on the catalogue as it is by now; None: refused."""
        with self._publishing:
            state = self.state
            others = {other: one for other, one in state.loaded.items() if other != number}
            if loaded is not None:
                others[number] = replace(loaded, index=self._fresh(loaded.index))
            refused = state.refused - {number} if loaded is not None else state.refused | {number}
            self.state = replace(state, loaded=others, refused=refused)

    def _fresh(self, index: Index) -> Index:
        return index.on(self._latest[index.catalogue.base])

    def _followed(self, catalogue: Catalogue, bases: set[str]) -> dict[str, Catalogue]:
        """The current catalogue, and former snapshots in use with what may be shown as the current one has it."""
        kept = {catalogue.base: catalogue}
        for base, former in self._latest.items():
            if base in bases and base != catalogue.base:
                done = former.version.endswith(f"@{catalogue.version}")
                kept[base] = former if done else bridged(former, catalogue)
        return kept

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
        return routing

    def _catalogue(self) -> Catalogue | None:
        """Today's; where its snapshot cannot be read the former one goes on, and follows the deltas all the same."""
        former = self.state.catalogue
        try:
            if former is None or former.base != current_version(self._home):
                return load_catalogue(self._home)
        except (OmnifeedError, OSError) as error:
            self._say(f"catalogue kept as it was: {error}")
        try:
            return None if former is None else applied(former, *later(self._home, former.sequence))
        except OSError as error:
            self._say(f"catalogue kept as it was: {error}")
            return former

    def _load(self, number: str, catalogue: Catalogue, former: Loaded | None) -> Loaded:
        if former is not None and former.index.catalogue.base == catalogue.base and former.index.complete:
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
        trending = self.state.trending
        if parts is None and trending is not None and spec == trending.spec:
            return Loaded(release, None, trending)
        index = build_index(spec, catalogue, parts, former.index if former else None, trending)
        return Loaded(release, parts, with_near(index, self._exact_up_to))
