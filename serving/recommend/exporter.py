"""Hands a process's counts to Triton, which shows them with its own under /metrics.

Imported only by the server's Python, where `triton_python_backend_utils` exists.
"""

from __future__ import annotations

import ctypes
import os

import triton_python_backend_utils as pb_utils

from omnifeed.serving.recommend.live import State
from omnifeed.serving.recommend.metrics import FAMILIES, STANDING, Metrics, Series


def _kept(made):  # type: ignore[no-untyped-def]
    """The same object, never to be destroyed.

    Triton 2.51's Python backend destroys a metric by asking the server, which a stub that is ending no longer can: it
    dies of SIGSEGV when the interpreter clears its objects, and hangs when they are deleted in `finalize`.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(made))
    return made


class Exporter:
    """One instance's families; Triton adds up the instances, whose series have the same labels."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._families = {
            name: _kept(
                pb_utils.MetricFamily(
                    name=name,
                    description=family.help,
                    kind=pb_utils.MetricFamily.GAUGE if family.gauge else pb_utils.MetricFamily.COUNTER,
                )
            )
            for name, family in FAMILIES.items()
        }
        self._series: dict[Series, object] = {}
        for series in STANDING:  # a counter that stands at 0 can be told from one that is missing
            self._metric(series)

    def flush(self, state: State, now: int) -> None:
        """Hand over what was counted since the last call, and how the live state stands.

        Args:
            now: UTC microseconds.
        """
        for series, amount in self._metrics.drain().items():
            self._metric(series).increment(amount)
        routed = state.routing.releases()
        gauges: dict[Series, float] = {
            ("omnifeed_releases_routed", ()): len(routed),
            ("omnifeed_releases_ready", ()): sum(number in state.loaded for number in routed),
        }
        catalogue = state.catalogue
        if catalogue is not None:
            gauges["omnifeed_catalogue_items", ()] = len(catalogue)
            gauges["omnifeed_catalogue_age_seconds", ()] = max(now - catalogue.now, 0) / 1e6
            gauges["omnifeed_catalogue_sequence", (str(os.getpid()),)] = catalogue.sequence
        for series, value in gauges.items():
            self._metric(series).set(value)

    def _metric(self, series: Series):  # type: ignore[no-untyped-def]
        metric = self._series.get(series)
        if metric is None:
            name, values = series
            labels = dict(zip(FAMILIES[name].labels, values, strict=True))
            metric = self._series[series] = _kept(self._families[name].Metric(labels=labels))
        return metric
