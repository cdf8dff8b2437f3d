"""experiment.json routes traffic: what cannot be one is refused with what is wrong and what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from experiment_logs import DAY, START, experiment

from omnifeed.errors import InputError
from omnifeed.experiment.assignment import Experiment

GOOD = experiment().to_dict()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"arms": [{"name": "a", "release": "1", "weight": 0.5}, {"name": "b", "release": "2", "weight": 0.6}]},
         "add up to 1.1"),
        ({"end_ts": START - DAY}, "is not after the start"),
        ({"holdback": {"salt": GOOD["salt"], "share": 0.05, "release": "0", "start_ts": START}}, "by the same salt"),
        ({"salt": None, "start_ts": "soon"}, "missing or malformed"),
    ],
)  # fmt: skip
def test_what_is_no_experiment_is_refused(tmp_path: Path, change: dict[str, Any], problem: str) -> None:
    path = tmp_path / "experiment.json"
    path.write_text(json.dumps({**GOOD, **change}))
    with pytest.raises(InputError, match=problem) as refused:
        Experiment.load(path)
    assert str(path) in refused.value.problem
    assert refused.value.action


def test_a_torn_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "experiment.json"
    path.write_text(json.dumps(GOOD)[:-9])
    with pytest.raises(InputError, match="is not JSON"):
        Experiment.load(path)
