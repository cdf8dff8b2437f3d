"""The networks that docs/decisions/0008 compares: what each learns from, and what of the whole it does without."""

from __future__ import annotations

import dataclasses
import json
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from omnifeed.config import Config
from omnifeed.features.spec import of
from omnifeed.home import folder_atomic, write_json
from omnifeed.tables import read_parquet

Rows = Callable[[pa.Table], pa.Table]
SCENARIOS = ("livestream", "short_video", "search")
STARVED = "livestream"  # a scenario that comes last to a platform, and starts with little
SHARES = (1, 5, 20)  # per cent of its users whose training rows are kept


@dataclass(frozen=True, slots=True)
class Variant:
    """One network."""

    name: str
    model: dict[str, Any] = field(default_factory=dict)  # fields of the config's section
    training: dict[str, Any] = field(default_factory=dict)
    rows: tuple[Rows, ...] = ()  # what becomes of the training set's rows, one after the other
    blind: bool = False  # to scenarios: no embedding, no gate, no feature of theirs
    asked_blind: bool = False  # measured on its own rows: what it does without is missing in the test, too

    def config(self, base: Config, seed: int) -> Config:
        """The base with this variant's fields and a seed."""
        model = dataclasses.replace(base.model, **self.model)
        training = dataclasses.replace(base.training, **self.training, seed=seed)
        return dataclasses.replace(base, model=model, training=training)

    @property
    def folder(self) -> str:
        """A name for the disk."""
        return "".join(letter if letter.isalnum() else "-" for letter in self.name)

    def training_set(self, base: Path, out: Path) -> Path:
        """The training set that it learns from; made once. Every one keeps all test rows."""
        if not self.rows and not self.blind:
            return base
        if out.is_dir():
            return out
        table = read_parquet(base / "rows.parquet")
        for change in self.rows:
            table = change(table)
        meta = json.loads((base / "meta.json").read_text(encoding="utf-8"))
        if self.blind:
            meta["encode"]["scenarios"] = []
            table = table.drop_columns([feature.name for feature in of("item_scenario_daily", "scenario_daily")])
        with folder_atomic(out) as temporary:
            for path in base.iterdir():
                if path.name not in ("rows.parquet", "meta.json"):
                    os.link(path, temporary / path.name)
            pq.write_table(table, temporary / "rows.parquet")
            write_json(temporary / "meta.json", meta)
        return out


def only(scenario: str) -> Rows:
    """Of training and validation the rows of one scenario; histories stay whole."""
    return lambda table: table.filter(pc.or_(pc.equal(table["split"], "test"), pc.equal(table["scenario"], scenario)))


def starved(scenario: str, per_cent: int) -> Rows:
    """Of a scenario's training rows those of so many in a hundred users, drawn by a digest of their id."""

    def change(table: pa.Table) -> pa.Table:
        users = table["user_id"].to_pylist()
        drawn = pa.array(np.array([zlib.crc32(f"starved-{user}".encode()) % 100 < per_cent for user in users]))
        elsewhere = pc.or_(pc.not_equal(table["split"], "train"), pc.not_equal(table["scenario"], scenario))
        return table.filter(pc.or_(elsewhere, drawn))

    return change


def without_query(table: pa.Table) -> pa.Table:
    """Nobody has typed anything."""
    place = table.column_names.index("query")
    return table.set_column(place, "query", pa.nulls(table.num_rows, table.schema.field("query").type))


UNIFIED = Variant("unified")
RETRIEVAL = Variant("retrieval alone", training={"ranking_weight": 0.0})
RANKING = Variant("ranking alone", training={"retrieval_weight": 0.0})
BLIND = Variant("pooled", blind=True)
PLAIN = Variant("pooled, scenario a plain feature", model={"experts": 1})
NO_QUERY = Variant("without the query", rows=(without_query,), asked_blind=True)
LONGER = {"epochs": 12}  # of a third of the rows or less: as many steps as the whole takes in its four
SEPARATE = {one: Variant(f"{one} alone", training=LONGER, rows=(only(one),)) for one in SCENARIOS}
SHARED_SHARE = {share: Variant(f"unified, {share} %", rows=(starved(STARVED, share),)) for share in SHARES}
ALONE_SHARE = {
    share: Variant(f"{STARVED} alone, {share} %", training=LONGER, rows=(only(STARVED), starved(STARVED, share)))
    for share in SHARES
}
VARIANTS = (
    *(UNIFIED, RETRIEVAL, RANKING, BLIND, PLAIN, NO_QUERY),
    *(*SEPARATE.values(), *SHARED_SHARE.values(), *ALONE_SHARE.values()),
)
