"""What a newcomer sees: `omnifeed run` in a fresh home, with its time, memory, verdict and effects."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from record import row, write_result

RUNS = 1


def main() -> None:
    rows, notes = [], []
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        for number in range(1, RUNS + 1):
            begun = time.monotonic()
            done = subprocess.run(
                [str(Path(sys.executable).parent / "omnifeed"), "run", "--json"],
                env={**os.environ, "OMNIFEED_HOME": str(home)},
                check=True,
                capture_output=True,
                text=True,
            )
            outcome = json.loads(done.stdout)
            run = f"run {number}"
            print("\n".join(outcome["summary"]), f"{outcome['verdict']}: {outcome['paragraph']}", sep="\n\n")
            rows.append(row("wall time, s", round(time.monotonic() - begun, 1), run=run))
            decision = json.loads((home / "runs" / outcome["run"] / "decision.json").read_text())
            for each in decision["metrics"]:
                if each["scenario"] is None and each["relative"] is not None:
                    rows.append(
                        row(each["title"] + ", relative effect", each["relative"], each["low"], each["high"], run=run)
                    )
            for path in sorted((home / "runs" / outcome["run"] / "steps").glob("*.json")):
                step = json.loads(path.read_text())
                if not step["step"].startswith("end_of"):
                    rows.append(row(f"{step['step']}, s", step["seconds"], run=run))
            sent = json.loads((home / "runs" / outcome["run"] / "steps" / "traffic.json").read_text())["info"][
                "traffic"
            ]
            rows.append(row("recommend p50, ms", sent["p50_ms"], run=run))
            rows.append(row("recommend p99, ms", sent["p99_ms"], run=run))
            notes.append(f"{run}: {outcome['verdict']}. {outcome['paragraph']}")
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
        rows.append(row("peak memory of the largest process, GiB", round(peak, 2), run="both"))
    notes.append("Intervals are 90 %, two-sided: each end is a one-sided 5 % bound. The market is simulated.")
    notes.append(
        "Latency is of two clients against two instances on the same two cores, the market's own work beside them."
    )
    write_result("demo", "The demo", rows, data="the simulated market, law default", seeds=[7], notes=notes)


if __name__ == "__main__":
    main()
