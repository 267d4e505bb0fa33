#!/usr/bin/env python3
"""Makes the vectors of 1,000 real texts that the encoder's tests compare with.

The reference is the model in sentence-transformers on PyTorch: float32 on the processor, one text a batch, so
that nothing is padded. The texts are the beginnings of English, Japanese and other documents of the test data,
of 1 to 512 tokens. They stay where they are: what is written names them.

How the files in kernels/encoder/tests/data were made, in the environment of the embedding benchmark, from the test
data's folder (VECTIDE_TEST_DATA):

    scripts/embed_peers.sh install
    target/embed-peers/environment/bin/python scripts/golden_real_texts.py target/embed-peers/model \
        "$VECTIDE_TEST_DATA" kernels/encoder/tests/data

Writes real.tsv, a line for each text: the file, the line in it (from 0), how many characters of it, and how many
tokens they are at most 512 of; and real.zst, the vectors: one of each text at 512 tokens, then one at 256, the
model's own limit, of each that has more. A vector is a scale (f32) and 384 integers of 12 bits. The scales
come first, then the low bytes of all integers, then their high ones (little-endian, two's complement): a rounding
costs a cosine of some 1e-7, and the file has 1.3 bytes a component.
"""

import io
import json
import os
import sys
from pathlib import Path

import numpy as np
import zstandard

LIMIT = 2047
PROCESSES = ["cpu", "cpu"]
# File, condition on the row, texts, characters of the longest: what fills 512 tokens in that language.
CHOICE = [
    ("scifact/corpus.jsonl.zst", "", 200, 3000),
    ("squad-newwiki/corpus.jsonl.zst", "", 150, 2400),
    ("squad-dev/queries.jsonl.zst", "", 100, 200),
    ("jaquad-dev/articles.jsonl.zst", "", 100, 900),
    ("jaquad-dev/corpus.jsonl.zst", "", 100, 600),
    ("otel-docs-changes/events.jsonl.zst", "content/en/", 110, 2200),
] + [
    ("otel-docs-changes/events.jsonl.zst", f"content/{language}/", 30, characters)
    for language, characters in [
        ("ja", 900), ("zh", 900), ("bn", 900), ("uk", 1000), ("es", 1500), ("fr", 1500), ("pt", 1500), ("ro", 1500),
    ]
]


def rows(path):
    with open(path, "rb") as file:
        lines = zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(file)
        yield from map(json.loads, io.TextIOWrapper(lines, "utf-8"))


def text_of(row):
    return row.get("text") or row.get("content")


def choose(data):
    """File, line, characters and text of each."""
    for name, start, count, characters_max in CHOICE:
        candidates = [
            (line, text_of(row)) for line, row in enumerate(rows(data / name))
            if text_of(row) and row.get("path", "").startswith(start)
        ]
        assert len(candidates) >= count, name
        for number in range(count):
            line, text = candidates[number * len(candidates) // count]
            characters = min(1 + number * characters_max // count, len(text))
            yield name, line, characters, text[:characters]


def packed(vectors):
    scales = (np.abs(vectors).max(1) / LIMIT).astype("<f4")
    integers = np.rint(vectors / scales[:, None]).astype("<i2")
    planes = integers.reshape(-1).view(np.uint8).reshape(-1, 2)
    content = scales.tobytes() + planes[:, 0].tobytes() + planes[:, 1].tobytes()
    return zstandard.ZstdCompressor(level=19).compress(content)


def main():
    # Threads that wait for each other take longer than processes of one, on a machine that does other things.
    os.environ["OMP_NUM_THREADS"] = "1"
    from sentence_transformers import SentenceTransformer

    model_folder, data, out = map(Path, sys.argv[1:])
    model = SentenceTransformer(str(model_folder), device="cpu", local_files_only=True)
    chosen = list(choose(data))
    texts = [text for *_, text in chosen]
    model.max_seq_length = 512
    tokens = [len(model.tokenizer(text, truncation=True, max_length=512)["input_ids"]) for text in texts]
    vectors = [model.encode(texts, batch_size=1, device=PROCESSES, chunk_size=50)]
    long = [text for text, count in zip(texts, tokens) if count > 256]
    model.max_seq_length = 256
    vectors.append(model.encode(long, batch_size=1, device=PROCESSES, chunk_size=50))
    lines = (f"{name}\t{line}\t{characters}\t{count}\n" for (name, line, characters, _), count in zip(chosen, tokens))
    (out / "real.tsv").write_text("".join(lines))
    (out / "real.zst").write_bytes(packed(np.concatenate(vectors)))
    print(f"{len(texts)} texts of {min(tokens)} to {max(tokens)} tokens, {len(long)} of them of more than 256")


if __name__ == "__main__":
    main()
