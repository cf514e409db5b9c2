#!/usr/bin/env python3
"""Usage: compare_tokenizers.py MEGALODON [--texts N] [--seed S] TOKENIZER.json TEXT...

Compares what `megalodon prepare` makes of random Unicode and of text files with what the PyPI package `tokenizers` makes of them.
Skips, with exit code 0, where the package is not installed. Prints what differs; exit code 1 when anything does.
"""
import argparse
import json
import random
import struct
import subprocess
import sys
import tempfile
import unicodedata
from pathlib import Path

def random_text(rng):
    known = unicodedata.ucd_3_2_0  # characters that every version of Unicode knows
    kinds = [0x7F, 0x7F, 0x24F, 0x5FF, 0x2FFF, 0xFFFF, 0x1FFFF]
    text = []
    for _ in range(rng.randint(1, 80)):
        if rng.random() < 0.35:
            text.append(rng.choice([" ", " ", "  ", "\n", "\t", "'s", "'LL", "the", " of", "\u2581", "\r\n", "\u00a0", "1234", "?!"]))
            continue
        c = rng.randint(0, rng.choice(kinds))
        if not 0xD800 <= c <= 0xDFFF and known.category(chr(c)) != "Cn":
            text.append(chr(c))
    return "".join(text) or "x"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("megalodon")
    parser.add_argument("tokenizer")
    parser.add_argument("files", nargs="*")
    parser.add_argument("--texts", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    try:
        import tokenizers
    except ImportError:
        print("skipped: the package `tokenizers` is not installed")
        return 0
    tokenizer = tokenizers.Tokenizer.from_file(options.tokenizer)
    tokenizer.encode_special_tokens = True
    rng = random.Random(options.seed)
    texts = [random_text(rng) for _ in range(options.texts)]
    texts += [Path(file).read_text(encoding="utf-8") for file in options.files]
    expected = [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]
    with tempfile.TemporaryDirectory() as folder:
        inputs = Path(folder) / "in.jsonl"
        inputs.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
        out = Path(folder) / "out"
        subprocess.run([options.megalodon, "prepare", "--input", inputs, "--tokenizer", options.tokenizer, "--out", out], check=True,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        index = json.loads((out / "train" / "index.json").read_text())
        width = {"U8": "B", "U16": "H", "I32": "i"}[index["dtype"]]
        tokens = (out / "train" / "00000.tokens").read_bytes()
        tokens = struct.unpack(f"<{len(tokens) // struct.calcsize(width)}{width}", tokens)
        bounds = (out / "train" / "00000.documents").read_bytes()
        bounds = struct.unpack(f"<{len(bounds) // 8}q", bounds)
    bounds = [*bounds, len(tokens)]
    texts_kept = [(text, ids) for text, ids in zip(texts, expected) if ids]
    if len(bounds) != len(texts_kept) + 1:
        print(f"{len(texts_kept)} texts became {len(bounds) - 1} documents")
        return 1
    wrong = 0
    for (text, ids), begin, end in zip(texts_kept, bounds, bounds[1:]):
        if list(tokens[begin:end]) != ids:
            wrong += 1
            if wrong <= 5:
                print("differs:", ascii(text[:200]), list(tokens[begin:end])[:40], ids[:40])
    print(f"{len(texts_kept)} texts, {len(tokens)} tokens, {wrong} texts differ")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
