"""Ten thousand requests as a hostile caller may send them, each input of `recommend` drawn at random, in process.

The inputs and what every answer promises are those of tests/serving/test_fuzz.py, which asks a few hundred.

    python benchmarks/fuzz.py [--requests 10000] [--seed 0]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from record import ROOT, row, write_result

sys.path.insert(0, str(ROOT / "tests"))

from export.releases import NOW, copied, experiment
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from serving.fuzzing import UNLIMITED, answered, tensors
from serving.recommender import Server
from training.synthetic import SCENARIOS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    home = copied(Path(tempfile.mkdtemp(prefix="omnifeed-fuzz-")) / "home")
    experiment(home, ("champion", "1", 0.5), ("challenger", "0", 0.5))
    server = Server(home, UNLIMITED)
    assert server.live.refresh()
    catalogue = server.live.state.catalogue
    assert catalogue is not None
    ids = [str(item) for item in catalogue.texts["item_id"]]
    said: Counter[str] = Counter()
    begun = time.perf_counter()

    def eligible(now: int) -> set[str]:
        shown = catalogue.eligible(now)
        return {item for number, item in enumerate(ids) if shown[number]}

    @seed(options.seed)
    @settings(
        max_examples=options.requests,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(data=st.data())
    def ask(data: st.DataObject) -> None:
        sent = data.draw(tensors(NOW, ids, [*SCENARIOS, "elsewhere"]))
        said[answered(server.recommender.recommend, sent, eligible, NOW)] += 1

    ask()
    rows = [row("requests", count, outcome=outcome) for outcome, count in sorted(said.items())]
    rows.append(row("requests", 0, outcome="anything else, or an answer that broke a promise"))
    rows.append(row("s", time.perf_counter() - begun, outcome="all"))
    print({**said})
    write_result(
        "fuzz",
        "Random inputs of `recommend`: what became of each request",
        rows,
        data="tests' home: 2 releases, a small catalogue; every input drawn by hypothesis, valid and not",
        seeds=[options.seed],
        notes=[
            "In process, from tensors to tensors; gRPC and Triton's own checks of shapes and types come before.",
            "Promises: at most k items, each once, eligible at the request's time, none excluded, only the caller's "
            "candidates where there are any, finite scores, parallel lists; an error is InputError or "
            "UnavailableError with a problem and an action. The run stops at the first that is broken.",
        ],
        libraries=("numpy", "hypothesis"),
    )


if __name__ == "__main__":
    main()
