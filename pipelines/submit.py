"""To a cluster: compile the pipelines, upload them, start a run."""

from __future__ import annotations

import os
import tempfile
import uuid
from pathlib import Path
from typing import Any

from omnifeed.config import Config
from omnifeed.errors import UnavailableError


def compile_all(folder: Path) -> list[Path]:
    """Write every pipeline as IR YAML, the same bytes every time."""
    from kfp import compiler

    from omnifeed.pipelines.monitoring import monitoring
    from omnifeed.pipelines.promotion import promotion
    from omnifeed.pipelines.training import training

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for pipeline in (training, promotion, monitoring):
        path = folder / f"{pipeline.name}.yaml"
        compiler.Compiler().compile(pipeline, str(path))
        written.append(path)
    return written


def submit_run(host: str, name: str, config: Config, namespace: str | None, cron: str | None) -> dict[str, Any]:
    """Start one run, or a recurring one.

    Raises:
        UnavailableError: the endpoint does not answer or refuses.
    """
    import kfp

    label = f"{name}-{uuid.uuid4().hex[:8]}"
    arguments = {"config": config.to_json()}
    try:
        client = kfp.Client(host=host, namespace=namespace or "kubeflow", existing_token=os.environ.get("KFP_TOKEN"))
        with tempfile.TemporaryDirectory() as folder:
            package = next(path for path in compile_all(Path(folder)) if path.stem == f"omnifeed-{name}")
            if cron is None:
                run = client.create_run_from_pipeline_package(
                    str(package), arguments=arguments, run_name=label, namespace=namespace
                )
                return {"kind": "run", "id": run.run_id, "url": f"{host}/#/runs/details/{run.run_id}"}
            experiment = client.create_experiment("omnifeed", namespace=namespace)
            job = client.create_recurring_run(
                experiment.experiment_id,
                label,
                cron_expression=cron,
                pipeline_package_path=str(package),
                params=arguments,
                max_concurrency=1,
                no_catchup=True,
            )
            return {"kind": "recurring run", "id": job.recurring_run_id, "url": host}
    except Exception as error:
        raise UnavailableError(
            f"Kubeflow Pipelines at {host} did not accept the {name} pipeline: {str(error).splitlines()[0]}.",
            "Check --host, --namespace and KFP_TOKEN, and that the endpoint is reachable.",
        ) from error
