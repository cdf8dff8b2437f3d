"""The TrainJob of docs/how-to/train-on-many.md is one that Kubeflow Trainer's schema takes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jsonschema
import pytest
import yaml

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "train-on-many.md"


def test_the_train_job_fits_its_schema(shared: Path) -> None:
    path = shared.parent / "crds" / "trainer.kubeflow.org_TrainJob_v1alpha1.json"
    if not path.exists():
        pytest.skip("../shared/crds is not here")
    found = re.search(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    assert found
    job = yaml.safe_load(found[1])
    schema = json.loads(path.read_text(encoding="utf-8"))
    jsonschema.validate(job, schema)
    unknown = set(job["spec"]["trainer"]) - set(schema["properties"]["spec"]["properties"]["trainer"]["properties"])
    assert not unknown
