#!/usr/bin/env python3
r"""Makes golden vectors of BERT encoders whose weights are a formula.

Real weights of other sizes, poolings and types are too large to keep beside the tests. So each model
here has weights that follow from a tensor's name and an index (`weights` below; the same formula is in
kernels/encoder/tests/support/random_models.rs), and only its small files and the reference's vectors are kept. The
reference is `transformers`' BERT in JAX, float32 on the CPU.

How the folders in kernels/encoder/tests/data/random were made:

    python3 -m venv target/golden
    target/golden/bin/pip install transformers==4.57.6 tokenizers==0.22.2 flax==0.12.8 jax==0.10.2 \
        jaxlib==0.10.2 ml_dtypes==0.6.0 numpy==2.4.6 safetensors==0.8.0
    target/golden/bin/python scripts/golden_random_models.py kernels/encoder/tests/data/random

(Flax models left `transformers` with version 5.) Each folder holds a model's small files, golden.jsonl,
one {"lane", "text", "ids"} a line, and golden.f32, for each line the vector in little-endian 32-bit
floats. tokenizer.json, one for all, lies beside the folders.
"""

import json
import math
import sys
import tempfile
from pathlib import Path

import numpy as np

WORDS = """the of a and to in is that it was for on are as with they at be this from have or by one had not but
what all were when we there can an your which their said if do into has more her two like him see time could no
make than first been its who now people my made over did down only way find use may water long little very after
called just where most know query passage search represent sentence retrieval""".split()

TEXTS = [
    "",
    "a",
    "the water of a long river",
    "What is it that people search for, and where do they find it?",
    "UPPER case, naïve café — don't; 3.14 (see [SEP] below) 日本語かな!",
    "it was the first time that they had been there. " * 3,
    "zzz qqq \u0000 xyz " * 9,
    "all that is said and done, one way or another: " * 40,
]

MODELS = {
    "cls-768": {
        "hidden": 768, "heads": 12, "layers": 2, "epsilon": 1e-12, "positions": 512, "dtype": "F32",
        "part": "", "pooling": "cls", "length": {"max_seq_length": 512},
        "prompts": {"prompts": {"query": "query: ", "passage": "passage: "}}, "normalize": True,
    },
    "mean-1024": {
        "hidden": 1024, "heads": 16, "layers": 1, "epsilon": 1e-5, "positions": 256, "dtype": "F16",
        "part": "bert.", "pooling": "mean", "length": {"max_seq_length": 128},
        "prompts": None, "normalize": True,
    },
    "cls-384": {
        "hidden": 384, "heads": 12, "layers": 3, "epsilon": 1e-12, "positions": 128, "dtype": "BF16",
        "part": "", "pooling": "cls", "length": None,
        "prompts": {"prompts": {"query": "represent this sentence: "}, "default_prompt_name": None},
        "normalize": False,
    },
}

FNV_START, FNV_FACTOR, MASK = 0xCBF29CE484222325, 0x100000001B3, (1 << 64) - 1


def uniform(name, count):
    """`count` numbers in [-0.5, 0.5): FNV-1a of the name, stepped and mixed as SplitMix64 does."""
    seed = FNV_START
    for byte in name.encode():
        seed = (seed ^ byte) * FNV_FACTOR & MASK
    with np.errstate(over="ignore"):
        x = np.uint64(seed) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x = x ^ (x >> np.uint64(31))
    return (x >> np.uint64(40)).astype(np.float64) / (1 << 24) - 0.5


def weights(name, shape):
    """A tensor by its name: embeddings are wide, products keep the size of what they multiply."""
    values = uniform(name, math.prod(shape))
    if len(shape) == 1 and name.endswith(".weight"):
        values = 1 + values / 2
    elif name in ("embeddings.word_embeddings.weight", "embeddings.tok_embeddings.weight"):
        values = values * 4
    elif len(shape) == 2 and name.startswith(("encoder.", "layers.")):
        values = values * 4 / math.sqrt(shape[1])
    return values.reshape(shape).astype(np.float32)


def shapes(config):
    """All tensors of `BertModel` without a pooler."""
    width, inner = config["hidden_size"], config["intermediate_size"]
    yield "embeddings.word_embeddings.weight", (config["vocab_size"], width)
    yield "embeddings.position_embeddings.weight", (config["max_position_embeddings"], width)
    yield "embeddings.token_type_embeddings.weight", (config["type_vocab_size"], width)
    norms = ["embeddings.LayerNorm"]
    for layer in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{layer}"
        for name, outputs, inputs in [
            ("attention.self.query", width, width), ("attention.self.key", width, width),
            ("attention.self.value", width, width), ("attention.output.dense", width, width),
            ("intermediate.dense", inner, width), ("output.dense", width, inner),
        ]:
            yield f"{layer}.{name}.weight", (outputs, inputs)
            yield f"{layer}.{name}.bias", (outputs,)
        norms += [f"{layer}.attention.output.LayerNorm", f"{layer}.output.LayerNorm"]
    for norm in norms:
        yield f"{norm}.weight", (width,)
        yield f"{norm}.bias", (width,)


def rounded(values, dtype):
    """To the type of the file and back."""
    import ml_dtypes

    to = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}[dtype]
    return values.astype(to).astype(np.float32)


def tokenizer():
    """A small BERT tokenizer: letters, a few words, some Japanese."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    letters = [chr(c) for c in range(33, 127) if not chr(c).isupper()]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"] + letters + ["##" + c for c in letters]
    pieces += [word for word in WORDS if len(word) > 1] + list("日本語かな。") + ["##な"]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    made = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    made.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    return made


def small_files(model, config):
    """The files of a sentence-transformers folder, by name."""
    kinds = ["Transformer", "Pooling"] + ["Normalize"] * model["normalize"]
    paths = ["", "1_Pooling", "2_Normalize"]
    yield "config.json", config
    yield "modules.json", [
        {"idx": i, "name": str(i), "path": paths[i], "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    yield "1_Pooling/config.json", {
        "word_embedding_dimension": model["hidden"],
        "pooling_mode_cls_token": model["pooling"] == "cls",
        "pooling_mode_mean_tokens": model["pooling"] == "mean",
        "pooling_mode_max_tokens": False,
        "pooling_mode_mean_sqrt_len_tokens": False,
    }
    yield "tokenizer_config.json", {"model_max_length": 64, "tokenizer_class": "BertTokenizer"}
    if model["length"]:
        yield "sentence_bert_config.json", {**model["length"], "do_lower_case": False}
    if model["prompts"]:
        yield "config_sentence_transformers.json", model["prompts"]


def make(name, model, made, folder):
    """One model's folder."""
    from safetensors.numpy import save_file
    from transformers import BertConfig, FlaxBertModel

    config = {
        "architectures": ["BertModel"], "model_type": "bert", "hidden_act": "gelu",
        "vocab_size": made.get_vocab_size(), "hidden_size": model["hidden"],
        "num_hidden_layers": model["layers"], "num_attention_heads": model["heads"],
        "intermediate_size": 4 * model["hidden"], "layer_norm_eps": model["epsilon"],
        "max_position_embeddings": model["positions"], "type_vocab_size": 2, "pad_token_id": 0,
    }
    for file, contents in small_files(model, config):
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(contents, indent=1) + "\n")
    tensors = {n: rounded(weights(n, s), model["dtype"]) for n, s in shapes(config)}
    with tempfile.TemporaryDirectory() as temporary:
        save_file(tensors, Path(temporary) / "model.safetensors", metadata={"format": "pt"})
        (Path(temporary) / "config.json").write_text(json.dumps(config))
        flax = FlaxBertModel.from_pretrained(
            temporary, config=BertConfig(**config), from_pt=True, add_pooling_layer=False
        )
    prompts = (model["prompts"] or {}).get("prompts", {})
    length = (model["length"] or {"max_seq_length": 64})["max_seq_length"]
    made.enable_truncation(length)
    with open(folder / "golden.jsonl", "w") as lines, open(folder / "golden.f32", "wb") as floats:
        for lane in ["query", "passage"]:
            for text in TEXTS:
                ids = made.encode(prompts.get(lane, "") + text).ids
                hidden = np.asarray(flax(np.array([ids])).last_hidden_state[0], dtype=np.float64)
                vector = hidden[0] if model["pooling"] == "cls" else hidden.mean(0)
                vector /= np.linalg.norm(vector)
                lines.write(json.dumps({"lane": lane, "text": text, "ids": ids}) + "\n")
                floats.write(vector.astype("<f4").tobytes())
    print(name)


def main():
    root = Path(sys.argv[1])
    root.mkdir(parents=True, exist_ok=True)
    made = tokenizer()
    (root / "tokenizer.json").write_text(made.to_str(pretty=False))
    for name, model in MODELS.items():
        make(name, model, made, root / name)


if __name__ == "__main__":
    main()
