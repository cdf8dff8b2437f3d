"""Evaluate: challenger against champion on the same held-back rows; a worse one ends the pipeline here, green."""

from kfp.dsl import HTML, ClassificationMetrics, Dataset, Input, Metrics, Model, Output

from omnifeed.components.step import step


@step
def evaluate(
    config: str,
    home: str,
    run_id: str,
    champion: str,
    training_set: Input[Dataset],
    model: Input[Model],
    metrics: Output[Metrics],
    roc: Output[ClassificationMetrics],
    page: Output[HTML],
) -> str:
    """Return "yes" where the challenger may go in front of users, else "no"; the reasons are in the page."""
    from pathlib import Path

    from omnifeed.components.record import recording
    from omnifeed.config import Config
    from omnifeed.evaluation.baselines import baseline_estimates
    from omnifeed.evaluation.champion import release_scorer
    from omnifeed.evaluation.compare import ALL, by_model
    from omnifeed.evaluation.compare import evaluate as compare
    from omnifeed.evaluation.scorer import NetworkScorer
    from omnifeed.home import Home
    from omnifeed.model.network import load_network
    from omnifeed.model.parts import TorchParts
    from omnifeed.report.page import evaluation_html

    with recording(home, run_id, "evaluate") as record:
        settings = Config.from_json(config)
        network = load_network(Path(model.path))
        result = compare(
            Path(training_set.path),
            NetworkScorer(
                TorchParts(network),
                network.spec,
                network.tasks,
                name="challenger",
            ),
            release_scorer(Home(Path(home)).releases / champion, settings),
            settings,
            progress=record.progress,
        )
        simple = baseline_estimates(Path(training_set.path), settings, progress=record.progress)
        record.info = {**result.to_dict(), "baselines": by_model(simple)}
        Path(page.path).write_text(evaluation_html(record.info), encoding="utf-8")
        roc.log_roc_curve(result.roc["fpr"], result.roc["tpr"], result.roc["threshold"])
        for change in result.differences:
            if change.scenario == ALL:
                metrics.log_metric(change.metric, change.challenger)
                metrics.log_metric(f"{change.metric}_champion", change.champion)
        return "yes" if result.blessed else "no"
