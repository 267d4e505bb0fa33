"""Makes of Vectide's all-MiniLM-L6-v2 what the peers of the embedding benchmark read: a folder for
sentence-transformers, and the same weights as ONNX, once plain (for OpenVINO) and once with the operators that
onnxruntime's own optimizer fuses.

    embed_model.py WEIGHTS_AND_TOKENIZER FOLDER

The first folder is where `vectide model fetch all-MiniLM-L6-v2` says that the files lie. They have no
configuration beside them: the published one, which kernels/encoder/src/minilm.rs has, too, is written here.

Invariant: the weights are one file, linked, and every other form is made of it.
"""

import json
import sys
from pathlib import Path

TOKENS_MAX = 256
FILES = {
    "config.json": {
        "architectures": ["BertModel"], "attention_probs_dropout_prob": 0.1, "dtype": "float32",
        "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "hidden_size": 384, "initializer_range": 0.02,
        "intermediate_size": 1536, "layer_norm_eps": 1e-12, "max_position_embeddings": 512,
        "model_type": "bert", "num_attention_heads": 12, "num_hidden_layers": 6, "pad_token_id": 0,
        "type_vocab_size": 2, "vocab_size": 30522,
    },
    "modules.json": [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
    ],
    "sentence_bert_config.json": {"max_seq_length": TOKENS_MAX, "do_lower_case": False},
    "tokenizer_config.json": {
        "tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 512,
        "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]",
        "mask_token": "[MASK]",
    },
    "1_Pooling/config.json": {"word_embedding_dimension": 384, "pooling_mode_mean_tokens": True},
}


def write_folder(source, folder):
    for name, content in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    (folder / "2_Normalize").mkdir(exist_ok=True)
    for name in ("model.safetensors", "tokenizer.json"):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to((source / name).resolve())


def export(folder):
    import torch
    from onnxruntime.transformers import optimizer
    from transformers import AutoModel

    class Sentences(torch.nn.Module):
        """Tokens to unit vectors: the mean over the tokens that are none of padding."""

        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, input_ids, attention_mask):
            hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
            mean = (hidden * mask).sum(1) / mask.sum(1)
            return torch.nn.functional.normalize(mean, dim=1)

    model = Sentences(AutoModel.from_pretrained(folder, attn_implementation="eager")).eval()
    ids = torch.ones(2, 16, dtype=torch.int64)
    axes = {0: "texts", 1: "tokens"}
    plain = str(folder / "plain.onnx")
    torch.onnx.export(
        model, (ids, ids), plain, dynamo=False, opset_version=17, do_constant_folding=True,
        input_names=["input_ids", "attention_mask"], output_names=["vectors"],
        dynamic_axes={"input_ids": axes, "attention_mask": axes, "vectors": {0: "texts"}},
    )
    fused = optimizer.optimize_model(plain, model_type="bert", num_heads=12, hidden_size=384)
    fused.save_model_to_file(str(folder / "fused.onnx"))
    print(fused.get_fused_operator_statistics())


def main():
    source, folder = Path(sys.argv[1]), Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    write_folder(source, folder)
    export(folder)


if __name__ == "__main__":
    main()
