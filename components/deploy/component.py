"""Deploy: open the experiment that routes a slice of the users to the challenger."""

from omnifeed.components.step import step


@step
def deploy(config: str, home: str, run_id: str, now: int, champion: str, release: str) -> str:
    """Return the experiment's name."""
    from pathlib import Path

    from omnifeed.components.record import recording
    from omnifeed.config import Config
    from omnifeed.experiment.deploy import open_experiment
    from omnifeed.home import Home

    with recording(home, run_id, "deploy") as record:
        experiment = open_experiment(Home(Path(home)), champion, release, Config.from_json(config), now)
        record.info = experiment.to_dict()
        return experiment.name
