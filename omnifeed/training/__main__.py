"""`torchrun ... -m omnifeed.training TRAINING_SET OUT CONFIG.json [FORMER]`: one process of a training on machines.

CONFIG.json is what `Config.to_json` writes and every pipeline run carries as its `config`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from omnifeed.config import Config
from omnifeed.errors import OmnifeedError
from omnifeed.training.loop import train


def main(arguments: list[str]) -> None:
    """Train, or exit with the sentence and the code of what went wrong."""
    if len(arguments) not in (3, 4):
        sys.exit(__doc__)
    training_set, out, config, *former = (Path(argument) for argument in arguments)
    try:
        settings = Config.from_json(config.read_text(encoding="utf-8"))
        train(training_set, out, settings, former=former[0] if former else None)
    except OmnifeedError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main(sys.argv[1:])
