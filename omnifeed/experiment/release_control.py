"""Acting on a verdict: the ledger's entries, the champion pointer, the end of the experiment.

Standard library beside the decision itself. Each step can be repeated: a run that was killed between any two of them
and is started again ends in the same state, with each entry once.
"""

from __future__ import annotations

from omnifeed.experiment.decision import Ruling, Verdict
from omnifeed.experiment.deploy import close_experiment
from omnifeed.experiment.ledger import Entry, Ledger
from omnifeed.home import Home


def act(home: Home, decision: Ruling, now: int) -> Entry:
    """Record a decision and do what it says.

    PROMOTE moves the champion to the challenger's release and closes the experiment; REJECT, INVALID and a final HOLD
    close it and keep the champion; a HOLD before the horizon leaves it running.

    Args:
        home: holds ledger and experiments.
        decision: its verdict.
        now: UTC microseconds.

    Returns:
        The PROMOTE entry of a promotion, else the DECISION entry.

    Raises:
        ConflictError: the champion is no longer the one that the challenger was tested against; the experiment stays
            open and the champion where it is.
    """
    ledger = Ledger(home)
    # One final decision an experiment; before the horizon one for each look at the same data.
    key = f"{decision.experiment}:final" if decision.final else f"{decision.experiment}:{decision.digest}"
    entry = ledger.append("DECISION", decision.body, now, once=key)
    if decision.final and entry.body["verdict"] == Verdict.PROMOTE.value:
        entry = ledger.append(
            "PROMOTE",
            {"release": decision.challenger, "experiment": decision.experiment, "reason": decision.paragraph},
            now,
            expected_champion=decision.champion,
            once=decision.experiment,
        )
    if decision.final:
        close_experiment(home, decision.experiment)
    return entry
