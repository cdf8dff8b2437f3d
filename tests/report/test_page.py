"""The report: whole for a whole run, readable for half of one, escaped, offline, and the same twice."""

from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from example_run import HORIZON, NASTY, START, decision, evaluation, full_run
from experiment_logs import CONFIG, DAY, experiment

from omnifeed.experiment.verdict import RULES, decide
from omnifeed.report.page import decision_html, decision_markdown, evaluation_html, headline, write_report
from omnifeed.report.summary import RunSummary

VOID = {"meta", "br", "img", "link", "hr", "input", "path", "use", "rect"}


class Page(HTMLParser):
    """Text, ids, attributes; fails where tags do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.stack and self.stack[-1] != "style":
            self.text += data


@pytest.fixture(scope="module")
def verdict() -> dict[str, Any]:
    return decision()


@pytest.fixture(scope="module")
def page(verdict: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(path, full_run(verdict))
    return path.read_text()


def test_a_whole_run_shows_every_section_and_the_contents_lead_there(page: str) -> None:
    parsed = Page(page)
    ids = {attributes["id"] for _, attributes in parsed.tags if "id" in attributes}
    links = [attributes["href"] for tag, attributes in parsed.tags if tag == "a"]
    assert len(links) == 9
    assert {str(link).removeprefix("#") for link in links} <= ids


def test_the_page_says_what_happened(page: str, verdict: dict[str, Any]) -> None:
    text = Page(page).text
    assert "PROMOTE" in text
    assert verdict["paragraph"] in text
    for needle in (*RULES, "98,112", "event_id is unique", "212", "omnifeed run --data world", "68d1e1e4c0ff"):
        assert needle in text
    for needle in ("Handmade ceramic teapot, 600 ml", "9.90 EUR", "unknown user", "BOOTSTRAP"):
        assert needle in text
    assert "Together 3 min 11 s" in text  # 191.8 s


def test_nothing_from_outside_becomes_markup(page: str) -> None:
    parsed = Page(page)
    assert not [tag for tag, _ in parsed.tags if tag in ("script", "img", "iframe", "link", "b1")]
    assert NASTY in parsed.text
    assert "teapot <img src=x>" in parsed.text
    assert "event_id=e-55-<b>1</b>" in parsed.text


def test_the_page_needs_nothing_from_elsewhere(page: str) -> None:
    for _, attributes in Page(page).tags:
        for name, value in attributes.items():
            if name in ("src", "href", "xlink:href", "srcset", "action"):
                assert str(value).startswith("#"), (name, value)
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)


def test_pictures_have_words_and_ids_do_not_clash(page: str) -> None:
    parsed = Page(page)
    pictures = [attributes for tag, attributes in parsed.tags if tag == "svg"]
    assert len(pictures) == 5
    assert all(attributes["role"] == "img" and attributes["aria-label"] for attributes in pictures)
    assert any("GMV per user" in str(attributes["aria-label"]) for attributes in pictures)
    clips = [attributes["id"] for tag, attributes in parsed.tags if tag == "clippath"]
    assert len(clips) == len(set(clips)) > 0
    assert not re.search(r"#0[1-8]0[1-8]0[1-8]", page)  # every stand-in colour became a variable of the page


def test_the_same_run_gives_the_same_bytes(page: str, verdict: dict[str, Any], tmp_path: Path) -> None:
    write_report(tmp_path / "again.html", full_run(verdict))
    assert (tmp_path / "again.html").read_text() == page


SECTIONS = ("steps", "quality", "losses", "evaluation", "release", "infra", "decision", "samples", "ledger")


@pytest.mark.parametrize("missing", SECTIONS)
def test_each_section_may_be_missing(verdict: dict[str, Any], missing: str, tmp_path: Path) -> None:
    empty: Any = () if missing in ("steps", "samples", "ledger") else None
    write_report(tmp_path / "report.html", dataclasses.replace(full_run(verdict), **{missing: empty}))
    assert len([1 for tag, _ in Page((tmp_path / "report.html").read_text()).tags if tag == "section"]) == 8


def test_headlines(verdict: dict[str, Any], tmp_path: Path) -> None:
    whole, bare = full_run(verdict), RunSummary(title="run", now=START)
    assert (headline(whole).label, headline(whole).tone) == ("PROMOTE", "good")
    stopped = dataclasses.replace(whole, failure="events.parquet has no column user_id. Add it.")
    assert headline(stopped).label == "Stopped"
    held = dataclasses.replace(whole, decision=decision(gain=1.0))
    assert (headline(held).label, headline(held).tone) == ("HOLD, final", "warn")
    worse = dataclasses.replace(bare, evaluation=evaluation(blessed=False))
    assert headline(worse).label == "Not deployed"
    assert "auc_click in search" in headline(worse).text
    assert headline(dataclasses.replace(bare, release=whole.release)).label == "In front of users"
    write_report(tmp_path / "report.html", bare)
    assert "No release yet" in Page((tmp_path / "report.html").read_text()).text


def test_no_traffic_is_a_readable_page(tmp_path: Path) -> None:
    nothing = decide(tmp_path / "none", experiment(), CONFIG, HORIZON).to_dict()
    write_report(tmp_path / "report.html", RunSummary(title="KuaiRand", now=HORIZON, decision=nothing))
    text = Page((tmp_path / "report.html").read_text()).text
    assert "INVALID" in text
    assert "There is no live traffic" in text
    assert text.count("not reached") == 5


@pytest.mark.parametrize(("gain", "now"), [(0.0, START + 4 * DAY), (1.0, START + 2 * DAY), (1.35, HORIZON)])
def test_a_verdict_stands_alone_as_html_and_as_markdown(gain: float, now: int) -> None:
    body = decision(gain, now)
    text = Page(decision_html(body)).text
    assert body["verdict"] in text
    assert body["paragraph"] in text
    markdown = decision_markdown(body)
    assert markdown.startswith(f"# {body['verdict']}\n")
    rows = [line for line in markdown.splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + len(RULES) + (1 + len(body["metrics"]) if body["metrics"] else 0)


def test_the_offline_comparison_stands_alone_and_colours_by_direction() -> None:
    body = evaluation()
    row = next(row for row in body["differences"] if (row["metric"], row["scenario"]) == ("log_loss_click", "all"))
    row |= {"relative": -0.2, "low": -0.3, "high": -0.1}  # a lower log loss is better
    parsed = Page(evaluation_html(body))
    assert "Good enough to meet users" in parsed.text
    assert re.search(r'<small class="good">−20.0 % on 0.400</small>', evaluation_html(body))
    assert "recall@50" in parsed.text
    bad = evaluation(blessed=False)
    assert "nothing was deployed" in Page(evaluation_html(bad)).text
