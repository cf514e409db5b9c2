#!/usr/bin/env python3
"""Usage: make.py TEXT OUT. Needs the PyPI package `tokenizers`.

Trains small tokenizers of many kinds on the text and writes each as OUT/NAME.json; writes OUT/texts, a JSON list, and for each
tokenizer OUT/NAME.ids: a line a text, the ids that the package makes of it when the names of special tokens in it are text.
"""
import json
import random
import sys
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace("{1,3}", "")
O200K = "|".join([
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n/]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+"])


def byte_level(text, splits, form=None, prefix=False, use_regex=False):
    tokenizer = Tokenizer(models.BPE())
    if form:
        tokenizer.normalizer = form
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(prefix, use_regex=use_regex)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=420, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
                                  special_tokens=["<|endoftext|>"])
    tokenizer.train_from_iterator([text], trainer)
    return tokenizer


def spaced(text, normalizer, pre_tokenizer, byte_fallback, strip, size=420):
    alphabet = [f"<0x{byte:02X}>" for byte in range(256)] if byte_fallback else []
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=byte_fallback))
    # Training words must end somewhere; a file that splits nothing is made by taking this away afterwards.
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=size + len(alphabet), special_tokens=["<unk>", "<s>", "</s>", *alphabet],
                                  show_progress=False)
    tokenizer.train_from_iterator([text], trainer)
    data = json.loads(tokenizer.to_str())
    data["added_tokens"] = data["added_tokens"][:3]
    tokenizer = Tokenizer.from_str(json.dumps(data))
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    parts = [decoders.Replace("\u2581", " ")] + ([decoders.ByteFallback()] if byte_fallback else []) + [decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(parts + ([decoders.Strip(" ", 1, 0)] if strip else []))
    return tokenizer


def edit(tokenizer, **model):
    data = json.loads(tokenizer.to_str())
    for key, value in model.items():
        data["model"][key] = value
    return Tokenizer.from_str(json.dumps(data))


def tokenizers_of(text):
    split = lambda regex, behavior="isolated", invert=False: pre_tokenizers.Split(Regex(regex), behavior, invert)
    replace = normalizers.Replace(" ", "\u2581")
    llama2 = normalizers.Sequence([normalizers.Prepend("\u2581"), replace])
    yield "gpt2", byte_level(text, [], use_regex=True)
    yield "gpt2-prefix", byte_level(text, [], prefix=True, use_regex=True)
    llama3 = edit(byte_level(text, [split(LLAMA3)]), ignore_merges=True)
    llama3.add_special_tokens(["<|begin_of_text|>", "<|end_of_text|>"])
    llama3.add_tokens([AddedToken("<tool>", normalized=False), AddedToken("  two", normalized=False), AddedToken("\n\n\n")])
    yield "llama3", llama3
    yield "qwen2", byte_level(text, [split(QWEN2, "removed", True)], normalizers.NFC())
    yield "o200k", byte_level(text, [split(O200K)])
    yield "digits", byte_level(text, [pre_tokenizers.Digits(True)], use_regex=True)
    yield "digit-runs", byte_level(text, [pre_tokenizers.Digits(False)], normalizers.NFKC(), use_regex=True)
    yield "previous", byte_level(text, [pre_tokenizers.Split(" ", "merged_with_previous"), split(r"\p{P}+", "merged_with_next")])
    yield "contiguous", byte_level(text, [split(r"[aeiou]", "contiguous"), split(r"\p{L}{2}", "isolated", True)],
                                   normalizers.NFD())
    yield "llama2", spaced(text, llama2, None, True, True)
    yield "llama2-unknown", spaced(text, llama2, None, False, True)
    yield "llama2-unknowns", edit(spaced(text, llama2, None, False, True), fuse_unk=False)
    yield "metaspace", spaced(text, None, pre_tokenizers.Metaspace(), True, True)
    yield "metaspace-first", spaced(text, normalizers.NFKC(), pre_tokenizers.Metaspace(prepend_scheme="first"), True, True)
    first = spaced(text, None, pre_tokenizers.Metaspace(prepend_scheme="first", split=False), True, True)
    first.add_tokens([AddedToken("<tool>", normalized=False)])
    yield "metaspace-whole", first
    gemma = spaced(text, replace, pre_tokenizers.Split(" ", "merged_with_previous"), True, False)
    gemma.add_tokens([AddedToken("\u2581\u2581", normalized=False), AddedToken("\n\n", normalized=False)])
    yield "gemma", gemma


FIXED = [
    "", " ", "  ", "a", " a", "  a", "a ", "a  ", "\n", "\n\n", "\n\n\n", " \n \n ", "\t", "\r\n\r\n x", "Hello, world!", "Hello world",
    "  two spaces", "I'm, you're, he's, we've, they'll, she'd, can't", "I'M, YOU'RE, HE'S, 'S 'LL '\u017f '\u017fx", "''s 'x 'sx",
    "1 12 123 1234 12345 \u0661\u0662\u0663\u0664 \u00bd\u00b2 \u2167", "3.14159 + 2,71828", "na\u00efve nai\u0308ve caf\u00e9 cafe\u0301",
    "\u0301 starts with a mark", "e\u0301\u0302\u0323x", "\u1e9b\u0323", "\ufb01 \u2460 \uff21\uff22 \u00a8 \u037e", "\ud55c\uad6d\uc5b4 \u1112\u1161\u11ab",
    "\u4f60\u597d\uff0c\u4e16\u754c\u3002\u9bca\u9b5a", "\u3053\u3093\u306b\u3061\u306f \u4e16\u754c", "\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627 \u200f\u200e",
    "\U0001f988 \U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 \U0001f1e9\U0001f1ea \U0001f44d\U0001f3fd \u2764\ufe0f", "nul \x00 inside", "\x00", "\x7f\x80\x9f",
    "a\u00a0b \u00a0 \u2003 \u3000 x\u2028y\u2029z\u0085w\u180ev\u200bu\ufeff", "\u2581 literal \u2581\u2581 mark\u2581", "<s>text</s><unk><0x41>", "<|endoftext|> <|begin_of_text|>",
    "a<tool>b", "<tool>", " <tool> <tool>x", "x  two\n\n\n\n  two", "<tool><tool>  a", "Megalodon MEGALODON mEgAlOdOn", "x" * 300,
    "ab" * 200 + " " + "z" * 50, " " * 100 + "x", "\n" * 70, "don't...!!! ???\r\n;-) (x) [y] {z}/\n//", "\u0e20\u0e32\u0e29\u0e32\u0e44\u0e17\u0e22", "\u0939\u093f\u0928\u094d\u0926\u0940",
    "\U0001d400\U0001d7ce\U00020000\U0010ffff\ue000", "\u01c5ungla \u02b0 \u0345 \u2166\u00aa",
]


def random_texts(rng, count):
    ranges = [(0x20, 0x7E), (0x20, 0x7E), (0x61, 0x7A), (0, 0x2FF), (0x300, 0x36F), (0x370, 0x5FF), (0x600, 0x6FF), (0x900, 0x97F),
              (0xE00, 0xE7F), (0x1100, 0x11FF), (0x1E00, 0x1FFF), (0x2000, 0x206F), (0x2100, 0x218F), (0x2460, 0x24FF), (0x3000, 0x30FF),
              (0x4E00, 0x4FFF), (0xAC00, 0xADFF), (0xFB00, 0xFB06), (0xFF00, 0xFF5E), (0x1F300, 0x1F64F), (0x1D400, 0x1D7FF)]
    common = [" ", " ", "  ", "\n", "'s", "'ll", "the ", " and", "ing", "\u2581", "\r\n", "\t", "\u00a0", "12", "...", "<tool>"]
    for _ in range(count):
        text = ""
        scripts = rng.sample(ranges, rng.randint(1, 4))
        for _ in range(rng.randint(1, 60)):
            text += rng.choice(common) if rng.random() < 0.3 else chr(rng.randint(*rng.choice(scripts)))
        yield text


def main():
    text = Path(sys.argv[1]).read_text(encoding="utf-8")
    out = Path(sys.argv[2])
    rng = random.Random(1)
    texts = [*FIXED, text[1000:2000], *random_texts(rng, 30)]
    for name, tokenizer in tokenizers_of(text[:200000]):
        tokenizer.encode_special_tokens = True
        (out / f"{name}.json").write_text(tokenizer.to_str(), encoding="utf-8")
        lines = [" ".join(map(str, tokenizer.encode(text, add_special_tokens=False).ids)) + "\n" for text in texts]
        (out / f"{name}.ids").write_text("".join(lines), encoding="utf-8")
    (out / "texts").write_text(json.dumps(texts, indent=0) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
