#!/usr/bin/env python3
"""Wrong use, bad input and bad luck: each must give one line that says what, where and what to do, and the exit code of its kind.

    tests/apps/misuse_test.py build/cpu/bin/megalodon [unittest options]"""

import json
import math
import os
import resource
import shutil
import signal

from cli import CONFIG, CORRUPT, GOLDEN, IO, MISMATCH, NOT_FINITE, NOT_FOUND, OUT_OF_MEMORY, UNSUPPORTED, WRONG_USE, CliTest, Safetensors, main, run


class WrongUse(CliTest):
    def test_unknown_names_are_answered_with_the_nearest(self):
        for parts, *arguments in (
            (("unknown command evaluate", "--help"), "evaluate"),
            (("unknown command inspec", "Did you mean inspect?"), "inspec", "1.3B"),
            (("unknown flag --verison", "Did you mean --version?"), "--verison"),
            (("generate", "unknown flag --max-token", "Did you mean --max-tokens?"), "generate", self.model, "--max-token=5"),
            (("eval", "unknown flag --contxt", "Did you mean --context?"), "eval", self.model, "--contxt", 5),
            (("prepare", "unknown flag --imput", "Did you mean --input?"), "prepare", "--imput", self.text),
            (("init", "unknown flag --sed", "Did you mean --seed?"), "init", "200M", "--sed", 5),
            (("inspect", "unknown flag --jsno", "Did you mean --json?"), "inspect", "--jsno"),
            (("inspect", "unexpected argument 7.3B"), "inspect", "1.3B", "7.3B"),
            (("checkpoint: unknown command lst", "Did you mean list?"), "checkpoint", "lst", self.folder),
            (("checkpoint list: unknown flag --jsn", "Did you mean --json?"), "checkpoint", "list", "--jsn", self.folder),
            (("checkpoint prune: ", '"0" is not a whole number from 1 '), "checkpoint", "prune", self.folder, "--keep", 0),
            (("checkpoint: name one of list, verify, prune", "megalodon checkpoint --help"), "checkpoint"),
            (("train", "run file", "--resume"), "train"),
            (("train", "run file", "--resume"), "train", "--resume"),
        ):
            self.refused(WRONG_USE, parts, *arguments)
        for command in (("inspect",), ("init", "--out", self.folder / "out")):
            self.refused(NOT_FOUND, ("1.3b", "no preset", "Did you mean 1.3B?"), *command, "1.3b")
            self.refused(NOT_FOUND, ("unheard-of", "The presets are 200M"), *command, "unheard-of")
        self.assertFalse((self.folder / "out").exists())

    def test_wrong_types_and_values_name_the_flag(self):
        for flag, value, part in (
            ("--max-tokens", "many", '"many" is not a whole number'),
            ("--max-tokens", -3, '"-3" is not a whole number'),
            ("--max-tokens", "9223372036854775808", "is not a whole number from 0 to 9223372036854775807"),
            ("--max-tokens", 1.5, '"1.5" is not a whole number'),
            ("--top-k", -1, '"-1" is not a whole number'),
            ("--seed", -1, '"-1" is not a whole number'),
            ("--seed", "18446744073709551616", "is not a whole number"),
            ("--threads", 10000, "from 0 to 9999"),
            ("--temperature", "warm", "warm"),
        ):
            self.refused(WRONG_USE, (flag, part, "megalodon generate --help"), "generate", self.model, flag, value)
        for flag, value in (("temperature", "nan"), ("temperature", -1), ("temperature", "inf"), ("top_p", 0), ("top_p", 1.5)):
            self.refused(WRONG_USE, (flag + " is ", "must be"), "generate", self.model, "--" + flag.replace("_", "-"), value)
        self.refused(WRONG_USE, ("--context", "-1", "number of tokens"), "eval", self.model, "--data", self.text, "--context", -1)
        self.refused(WRONG_USE, ("--prompt",), "generate", self.model, "--prompt", "a", "--prompt-file", self.text)

    def test_what_is_missing_is_named(self):
        self.refused(WRONG_USE, ("generate", "model", "--help"), "generate")
        self.refused(WRONG_USE, ("checkpoint list: run is required", "megalodon checkpoint list --help"), "checkpoint", "list")
        self.refused(NOT_FOUND, (self.folder, "not the folder of a run", "--out"), "checkpoint", "list", self.folder)
        self.refused(WRONG_USE, ("eval", "--data", "--help"), "eval", self.model)
        self.refused(WRONG_USE, ("init", "--out", "--help"), "init", "200M")
        self.refused(WRONG_USE, ("prepare", "--help"), "prepare", "--input", self.text)

    def test_nothing_is_overwritten(self):
        self.refused(WRONG_USE, (self.model, "exists already", "--out"), "init", "200M", "--out", self.model)
        self.ok("prepare", "--input", self.text, "--tokenizer", "bytes", "--out", self.folder / "data")
        self.refused(WRONG_USE, (self.folder / "data",), "prepare", "--input", self.text, "--tokenizer", "bytes", "--out",
                     self.folder / "data")

    def test_what_this_build_has_not_is_said(self):
        self.refused(UNSUPPORTED, ("device cuda", "--device cpu"), "verify", GOLDEN, "--device", "cuda")
        self.refused(UNSUPPORTED, ("--dtype fp16", "f32 or bf16"), "verify", GOLDEN, "--dtype", "fp16")


class BadConfig(CliTest):
    def refused_config(self, code, parts, content):
        path = self.write("config.json", content if isinstance(content, (str, bytes)) else json.dumps(content))
        self.refused(code, (path, *parts), "init", path, "--out", self.folder / "out")
        self.refused(code, (path, *parts), "inspect", path)
        broken = self.folder / "model"
        shutil.rmtree(broken, ignore_errors=True)
        shutil.copytree(self.model, broken)
        shutil.copy(path, broken / "config.json")
        self.refused(code, (broken / "config.json", *parts), "generate", broken)
        self.assertFalse((self.folder / "out").exists())

    def test_keys(self):
        self.refused_config(WRONG_USE, ('unknown key "chunksize"', "Did you mean chunk_size?"), {**CONFIG, "chunksize": 8})
        self.refused_config(WRONG_USE, ('"chunk_size" is "8"', "whole number"), {**CONFIG, "chunk_size": "8"})
        self.refused_config(WRONG_USE, ('"swiglu" is 1', "true or false"), {**CONFIG, "swiglu": 1})
        self.refused_config(WRONG_USE, ('"dropout" is true', "a number"), {**CONFIG, "dropout": True})
        self.refused_config(WRONG_USE, ('"model_dim" is missing',), {key: CONFIG[key] for key in CONFIG if key != "model_dim"})

    def test_dimensions(self):
        self.refused_config(WRONG_USE, ("z_dim = 16", "not divisible by num_heads = 3"), {**CONFIG, "num_heads": 3})
        self.refused_config(WRONG_USE, ("model_dim = 32", "not divisible by norm_num_groups = 5"), {**CONFIG, "norm_num_groups": 5})
        self.refused_config(WRONG_USE, ("chunk_size = 0", "from 1"), {**CONFIG, "chunk_size": 0})
        self.refused_config(WRONG_USE, ("model_dim",), {**CONFIG, "model_dim": 2**62})
        self.refused_config(WRONG_USE, ("dropout",), {**CONFIG, "dropout": 1.5})

    def test_files(self):
        self.refused_config(CORRUPT, ("not JSON",), "")
        self.refused_config(CORRUPT, ("not JSON",), '{"num_layers": 2,\n')
        self.refused_config(CORRUPT, ("not JSON",), b"\xff\xfe\x00")
        self.refused_config(CORRUPT, ("must hold one JSON object",), "[]")


class BadModel(CliTest):
    def refused_model(self, code, parts, change):
        """`change` takes a Safetensors and returns nothing, or what to write in its place."""
        broken = self.copy_of_model()
        path = broken / "model.safetensors"
        stored = Safetensors(path)
        content = change(stored)
        path.write_bytes(stored.bytes() if content is None else content)
        self.refused(code, (path, *parts), "generate", broken, "--prompt", "a")
        self.refused(code, (path, *parts), "eval", broken, "--data", self.text)
        shutil.rmtree(broken)

    def test_damage(self):
        whole = (self.model / "model.safetensors").read_bytes()
        for length in (0, 7, 8, 100, len(whole) // 2, len(whole) - 1):
            self.refused_model(CORRUPT, (), lambda stored: whole[:length])
        self.refused_model(CORRUPT, (str(2**60),), lambda stored: stored.bytes(2**60))
        self.refused_model(CORRUPT, (str(2**64 - 1),), lambda stored: stored.bytes(2**64 - 1))
        self.refused_model(CORRUPT, ("JSON",), lambda stored: whole[:8] + b"x" + whole[9:])
        self.refused_model(CORRUPT, (), lambda stored: whole + b"more")

    def test_offsets(self):
        def move(by, end_by):
            def change(stored):
                begin, end = stored.header[stored.last()]["data_offsets"]
                stored.header[stored.last()]["data_offsets"] = [begin + by, end + end_by]
            return change

        self.refused_model(CORRUPT, ("begins at byte",), move(-4, -4))  # overlapping
        self.refused_model(CORRUPT, (" lies at bytes ",), move(4, 4))  # out of range
        self.refused_model(CORRUPT, (" lies at bytes ",), move(2**60, 2**60))
        self.refused_model(CORRUPT, (" takes ",), move(4, 0))  # another size than dtype and shape
        self.refused_model(CORRUPT, ("data offset",), move(-2**40, 0))

    def test_tensors(self):
        name = "embed.weight"

        def reshape(stored):
            stored.header[name]["shape"].reverse()

        def retype(stored):
            stored.header[name]["dtype"] = "I32"

        def half(stored):
            stored.header[name]["dtype"] = "F16"

        self.refused_model(MISMATCH, (name, "[256, 32]", "[32, 256]"), reshape)
        self.refused_model(MISMATCH, (name, "F32", "I32"), retype)
        self.refused_model(UNSUPPORTED, (name, "F16"), half)
        self.refused_model(MISMATCH, (name, "missing", "config.json"), lambda stored: stored.remove(name))
        self.refused_model(MISMATCH, ("embed.wait", "Did you mean embed.weight?"),
                           lambda stored: stored.add("embed.wait", "F32", [1], b"\0" * 4))

    def test_parameters_that_are_not_finite(self):
        broken = self.copy_of_model()
        stored = Safetensors(broken / "model.safetensors")
        stored.set("output.output.weight", "<f", math.nan)
        (broken / "model.safetensors").write_bytes(stored.bytes())
        for command in (("generate", broken, "--prompt", "a"), ("eval", broken, "--data", self.text)):
            self.refused(NOT_FINITE, (" is nan", "diverged"), *command)

    def test_files_that_are_not_there(self):
        for name, code in (("config.json", NOT_FOUND), ("model.safetensors", NOT_FOUND), ("tokenizer", NOT_FOUND)):
            broken = self.copy_of_model()
            (broken / name).unlink()
            self.refused(code, (broken,), "generate", broken)
            shutil.rmtree(broken)
        self.refused(NOT_FOUND, ("nowhere", "no such folder"), "generate", self.folder / "nowhere")
        self.refused(NOT_FOUND, (self.folder, "neither config.json nor a checkpoint"), "eval", self.folder, "--data", self.text)
        self.refused(WRONG_USE, ("is a file", "model folder"), "generate", self.model / "config.json")

    def test_the_tokenizer_must_fit(self):
        small = self.write("small.json", json.dumps({**CONFIG, "vocab_size": 255}))
        self.refused(MISMATCH, ("256 tokens", "vocab_size is 255"), "init", small, "--out", self.folder / "out")
        broken = self.copy_of_model()
        (broken / "tokenizer").write_text("words")
        self.refused(CORRUPT, (broken / "tokenizer", "bytes"), "generate", broken)
        (broken / "tokenizer.model").write_bytes(b"no model at all")
        self.refused(CORRUPT, (broken / "tokenizer.model", "SentencePiece"), "generate", broken)

    def test_a_damaged_checkpoint_is_passed_over_and_said(self):
        run_folder = self.folder / "run"
        for step in ("step-00000001", "step-00000002"):
            target = run_folder / "checkpoints" / step
            shutil.copytree(self.model, target)
            checksums = {"tokenizer": self.checksum(target / "tokenizer")}
            (target / "checksums.json").write_text(json.dumps({"algorithm": "xxh3-64", "files": checksums}))
        newest = run_folder / "checkpoints" / "step-00000002"
        self.assertEqual(self.ok("generate", run_folder, "--seed", 1), self.ok("generate", self.model, "--seed", 1))
        (newest / "tokenizer").write_text("bytez\n")
        code, out, err = run("generate", run_folder, "--seed", 1)
        self.assertEqual((code, out), (0, self.ok("generate", self.model, "--seed", 1)))
        self.assertEqual(err.count("\n"), 1)
        for part in (newest, "tokenizer is damaged", f"{run_folder}/checkpoints/step-00000001 is taken"):
            self.assertIn(str(part), err)
        self.refused(CORRUPT, (newest, "tokenizer is damaged"), "generate", newest)

    def checksum(self, path):
        """The XXH3 of a file: Python has none, but the index of a data set of bytes states it."""
        data = self.folder / "checksum"
        self.ok("prepare", "--input", path, "--tokenizer", "bytes", "--out", data, "--force")
        return json.loads((data / "train" / "index.json").read_text())["shards"][0]["tokens_checksum"]


class BadData(CliTest):
    def test_text(self):
        cases = (
            (CORRUPT, ("empty",), "empty.txt", b""),
            (CORRUPT, ("byte 3 ", "UTF-8", "iconv"), "latin.txt", b"Sch\xf6n"),
            (CORRUPT, ("byte 2 ", "UTF-8"), "cut.txt", b"ab\xe2\x82"),
            (CORRUPT, (":2: ", "text"), "no_text.jsonl", b'{"text": "a b"}\n{"txt": "a"}\n'),
            (CORRUPT, (":1: ", "JSON"), "no.jsonl", b"no JSON\n"),
        )
        for code, parts, name, content in cases:
            path = self.write(name, content)
            self.refused(code, (path, *parts), "eval", self.model, "--data", path)
            self.refused(code, (path, *parts), "prepare", "--input", path, "--tokenizer", "bytes", "--out", self.folder / "data")
            self.assertFalse((self.folder / "data").exists())
            if name.endswith(".txt") and content:
                self.refused(code, (path, *parts), "generate", self.model, "--prompt-file", path)
        self.refused(CORRUPT, ("--prompt", "byte 1 ", "UTF-8"), "generate", self.model, "--prompt", os.fsdecode(b"a\xff"))

    def test_too_little_to_predict(self):
        self.refused(WRONG_USE, ("nothing to predict",), "eval", self.model, "--data", self.write("one.txt", "a"))

    def test_files_that_cannot_be_read(self):
        missing = self.folder / "missing.txt"
        self.refused(NOT_FOUND, (missing,), "eval", self.model, "--data", missing)
        self.refused(NOT_FOUND, (missing,), "generate", self.model, "--prompt-file", missing)
        self.refused(NOT_FOUND, (missing,), "prepare", "--input", missing, "--tokenizer", "bytes", "--out", self.folder / "data")
        self.refused(NOT_FOUND, (missing,), "prepare", "--input", self.text, "--tokenizer", missing, "--out", self.folder / "data")
        self.refused(NOT_FOUND, (missing,), "verify", missing)
        self.refused(NOT_FOUND, (missing,), "inspect", missing)
        self.refused(IO, (self.folder,), "generate", self.model, "--prompt-file", self.folder)
        # Reading this one fails for every user, root too.
        self.refused(IO, ("/proc/self/mem",), "generate", self.model, "--prompt-file", "/proc/self/mem")
        self.refused(IO, ("/proc/self/mem",), "eval", self.model, "--data", "/proc/self/mem")

    def test_data_sets(self):
        data = self.folder / "data"
        self.ok("prepare", "--input", self.text, "--tokenizer", "bytes", "--out", data)
        self.refused(NOT_FOUND, (self.folder, "no data set", "prepare"), "eval", self.model, "--data", self.folder)
        index = data / "train" / "index.json"
        whole = index.read_text()

        def changed(key, value):
            index.write_text(json.dumps({**json.loads(whole), key: value}))

        changed("tokenizer", "sentencepiece:0123456789abcdef")
        self.refused(MISMATCH, (data / "train", "sentencepiece:0123456789abcdef", "bytes"), "eval", self.model, "--data", data)
        for size in (100, 1000):  # tokens outside the vocabulary, and a vocabulary that is not the tokenizer's
            changed("vocab_size", size)
            self.refused(CORRUPT, (data / "train",), "eval", self.model, "--data", data)
        index.write_text(whole[:50])
        self.refused(CORRUPT, (index,), "eval", self.model, "--data", data)
        index.write_text(whole)
        tokens = data / "train" / "00000.tokens"
        content = tokens.read_bytes()
        tokens.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        self.refused(CORRUPT, (tokens, "damaged"), "eval", self.model, "--data", data)
        tokens.write_bytes(content[:-1])
        self.refused(CORRUPT, (tokens,), "eval", self.model, "--data", data)
        index.unlink()
        self.refused(NOT_FOUND, (data,), "eval", self.model, "--data", data)

    def test_tokens_outside_the_vocabulary(self):
        golden = Safetensors(GOLDEN)
        golden.set("tokens", "<q" if golden.header["tokens"]["dtype"] == "I64" else "<i", 10**6)
        path = self.write("outside.safetensors", golden.bytes())
        self.refused(CORRUPT, (path, "1000000"), "verify", path)

    def test_golden_files(self):
        self.refused(CORRUPT, ("cut.safetensors",), "verify", self.write("cut.safetensors", GOLDEN.read_bytes()[:-5]))
        self.refused(CORRUPT, (self.text,), "verify", self.text)


class Limits(CliTest):
    def test_a_full_disk(self):
        with open("/dev/full", "wb") as full:
            code, _, err = run("generate", self.model, "--prompt", "a", stdout=full)
            self.assertEqual((code, err.count("\n")), (IO, 1), err)
            self.assertIn("standard output", err)
            self.assertEqual(run("inspect", stdout=full)[0], IO)

        def small_files():
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (50000, 50000))

        out = self.folder / "out"
        self.refused(IO, (out,), "init", self.model, "--out", out, preexec_fn=small_files)
        self.assertFalse((out / "model.safetensors").exists())
        self.refused(NOT_FOUND, ("/proc/none",), "init", self.model, "--out", "/proc/none/out")

    def test_too_little_memory(self):
        def little_memory():
            resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))

        self.refused(OUT_OF_MEMORY, ("parameters",), "init", "7.3B", "--out", self.folder / "out", preexec_fn=little_memory)


if __name__ == "__main__":
    main(__doc__)
