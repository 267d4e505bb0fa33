"""Pathway on the benchmarks' work: a log of documents followed, embedded by feature hashing of words,
held in its vector index and asked over HTTP.

    pathway_store.py LOG PORT usearch|brute COMMIT_MS

The log is followed by a connector of our own that looks every 5 ms: Pathway's own file connector looks
less often, and its freshness is not to be judged by that. One document is one chunk, as on our side.
"""

import json
import sys
import time
import zlib

import numpy as np
import pathway as pw
from pathway.stdlib.indexing import BruteForceKnnFactory, UsearchKnnFactory
from pathway.xpacks.llm.document_store import DocumentStore
from pathway.xpacks.llm.servers import DocumentStoreServer

DIMENSIONS = 384
FOLLOW_SECONDS = 0.005

log, port, kind, commit_ms = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])


class Document(pw.Schema):
    name: str = pw.column_definition(primary_key=True)
    text: str


class Log(pw.io.python.ConnectorSubject):
    def run(self):
        with open(log) as lines:
            rest = ""
            while True:
                line = lines.readline()
                if not line:
                    time.sleep(FOLLOW_SECONDS)
                    continue
                rest += line
                if rest.endswith("\n"):
                    document = json.loads(rest)
                    self.next(name=document["id"], text=document["text"])
                    rest = ""


@pw.udf(deterministic=True)
def embed(text: str, **_) -> np.ndarray:
    vector = np.zeros(DIMENSIONS, dtype=np.float32)
    for word in text.split():
        hashed = zlib.crc32(word.encode())
        vector[(hashed >> 1) % DIMENSIONS] += 1.0 if hashed & 1 else -1.0
    length = np.linalg.norm(vector)
    return vector / length if length > 0 else vector


documents = pw.io.python.read(Log(session_type="upsert"), schema=Document, autocommit_duration_ms=commit_ms)
documents = documents.select(
    data=pw.apply_with_type(lambda text: text.encode(), bytes, pw.this.text),
    _metadata=pw.apply_with_type(lambda name: pw.Json({"path": name}), pw.Json, pw.this.name),
)
factory = {"usearch": UsearchKnnFactory, "brute": BruteForceKnnFactory}[kind]
store = DocumentStore(
    documents, retriever_factory=factory(dimensions=DIMENSIONS, embedder=embed)
)
DocumentStoreServer("127.0.0.1", port, store).run(with_cache=False)
