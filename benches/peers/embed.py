"""One peer of the embedding benchmark: texts to unit vectors, as its library is best used.

    embed.py LIBRARY PRECISION THREADS MODEL_FOLDER

It prints its version when it is ready. Then each line on standard input is JSON, {"texts": a file with a JSON
list, "vectors": a file to write or null}, and is answered by a line {"seconds", "processor_seconds"}: what all
texts took from strings to vectors, tokenization included. The vectors are little-endian f32, 384 a text, in the
texts' order.

Invariant: whoever does not pad by itself gets texts of like length together, BATCH at a time, the longest first;
with one thread nothing runs beside the computing thread; reading, writing and warming up are not counted.
"""

import importlib.metadata
import json
import os
import sys
import time
from pathlib import Path

LIBRARY, PRECISION, THREADS, MODEL = sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4])
# Before anything is imported that makes its threads by them.
os.environ.update(
    OMP_NUM_THREADS=str(THREADS), RAYON_NUM_THREADS=str(THREADS), HF_HUB_OFFLINE="1",
    TOKENIZERS_PARALLELISM="true" if THREADS > 1 else "false",
)

import numpy as np  # noqa: E402

BATCH, TOKENS_MAX = 32, 256


class SentenceTransformers:
    package = "sentence-transformers"

    def __init__(self):
        import torch
        from sentence_transformers import SentenceTransformer

        torch.set_num_threads(THREADS)
        self.model = SentenceTransformer(str(MODEL), device="cpu", local_files_only=True)

    def embed(self, texts):
        # It sorts by length itself.
        return self.model.encode(texts, batch_size=BATCH, show_progress_bar=False)


class Batches:
    """Tokenized, sorted and padded batches, for libraries that only compute."""

    def __init__(self):
        from tokenizers import Tokenizer

        self.tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
        self.tokenizer.enable_truncation(TOKENS_MAX)
        self.tokenizer.no_padding()

    def of(self, texts):
        encoded = self.tokenizer.encode_batch_fast(texts)
        order = sorted(range(len(texts)), key=lambda at: -len(encoded[at]))
        for start in range(0, len(order), BATCH):
            places = order[start : start + BATCH]
            tokens = len(encoded[places[0]])
            ids = np.zeros((len(places), tokens), np.int64)
            mask = np.zeros_like(ids)
            for row, place in enumerate(places):
                of_text = encoded[place].ids
                ids[row, : len(of_text)] = of_text
                mask[row, : len(of_text)] = 1
            yield places, {"input_ids": ids, "attention_mask": mask}


class OnnxRuntime:
    package = "onnxruntime"

    def __init__(self):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = THREADS
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        graph = str(MODEL / os.environ.get("VECTIDE_EMBED_PEERS_GRAPH", "fused.onnx"))
        self.session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        self.batches = Batches()

    def embed(self, texts):
        vectors = np.empty((len(texts), 384), np.float32)
        for places, inputs in self.batches.of(texts):
            vectors[places] = self.session.run(None, inputs)[0]
        return vectors


class OpenVino:
    package = "openvino"

    def __init__(self):
        import openvino

        core = openvino.Core()
        hints = {
            "PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_NUM_THREADS": THREADS,
            "INFERENCE_PRECISION_HINT": PRECISION, "NUM_STREAMS": THREADS,
        }
        compiled = core.compile_model(core.read_model(MODEL / "plain.onnx"), "CPU", hints)
        self.queue = openvino.AsyncInferQueue(compiled, THREADS)
        self.queue.set_callback(self.keep)
        self.batches = Batches()

    def keep(self, request, places):
        self.vectors[places] = request.get_output_tensor(0).data

    def embed(self, texts):
        self.vectors = np.empty((len(texts), 384), np.float32)
        for places, inputs in self.batches.of(texts):
            self.queue.start_async(inputs, places)
            if THREADS == 1:
                self.queue.wait_all()
        self.queue.wait_all()
        return self.vectors


LIBRARIES = {"sentence-transformers": SentenceTransformers, "onnxruntime": OnnxRuntime, "openvino": OpenVino}


def answer(library, asked):
    texts = json.loads(Path(asked["texts"]).read_text())
    start, processor_start = time.perf_counter(), time.process_time()
    vectors = library.embed(texts)
    seconds, processor_seconds = time.perf_counter() - start, time.process_time() - processor_start
    if asked["vectors"]:
        np.ascontiguousarray(vectors, "<f4").tofile(asked["vectors"])
    return {"seconds": seconds, "processor_seconds": processor_seconds}


def main():
    kind = LIBRARIES[LIBRARY]
    library = kind()
    print(json.dumps({"version": importlib.metadata.version(kind.package)}), flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(library, json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
