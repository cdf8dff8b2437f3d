"""The page's server: on this machine only, for whoever sits in front of it. One page, one style sheet, no script."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from omnifeed.errors import InputError, OmnifeedError
from omnifeed.export.catalogue import current_version
from omnifeed.export.catalogue_state import Catalogue
from omnifeed.export.delta import last_sequence
from omnifeed.export.following import load_catalogue
from omnifeed.features.online import FeatureClient
from omnifeed.home import Home
from omnifeed.serving.async_client import AsyncClient
from omnifeed.serving.processes import HOST
from omnifeed.serving.recommend.contract import MAX_ID_CHARS
from omnifeed.serving.ui.slates import Question, shelves
from omnifeed.serving.ui.standing import moment, person, standing, users

MAX_SHOWN = 50
DEADLINE_S = 5.0
QUERY_CHARS = 256
#: Nothing from elsewhere, no script, and no other page may frame this one or read it by another name.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; form-action 'self'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Where the page asks."""

    home: Home
    url: str  # host:port of the server's gRPC
    features: str  # host:port of the feature server, "" for none
    now: (
        int | None
    )  # of the requests, UTC microseconds; None: the catalogue's moment on a simulated clock, else the clock's


class Page:
    """Answers one browser."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client: AsyncClient | None = None
        self._catalogue: tuple[tuple[str, int], Catalogue] | None = None
        templates = Environment(
            loader=FileSystemLoader(Path(__file__).parent),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._template = templates.get_template("page.html.j2")
        own = Path(__file__).parent / "style.css"
        report = resources.files("omnifeed.report") / "style.css"  # one look for everything that people read
        self._style = report.read_text(encoding="utf-8") + own.read_text(encoding="utf-8")

    async def page(self, request: Request) -> Response:
        """The page; a fault of the server or of the home stands in it as two sentences, with status 503."""
        asked = request.query_params
        user, query = asked.get("user", "").strip()[:MAX_ID_CHARS], asked.get("query", "").strip()[:QUERY_CHARS]
        k = min(max(int(asked["k"]), 1), MAX_SHOWN) if asked.get("k", "").isdigit() else 10
        values: dict[str, object] = {"user": user, "query": query, "k": k, "max_shown": MAX_SHOWN, "error": None}
        values |= {
            "standing": None,
            "users": (),
            "shelves": (),
            "person": None,
            "moment": "",
            "url": self._settings.url,
        }
        try:
            await self._fill(values, user, query, k)
            status = 200
        except OmnifeedError as error:
            values["error"] = error
            status = 503
        return HTMLResponse(self._template.render(values), status, HEADERS)

    async def style(self, request: Request) -> Response:
        """The style sheet."""
        return Response(self._style, media_type="text/css", headers=HEADERS)

    async def close(self) -> None:
        """Close the channel to the server."""
        if self._client is not None:
            await self._client.close()

    async def _fill(self, values: dict[str, object], user: str, query: str, k: int) -> None:
        catalogue = await asyncio.to_thread(self._current)
        settings = self._settings
        state = await asyncio.to_thread(standing, settings.home, settings.now or catalogue.now)
        values["standing"] = state
        values["users"] = await asyncio.to_thread(users, settings.home, state.experiment)
        if not user:
            return
        values["person"] = await asyncio.to_thread(person, self._features(), user, catalogue)
        if self._client is None:
            self._client = AsyncClient(settings.url, deadline_s=DEADLINE_S)
        now = settings.now
        if now is None and await self._simulated(self._client, state.scenarios[0], catalogue.now):
            now = catalogue.now
        values["moment"] = moment(now) if now else ""
        arms = tuple(side.name for side in state.sides)
        question = Question(user=user, query=query, k=k, now=now, scenarios=state.scenarios, arms=arms)
        values["shelves"] = await shelves(self._client, question, catalogue)

    @staticmethod
    async def _simulated(client: AsyncClient, scenario: str, now: int) -> bool:
        """Whether the server lets requests carry their own time; another may have started since the last page."""
        try:
            await client.recommend("page", scenario, k=1, now=now, probe=True)
        except InputError:
            return False
        return True

    def _features(self) -> FeatureClient | None:
        """A connection of its own for each page: it is for one thread."""
        host, _, port = self._settings.features.rpartition(":")
        return FeatureClient(host, int(port)) if host else None

    def _current(self) -> Catalogue:
        home = self._settings.home
        stamp = (current_version(home), last_sequence(home))
        if self._catalogue is None or self._catalogue[0] != stamp:
            self._catalogue = stamp, load_catalogue(home)
        return self._catalogue[1]


def application(settings: Settings) -> Starlette:
    """The page as an ASGI application; a request under another name than this machine's is refused."""
    page = Page(settings)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await page.close()

    return Starlette(
        routes=[Route("/", page.page), Route("/style.css", page.style)],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])],
        lifespan=lifespan,
    )


def serve(settings: Settings, port: int) -> None:
    """Serve the page on this machine's own address until interrupted."""
    import uvicorn

    uvicorn.run(application(settings), host=HOST, port=port, log_level="warning")
