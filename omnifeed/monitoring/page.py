"""The interval as a person reads it: one static file, offline, in the report's style; alarms first."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup

from omnifeed.home import Home, write_atomic, write_json
from omnifeed.monitoring.exposition import exposition
from omnifeed.monitoring.retraining import Retraining
from omnifeed.monitoring.watch import State, Watch
from omnifeed.report import words

_TONES = {State.QUIET: "good", State.DRIFT: "warn", State.FAULT: "bad", State.UNTESTED: "neutral"}
_TITLES = {
    "calibration": "Calibration: observed / predicted, over logged items that were seen",
    "label": "What users did with what they saw",
    "prediction": "What the model said of the items shown (log-odds)",
    "feature": "What the model was given",
    "traffic": "Who asks, when, for what",
    "degraded": "Answers that had to do without something",
    "volume": "Requests a day",
}
_TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Monitoring, {{ found.start|moment }}</title><style>{{ css }}</style></head>
<body class="omnifeed"><main>
<h1>Monitoring: {{ found.start|moment }} to {{ found.end|moment }} UTC</h1>
<div class="verdict tone-{{ tone }}"><strong>{{ found.state|capitalize }}</strong><p>{{ found.paragraph }}</p></div>
<p>{{ follows.reason }}</p>
<dl class="facts">
<div><dt>Champion</dt><dd>release {{ found.release }}</dd></div>
<div><dt>Checks</dt><dd>{{ found.checks|length + found.skew|length + found.ages|length }}
  <small>{{ found.alarms|length }} alarms</small></dd></div>
<div><dt>Compared with</dt><dd>{{ found.before|length }} days before
  {%- if found.first %}<small>the champion's first from {{ found.first[0]|moment }}</small>{% endif %}</dd></div>
<div><dt>Logged requests</dt><dd>{{ found.logged|count }}
  <small>{{ found.behind|count }} with a history behind what was known</small></dd></div>
</dl>
{% if found.untested %}<ul>{% for each in found.untested %}<li>{{ each }}</li>{% endfor %}</ul>{% endif %}
<p class="note">An alarm is beyond its bound and beyond what usual days differ by. p: that a quiet day differs so
much; adjusted: Holm over every check of the day. What users did is compared with the champion's first days, the rest
with the days before.</p>
{% if found.ages %}<h2>Freshness</h2>
<div class="scroll"><table><thead><tr><th scope="col">view</th><th scope="col">age of the newest row</th>
<th scope="col">bound</th><th scope="col" class="text">reads</th></tr></thead><tbody>
{% for age in found.ages %}<tr><th scope="row">{{ age.view }}</th><td>{{ age.hours|metric }} h</td>
<td>{{ age.bound|metric }} h</td><td class="text {{ "bad" if age.alarm else "muted" }}">
{{ "too old" if age.alarm else "fresh" }}</td></tr>{% endfor %}</tbody></table></div>{% endif %}
{% if found.skew %}<h2>Training–serving skew</h2>
<p class="note">Features of the logged requests, computed again offline as of the moments that their rows name.</p>
<details{% if found.skew|selectattr("alarm")|list %} open{% endif %}>
<summary>{{ found.skew|length }} features</summary>
<div class="scroll"><table><thead><tr><th scope="col">feature</th><th scope="col">requests</th>
<th scope="col">differing</th><th scope="col">share</th><th scope="col">largest difference</th>
<th scope="col">adjusted p</th><th scope="col" class="text">reads</th></tr></thead><tbody>
{% for each in found.skew|sort(attribute="share", reverse=true) %}<tr><th scope="row">{{ each.feature }}</th>
<td>{{ each.requests|count }}</td><td>{{ each.differing|count }}</td><td>{{ each.share|share }}</td>
<td>{{ "%.3g"|format(each.largest) }}</td><td>{{ each.p_adjusted|p }}</td>
<td class="text {{ "bad" if each.alarm else "muted" }}">{{ "alarm" if each.alarm else "quiet" }}</td></tr>
{% endfor %}</tbody></table></div></details>{% endif %}
{% for kind, title, checks in groups %}<h2>{{ title }}</h2>
<details{% if checks|selectattr("alarm")|list or kind in ("calibration", "volume") %} open{% endif %}>
<summary>{{ checks|length }} checks, {{ checks|selectattr("alarm")|list|length }} alarms</summary>
<div class="scroll"><table><thead><tr><th scope="col">what</th><th scope="col">scenario</th>
<th scope="col">before</th><th scope="col">this day</th><th scope="col">change</th><th scope="col">bound</th>
<th scope="col">p</th><th scope="col">adjusted</th><th scope="col" class="text">reads</th></tr></thead><tbody>
{% for check in checks|sort(attribute="p_value") %}<tr><th scope="row">{{ check.name }}</th>
<td>{{ check.scenario }}</td><td>{{ check.before }}</td><td>{{ check.now }}{% if check.low is not none %}
<small>{{ check.low|metric }} to {{ check.high|metric }}</small>{% endif %}</td>
<td>{{ "%+.3f"|format(check.effect) if kind in psi else check.effect|percent }}
{%- if check.long_run is not none %}<small>{{ "%+.3f"|format(check.long_run) }} since the start</small>{% endif %}</td>
<td>{{ check.bound|metric if kind in psi else check.bound|share }}</td><td>{{ check.p_value|p }}</td>
<td>{{ check.p_adjusted|p }}</td>
<td class="text {{ "bad" if check.alarm else "muted" }}">{{ "alarm" if check.alarm else "quiet" }}</td></tr>
{% endfor %}</tbody></table></div></details>
{% endfor %}
<footer>Made {{ found.now|moment }} UTC. Distributions: change is the population stability index beyond that of
usual days, since the start against the champion's first days.</footer>
</main></body></html>
"""


def monitoring_html(found: Watch, follows: Retraining) -> str:
    """The page; everything from outside is escaped."""
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {
        "count": words.count,
        "metric": words.metric,
        "moment": words.moment,
        "p": words.p_value,
        "percent": words.percent,
        "share": words.share,
    }
    body = found.to_dict()
    groups = [
        (kind, title, [check for check in body["checks"] if check["kind"] == kind]) for kind, title in _TITLES.items()
    ]
    css = files("omnifeed.report").joinpath("style.css").read_text(encoding="utf-8")
    return environment.from_string(_TEMPLATE).render(
        found=body,
        follows=follows,
        tone=_TONES[found.state],
        groups=[group for group in groups if group[2]],
        psi=("traffic", "feature", "prediction"),
        css=Markup(css),
    )


def publish(home: Home, found: Watch, follows: Retraining) -> dict[str, Any]:
    """Write the interval under `monitoring/`: <day>.json, and the latest as monitoring.html and monitoring.prom.

    Returns:
        What was written, JSON-ready.
    """
    folder = home.root / "monitoring"
    record = {**found.to_dict(), "retraining": follows.to_dict()}
    write_json(folder / "days" / f"{words.moment(found.start)[:10]}.json", record)
    write_atomic(folder / "monitoring.html", monitoring_html(found, follows))
    write_atomic(folder / "monitoring.prom", exposition(found, follows))
    return record
