#!/usr/bin/env python3
"""Drives the program as a user does: every command's help and documentation, and the happy path on models that take milliseconds. Wrong
use and bad input are in misuse_test.py; `train` has tests of its own in tests/kill.

    tests/apps/cli_test.py build/cpu/bin/megalodon [unittest options]"""

import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import xml.etree.ElementTree

from cli import CONFIG, CORRUPT, FAILED, GOLDEN, MISMATCH, NOT_FOUND, PRESETS, ROOT, TEXT, UNSUPPORTED, WRONG_USE, CliTest, Safetensors, main, run, start


class Help(CliTest):
    def commands(self):
        text = self.ok("--help").decode()
        return re.findall(r"^  (\w+)  ", text.split("Subcommands:")[1].split("\n\n")[0], re.M)

    def test_every_command_has_help_and_is_documented(self):
        commands = self.commands()
        self.assertEqual(commands, ["prepare", "init", "train", "checkpoint", "plot", "eval", "generate", "inspect", "verify", "bench"])
        documented = re.split(r"^## ", (ROOT / "docs" / "commands.md").read_text(), flags=re.M)
        sections = {section.split("\n")[0]: section for section in documented}
        for command in commands:
            text = self.ok(command, "--help").decode()
            self.assertIn("Usage: megalodon " + command, text)
            self.assertIn(command, sections)
            self.assertIn("    megalodon " + command, sections[command])
            for flag in re.findall(r"^  (?:-\w,)?(--[\w-]+)", text, re.M):
                if flag != "--help" and command != "train":  # train's flags are the keys of its run file
                    self.assertIn(flag, sections[command], command)

    def test_no_command_shows_the_help(self):
        self.assertEqual(self.ok(), self.ok("--help"))

    def test_version(self):
        self.assertRegex(self.ok("--version").decode(), r"^megalodon \d+\.\d+\.\d+\n$")

    def test_exit_codes_are_those_of_the_help(self):
        text = self.ok("--help").decode()
        for code in (1, 2, 3, 4, 5, 6, 7, 8, 9, 70, 141):
            self.assertRegex(text, rf"\b{code} \w")


class HappyPath(CliTest):
    def generate(self, *arguments):
        return self.ok("generate", self.model, "--max-tokens", 60, *arguments)

    def evaluate(self, *arguments):
        return json.loads(self.ok("eval", self.model, "--json", "--data", *arguments))

    def test_init_repeats_with_the_seed(self):
        for name, seed in (("same", 1), ("other", 2)):
            self.ok("init", self.model, "--seed", seed, "--out", self.folder / name)
        ours = (self.model / "model.safetensors").read_bytes()
        self.assertEqual((self.folder / "same" / "model.safetensors").read_bytes(), ours)
        self.assertNotEqual((self.folder / "other" / "model.safetensors").read_bytes(), ours)
        self.assertEqual((self.folder / "same" / "config.json").read_bytes(), (self.model / "config.json").read_bytes())

    def test_generate_depends_on_the_seed_alone(self):
        text = self.generate("--prompt", "It was", "--seed", 1)
        self.assertEqual(self.generate("--prompt", "It was", "--seed", 1), text)
        self.assertNotEqual(self.generate("--prompt", "It was", "--seed", 2), text)
        self.assertNotEqual(self.generate("--prompt", "It is", "--seed", 1), text)

    def test_generate_takes_the_prompt_from_a_file(self):
        self.assertEqual(self.generate("--prompt-file", self.text), self.generate("--prompt", TEXT))
        self.assertEqual(self.generate(), self.generate("--prompt", "\n"))  # bytes begin a document with a newline

    def test_generate_samples_as_told(self):
        greedy = self.generate("--prompt", "It was", "--temperature", 0)
        for same in (("--top-k", 1), ("--top-p", 1e-9), ("--temperature", 0, "--seed", 5)):
            self.assertEqual(self.generate("--prompt", "It was", *same), greedy)
        self.assertNotEqual(self.generate("--prompt", "It was"), greedy)

    def test_generate_writes_as_many_tokens_as_told(self):
        self.assertEqual(self.ok("generate", self.model, "--prompt", "a", "--max-tokens", 0), b"\n")
        code, out, err = run("generate", self.model, "--prompt", "It was", "--max-tokens", 7, "--stats")
        self.assertEqual(code, 0)
        self.assertIn("prompt     6 tokens", err)
        self.assertIn("generated  7 tokens", err)

    def test_generate_streams_whole_characters(self):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)  # keeps one write from the next
        process = start("generate", self.model, "--prompt", "a", "--max-tokens", 3000, "--seed", 3, stdout=theirs)
        theirs.close()
        pieces = []
        with ours:
            while piece := ours.recv(1 << 16):
                pieces.append(piece.decode())  # each by itself: a character cut in two would not decode
        self.assertEqual(process.communicate()[1], b"")
        self.assertGreater(len(pieces), 1)
        self.assertTrue(any(ord(c) > 127 and c != "\ufffd" for c in "".join(pieces)))

    def test_generate_does_not_grow(self):
        code, _, err = run("generate", self.model, "--prompt", "a", "--max-tokens", 8000, "--stats", "--threads", 1)
        self.assertEqual(code, 0)
        self.assertEqual(len(re.findall(r"^time .* ms a token for tokens", err, re.M)), 2, err)
        first, last = map(int, re.search(r"memory +(\d+) KiB resident after 8 tokens, (\d+) KiB at the end", err).groups())
        self.assertLessEqual(last, first + 512)
        self.assertIn("growth     not measured", run("generate", self.model, "--max-tokens", 10, "--stats")[2])

    def test_a_closed_pipe_ends_it_quietly(self):
        for restore in (True, False):  # whether we hand it a SIGPIPE that is ignored
            process = start("generate", self.model, "--prompt", "a", "--max-tokens", 10**9, restore_signals=restore)
            self.assertEqual(len(process.stdout.read(10)), 10)
            process.stdout.close()
            self.assertEqual(process.stderr.read(), b"")
            self.assertEqual(process.wait(60), -signal.SIGPIPE)
            process.stderr.close()

    def test_eval_measures(self):
        e = self.evaluate(self.text)
        size = len(TEXT.encode())
        self.assertEqual((e["tokens"], e["bytes"], e["documents"], e["predicted"]), (size, size, 1, size - 1))
        self.assertTrue(5 < e["nats_per_token"] < 8)  # a random model is near ln 256
        self.assertAlmostEqual(e["nats_per_token"], e["nats"] / e["predicted"])
        self.assertAlmostEqual(e["perplexity"], math.exp(e["nats_per_token"]))
        self.assertAlmostEqual(e["bits_per_byte"], e["nats_per_token"] / math.log(2))
        text = self.ok("eval", self.model, "--data", self.text).decode()
        for line in (f"nats per token  {e['nats_per_token']:.6f}", f"bits per byte   {e['bits_per_byte']:.6f}", "context         unlimited"):
            self.assertIn(line, text)

    def test_prepare_reads_standard_input(self):
        self.ok("prepare", "--input", self.text, "--tokenizer", "bytes", "--out", self.folder / "data")
        with open(self.text, "rb") as text:
            self.ok("prepare", "--input", "-", "--tokenizer", "bytes", "--out", self.folder / "piped", stdin=text)
        for name in ("index.json", "00000.tokens"):
            self.assertEqual((self.folder / "piped" / "train" / name).read_bytes(), (self.folder / "data" / "train" / name).read_bytes())
        read, write = os.pipe()
        os.close(write)
        self.refused(WRONG_USE, ("no known end", "--valid-fraction"), "prepare", "--input", "-", "--tokenizer", "bytes", "--out",
                     self.folder / "part", "--valid-fraction", 0.5, stdin=read)
        os.close(read)

    def prepared(self, *tokenizer):
        data = self.folder / "data"
        code, _, err = run("prepare", "--input", self.text, *tokenizer, "--valid-fraction", 0.25, "--out", data)
        self.assertEqual(code, 0, err)  # training a tokenizer is told there
        return data, json.loads((data / "train" / "index.json").read_text())["vocab_size"]

    def train_and_generate(self, data, vocab_size, tokenizer_file):
        """The model of a short run on the data has its tokenizer, evaluates text by it, and writes text."""
        config = {**CONFIG, "vocab_size": vocab_size}
        model = "".join(f"{key} = {json.dumps(value)}\n" for key, value in config.items())
        run_file = self.write("run.toml", f'out = "{self.folder}/run"\n[model]\n{model}[data]\npath = "{data}"\nlength = 32\nbatch = 2\n'
                              '[optim]\nlr = 1e-3\n[train]\nsteps = 4\nvalidate_every = 2\nsample_every = 4\n')
        self.assertIn(b"all 4 steps done", self.ok("train", run_file))
        trained = self.folder / "run"
        newest = trained / "checkpoints" / "step-00000004"
        self.assertEqual((newest / tokenizer_file).read_bytes(), (data / tokenizer_file).read_bytes())
        size = len(TEXT.encode())
        of_text = json.loads(self.ok("eval", trained, "--json", "--data", self.text))
        self.assertEqual(of_text["bytes"], size)
        self.assertLess(of_text["tokens"], size)
        parts = [json.loads(self.ok("eval", trained, "--json", "--data", data / part)) for part in ("train", "valid")]
        self.assertEqual(sum(part["bytes"] for part in parts), size)
        code, out, err = run("generate", trained, "--prompt", "It was", "--max-tokens", 50, "--seed", 1, "--stats")
        self.assertEqual(code, 0, err)
        self.assertIn("generated  50 tokens", err)
        out.decode()
        code, _, err = run("train", run_file, "--out", self.folder / "other", "--model.vocab_size", vocab_size - 1)
        self.assertEqual((code, err.count("\n")), (MISMATCH, 1), err)
        self.assertIn(str(vocab_size), err)

    def test_prepare_trains_a_tokenizer_that_the_model_keeps(self):
        data, vocab_size = self.prepared("--train-sentencepiece", 290)
        self.assertEqual(vocab_size, 290)
        self.train_and_generate(data, vocab_size, "tokenizer.model")
        code, _, err = run("prepare", "--input", self.text, "--train-sentencepiece", 259, "--out", self.folder / "small")
        self.assertEqual(code, WRONG_USE, err)
        self.assertIn("259 pieces are asked for", err)

    def test_a_tokenizer_json_goes_from_prepare_to_generate(self):
        for name in ("gpt2", "llama2"):
            with self.subTest(name):
                self.folder = self.shared / f"{self._testMethodName}_{name}"
                self.folder.mkdir()
                self.train_and_generate(*self.prepared("--tokenizer", ROOT / "tests" / "golden" / "tokenizers" / f"{name}.json"), "tokenizer.json")

    def test_eval_of_prepared_data_is_that_of_its_text(self):
        self.ok("prepare", "--input", self.text, "--tokenizer", "bytes", "--out", self.folder / "data")
        for part in ("data", "data/train"):
            self.assertEqual(self.evaluate(self.folder / part)["nats"], self.evaluate(self.text)["nats"])
        self.ok("prepare", "--input", self.text, "--tokenizer", "bytes", "--out", self.folder / "split", "--valid-fraction", 0.25)
        sizes = [self.evaluate(self.folder / "split" / part)["tokens"] for part in ("train", "valid")]
        self.assertEqual(sum(sizes), len(TEXT.encode()))
        self.assertEqual(self.evaluate(self.folder / "split")["tokens"], sizes[1])

    def test_eval_bounds_the_context(self):
        results = [self.evaluate(self.text, "--context", n) for n in (0, 1, 20, 10**6)]
        self.assertEqual({e["predicted"] for e in results}, {len(TEXT.encode()) - 1})
        self.assertEqual(results[0]["nats"], results[3]["nats"])
        self.assertEqual(len({e["nats"] for e in results}), 3)

    def test_eval_compares_contexts(self):
        picture = self.folder / "context.svg"
        both = json.loads(self.ok("eval", self.model, "--json", "--data", self.text, "--context", "20,whole", "--plot", picture))
        for row, context in zip(both["contexts"], (20, 0)):
            alone = self.evaluate(self.text, "--context", context)
            self.assertEqual({k: v for k, v in row.items() if "second" not in k},
                             {k: alone[k] for k in row if "second" not in k})
        self.assertIn("tokens of context", picture.read_text())
        self.assertIn("whole", self.ok("eval", self.model, "--data", self.text, "--context", "20,whole").decode())

    def test_plot_draws_runs(self):
        for run, losses in (("first", [3.0, 2.5, None, 2.0]), ("a<b", [3.5, 3.0, 2.5, 2.25])):
            lines = [{"step": i + 1, "loss": loss, "lr": 1e-3, "grad_norm": 1.0, "tokens": 64, "seconds": 0.5}
                     for i, loss in enumerate(losses)]
            lines[-1]["valid_loss"] = 2.125
            (self.folder / run).mkdir()
            (self.folder / run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 5, "lo')
        runs = (self.folder / "first", self.folder / "a<b")
        for over in ("steps", "tokens", "time"):
            self.ok("plot", *runs, "--over", over, "--out", self.folder / "runs.svg")
            picture = xml.etree.ElementTree.parse(self.folder / "runs.svg").getroot()
            texts = {element.text for element in picture.iter("{http://www.w3.org/2000/svg}text")}
            self.assertLessEqual({"first", "a<b", "training loss (nats per token)", "validation loss (nats per token)"}, texts)
            self.assertIn("minutes" if over == "time" else over, texts)
        self.ok("plot", *runs, "--out", self.folder / "runs.html")
        page = (self.folder / "runs.html").read_text()
        self.assertIn("2.125", page)
        self.assertNotIn("a<b", page)
        self.assertNotIn("http://", page.replace("http://www.w3.org/2000/svg", ""))  # one file that needs no other
        self.ok("plot", *runs, "--dark", "--out", self.folder / "runs.png")
        self.assertEqual((self.folder / "runs.png").read_bytes()[:8], b"\x89PNG\r\n\x1a\n")

    def test_plot_says_what_is_wrong(self):
        self.refused(NOT_FOUND, ("no metrics", self.folder / "nowhere"), "plot", self.folder / "nowhere")
        empty = self.write("empty.jsonl", "")
        self.refused(WRONG_USE, ("no step", empty), "plot", empty)
        broken = self.write("broken.jsonl", '{"step": 1, "loss": 2}\n[]\n{"step": 2, "loss": 2}\n')
        self.refused(CORRUPT, ("line 2", broken), "plot", broken)
        fine = self.write("fine.jsonl", '{"step": 1, "loss": 2}\n')
        self.refused(WRONG_USE, (".html", ".svg", ".png", "loss.pdf"), "plot", fine, "--out", self.folder / "loss.pdf")

    def test_eval_reads_jsonl_and_several_files(self):
        lines = self.write("two.jsonl", '{"text": "hello there"}\n{"text": "and goodbye"}\n')
        e = self.evaluate(lines)
        self.assertEqual((e["documents"], e["tokens"], e["predicted"]), (2, 22, 20))
        both = self.evaluate(lines, self.text)
        self.assertEqual(both["tokens"], 22 + len(TEXT.encode()))

    def test_inspect_counts_parameters(self):
        self.assertEqual(json.loads(self.ok("inspect", "--json"))["presets"], PRESETS)
        for name, count in PRESETS.items():
            report = json.loads(self.ok("inspect", name, "--json"))
            self.assertEqual(report["parameters"]["total"], count)
            self.assertEqual(sum(report["parameters"]["parts"].values()), count)
            self.assertIn(f"{count:,}", self.ok("inspect", name).decode())

    def test_inspect_shows_a_model_and_the_machine(self):
        report = json.loads(self.ok("inspect", self.model, "--json"))
        self.assertEqual({key: report["config"][key] for key in CONFIG}, CONFIG)
        stored = Safetensors(self.model / "model.safetensors")
        self.assertEqual(report["parameters"]["total"], len(stored.data) // 4)
        self.assertEqual(report["parameters"]["tensors"], len(stored.header) - ("__metadata__" in stored.header))
        for key in ("processor", "processors", "memory_bytes", "highway_target", "onednn_isa", "versions"):
            self.assertIn(key, report["machine"])
        self.assertEqual(json.loads(self.ok("inspect", self.model / "config.json", "--json"))["config"], report["config"])

    def check_plan(self, text, window, train, variants, taken_by):
        """What runs take is what is planned, less what any run takes: within 5 % on the difference of two models.

        `window` and `train` are the lines of these sections; taken_by(run file, run folder) runs it and returns bytes."""
        data = self.folder / "data"
        self.ok("prepare", "--input", text, "--tokenizer", "bytes", "--valid-fraction", "0.5", "--out", data)
        large = dict(CONFIG, num_layers=4, model_dim=384, z_dim=192, value_dim=768, ffn_hidden_dim=1024, chunk_size=128)

        def measure(name, model, settings=""):
            out = self.folder / name
            keys = "".join(f"{key} = {json.dumps(value)}\n" for key, value in model.items())
            run_file = self.write(name + ".toml", f'out = "{out}"\n[model]\n{keys}[data]\npath = "{data}"\n{window}\n'
                                  f"[train]\n{train}\n{settings}\n")
            plan = json.loads(self.ok("inspect", run_file, "--json"))["training"]
            self.assertEqual(plan["total_bytes"], sum(plan["bytes"].values()))
            return plan["total_bytes"], taken_by(run_file, out)

        # Not too small: it must take more than measuring the processor does before it.
        planned, measured = measure("small", dict(large, num_layers=1))
        for i, settings in enumerate(variants):
            more_planned, more_measured = measure(f"large{i}", large, settings)
            share = (more_measured - measured) / (more_planned - planned)
            print(f"    {settings}: planned {more_planned >> 20} MiB, taken {share:.3f} of it")
            self.assertAlmostEqual(share, 1, delta=0.05, msg=settings)

    def test_inspect_plans_the_memory_of_training(self):
        def resident(run_file, _):
            # What was freed goes back to the system at once: how much of it the allocator keeps is chance.
            environment = dict(os.environ, MALLOC_MMAP_THRESHOLD_="65536", MALLOC_TRIM_THRESHOLD_="65536")
            process = start("train", run_file, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            self.assertEqual(process.returncode, 0)
            return usage.ru_maxrss * 1024

        self.check_plan(self.text, "length = 256\nbatch = 4", "steps = 2\nthreads = 2",
                        ('recompute = "none"', 'recompute = "block"', "sample_every = 1"), resident)

    def test_a_gpu_takes_what_was_planned(self):
        if not self.has_gpu():
            self.skipTest("there is no GPU, or the program is built without CUDA")

        def told(run_file, out):
            self.ok("train", run_file)
            return max(json.loads(line).get("memory_bytes", 0) for line in (out / "metrics.jsonl").read_text().splitlines())

        text = self.write("long.txt", "A batch of windows to validate on. " * 2000)  # of fewer windows less would be taken
        self.check_plan(text, "length = 512\nbatch = 32", 'steps = 3\ndevice = "cuda"\ndtype = "bf16"',
                        ('recompute = "none"', 'recompute = "block"', "validate_every = 1"), told)

    def test_verify_passes_and_fails(self):
        self.assertIn("quantities within their bounds", self.ok("verify", GOLDEN).decode())
        golden = Safetensors(GOLDEN)
        for name in golden.header:
            if name == "logits" or name == "oracle.logits":
                golden.set(name, "<d" if golden.header[name]["dtype"] == "F64" else "<f", 1e3)
        wrong = self.write("wrong.safetensors", golden.bytes())
        for dtype in ("f32", "bf16") if self.has_bf16() else ("f32",):
            code, out, err = run("verify", wrong, "--dtype", dtype)
            self.assertEqual((code, err), (FAILED, ""))
            self.assertIn(b"FAIL", out)

    def has_bf16(self):
        code, _, err = run("verify", GOLDEN, "--dtype", "bf16")
        if code == UNSUPPORTED:
            self.assertIn("this processor does not multiply bfloat16", err)
        return code != UNSUPPORTED

    def has_gpu(self):
        return json.loads(self.ok("inspect", "--json"))["machine"]["gpu"] is not None

    def test_verify_in_bf16(self):
        if not self.has_bf16():
            self.skipTest("this processor does not multiply bfloat16")
        files = sorted(GOLDEN.parent.glob("*.safetensors"))
        self.assertEqual(len(files), 6)
        report = json.loads(self.ok("verify", *files, "--dtype", "bf16", "--json"))
        bounds = [quantity["bound"] for file in report for quantity in file["quantities"]]
        errors = [quantity["error"] for file in report for quantity in file["quantities"]]
        self.assertLess(max(bounds), 0.1, "a bound that means something")
        self.assertGreater(max(errors), 1e-3, "products of bfloat16 are off by more than those of float32")

    def test_bench_profiles_add_up(self):
        report = json.loads(self.ok("bench", "train", "--model", self.model, "--batch", 2, "--length", 16, "--steps", 2, "--json"))
        self.check_profile(report, report["step_seconds"])
        self.assertGreater(report["onednn_f32_flops"], 0)
        self.assertGreater(report["read_bandwidth"], 0)
        # The matrices have 2 x 9,984 weights in layers and 8,192 in the head; 2 x 36 pairs of a window's 16 tokens see each other.
        operations = 6 * 2 * (16 * (2 * 9984 + 8192) + 72 * 2 * (16 + 48))
        self.assertAlmostEqual(report["mfu"] * report["onednn_f32_flops"] * report["step_seconds"] / operations, 1)
        report = json.loads(self.ok("bench", "prefill", "--model", self.model, "--length", 50, "--json"))
        self.check_profile(report, report["seconds"])
        report = json.loads(self.ok("bench", "decode", "--model", self.model, "--batch", 3, "--tokens", 2, "--context", 5, 20,
                                    "--json"))
        self.assertEqual([after["context"] for after in report["after"]], [5, 20])
        for after in report["after"]:
            self.check_profile(after, after["step_seconds"])
        lines = json.loads(self.ok("bench", "ops", "rms_norm", "--json"))["lines"]
        self.assertTrue(lines and all(line["seconds"] > 0 for line in lines))
        narrow = json.loads(self.ok("bench", "ops", "rms_norm", "--dtype", "bf16", "--json"))["lines"]
        self.assertEqual([line["what"] for line in narrow], [line["what"] for line in lines if "bf16" in line["what"]])
        self.assertTrue(narrow)

    def test_bench_ops_on_a_gpu(self):
        if not self.has_gpu():
            self.skipTest("there is no GPU, or the program is built without CUDA")
        report = json.loads(self.ok("bench", "ops", "cema", "timestep_norm", "--device", "cuda", "--dtype", "bf16", "--json"))
        self.assertIn("accelerator", report)
        for line in report["lines"]:
            self.assertTrue(0 < line["share"] < 1.5, line)

    def check_profile(self, report, seconds):
        ops = {entry["op"]: entry["seconds"] for entry in report["profile"]}
        self.assertIn("cema_forward", ops)
        self.assertIn("between ops", ops)
        self.assertAlmostEqual(sum(ops.values()), seconds, delta=1e-6 * seconds)

    def test_models_in_bf16(self):
        if not self.has_bf16():
            self.skipTest("this processor does not multiply bfloat16")
        narrow = self.folder / "narrow"
        self.ok("init", self.model, "--seed", 3, "--dtype", "bf16", "--out", narrow)
        wide = self.folder / "wide"
        self.ok("init", self.model, "--seed", 3, "--out", wide)
        sizes = [(model / "model.safetensors").stat().st_size for model in (narrow, wide)]
        self.assertLess(sizes[0], 0.7 * sizes[1])

        def nats(model, *flags):
            return json.loads(self.ok("eval", model, "--data", self.text, "--json", *flags))["nats_per_token"]

        self.assertEqual(nats(narrow), nats(narrow, "--dtype", "bf16"))
        self.assertEqual(nats(wide), nats(wide, "--dtype", "f32"))
        self.assertNotEqual(nats(wide), nats(wide, "--dtype", "bf16"))
        self.assertEqual(nats(narrow), nats(wide, "--dtype", "bf16"))
        self.assertAlmostEqual(nats(narrow), nats(wide), delta=0.01)
        text = [self.ok("generate", *model, "--prompt", "It", "--max-tokens", 40, "--dtype", "bf16")
                for model in ((narrow,), (wide,), (narrow, "--map"))]
        self.assertEqual(text[0], text[1])
        self.assertEqual(text[0], text[2])


class RemovedMeanwhile(CliTest):
    """A run that goes on removes its older checkpoints: one that is being read then counts for nothing."""

    def setUp(self):
        super().setUp()
        self.ok("prepare", "--input", self.text, "--tokenizer", "bytes", "--out", self.folder / "data")
        model = "".join(f"{key} = {json.dumps(value)}\n" for key, value in CONFIG.items())
        run_file = self.write("run.toml", f"out = {json.dumps(str(self.folder / 'run'))}\n[model]\n{model}[data]\n"
                              f"path = {json.dumps(str(self.folder / 'data'))}\nlength = 16\nbatch = 1\n[train]\nsteps = 1\n")
        code, _, err = run("train", run_file)
        self.assertEqual(code, 0, err)
        self.run_folder = self.folder / "run"
        self.checkpoints = self.run_folder / "checkpoints"

    def read_while_removed(self, command, *flags, then=lambda: None):
        """Runs the command on the run while it has a newest checkpoint that keeps whoever reads it waiting, until it is removed and
        `then` is done. Returns the output."""
        trap = self.folder / "trap"
        shutil.copytree(self.whole, trap)
        (trap / "checksums.json").unlink()
        os.mkfifo(trap / "checksums.json")
        trap = trap.rename(self.checkpoints / "step-00000002")
        process = start(*command, self.run_folder, *flags)
        with open(trap / "checksums.json", "wb", buffering=0):  # waits for the reader
            then()
            trap.rename(self.folder / "gone")
        out, err = process.communicate(timeout=300)
        shutil.rmtree(self.folder / "gone")
        self.assertEqual((process.returncode, err), (0, b""))
        self.assertNotIn(b"step-00000002", out)
        self.assertNotIn(b"damaged", out)
        return out.decode()

    def test_the_others_count(self):
        self.whole = self.checkpoints / "step-00000001"
        self.assertEqual(self.read_while_removed(["checkpoint", "verify"]), f"{self.whole}: whole\n")
        self.assertIn("whole", self.read_while_removed(["checkpoint", "list"]))
        self.assertIn("cema_ndim", self.read_while_removed(["inspect"]))
        self.read_while_removed(["generate"], "--max-tokens", 4)
        listed = json.loads(self.read_while_removed(["checkpoint", "list"], "--json"))
        size = sum(file.stat().st_size for file in self.whole.iterdir())
        self.assertEqual([(entry["step"], entry["whole"], str(entry["bytes"])) for entry in listed], [(1, True, str(size))])

    def test_newer_ones_are_looked_for(self):
        self.whole = (self.checkpoints / "step-00000001").rename(self.folder / "whole")
        newer = self.checkpoints / "step-00000003"
        for command, *flags in ((["checkpoint", "verify"],), (["checkpoint", "list"],), (["inspect"],), (["eval"], "--data", self.text)):
            out = self.read_while_removed(command, *flags, then=lambda: shutil.copytree(self.whole, newer))
            self.assertIn({"inspect": "cema_ndim", "checkpoint": "whole", "eval": str(newer)}[command[0]], out)
            shutil.rmtree(newer)


class StandardInput(CliTest):
    def prepare(self, name, *flags, **options):
        self.ok("prepare", "--tokenizer", "bytes", "--out", self.folder / name, *flags, **options)
        return [(self.folder / name / part / "00000.tokens").read_bytes() for part in ("train", "valid")
                if (self.folder / name / part).exists()]

    def test_is_read_from_where_it_stands(self):
        with open(self.write("lines.txt", "read already\n" + TEXT), "rb", buffering=0) as rest:
            rest.seek(len("read already\n"))  # as a shell's `read` leaves it
            self.assertEqual(self.prepare("rest", "--input", "-", "--valid-fraction", 0.25, stdin=rest),
                             self.prepare("whole", "--input", self.text, "--valid-fraction", 0.25))

    def test_may_be_a_socket(self):
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                theirs.sendall(TEXT.encode())
            self.assertEqual(self.prepare("sent", "--input", "-", stdin=ours), [TEXT.encode()])


class Figures(CliTest):
    def test_values_that_hardly_differ_are_drawn(self):
        metrics = [{"step": 2**60 + 256 * i, "loss": 3, "lr": lr} for i, lr in enumerate((0.001, 0.0009999999999999998, 0.001))]
        path = self.write("metrics.jsonl", "".join(json.dumps(line) + "\n" for line in metrics))
        self.ok("plot", path, "--out", self.folder / "plot.svg")
        xml.etree.ElementTree.parse(self.folder / "plot.svg")

    def test_a_wrong_ending_is_said_before_the_work(self):
        name = self.folder / "context.pdf"
        self.refused(WRONG_USE, (name, ".html, .svg or .png"), "eval", self.folder, "--data", self.text, "--plot", name)
        self.refused(WRONG_USE, (name, ".html, .svg or .png"), "plot", self.folder, "--out", name)

    def test_megabytes_are_bounded(self):
        for megabytes in ("1e14", "nan", "-1"):
            self.refused(WRONG_USE, ("--train-megabytes",), "prepare", "--input", self.text, "--train-sentencepiece", 300,
                         "--train-megabytes", megabytes, "--out", self.folder / "data")


if __name__ == "__main__":
    main(__doc__)
