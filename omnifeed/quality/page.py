"""The page of results: one file that opens offline.

Great Expectations' own Data Docs load their styles from a network, so the results are drawn here, everything escaped.
"""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path

from omnifeed.home import write_atomic
from omnifeed.quality.outcome import Check

_TITLES = {
    "files": "Files",
    "columns": "Columns and types",
    "items": "items",
    "users": "users",
    "events": "events",
    "acceptance": "Share of bad rows",
    "drift": "Against the last accepted run",
}

_TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Data quality: {{ source }}</title>
<style>
:root { --ink: #1c2430; --soft: #5d6878; --line: #e2e6ec; --back: #f6f7f9; --card: #fff; --good: #1a7f4b;
  --good-back: #e3f4ea; --warn: #8a5a00; --warn-back: #fdf0d3; --bad: #b3261e; --bad-back: #fde7e5; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ee; --soft: #9aa5b4; --line: #323a46; --back: #14181e;
  --card: #1c222a; --good: #6fd39c; --good-back: #173425; --warn: #f0c264; --warn-back: #3a2d10; --bad: #ff9a92;
  --bad-back: #431c19; } }
* { box-sizing: border-box; }
body { margin: 0; padding: 2rem 1.25rem 4rem; background: var(--back); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 72rem; margin: 0 auto; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; }
h2 { font-size: 1.05rem; margin: 2rem 0 .5rem; }
p { margin: 0 0 1rem; color: var(--soft); }
.verdict { display: inline-block; padding: .35rem .8rem; border-radius: 999px; font-weight: 600; margin: .5rem 0 1rem; }
.pass { color: var(--good); background: var(--good-back); }
.quarantine { color: var(--warn); background: var(--warn-back); }
.breach { color: var(--bad); background: var(--bad-back); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(14rem, 1fr)); gap: .75rem; }
.card, .scroll { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; }
.card { padding: .9rem 1rem; }
.card b { display: block; font-size: 1.35rem; font-variant-numeric: tabular-nums; }
.card span { color: var(--soft); }
.bar { display: flex; height: .4rem; margin-top: .6rem; border-radius: .2rem; overflow: hidden;
  background: var(--good); }
.bar i { background: var(--bad); margin-left: auto; }
.scroll { overflow-x: auto; }
table { width: 100%; min-width: 46rem; border-collapse: collapse; table-layout: fixed; }
th, td { text-align: left; vertical-align: top; padding: .5rem .8rem; border-top: 1px solid var(--line); }
thead th { border-top: 0; color: var(--soft); font-weight: 500; font-size: .85rem; }
th.result { width: 9.5rem; }
th.number { width: 6.5rem; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td code { color: var(--soft); font-size: .8rem; }
.mark { padding: .1rem .5rem; border-radius: .3rem; font-size: .8rem; font-weight: 600; white-space: nowrap; }
ul { margin: 0; padding: 0; list-style: none; font-size: .85rem; overflow-wrap: anywhere; }
</style>
</head>
<body>
<main>
<h1>Data quality: {{ source }}</h1>
<p>Log up to {{ until }} UTC. {{ checks | length }} checks, {{ checks | selectattr("passed") | list | length }} passed.
{% if not compared %}First accepted run of this source: there is nothing yet to compare volumes and rates with.
{% endif %}</p>
<div class="verdict {{ verdict }}">{{ headline }}</div>
{% if counts %}
<div class="cards">
{% for table, (total, failing) in counts.items() %}
<div class="card"><span>{{ table }}</span><b>{{ "{:,}".format(total) }}</b>
<span>{{ "{:,}".format(total - failing) }} pass, {{ "{:,}".format(failing) }} in quarantine</span>
<div class="bar"><i style="width: {{ (100 * failing / total) | round(2) if total else 0 }}%"></i></div></div>
{% endfor %}
</div>
{% endif %}
{% for title, group in groups %}
<h2>{{ title }}</h2>
<div class="scroll"><table>
<thead><tr><th>Contract</th><th class="result">Result</th><th class="number">Failed</th><th class="number">Of</th>
<th>Observed</th></tr></thead>
<tbody>
{% for check in group %}
<tr>
<td>{{ check.contract }}<br><code>{{ check.expectation }}</code></td>
<td>{% if check.passed %}<span class="mark pass">pass</span>
{% elif check.critical %}<span class="mark breach">stops&nbsp;all</span>
{% else %}<span class="mark quarantine">quarantine</span>{% endif %}</td>
<td class="number">{{ "{:,}".format(check.failed) if not check.observed else "" }}</td>
<td class="number">{{ "{:,}".format(check.rows) }}</td>
<td>{{ check.observed }}<ul>{% for example in check.examples %}<li>{{ example }}</li>{% endfor %}</ul></td>
</tr>
{% endfor %}
</tbody>
</table></div>
{% endfor %}
</main>
</body>
</html>
"""


def write_page(
    path: Path, checks: list[Check], counts: dict[str, tuple[int, int]], source: str, now: int, compared: bool
) -> None:
    """Write the page.

    Args:
        counts: by table, its rows and how many of them failed; empty when no row could be read.
        now: end of the log, UTC microseconds.
        compared: a last accepted run was there to compare with.
    """
    from jinja2 import Environment

    failed = [check for check in checks if not check.passed]
    critical = sum(check.critical for check in failed)
    failing = sum(bad for _, bad in counts.values())
    if critical:
        verdict, headline = (
            "breach",
            f"Stopped: {critical} critical {'contract' if critical == 1 else 'contracts'} broken",
        )
    elif failing:
        verdict, headline = "quarantine", f"Accepted, {failing:,} {'row' if failing == 1 else 'rows'} in quarantine"
    else:
        verdict, headline = "pass", "Accepted, every row"
    page = Environment(autoescape=True).from_string(_TEMPLATE)
    write_atomic(
        path,
        page.render(
            source=source,
            until=datetime.fromtimestamp(now / 1e6, UTC).strftime("%Y-%m-%d %H:%M"),
            checks=checks,
            counts=counts,
            verdict=verdict,
            headline=headline,
            compared=compared,
            groups=[
                *([("What failed", failed)] if failed else []),
                *((_TITLES[table], list(group)) for table, group in groupby(checks, key=lambda check: check.table)),
            ],
        ),
    )
