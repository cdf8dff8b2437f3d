"""Export: the network as ONNX graphs in an immutable, hashed release, refused where PyTorch and ONNX disagree."""

from kfp.dsl import Dataset, Input, Metrics, Model, Output

from omnifeed.components.step import step


@step
def export(
    config: str,
    home: str,
    run_id: str,
    now: int,
    training_set: Input[Dataset],
    model: Input[Model],
    metrics: Output[Metrics],
) -> str:
    """Return the new release's number."""
    import json
    from pathlib import Path

    from omnifeed.components.record import recording
    from omnifeed.config import Config
    from omnifeed.export.bundle import export_release
    from omnifeed.export.provenance import git_commit
    from omnifeed.home import Home

    with recording(home, run_id, "export") as record:
        state = Home(Path(home))
        evaluation = json.loads((record.folder / "steps" / "evaluate.json").read_text())["info"]
        release = export_release(
            Path(model.path),
            Path(training_set.path),
            state,
            Config.from_json(config),
            now,
            evaluation["metrics"][evaluation["models"]["challenger"]],
            git_commit(),
        )
        record.info = release.to_dict()
        metrics.log_metric("release", int(release.number))
        for part, error in release.parity.get("max_abs_error", {}).items():
            metrics.log_metric(f"parity_{part}", error)
        return release.number
