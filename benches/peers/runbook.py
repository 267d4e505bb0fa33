"""The runbook of the index benchmark with other indexes: rows come in steps, expire and are searched meanwhile.

    runbook.py

Reads `runbook.json`, `peer-rows.f32` and `peer-queries.f32`, which the index benchmark leaves in
target/index-benchmark (or the folder VECTIDE_INDEX_PEERS_DIR) with VECTIDE_INDEX_PEERS=1 and at least as many
rows as the runbook has. Prints recall@10 after each search, for hnswlib (deleted rows are marked, their places
used again), FAISS's HNSW (which can't delete: deleted rows are filtered out of ten times as many hits) and
FAISS's IVF,PQ with re-ranking, trained on the rows of the first step.

Invariant: the same steps, rows, queries and true hits as Vectide's; one thread.
"""

import json
import os
from pathlib import Path

import faiss
import hnswlib
import numpy as np

DIMENSIONS, K = 384, 10
# What the peers script comes to for a recall of 0.98 on these vectors at rest.
EF, NPROBE, DEPTH = 128, 48, 400


class Hnswlib:
    name = f"hnswlib, ef {EF}"

    def __init__(self, rows):
        self.index = hnswlib.Index("ip", DIMENSIONS)
        self.index.init_index(len(rows), M=16, ef_construction=128, allow_replace_deleted=True)
        self.index.set_ef(EF)
        self.index.set_num_threads(1)
        self.rows = rows

    def insert(self, numbers):
        self.index.add_items(self.rows[numbers], numbers, replace_deleted=True)

    def delete(self, numbers):
        for number in numbers:
            self.index.mark_deleted(number)

    def search(self, queries):
        return self.index.knn_query(queries, K)[0]


class FaissHnsw:
    name = f"FAISS HNSW16, ef {EF}"

    def __init__(self, rows):
        self.index = faiss.IndexHNSWFlat(DIMENSIONS, 16, faiss.METRIC_INNER_PRODUCT)
        self.index.hnsw.efConstruction = 128
        self.index.hnsw.efSearch = EF
        self.rows, self.live = rows, np.zeros(len(rows), bool)

    def insert(self, numbers):
        # Rows come in the order of their numbers, which are then the index's own.
        self.index.add(self.rows[numbers])
        self.live[numbers] = True

    def delete(self, numbers):
        self.live[numbers] = False

    def search(self, queries):
        found = self.index.search(queries, K * 10)[1]
        return [[row for row in hits if row >= 0 and self.live[row]][:K] for hits in found]


class FaissIvf:
    name = f"FAISS IVF632,PQ96x4fs re-ranked, nprobe {NPROBE}"

    def __init__(self, rows):
        self.rows, self.live, self.index = rows, np.zeros(len(rows), bool), None

    def insert(self, numbers):
        if self.index is None:
            self.index = faiss.index_factory(DIMENSIONS, "IVF632,PQ96x4fs", faiss.METRIC_INNER_PRODUCT)
            self.index.train(self.rows[numbers])
            self.index.nprobe = NPROBE
        self.index.add(self.rows[numbers])
        self.live[numbers] = True

    def delete(self, numbers):
        self.live[numbers] = False

    def search(self, queries):
        selector = faiss.IDSelectorBitmap(np.packbits(self.live, bitorder="little"))
        parameters = faiss.SearchParametersIVF(sel=selector, nprobe=NPROBE)
        found = self.index.search(queries, DEPTH, params=parameters)[1]
        best = []
        for query, hits in zip(queries, found):
            hits = hits[hits >= 0]
            best.append(hits[np.argsort(-(self.rows[hits] @ query))[:K]])
        return best


def run(peer, book, queries):
    truth, recalls = iter(book["truth"]), []
    for step in book["steps"]:
        if step["delete"]:
            peer.delete(step["delete"])
        peer.insert(np.arange(*step["insert"]))
        if step["search"]:
            wanted = [next(truth) for _ in queries]
            found = peer.search(queries)
            hits = sum(len(set(map(int, hits)) & set(best)) for hits, best in zip(found, wanted))
            recalls.append(hits / sum(map(len, wanted)))
    return recalls


def main():
    beside = Path(__file__).parents[2] / "target/index-benchmark"
    folder = Path(os.environ.get("VECTIDE_INDEX_PEERS_DIR", beside))
    book = json.loads((folder / "runbook.json").read_text())
    count = book["steps"][-1]["insert"][1]
    rows = np.fromfile(folder / "peer-rows.f32", "<f4", count * DIMENSIONS).reshape(-1, DIMENSIONS)
    queries = np.fromfile(folder / "peer-queries.f32", "<f4").reshape(-1, DIMENSIONS)
    faiss.omp_set_num_threads(1)
    for kind in (Hnswlib, FaissHnsw, FaissIvf):
        recalls = run(kind(rows), book, queries)
        print(f"{kind.name}: recall@10", *(f"{recall:.4f}" for recall in recalls), flush=True)


if __name__ == "__main__":
    main()
