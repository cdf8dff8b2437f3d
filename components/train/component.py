"""Train: trunk, retrieval head and ranking head together; a killed run goes on from its last checkpoint."""

from kfp.dsl import Dataset, Input, Metrics, Model, Output

from omnifeed.components.step import step


@step
def train(
    config: str,
    home: str,
    run_id: str,
    training_set: Input[Dataset],
    model: Output[Model],
    metrics: Output[Metrics],
) -> None:
    """Write the trained network; checkpoints stand under the home, keyed by data and settings."""
    import json
    import shutil
    from pathlib import Path

    from omnifeed.components.record import recording
    from omnifeed.config import Config
    from omnifeed.home import Home
    from omnifeed.training.key import training_key
    from omnifeed.training.launch import run_training
    from omnifeed.training.warm_start import former_release

    with recording(home, run_id, "train") as record:
        settings = Config.from_json(config)
        former = former_release(Home(Path(home)), settings)
        folder = Home(Path(home)).root / "training" / training_key(Path(training_set.path), settings, former)
        result = run_training(Path(training_set.path), folder, settings, record.progress, former)
        shutil.copytree(folder, model.path, ignore=shutil.ignore_patterns("checkpoint", ".*"), dirs_exist_ok=True)
        losses = json.loads((folder / "losses.json").read_text(encoding="utf-8"))
        record.info = {**losses, "began_with_release": former.name if former else None}
        metrics.log_metric("steps", result.steps)
        metrics.log_metric("best_epoch", result.best_epoch)
