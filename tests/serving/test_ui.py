"""The page of what users see: over the real server, in a real browser where there is one."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlencode

import pytest
import uvicorn
from export.releases import NOW, config, copied, experiment
from training.synthetic import SCENARIOS

from omnifeed.errors import UnavailableError
from omnifeed.experiment.ledger import Ledger
from omnifeed.export.following import load_catalogue
from omnifeed.serving.client import Client
from omnifeed.serving.processes import free_ports, listening
from omnifeed.serving.server import triton_environment
from omnifeed.serving.ui.app import Settings, application
from omnifeed.serving.ui.slates import titles
from serving.feature_double import Served

try:
    triton_environment()
except UnavailableError as missing:
    pytest.skip(missing.problem, allow_module_level=True)

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    home = copied(tmp_path_factory.mktemp("ui") / "home")
    Ledger(home).append("BOOTSTRAP", {"release": "0"}, NOW)
    experiment(home, ("champion", "0", 0.7), ("challenger", "1", 0.3))
    with Served(home, config(), simulated_clock=True) as running:
        with Client(running.url, deadline_s=10) as client:
            client.recommend("somebody-lately", "search", now=NOW)
        yield running


def serve(settings: Settings) -> Iterator[str]:
    (port,) = free_ports((0,))
    page = uvicorn.Server(uvicorn.Config(application(settings), host="127.0.0.1", port=port, log_level="warning"))
    thread = threading.Thread(target=page.run)
    thread.start()
    while not listening(port):
        time.sleep(0.02)
    yield f"http://127.0.0.1:{port}"
    page.should_exit = True
    thread.join(10)


@pytest.fixture(scope="module")
def asking(server: Served) -> Settings:
    features = f"127.0.0.1:{server.config.serving.features_port}"
    return Settings(home=server.home, url=server.url, features=features, now=None)


@pytest.fixture(scope="module")
def page(asking: Settings) -> Iterator[str]:
    yield from serve(asking)


def read(url: str, **query: str) -> str:
    with urllib.request.urlopen(f"{url}/?{urlencode(query)}", timeout=20) as answer:
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        text: str = answer.read().decode()
    return text


def shown(text: str) -> list[str]:
    """The titles on the page, in its order."""
    found = re.findall(r'<span class="title">(.*?)</span>', text, re.DOTALL)
    return [html.unescape(re.sub(r"<.*", "", one, flags=re.DOTALL)).strip() for one in found]


def expected(server: Served, user: str, query: str, k: int) -> list[str]:
    """What the server answers, scenario by scenario, the champion first."""
    catalogue = load_catalogue(server.home)
    with Client(server.url, deadline_s=10) as client:
        return [
            title
            for scenario in SCENARIOS
            for arm in ("champion", "challenger")
            for title in titles(
                catalogue,
                client.recommend(
                    user, scenario, query if scenario == "search" else None, k=k, arm=arm, now=catalogue.now, probe=True
                ).item_ids,
            )
        ]


def test_both_arms_of_every_scenario_stand_side_by_side_as_the_server_answers_them(server: Served, page: str) -> None:
    text = read(page, user="u1", query="red lamp", k="7")
    assert shown(text) == expected(server, "u1", "red lamp", 7)
    assert text.count('class="tag why-for-you"') > 0
    assert text.count('class="tag why-trending"') > 0
    assert "for “red lamp”" in text
    assert all(f"{stage}</th>" in text for stage in ("user encoder", "ranker", "Triton and the way there"))
    assert "de</span>" in text  # what the feature store knows of the user
    assert "Experiment trial" in text
    assert "70 % of the users" in text
    assert "release 0 is the champion" in text


def test_looking_is_logged_nowhere_and_those_lately_answered_are_offered(server: Served, page: str) -> None:
    files = list((server.home.experiments / "trial" / "exposures").glob("*.jsonl"))
    before = [file.read_bytes() for file in files]
    assert '<a href="/?user=somebody-lately">' in read(page)
    read(page, user="u1")
    assert [file.read_bytes() for file in files] == before


def test_what_is_typed_is_text_and_nothing_else(page: str) -> None:
    typed = "\"><script>alert('x')</script>"
    text = read(page, user="u1", query=typed, k="999999")
    assert "<script" not in text
    assert html.escape(typed, quote=False).split("<")[0].replace('"', "&#34;")[:6] in text
    assert read(page, user="x" * 5_000, k="none")


def test_another_name_for_this_machine_is_refused(page: str) -> None:
    request = urllib.request.Request(page, headers={"Host": "elsewhere.example"})
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(request, timeout=10)


def test_a_server_that_is_not_there_is_told_in_two_sentences(asking: Settings) -> None:
    (nobody,) = free_ports((0,))
    for url in serve(replace(asking, url=f"127.0.0.1:{nobody}")):
        with pytest.raises(urllib.error.HTTPError) as answer:
            read(url, user="u1")
        assert answer.value.code == 503
        text = answer.value.read().decode()
        assert f"The server at 127.0.0.1:{nobody} did not answer" in text
        assert "omnifeed serve" in text


def test_a_browser_draws_it_and_asks_nobody_else(server: Served, page: str, tmp_path: Path) -> None:
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        pytest.skip("no chromium")
    common = [
        *(browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1280,1600"),
        *(f"--user-data-dir={tmp_path / 'profile'}", "--disable-background-networking", "--no-first-run"),
        "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",  # what is asked of anybody else fails
        f"--screenshot={tmp_path / 'page.png'}",
    ]
    url = f"{page}/?{urlencode({'user': 'u1', 'query': 'red lamp', 'k': '5'})}"
    drawn = subprocess.run([*common, "--dump-dom", url], capture_output=True, text=True, timeout=90, check=True)
    assert shown(drawn.stdout) == expected(server, "u1", "red lamp", 5)
    addresses = re.findall(r'(?:src|href|action)="([^"]*)"', drawn.stdout)
    assert addresses
    assert all(address.startswith("/") and not address.startswith("//") for address in addresses)
    picture = (tmp_path / "page.png").read_bytes()
    width, height = (int.from_bytes(picture[at : at + 4], "big") for at in (16, 20))
    assert (width, height) == (1280, 1600)
    assert len(picture) > 60_000  # an unstyled or empty page is far smaller
