"""Approximate retrieval over a million items: faiss, hnswlib and usearch against exact, one thread.

    python benchmarks/ann.py vectors --home HOME --data DIR      # keys of a trained release, and users' vectors
    python benchmarks/ann.py measure ENGINE --data DIR [--items N]    # ENGINES, or serving; a process each
    python benchmarks/ann.py report --data DIR                   # prints the table and writes results/ann.json

HOME is what `make demo` leaves. The items are made of the words, categories, creators and prices of its catalogue, and
go through the item encoder of its last network release; the users have histories of ten of them. Recall is against the
exact best of what the request may be shown: all, 60 % (sold out, off air, blocked at random) or 5 %. Libraries that
take no filter fetch more until enough is left, which is what serving would have to do with them.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]

ITEMS, WIDTH, QUERIES, HISTORY, K, SEED = 1_000_000, 64, 300, 10, 200, 11
ASKING = 150  # of the users
SHARES = (1.0, 0.6, 0.05)  # of the items that the request may be shown
BATCH = 4_096


def vectors(home: Path, data: Path) -> None:
    """Encode made-up items and users as a trained release does; into `data`."""
    import onnxruntime

    from omnifeed.export.encode import EncodeSpec, UserRow, encode_items, encode_request
    from omnifeed.export.release import load_release
    from omnifeed.home import Home
    from omnifeed.quality.lake import accepted
    from omnifeed.tables import read_parquet

    rng = np.random.default_rng(SEED)
    folder = max(
        (path for path in Home(home).releases.iterdir() if path.name.isdigit()), key=lambda path: int(path.name)
    )
    release = load_release(folder)
    spec = EncodeSpec.from_dict(release.encode)
    items = read_parquet(accepted(Home(home)) / "items.parquet").to_pylist()
    rows = rng.integers(0, len(items), ITEMS)
    others = rng.integers(0, len(items), ITEMS)
    by_category: dict[str, list[list[str]]] = {}
    for item in items:
        by_category.setdefault(item["category"], []).append((item["title"] or "").split())

    def column(start: int) -> dict[str, list[Any]]:
        chosen = [items[row] for row in rows[start : start + BATCH]]
        titles = []
        for item, other in zip(chosen, others[start : start + BATCH].tolist(), strict=True):
            words = by_category[item["category"]]
            half = words[other % len(words)]
            own = (item["title"] or "").split()
            titles.append(" ".join([*own[: max(1, len(own) // 2)], *half[len(half) // 2 :]]))
        return {
            "item_id": [f"made-{start + n}" for n in range(len(chosen))],
            "author_id": [f"author-{n % 50_000}" for n in others[start : start + BATCH].tolist()],
            "kind": [item["kind"] for item in chosen],
            "category": [item["category"] for item in chosen],
            "title": titles,
            "price": [item["price"] for item in chosen],
        }

    def session(part: str) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        path = next(folder.glob(f"models/{part}_*/1/model.onnx"))
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    encoder, keys, raw = session("item_encoder"), [], []
    for start in range(0, ITEMS, BATCH):
        vec, key = encoder.run(["item_vec", "item_key"], encode_items(column(start), spec))
        keys.append(key)
        raw.append(vec)
    vec = np.concatenate(raw)
    user_encoder, users = session("user_encoder"), []
    now = 1_800_000_000_000_000
    for query in range(QUERIES):
        centre = items[int(rng.integers(len(items)))]["category"]
        mine = [row for row in rng.integers(0, ITEMS, 400).tolist() if items[rows[row]]["category"] == centre]
        history = (mine + rng.integers(0, ITEMS, HISTORY).tolist())[:HISTORY]
        ids = [f"made-{row}" for row in history]
        row = UserRow({}, ids, [2] * HISTORY, [spec.scenarios[0]] * HISTORY, [now - n for n in range(HISTORY, 0, -1)])
        scenario = spec.scenarios[query % len(spec.scenarios)]
        inputs = encode_request(f"u{query}", scenario, None, now, row, {item: n for n, item in enumerate(ids)}, spec)
        inputs["hist_vec"] = vec[history][inputs.pop("hist_row")]
        del inputs["hist_ts"]
        users.append(user_encoder.run(["user_vec"], inputs)[0][0])
    data.mkdir(parents=True, exist_ok=True)
    np.save(data / "keys.npy", np.concatenate(keys))
    np.save(data / "users.npy", np.stack(users))
    (data / "release.json").write_text(json.dumps({"number": release.number, "git_commit": release.git_commit}))


Search = Callable[[Floats, Bools, int], npt.NDArray[np.int64]]


def fetching_more(ask: Callable[[Floats, int], npt.NDArray[np.int64]]) -> Search:
    """What a library without a filter needs: ask for as many as will be left, twice as many where they are not."""

    def search(user: Floats, mask: Bools, k: int) -> npt.NDArray[np.int64]:
        share, most = np.count_nonzero(mask) / len(mask), len(mask)
        wanted = int(k / share * 1.1) if share < 1 else k
        while True:
            found = ask(user, min(wanted, most))
            left = found[mask[found]][:k]
            if len(left) == k or wanted >= most:
                return left
            wanted *= 2

    return search


def exact(keys: Floats) -> dict[str, Search]:
    def search(user: Floats, mask: Bools, k: int) -> npt.NDArray[np.int64]:
        scores = np.where(mask, keys @ user, -np.inf)
        best = np.argpartition(-scores, k)[:k]
        return best[np.argsort(-scores[best])]

    return {"exact": search}


def faiss_ivf(keys: Floats) -> dict[str, Search]:
    import faiss

    faiss.omp_set_num_threads(1)
    quantizer = faiss.IndexFlatIP(WIDTH)
    lists = int(2 * len(keys) ** 0.5)
    index = faiss.IndexIVFFlat(quantizer, WIDTH, lists, faiss.METRIC_INNER_PRODUCT)
    index.cp.niter, index.cp.max_points_per_centroid = 10, 64
    index.train(keys[np.random.default_rng(SEED).choice(len(keys), 64 * lists, replace=False)])
    index.add(keys)

    def probing(count: int) -> Search:
        def search(user: Floats, mask: Bools, k: int) -> npt.NDArray[np.int64]:
            packed = np.packbits(mask, bitorder="little")
            selector = faiss.IDSelectorBitmap(packed)
            return index.search(user[None], k, params=faiss.SearchParametersIVF(sel=selector, nprobe=count))[1][0]

        return search

    return {f"1/{part} of lists": probing(lists // part) for part in (64, 32, 16, 8, 6, 4)}


def faiss_hnsw(keys: Floats) -> dict[str, Search]:
    import faiss

    faiss.omp_set_num_threads(1)
    index = faiss.IndexHNSWFlat(WIDTH, 16, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = 80
    index.add(keys)

    def searching(ef: int) -> Search:
        def search(user: Floats, mask: Bools, k: int) -> npt.NDArray[np.int64]:
            packed = np.packbits(mask, bitorder="little")
            selector = faiss.IDSelectorBitmap(packed)
            return index.search(user[None], k, params=faiss.SearchParametersHNSW(sel=selector, efSearch=ef))[1][0]

        return search

    return {f"ef {ef}": searching(ef) for ef in (200, 400, 800, 1_600)}


def hnswlib(keys: Floats) -> dict[str, Search]:
    import hnswlib as library

    index = library.Index("ip", WIDTH)
    index.init_index(len(keys), ef_construction=80, M=16, random_seed=SEED)
    index.set_num_threads(1)
    index.add_items(keys, num_threads=1)

    def searching(ef: int) -> Search:
        def ask(user: Floats, wanted: int) -> npt.NDArray[np.int64]:
            index.set_ef(max(ef, wanted))
            return index.knn_query(user[None], wanted, num_threads=1)[0][0].astype(np.int64)

        return fetching_more(ask)

    return {f"ef {ef}": searching(ef) for ef in (200, 400, 800, 1_600)}


def usearch(keys: Floats) -> dict[str, Search]:
    from usearch.index import Index

    index = Index(ndim=WIDTH, metric="ip", dtype="f32", connectivity=16, expansion_add=80, expansion_search=200)
    index.add(np.arange(len(keys)), keys, threads=1)

    def searching(ef: int) -> Search:
        def ask(user: Floats, wanted: int) -> npt.NDArray[np.int64]:
            index.expansion_search = max(ef, wanted)
            return index.search(user, wanted, threads=1).keys.astype(np.int64)

        return fetching_more(ask)

    return {f"ef {ef}": searching(ef) for ef in (200, 400, 800, 1_600)}


ENGINES: dict[str, Callable[[Floats], dict[str, Search]]] = {
    "exact": exact,
    "faiss_ivf": faiss_ivf,
    "faiss_hnsw": faiss_hnsw,
    "hnswlib": hnswlib,
    "usearch": usearch,
}


def peak_gib() -> float:
    """Of this process, so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def stored(data: Path, items: int) -> tuple[Floats, Floats]:
    """The first keys, and the users that ask."""
    keys: Floats = np.load(data / "keys.npy", mmap_mode="r")[:items]
    return np.array(keys), np.load(data / "users.npy")[:ASKING]


def measure(engine: str, data: Path, items: int) -> None:
    """Build one library's index, ask it everything, and leave `<engine>-<items>.json` in `data`."""
    keys, users = stored(data, items)
    rng, before = np.random.default_rng(SEED), peak_gib()
    masks = {share: rng.random(len(keys)) < share for share in SHARES}
    start = time.process_time()
    searches = ENGINES[engine](keys)
    built = time.process_time() - start
    path = data / f"truth-{items}.npz"
    if engine == "exact":
        truth = {
            str(share): np.stack([searches["exact"](user, mask, K) for user in users]) for share, mask in masks.items()
        }
        np.savez(path, **truth)
    rows = []
    with np.load(path) as truths:
        for share, mask in masks.items():
            truth_here = truths[str(share)]
            for setting, search in searches.items():
                times, found = [], []
                for user in users[:20]:
                    search(user, mask, K)
                for user in users:
                    start = time.thread_time()
                    found.append(search(user, mask, K))
                    times.append(time.thread_time() - start)
                pairs = zip(found, truth_here, strict=True)
                recalls = [len(np.intersect1d(one, best)) / len(best) for one, best in pairs]
                p50, p99 = (float(np.percentile(times, q)) * 1e3 for q in (50, 99))
                rows.append({"share": share, "setting": setting, "recall": float(np.mean(recalls))})
                rows[-1] |= {"worst": float(np.min(recalls)), "p50": p50, "p99": p99}
                print(engine, rows[-1], flush=True)
    result = {"build_s": built, "gib": peak_gib(), "vectors_gib": before, "rows": rows}
    (data / f"{engine}-{items}.json").write_text(json.dumps(result))


def serving(data: Path, count: int) -> None:
    """The code that answers users: lists, exact scores and the trend's share in them, against itself without lists."""
    import tempfile

    from omnifeed.config import Config
    from omnifeed.export.catalogue import load_snapshot, write_snapshot
    from omnifeed.export.delta import Change, Delta
    from omnifeed.export.encode import EncodeSpec
    from omnifeed.export.following import applied
    from omnifeed.export.rows import Stack
    from omnifeed.home import Home
    from omnifeed.serving.recommend import retrieve
    from omnifeed.serving.recommend.index import Index
    from omnifeed.serving.recommend.nearest import with_near
    from omnifeed.serving.recommend.texts import Texts

    keys, users = stored(data, count)
    rng = np.random.default_rng(SEED)
    masks = {share: rng.random(len(keys)) < share for share in SHARES}
    trend = np.where(rng.random(count) < 0.05, rng.pareto(1.2, count), 0.0)
    columns: dict[str, Any] = {"kind": "product", "created_ts": 1, "policy": "ALLOW"}
    items = {"item_id": [f"i{n}" for n in range(count)], **{name: [value] * count for name, value in columns.items()}}
    with tempfile.TemporaryDirectory() as folder:
        write_snapshot(Home(Path(folder)), items, {"feed": {"item_scenario_trending": trend}}, 1)
        start = time.process_time()
        catalogue = load_snapshot(Home(Path(folder)))
        loaded = time.process_time() - start
    changes = [Change(f"i{n}", {"price": 1.0} if n % 2 else {"stock": 0}) for n in range(100)]
    following = []
    for _ in range(5):
        start = time.process_time()
        applied(catalogue, [Delta(1, 2, tuple(changes), block=("somebody",))], 1)
        following.append((time.process_time() - start) * 1e3)
    padded = Stack(np.concatenate([np.zeros((1, WIDTH), np.float32), keys]))
    texts = Texts(1).extended(np.zeros((count + 1, 1), np.float32))
    stacks = {"item_vec": padded, "item_key": padded}
    exactly = Index(EncodeSpec.from_config(Config()), catalogue, texts, stacks)
    start = time.process_time()
    nearly = with_near(exactly, 0)
    built = time.process_time() - start
    rows = []
    for share, mask in masks.items():
        for weight in (np.float32(0), np.float32(0.1)):
            times, recalls = [], []
            for user in users[: ASKING // 2]:
                start = time.thread_time()
                found = retrieve.dense(nearly, user, "feed", None, mask, K, weight)
                times.append(time.thread_time() - start)
                best = retrieve.dense(exactly, user, "feed", None, mask, K, weight)
                recalls.append(float(np.isin(best.rows, found.rows).mean()))
            p50, p99 = (float(np.percentile(times, q)) * 1e3 for q in (50, 99))
            rows.append({"share": share, "setting": f"trend {weight:g}", "recall": float(np.mean(recalls))})
            rows[-1] |= {"worst": min(recalls), "p50": p50, "p99": p99}
            print("serving", rows[-1], flush=True)
    found = {"build_s": built, "gib": peak_gib(), "rows": rows, "load_s": loaded, "delta_ms": sorted(following)[2]}
    (data / f"serving-{count}.json").write_text(json.dumps(found))


def report(data: Path) -> None:
    """Print the table, write results/ann.json."""
    from record import row, write_result

    rows = []
    print(f"{'engine':12}{'items':>10}{'setting':>16}{'shown':>7}{'recall@200':>12}{'p50, ms':>9}{'p99, ms':>9}")
    files = sorted(data.glob("*-*.json"), key=lambda path: (int(path.stem.split("-")[1]), path.stem))
    for path in files:
        engine, items = path.stem.split("-")
        found, about = json.loads(path.read_text()), {"engine": engine, "items": int(items)}
        rows.append(row("build, processor s", found["build_s"], **about))
        rows.append(row("peak of the process, GiB", found["gib"], **about, at_most=2))
        if "delta_ms" in found:
            rows.append(row("catalogue: snapshot read, processor s", found["load_s"], **about))
            rows.append(row("catalogue: delta of 100 items applied, processor ms", found["delta_ms"], **about))
        for one in found["rows"]:
            labels = {**about, "setting": one["setting"], "shown": one["share"]}
            rows.append(row("recall@200", one["recall"], low=one["worst"], **labels))
            rows.append(row("p50, ms", one["p50"], **labels))
            rows.append(row("p99, ms", one["p99"], **labels))
            print(
                f"{engine:12}{items:>10}{one['setting']:>16}{one['share']:>7}{one['recall']:>12.4f}"
                f"{one['p50']:>9.2f}{one['p99']:>9.2f}"
            )
        print(f"{engine:12}{items:>10} built in {found['build_s']:.0f} s, process at most {found['gib']:.2f} GiB")
    release = json.loads((data / "release.json").read_text())
    write_result(
        "ann",
        f"Retrieval of {K} among up to {ITEMS:,} items of width {WIDTH}, one thread",
        rows,
        data=f"made-up items of the world's words through the item encoder of the demo's release {release['number']}, "
        f"commit {release['git_commit'][:7]}; {ASKING} users with {HISTORY} clicks each",
        seeds=[SEED],
        notes=[
            "Recall against the exact best among what may be shown; `low` is the worst user's.",
            "hnswlib and usearch take no filter that runs in C++ from Python: they fetch more until enough is left.",
            "`exact` is numpy: one product of the matrix and a partial sort. Each library in a process of its own; its "
            "peak includes the vectors as read (0.24 GiB) and what the library holds besides.",
            "Of the graphs hnswlib was measured up to 200,000 items, usearch and faiss_hnsw at 100,000, none at a "
            "million: the machine was shared.",
            "Times are of the processor, because other programs ran on the machine: what the one thread takes when it "
            "runs. They shared its caches.",
            "`serving` is what answers users: it joins the trend, scores exactly, and where at most 20,000 items may "
            "be shown looks at all of them.",
        ],
        libraries=("faiss-cpu", "hnswlib", "usearch", "numpy"),
    )


def main() -> None:
    """Parse and do."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["vectors", "measure", "report"])
    parser.add_argument("engine", nargs="?", choices=[*ENGINES, "serving"])
    parser.add_argument("--home", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--items", type=int, default=ITEMS, help="measure with the first so many")
    given = parser.parse_args()
    if given.step == "vectors":
        vectors(given.home, given.data)
    elif given.engine == "serving":
        serving(given.data, given.items)
    elif given.step == "measure":
        measure(given.engine, given.data, given.items)
    else:
        report(given.data)


if __name__ == "__main__":
    main()
