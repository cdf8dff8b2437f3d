"""The numbers as Prometheus reads them: one file in the text exposition format, replaced whole.

For node_exporter's textfile collector, for a Pushgateway, or served as it is; the alerting rules in
`k8s/components/alerts` name these metrics and no others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from omnifeed.monitoring.retraining import Retraining
from omnifeed.monitoring.watch import AGE, SKEW, State, Watch

#: name -> what it is. All are gauges.
METRICS = {
    "omnifeed_monitor_run_timestamp_seconds": "The moment that monitoring last looked from.",
    "omnifeed_monitor_interval_end_timestamp_seconds": "End of the day that was looked at.",
    "omnifeed_monitor_state": "1 for the state of the interval, 0 for the others.",
    "omnifeed_monitor_checks": "Checks made, by kind.",
    "omnifeed_monitor_alarms": "Checks beyond their bound and beyond luck, by kind.",
    "omnifeed_monitor_effect": "How far a check is from what it is compared with, in the unit of its bound.",
    "omnifeed_monitor_alarm": "1 where this check is an alarm.",
    "omnifeed_monitor_long_run_psi": "Stability index against the champion's first days, beyond the usual.",
    "omnifeed_monitor_calibration_ratio": "Observed over predicted.",
    "omnifeed_monitor_skew_share": "Logged requests in which the feature differs from its offline recomputation.",
    "omnifeed_monitor_feature_age_seconds": "Age of the newest row that the interval's last request could read.",
    "omnifeed_monitor_feature_age_bound_seconds": "The age that is an alarm.",
    "omnifeed_monitor_logged_requests": "Requests whose features were logged.",
    "omnifeed_monitor_history_behind_share": "Logged requests whose history lacked an event known by then.",
    "omnifeed_monitor_retraining_wanted": "1 where drift opens a retraining now.",
}

Sample = tuple[str, Mapping[str, str], float]


def exposition(found: Watch, follows: Retraining) -> str:
    """The text exposition format, version 0.0.4."""
    lines: list[str] = []
    samples = _samples(found, follows)
    for name, what in METRICS.items():
        lines += [f"# HELP {name} {what}", f"# TYPE {name} gauge"]
        for of, labels, value in samples:
            if of == name:
                inside = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())
                lines.append(f"{name}{{{inside}}} {value!r}" if inside else f"{name} {value!r}")
    return "\n".join(lines) + "\n"


def _samples(found: Watch, follows: Retraining) -> list[Sample]:
    made = Counter(check.kind for check in found.checks)
    made[SKEW], made[AGE] = len(found.skew), len(found.ages)
    alarms = Counter(kind for kind, _ in found.alarms)
    release = {"release": found.release}
    samples: list[Sample] = [
        ("omnifeed_monitor_run_timestamp_seconds", release, found.now / 1e6),
        ("omnifeed_monitor_interval_end_timestamp_seconds", release, found.end / 1e6),
        ("omnifeed_monitor_logged_requests", release, float(found.logged)),
        ("omnifeed_monitor_history_behind_share", release, found.behind / found.logged if found.logged else 0.0),
        ("omnifeed_monitor_retraining_wanted", release, float(follows.wanted)),
    ]
    samples += [("omnifeed_monitor_state", {"state": s.value}, float(s is found.state)) for s in State]
    for kind in sorted(made):
        samples.append(("omnifeed_monitor_checks", {"kind": kind}, float(made[kind])))
        samples.append(("omnifeed_monitor_alarms", {"kind": kind}, float(alarms[kind])))
    for check in found.checks:
        where = {"kind": check.kind, "scenario": check.scenario, "name": check.name}
        samples.append(("omnifeed_monitor_effect", where, check.effect))
        samples.append(("omnifeed_monitor_alarm", where, float(check.alarm)))
        if check.long_run is not None:
            samples.append(("omnifeed_monitor_long_run_psi", where, check.long_run))
        if check.low is not None:
            task = {"scenario": check.scenario, "task": check.name}
            samples.append(("omnifeed_monitor_calibration_ratio", task, check.value))
    for each in found.skew:
        samples.append(("omnifeed_monitor_skew_share", {"feature": each.skew.feature}, each.skew.share))
    for age in found.ages:
        samples.append(("omnifeed_monitor_feature_age_seconds", {"view": age.view}, age.hours * 3600))
        samples.append(("omnifeed_monitor_feature_age_bound_seconds", {"view": age.view}, age.bound * 3600))
    return samples


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
