"""Champion: the release that the ledger says serves, made first (trending items) where there is none."""

from omnifeed.components.step import step


@step
def champion(config: str, home: str, run_id: str, now: int) -> str:
    """Return the champion's release number."""
    from pathlib import Path

    from omnifeed.components.record import recording
    from omnifeed.config import Config
    from omnifeed.experiment.ledger import Ledger
    from omnifeed.export.bundle import export_trending
    from omnifeed.export.provenance import git_commit
    from omnifeed.home import Home

    with recording(home, run_id, "champion") as record:
        state = Home(Path(home))
        ledger = Ledger(state)
        number = ledger.champion()
        if number is None:
            number = export_trending(state, Config.from_json(config), now, git_commit()).number
            ledger.append("BOOTSTRAP", {"release": number}, now, expected_champion=None)
        record.info = {"release": number}
        return number
