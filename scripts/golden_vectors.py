#!/usr/bin/env python3
"""Makes the golden vectors that the encoder's tests compare with.

The reference is the model in PyTorch by Hugging Face `transformers`: its own tokenizer, float32 on
the CPU, mean over all tokens, scaled to length 1. The texts are written for this purpose (this
file holds or composes all of them) and cover lengths from 0 to far beyond the model's 256 tokens,
prose, code, markup, other scripts and odd characters.

How the files in kernels/encoder/tests/data were made:

    python3 -m venv target/golden && target/golden/bin/pip install torch transformers safetensors
    vectide model fetch all-MiniLM-L6-v2        # prints where the model lies
    target/golden/bin/python scripts/golden_vectors.py MODEL_FOLDER kernels/encoder/tests/data

The model's folder needs config.json, tokenizer.json and model.safetensors; config.json is not among
the files that Vectide fetches, so the script makes one with the published values where it is missing.

Writes golden.jsonl, one {"text", "ids"} a line, and golden.f32: for each line 384 little-endian
32-bit floats. Both are committed; run this again only to change the texts.
"""

import json
import random
import sys
from pathlib import Path

TOKENS_MAX = 256
CONFIG = {
    "architectures": ["BertModel"], "hidden_act": "gelu", "hidden_size": 384,
    "intermediate_size": 1536, "layer_norm_eps": 1e-12, "max_position_embeddings": 512,
    "model_type": "bert", "num_attention_heads": 12, "num_hidden_layers": 6, "pad_token_id": 0,
    "type_vocab_size": 2, "vocab_size": 30522, "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1, "initializer_range": 0.02,
}

SENTENCES = """
The harbour was quiet before dawn, and only the gulls argued over what the nets had left.
A stream of changes is easier to reason about when every change knows where it was read.
She folded the letter twice, put it back into the drawer, and never spoke of it again.
Photosynthesis turns light, water and carbon dioxide into sugar and oxygen.
When the river rose above the second mark, the millers opened the upper gates.
The committee met on Tuesday to decide whether the old bridge should be rebuilt or replaced.
An index that is rebuilt every night is wrong every afternoon.
Antibiotics do not act on viruses, because viruses lack the structures that these drugs attack.
He counted the steps to the lighthouse: two hundred and seventeen, not one fewer.
Interest rates rose by a quarter of a percentage point, as most analysts had expected.
The left-back intercepted the pass and ran the length of the field without looking up.
Simmer the onions slowly until they are soft and golden; do not let them brown.
A compiler that refuses a program kindly is worth more than one that accepts it silently.
Glaciers move a few centimetres a day, carrying stones from valleys that no one has visited.
The tenant shall give written notice at least thirty days before the end of the lease.
Two magnets of equal strength attract or repel each other with the same force.
My grandmother kept bees, spoke to them in dialect, and swore that they answered.
The train to the coast leaves from platform nine at a quarter past six.
Water boils at a lower temperature on a mountain than at the sea.
Nobody had told the new librarian that the third floor was closed on Sundays.
The patient reported mild headaches and was advised to return if they persisted.
After the merger, both teams used the same build system but different names for everything.
Copper conducts electricity well, which is why most household wiring is made of it.
In the winter of that year the lake froze so hard that carts crossed it.
The museum bought three sketches by an unknown painter and sold none of them.
""".strip().splitlines()

SHORT = """
hello
a
I
42
?
...
Hello, World!
vector database
what is incremental computation?
how do bees find their way home
error: connection refused (os error 111)
the the the the
UPPER CASE AND lower case
naïve café déjà vu Ångström
state-of-the-art
don't can't won't it's
3.14159 2,718 1e-12 0xFF 100%
user@example.org
https://example.org/a/b?c=d&e=f#g
C:\\Users\\name\\file.txt
/usr/local/lib/libexample.so.1.2.3
antidisestablishmentarianism
supercalifragilisticexpialidocious
llanfairpwllgwyngyllgogerychwyrndrobwllllantysiliogogoch
e = mc^2
x₁ + x₂ = 10 ± 0.5
½ cup of sugar, 20 °C, 5 µm
«guillemets» „quotes“ ‘single’ “double”
em—dash, en–dash, hy-phen, non‑breaking hyphen
£5 €10 ¥1000 ₹20 $3
日本語
東京は日本の首都です。
ベクトル索引を常に正しく保つ仕組みについて説明します。
ひらがなとカタカナと漢字が混ざった文章。ABCと123も入る。
私は昨日、図書館で三冊の本を借りた。
가나다라마바사
한국어 문장은 띄어쓰기가 있습니다.
今天天气很好，我们去公园散步。
Привет, мир! Как дела?
Ελληνικά: η γρήγορη αλεπού
مرحبا بالعالم، كيف حالك اليوم؟
שלום עולם, מה שלומך היום?
नमस्ते दुनिया, आप कैसे हैं?
สวัสดีชาวโลก
Xin chào thế giới, hôm nay bạn thế nào?
Zażółć gęślą jaźń
İstanbul'da ışık ılık
Straße, groß, GROSS, ẞ
ﬁne ﬂow oﬃce
Ⅷ Ⅻ ① ② ㊗ ㎏
🙂
🙂🙃😀 family 👨‍👩‍👧‍👦 flag 🇯🇵 skin 👍🏽
I ❤️ Rust 🦀!
a\u0301 e\u0301 combined, o\u0308\u0323 stacked
zero\u200bwidth\u200dspace\ufeffbom
soft\u00adhyphen and no\u00a0break
bell\u0007 escape\u001b[31mred\u001b[0m
nul\u0000byte inside
\u0000
private \ue000 use and \ufffd replacement
[CLS] literal [SEP] specials [MASK] in text [PAD][UNK]
[cls] lower [Sep] mixed
((((((nested))))))
!!!???;;;:::,,,...---___
""".strip("\n").split("\n")

CODE = [
    "fn main() {\n    let numbers: Vec<u32> = (1..=10).filter(|n| n % 2 == 0).collect();\n    println!(\"{numbers:?}\");\n}\n",
    "def mean(values):\n    \"\"\"The arithmetic mean; raises on an empty list.\"\"\"\n    if not values:\n        raise ValueError('no values')\n    return sum(values) / len(values)\n",
    "SELECT c.name, COUNT(*) AS orders\nFROM customers c JOIN orders o ON o.customer_id = c.id\nWHERE o.placed_at >= '2024-01-01'\nGROUP BY c.name HAVING COUNT(*) > 3 ORDER BY orders DESC;",
    "# Release notes\n\n## 2.4.0\n\n- **Added** `--dry-run`, which prints what would change.\n- Fixed a crash on [empty input](https://example.org/issues/12).\n\n| option | default |\n| --- | --- |\n| `level` | 3 |\n",
    "{\"id\": 17, \"tags\": [\"alpha\", \"beta\"], \"nested\": {\"deep\": null, \"ok\": true}, \"price\": 12.50}",
    "<html><body><h1 class=\"title\">Tea &amp; cake</h1><p>Open from 9&nbsp;am.</p></body></html>",
    "apiVersion: v1\nkind: Service\nmetadata:\n  name: search\nspec:\n  ports:\n    - port: 80\n      targetPort: 8080\n",
    "2024-03-01T12:00:00.123Z ERROR worker-3 request_id=9f8c2d timeout after 30000 ms while reading from 10.0.0.7:9092",
    "for (int i = 0; i < n; ++i) { sum += a[i] * b[i]; } // inner product\n#include <stdio.h>\n",
    "$ git log --oneline | head -n 5\n$ grep -rn 'TODO' src/ | wc -l\n",
    "\\begin{equation} \\int_0^1 x^2\\,dx = \\frac{1}{3} \\end{equation}",
]

JAPANESE = (
    "索引は文書の変更に合わせて更新されます。古い断片は同じ時点で取り除かれ、新しい断片が加わります。"
    "検索する人が古いものと新しいものを同時に見ることはありません。"
)


def texts():
    """All texts, in a fixed order."""
    rng = random.Random(20240229)
    yield from ["", " ", "\n\t  \r\n", "\u3000\u00a0 \u2003"]
    yield from SHORT
    yield "tab\there\nnew line\r\ncarriage"
    yield from CODE
    yield from SENTENCES
    # Paragraphs that grow from a few tokens to far beyond the limit.
    for count in list(range(2, 34)) + [40, 60, 120]:
        yield " ".join(rng.choice(SENTENCES) for _ in range(count))
    # Lengths to the token: common words are one piece each.
    for words in [1, 2, 3, 4, 5, 6, 7, 11, 13, 14, 15, 16, 29, 30, 31, 62, 126, 253, 254, 255, 256, 300, 510]:
        yield " ".join(rng.choice(["time", "house", "water", "light", "stone"]) for _ in range(words))
    for repeats in [1, 2, 4, 8, 20]:
        yield JAPANESE * repeats
    mixed = CODE + SENTENCES + [JAPANESE, "🙂 emoji", "Привет", "مرحبا"]
    for _ in range(25):
        yield "\n\n".join(rng.sample(mixed, rng.randint(2, 7)))
    yield "x" * 100
    yield "x" * 101
    yield "x" * 5000
    yield "ab " * 20000
    yield " " * 10000 + "after much space"
    yield "漢" * 600
    yield "か" * 99 + " " + "き" * 101


def main():
    import torch
    from transformers import AutoModel, AutoTokenizer

    model_folder, data_folder = Path(sys.argv[1]), Path(sys.argv[2])
    if not (model_folder / "config.json").exists():
        (model_folder / "config.json").write_text(json.dumps(CONFIG))
    tokenizer = AutoTokenizer.from_pretrained(model_folder, tokenizer_type="bert")
    model = AutoModel.from_pretrained(model_folder, dtype=torch.float32, attn_implementation="eager")
    model.eval()
    count = 0
    with open(data_folder / "golden.jsonl", "w") as lines, open(data_folder / "golden.f32", "wb") as floats:
        for text in texts():
            inputs = tokenizer(text, truncation=True, max_length=TOKENS_MAX, padding=False, return_tensors="pt")
            with torch.no_grad():
                hidden = model(**inputs).last_hidden_state[0]
            vector = torch.nn.functional.normalize(hidden.mean(0), dim=0)
            ids = inputs["input_ids"][0].tolist()
            lines.write(json.dumps({"text": text, "ids": ids}) + "\n")
            floats.write(vector.numpy().astype("<f4").tobytes())
            count += 1
    print(f"{count} texts")


if __name__ == "__main__":
    main()
