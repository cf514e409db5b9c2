#!/usr/bin/env python3
"""Usage: compare_tokenizers.py MEGALODON TOKENIZER.json... [--texts N] [--seed S] [--files TEXT...]

Compares what `megalodon prepare` makes of random Unicode and of text files with what the PyPI package `tokenizers` makes of them, by
each of the tokenizers. Names one that is not there and goes on. Prints what differs; exit code 1 when anything does. Skips where the
package is not installed (scripts/setup test installs it).
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

try:
    import tokenizers
except ImportError as error:
    print(f"skipped: no tokenizers package in {sys.executable} ({error})")
    sys.exit(77)


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


def differ(megalodon, path, texts):
    """The number of texts that get other tokens, or None when even their number is another one."""
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    tokenizer.encode_special_tokens = True
    expected = [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]
    with tempfile.TemporaryDirectory() as folder:
        inputs = Path(folder) / "in.jsonl"
        inputs.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
        out = Path(folder) / "out"
        subprocess.run([megalodon, "prepare", "--input", inputs, "--tokenizer", path, "--out", out], check=True,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        index = json.loads((out / "train" / "index.json").read_text())
        width = {"U8": "B", "U16": "H", "I32": "i"}[index["dtype"]]
        tokens = (out / "train" / "00000.tokens").read_bytes()
        tokens = struct.unpack(f"<{len(tokens) // struct.calcsize(width)}{width}", tokens)
        bounds = (out / "train" / "00000.documents").read_bytes()
        bounds = struct.unpack(f"<{len(bounds) // 8}q", bounds)
    bounds = [*bounds, len(tokens)]
    kept = [(text, ids) for text, ids in zip(texts, expected) if ids]
    if len(bounds) != len(kept) + 1:
        print(f"{path}: {len(kept)} texts became {len(bounds) - 1} documents")
        return None
    wrong = 0
    for (text, ids), begin, end in zip(kept, bounds, bounds[1:]):
        if list(tokens[begin:end]) != ids:
            wrong += 1
            if wrong <= 5:
                print("differs:", ascii(text[:200]), list(tokens[begin:end])[:40], ids[:40])
    print(f"{path}: {len(kept)} texts, {len(tokens)} tokens, {wrong} texts differ")
    return wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("megalodon")
    parser.add_argument("tokenizers", nargs="+")
    parser.add_argument("--texts", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--files", nargs="*", default=[])
    options = parser.parse_args()
    rng = random.Random(options.seed)
    texts = [random_text(rng) for _ in range(options.texts)]
    texts += [Path(file).read_text(encoding="utf-8") for file in options.files]
    fine = True
    for path in options.tokenizers:
        if Path(path).exists():
            fine = differ(options.megalodon, path, texts) == 0 and fine
        else:
            print(f"{path} is not there")
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
