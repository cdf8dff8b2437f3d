"""What the features room hands to training: a folder, and what its meta.json says.

Standard library and numpy only.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from omnifeed.config import Config
from omnifeed.errors import InputError
from omnifeed.export.encode import DAY_US, EncodeSpec

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")


def split_ends(config: Config, now: int) -> tuple[int, int, int]:
    """The midnights at which train, valid and test end: the last is the one at or before `now`."""
    test_end = now - now % DAY_US
    valid_end = test_end - config.data.test_days * DAY_US
    return valid_end - config.data.valid_days * DAY_US, valid_end, test_end


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """A folder of rows.parquet, history.parquet, items.parquet, users.parquet, item_features.parquet and meta.json.

    Times are UTC microseconds. A request belongs to train before `train_end`, to valid before `valid_end`, to test
    before `test_end`, all of them midnights.
    """

    folder: Path
    window: tuple[int, int]  # ts of the first and the last row
    train_end: int
    valid_end: int
    test_end: int
    now: int
    scenarios: tuple[str, ...]
    rows: dict[str, int]  # by split
    left_out: dict[str, int]  # seen events that make no row, by reason
    feature_digest: str
    encode: EncodeSpec

    def to_dict(self) -> dict[str, Any]:
        """The content of meta.json."""
        return {
            "window": list(self.window),
            "train_end": self.train_end,
            "valid_end": self.valid_end,
            "test_end": self.test_end,
            "now": self.now,
            "scenarios": list(self.scenarios),
            "rows": self.rows,
            "left_out": self.left_out,
            "feature_digest": self.feature_digest,
            "encode": self.encode.to_dict(),
        }

    @staticmethod
    def load(folder: Path) -> TrainingSet:
        """Read meta.json.

        Raises:
            InputError: it is missing or malformed.
        """
        path = folder / "meta.json"
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            return TrainingSet(
                folder=folder,
                **{
                    **raw,
                    "window": tuple(raw["window"]),
                    "scenarios": tuple(raw["scenarios"]),
                    "encode": EncodeSpec.from_dict(raw["encode"]),
                },
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{path} is not a training set's: {error!r}.", "Run the materialize step again."
            ) from error
