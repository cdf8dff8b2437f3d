"""Act: write the decision to the ledger; only PROMOTE moves the champion."""

from omnifeed.components.step import step


@step
def act(home: str, run_id: str, now: int, verdict: str) -> str:
    """Return the champion after the act."""
    import json
    from pathlib import Path

    from omnifeed.components.record import recording
    from omnifeed.experiment.decision import Ruling
    from omnifeed.experiment.release_control import act as apply
    from omnifeed.home import Home

    with recording(home, run_id, "act") as record:
        state = Home(Path(home))
        entry = apply(state, Ruling.of(json.loads((record.folder / "decision.json").read_text(encoding="utf-8"))), now)
        record.info = {"verdict": verdict, "kind": entry.kind, "champion": entry.champion}
        return entry.champion
