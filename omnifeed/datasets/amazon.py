"""Amazon 2014 5-core sequences, leave-one-out: `<Category>.txt` and `<Category>_item2attributes.json`.

The source has an order and no times. Times here are synthetic: the last item of each user stands at noon of the last
day, the one before at noon of the day before it, and earlier ones every SPACING_US before that: one test day and one
validation day are exactly the leave-one-out protocol.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa

from omnifeed.config import Config
from omnifeed.datasets.source import DAY_US, LOG_ARM, Source, folder_of
from omnifeed.errors import InputError
from omnifeed.tables import Tables, conform

SCENARIO = "purchase"
SPACING_US = 6 * 3_600_000_000
#: Midnight after the synthetic last day: 2014-08-01, the month after the reviews end.
END_TS = 1_406_851_200_000_000
_CATEGORY_LEVELS = 3


def load(config: Config) -> Source:
    """One event an interaction: click and order are true (a review follows a purchase), all else unknown.

    Categories are made from attribute ids, the most general (most frequent) first: the source does not say which
    attribute is a category and which a brand.

    Raises:
        InputError: a file is missing or malformed.
    """
    folder = folder_of(config)
    attribute_files = sorted(folder.glob("*_item2attributes.json"))
    if len(attribute_files) != 1:
        raise InputError(
            f"{folder} holds {len(attribute_files)} files *_item2attributes.json.", "Give the folder of one category."
        )
    name = attribute_files[0].name.removesuffix("_item2attributes.json")
    sequences = read_sequences(folder / f"{name}.txt")
    attributes = read_attributes(attribute_files[0])
    events = _events(sequences, config.data.observation_delay_s * 1_000_000)
    items = sorted({item for _, sequence in sequences for item in sequence})
    tables = Tables(
        events=conform(events, "events", f"{name}.txt"),
        items=conform(_items(items, attributes, int(events["ts"].to_numpy().min())), "items", f"{name}.txt"),
        users=conform(pa.table({"user_id": [user for user, _ in sequences]}), "users", f"{name}.txt"),
    )
    return Source(tables, frozenset(), END_TS, f"Amazon 2014 5-core {name}, leave-one-out, synthetic ordinal times")


def read_sequences(path: Path, *, users: bool = True) -> list[tuple[str, list[str]]]:
    """Lines of numbers: a user and its items, oldest first; without users, a session's items.

    Returns:
        (user, items); a session's user is its line's number.

    Raises:
        InputError: the file cannot be read, holds no line, or a line is malformed or the second of its user.
    """
    wanted = "`user item item ...`" if users else "`item item ...`"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.", f"Give a file of lines {wanted}.") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not text: {error}.", f"Give a file of lines {wanted}.") from None
    first: dict[str, int] = {}
    rows: list[tuple[str, list[str]]] = []
    for number, line in enumerate(lines, start=1):
        row = line.split() if users else [str(number), *line.split()]
        if len(row) < 2 or not all(value.isascii() and value.isdigit() for value in row):
            what = "a user and its items" if users else "a session's items"
            raise InputError(f"{path}: line {number} is not {what}.", f"Write {wanted}, all of them numbers.")
        if first.setdefault(row[0], number) != number:
            raise InputError(
                f"{path}: line {number} is user {row[0]} again, after line {first[row[0]]}.",
                "Put all items of a user on one line, or read the file as sessions.",
            )
        rows.append((row[0], row[1:]))
    if not rows:
        raise InputError(f"{path} holds no sequences.", "Give a log with at least one user.")
    return rows


def read_attributes(path: Path) -> dict[str, list[str]]:
    """Attributes by item, the most frequent first.

    Raises:
        InputError: the file is missing or malformed.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        attributes = {str(item): [str(value) for value in values] for item, values in raw.items()}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise InputError(f"{path} is not a JSON object of lists: {error}.", "Give the file of the source.") from None
    frequency = Counter(value for values in attributes.values() for value in values)
    return {item: sorted(values, key=lambda value: (-frequency[value], value)) for item, values in attributes.items()}


def _events(sequences: list[tuple[str, list[str]]], delay_us: int) -> pa.Table:
    lengths = np.array([len(sequence) for _, sequence in sequences])
    user = np.repeat(np.arange(len(sequences)), lengths)
    place = np.arange(len(user)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    back = lengths[user] - 1 - place  # 0: the last item
    noon = END_TS - DAY_US // 2
    ts = np.where(back < 2, noon - back * DAY_US, END_TS - 2 * DAY_US - (back - 1) * SPACING_US)
    count = len(user)
    names = [f"{sequences[u][0]}-{k}" for u, k in zip(user, place, strict=True)]
    yes = np.ones(count, bool)
    return pa.table(
        {
            "event_id": names,
            "request_id": names,
            "user_id": [sequences[u][0] for u in user],
            "item_id": [item for _, sequence in sequences for item in sequence],
            "scenario": pa.repeat(SCENARIO, count),
            "ts": ts,
            **dict.fromkeys(("served", "viewed", "click", "order"), yes),
            "arm": pa.repeat(LOG_ARM, count),
            "observed_ts": ts + delay_us,
        }
    )


def _items(items: list[str], attributes: dict[str, list[str]], created: int) -> pa.Table:
    paths = ["/".join(f"a{value}" for value in attributes.get(item, [])[:_CATEGORY_LEVELS]) or None for item in items]
    return pa.table(
        {
            "item_id": items,
            "kind": pa.repeat("product", len(items)),
            "category": pa.array(paths, pa.string()),
            "created_ts": pa.repeat(created, len(items)),  # not published: the first synthetic time
            "policy": pa.repeat("ALLOW", len(items)),
        }
    )
