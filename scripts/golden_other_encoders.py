#!/usr/bin/env python3
r"""Makes golden vectors of encoders that are not plain BERT, whose weights are a formula.

The counterpart of golden_random_models.py for XLM-RoBERTa, nomic-bert and ModernBERT, with its formula
and files. The reference is `transformers` in PyTorch, float32 on the CPU; ids of XLM-RoBERTa are those of
`sentencepiece` itself, not of the library that Vectide uses.

How the folders in kernels/encoder/tests/data/random were made:

    python3 -m venv target/golden
    target/golden/bin/pip install transformers==4.57.6 torch==2.8.0 sentencepiece==0.2.3 protobuf==7.36.2 \
        ml_dtypes==0.6.0 numpy==2.4.6 safetensors==0.8.0
    target/golden/bin/pip install --target target/golden/five transformers==5.24.0
    target/golden/bin/python scripts/golden_other_encoders.py kernels/encoder/tests/data/random
    PYTHONPATH=target/golden/five target/golden/bin/python scripts/golden_other_encoders.py \
        kernels/encoder/tests/data/random nomic-256

(nomic-bert came to `transformers` with version 5, which no longer has SentencePiece's own tokenizers.) Both
tokenizers are trained here, on the sentences below.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np

from golden_random_models import rounded, tokenizer as word_pieces, weights

SENTENCES = """
The water of a long river finds its way between old stones, and what it carries it leaves at the sea.
People search for words; an index finds texts that mean the same, whatever language they are written in.
Vectors of sentences about rain stand near each other, and far from those about engines and ledgers.
Le vent du nord se lève à l'aube, et les élèves cherchent où naît la rivière près du château.
Der Fluß führt im Frühjahr mehr Wasser, und die Bücher über Brücken stehen im zweiten Regal.
El niño preguntó cuántas páginas tenía el índice, y la señora contestó que más de mil.
Вода течёт к морю, а люди ищут слова, которые значат одно и то же на разных языках.
Το νερό του ποταμού βρίσκει τον δρόμο του ανάμεσα στις πέτρες.
المياه تجري نحو البحر والناس يبحثون عن الكلمات في الكتب القديمة
מים זורמים אל הים ואנשים מחפשים מילים בספרים ישנים
नदी का पानी समुद्र तक जाता है और लोग शब्द खोजते हैं
川の水は海へ流れ、人々は同じ意味の言葉を探しています。索引は文章を見つける。
河水流向大海，人们寻找意思相同的词语。索引找到文本。
강물은 바다로 흐르고 사람들은 같은 뜻의 말을 찾습니다
สายน้ำไหลลงสู่ทะเลและผู้คนค้นหาคำ
query: passage: search_query: search_document: 0 1 2 3 4 5 6 7 8 9 10 2024 3.14 (see below) [a] {b} <c> "d"
""".strip().split("\n")

TEXTS = [
    "",
    " ",
    "a",
    "the water of a long river",
    "What is it that people search for,  and where do they find it?",
    "UPPER case, naïve café — don't; 3.14 (see below) 日本語かな!",
    "Ｆｕｌｌ　ｗｉｄｔｈ ㍿ and\u00a0no-break,\ttabs\nand lines\u200b zero cafe\u0301",
    "المياه תזרום 🙂👍🏽🇯🇵 \u0000 नदी का สายน้ำ 강물은",
    "川の水は海へ流れ、人々は同じ意味の言葉を探しています。" * 12,
    "it was the first time that they had been there. " * 3,
    "all that is said and done, one way or another: " * 40,
    " leading and   inner and trailing   ",
    "one <mask> two<pad><pad>three</s> four",
]

# What SentencePiece's own rules do, in small: wide letters, kinds of white space, ligatures, accents.
NORMALISATION = (
    [(f"{0xFF21 + i:04X}", f"{0x41 + i:04X}") for i in range(26)]
    + [(f"{0xFF41 + i:04X}", f"{0x61 + i:04X}") for i in range(26)]
    + [(space, "0020") for space in ["0009", "000A", "000D", "00A0", "3000"]]
    + [("200B", ""), ("337F", "682A 5F0F 4F1A 793E"), ("0065 0301", "00E9")]
)

MODELS = {
    "xlm-roberta-384": {
        "tokenizer": "unigram", "length": 96, "dtype": "F16", "part": "roberta.", "pooling": "mean",
        "prompts": {"query": "query: ", "passage": "passage: "},
        "config": {
            "architectures": ["XLMRobertaModel"], "model_type": "xlm-roberta", "hidden_act": "gelu",
            "hidden_size": 384, "num_hidden_layers": 2, "num_attention_heads": 6, "intermediate_size": 768,
            "layer_norm_eps": 1e-5, "max_position_embeddings": 130, "type_vocab_size": 1, "pad_token_id": 1,
            "bos_token_id": 0, "eos_token_id": 2, "position_embedding_type": "absolute",
        },
    },
    "nomic-256": {
        "tokenizer": "word pieces", "length": 256, "dtype": "F32", "part": "", "pooling": "mean",
        "prompts": {"search_query": "search_query: ", "search_document": "search_document: "},
        "config": {
            "architectures": ["NomicBertModel"], "model_type": "nomic_bert", "activation_function": "swiglu",
            "n_embd": 256, "n_layer": 2, "n_head": 4, "n_inner": 512, "n_positions": 512,
            "layer_norm_epsilon": 1e-12, "type_vocab_size": 2, "rotary_emb_base": 1000,
            "rotary_emb_fraction": 1.0, "rotary_emb_interleaved": False, "rotary_emb_scale_base": None,
            "rotary_scaling_factor": None, "prenorm": False, "qkv_proj_bias": False, "mlp_fc1_bias": False,
            "mlp_fc2_bias": False, "use_rms_norm": False, "parallel_block": False, "causal": False,
        },
    },
    "modernbert-192": {
        "tokenizer": "bytes", "length": 256, "dtype": "BF16", "part": "model.", "pooling": "cls",
        "prompts": {},
        "config": {
            "architectures": ["ModernBertModel"], "model_type": "modernbert", "hidden_activation": "gelu",
            "hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 3, "intermediate_size": 288,
            "max_position_embeddings": 512, "norm_eps": 1e-5, "norm_bias": False, "attention_bias": False,
            "mlp_bias": False, "global_rope_theta": 160000.0, "local_rope_theta": 10000.0,
            "global_attn_every_n_layers": 3, "local_attention": 16, "pad_token_id": 0, "bos_token_id": 1,
            "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2,
        },
    },
}


def unigram(file):
    """A small model of SentencePiece's: its own encoder, and the same for `tokenizers`."""
    import sentencepiece
    from tokenizers import AddedToken
    from transformers import XLMRobertaTokenizer
    from transformers.convert_slow_tokenizer import convert_slow_tokenizer

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "rules.tsv").write_text("".join(f"{a}\t{b}\n" for a, b in NORMALISATION))
        (folder / "texts").write_text("\n".join(SENTENCES) + "\n")
        sentencepiece.SentencePieceTrainer.train(
            input=str(folder / "texts"), model_prefix=str(folder / "m"), vocab_size=360,
            character_coverage=1.0, normalization_rule_tsv=str(folder / "rules.tsv"), num_threads=1,
        )
        slow = XLMRobertaTokenizer(vocab_file=str(folder / "m.model"))
        made = convert_slow_tokenizer(slow)
        made.add_special_tokens(["<pad>", "<unk>", AddedToken("<mask>", lstrip=True)])
        made.save(str(file), pretty=False)
        return slow.encode


def byte_pairs(file):
    """A small BPE of bytes with ModernBERT's frame."""
    from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    made = Tokenizer(models.BPE())
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.train_from_iterator(SENTENCES, trainers.BpeTrainer(
        vocab_size=560, special_tokens=["[PAD]", "[CLS]", "[SEP]", "[UNK]"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    ))
    made.add_special_tokens([AddedToken("[MASK]", lstrip=True)])
    made.add_tokens([AddedToken("  ", normalized=True), AddedToken("   ", normalized=True)])
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    made.save(str(file), pretty=False)
    return lambda text: made.encode(text).ids


def shapes(config):
    """All tensors of a configuration, by the names of its checkpoints."""
    kind, vocabulary = config["model_type"], config["vocab_size"]
    width = config.get("hidden_size") or config["n_embd"]
    inner = config.get("intermediate_size") or config["n_inner"]
    layers = range(config.get("num_hidden_layers") or config["n_layer"])
    if kind == "xlm-roberta":
        from golden_random_models import shapes as of_bert

        yield from of_bert(config)
    if kind == "nomic_bert":
        yield "embeddings.word_embeddings.weight", (vocabulary, width)
        yield "embeddings.token_type_embeddings.weight", (config["type_vocab_size"], width)
        norms = ["emb_ln"]
        for layer in (f"encoder.layers.{i}" for i in layers):
            yield f"{layer}.attn.Wqkv.weight", (3 * width, width)
            yield f"{layer}.attn.out_proj.weight", (width, width)
            yield f"{layer}.mlp.fc11.weight", (inner, width)
            yield f"{layer}.mlp.fc12.weight", (inner, width)
            yield f"{layer}.mlp.fc2.weight", (width, inner)
            norms += [f"{layer}.norm1", f"{layer}.norm2"]
        for norm in norms:
            yield f"{norm}.weight", (width,)
            yield f"{norm}.bias", (width,)
    if kind == "modernbert":
        yield "embeddings.tok_embeddings.weight", (vocabulary, width)
        yield "embeddings.norm.weight", (width,)
        yield "final_norm.weight", (width,)
        for i in layers:
            if i > 0:
                yield f"layers.{i}.attn_norm.weight", (width,)
            yield f"layers.{i}.attn.Wqkv.weight", (3 * width, width)
            yield f"layers.{i}.attn.Wo.weight", (width, width)
            yield f"layers.{i}.mlp_norm.weight", (width,)
            yield f"layers.{i}.mlp.Wi.weight", (2 * inner, width)
            yield f"layers.{i}.mlp.Wo.weight", (width, inner)


def reference(config, tensors):
    """The model of `transformers`, as a function of ids."""
    import torch

    state = {name: torch.from_numpy(values.copy()) for name, values in tensors.items()}
    kind = config["model_type"]
    if kind == "xlm-roberta":
        from transformers import XLMRobertaConfig, XLMRobertaModel

        model = XLMRobertaModel(XLMRobertaConfig(**config), add_pooling_layer=False)
    elif kind == "modernbert":
        from transformers import ModernBertConfig, ModernBertModel

        model = ModernBertModel(ModernBertConfig(**config, attn_implementation="eager"))
    else:
        from transformers import NomicBertConfig, NomicBertModel

        model = NomicBertModel(NomicBertConfig(
            vocab_size=config["vocab_size"], hidden_size=config["n_embd"], num_hidden_layers=config["n_layer"],
            num_attention_heads=config["n_head"], intermediate_size=config["n_inner"],
            max_position_embeddings=config["n_positions"], layer_norm_eps=config["layer_norm_epsilon"],
            rope_parameters={"rope_type": "default", "rope_theta": float(config["rotary_emb_base"])},
        ), add_pooling_layer=False)
        # As its own conversion of checkpoints has it.
        renames = [("encoder.layers", "layers"), ("emb_ln", "embeddings.LayerNorm"),
                   ("attn.out_proj", "self_attn.o_proj"), ("fc11", "up_proj"), ("fc12", "gate_proj"),
                   ("fc2", "down_proj"), ("norm1", "post_attention_layernorm"), ("norm2", "post_mlp_layernorm")]
        renamed = {}
        for name, values in state.items():
            for old, new in renames:
                name = name.replace(old, new)
            if "attn.Wqkv" in name:
                for part, chunk in zip("qkv", values.chunk(3)):
                    renamed[name.replace("attn.Wqkv", f"self_attn.{part}_proj")] = chunk
            else:
                renamed[name] = values
        state = renamed
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and all("position_ids" in name or "inv_freq" in name for name in missing), (
        missing, unexpected)
    model = model.eval().float()

    def run(ids):
        with torch.no_grad():
            return model(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long)
                         ).last_hidden_state[0].double().numpy()

    return run


def small_files(model):
    """The files of a sentence-transformers folder, by name."""
    kinds = ["Transformer", "Pooling", "Normalize"]
    paths = ["", "1_Pooling", "2_Normalize"]
    yield "config.json", model["config"]
    yield "modules.json", [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(zip(paths, kinds))
    ]
    yield "1_Pooling/config.json", {
        "pooling_mode_cls_token": model["pooling"] == "cls", "pooling_mode_mean_tokens": model["pooling"] == "mean",
    }
    yield "sentence_bert_config.json", {"max_seq_length": model["length"], "do_lower_case": False}
    yield "config_sentence_transformers.json", {"prompts": model["prompts"]}


def make(name, model, folder):
    """One model's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    if model["tokenizer"] == "unigram":
        encode = unigram(folder / "tokenizer.json")
    elif model["tokenizer"] == "bytes":
        encode = byte_pairs(folder / "tokenizer.json")
    else:
        encode = (lambda made: lambda text: made.encode(text).ids)(word_pieces())
        if (folder / "tokenizer.json").exists():
            (folder / "tokenizer.json").unlink()
    tokenizer_file = folder / "tokenizer.json"
    if not tokenizer_file.exists():
        tokenizer_file = folder.parent / "tokenizer.json"
    from tokenizers import Tokenizer

    model["config"]["vocab_size"] = Tokenizer.from_file(str(tokenizer_file)).get_vocab_size()
    for file, contents in small_files(model):
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(contents, indent=1) + "\n")
    tensors = {n: rounded(weights(n, s), model["dtype"]) for n, s in shapes(model["config"])}
    run = reference(model["config"], tensors)
    prompts = list(model["prompts"].values()) or ["", ""]
    with open(folder / "golden.jsonl", "w") as lines, open(folder / "golden.f32", "wb") as floats:
        for lane, prompt in zip(["query", "passage"], prompts):
            for text in TEXTS:
                ids = encode(prompt + text)
                if len(ids) > model["length"]:
                    ids = ids[: model["length"] - 1] + ids[-1:]
                hidden = run(ids)
                vector = hidden[0] if model["pooling"] == "cls" else hidden.mean(0)
                vector /= np.linalg.norm(vector)
                lines.write(json.dumps({"lane": lane, "text": text, "ids": ids}) + "\n")
                floats.write(vector.astype("<f4").tobytes())
    print(name)


def main():
    root = Path(sys.argv[1])
    names = sys.argv[2:] or [name for name in MODELS if name != "nomic-256"]
    for name in names:
        make(name, MODELS[name], root / name)


if __name__ == "__main__":
    main()
