#!/usr/bin/env python3
"""What `megalodon train` does when it is stopped, when its files are damaged, when the disk is full and when it is asked for what
cannot be: one clear line, the exit code of its kind, and the checkpoints as they were.

    tests/kill/damage_test.py build/cpu/bin/megalodon [unittest options]"""

import json
import pathlib
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import unittest

from tiny_run import STEPS, Workshop, checkpoints, difference, files_of, metrics_of

PROGRAM = None
ENDLESS = ("--train.accumulate", "100000")  # a step that goes on for minutes
WRONG_USE, NOT_FOUND, CORRUPT, MISMATCH, IO, NOT_FINITE = 2, 3, 4, 5, 6, 9


class TrainCommand(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.temporary = tempfile.TemporaryDirectory(prefix="megalodon_damage_")
        cls.workshop = Workshop(PROGRAM, cls.temporary.name)
        cls.straight = cls.workshop.new_run("straight", "carry", 8)
        cls.output = cls.workshop.check("train", "run.toml", cwd=cls.straight)

    @classmethod
    def tearDownClass(cls):
        cls.temporary.cleanup()

    def new_run(self, name=""):
        return self.workshop.new_run(self._testMethodName + name, "carry", 8)

    def train(self, run, *arguments, **options):
        return self.workshop.run("train", "run.toml", *arguments, cwd=run, **options)

    def start(self, run, *arguments):
        return self.workshop.start("train", "run.toml", *arguments, cwd=run)

    def finish(self, run):
        """Resumes to the end; the result must be that of the straight run. Returns what was printed."""
        out = self.workshop.check("train", "run.toml", "--resume", cwd=run)
        for folder in (run / "run" / "checkpoints").glob("damaged-*"):
            shutil.rmtree(folder)
        self.assertIsNone(difference(run, self.straight))
        return out

    def refused(self, run, code, *parts, arguments=(), **options):
        """The command fails with this code and one line that holds these parts; returns that line."""
        got, _, err = self.train(run, *arguments, **options)
        self.assertEqual(got, code, err)
        self.assertEqual(err.count("\n"), 1, err)
        for part in parts:
            self.assertIn(part, err)
        return err

    def test_shows_its_progress(self):
        for part in ("parameters", "memory", "GFLOP/s in f32", "tok ", "loss", "valid ", "lr", "norm", "tok/s", "MFU", "MiB", "left",
                     "validation", "sample", "checkpoint", f"all {STEPS} steps done"):
            self.assertIn(part, self.output)
        metrics = metrics_of(self.straight)
        self.assertEqual([line["step"] for line in metrics], list(range(1, STEPS + 1)))
        self.assertEqual([line["step"] for line in metrics if "valid_loss" in line], [7, 14, 21, 28, 35, 40])
        self.assertLess(metrics[-1]["loss"], metrics[0]["loss"] - 1)
        # The matrices have 2 x 7,680 weights in layers and 8,192 in the head; 4 x 136 pairs of a window's 64 tokens see each other.
        operations = 6 * 2 * 4 * (64 * (2 * 7680 + 8192) + 544 * 2 * (16 + 32))
        rate = 1e9 * float(re.search(r"products at (\d+) GFLOP/s", self.output)[1])
        for line in map(json.loads, (self.straight / "run" / "metrics.jsonl").read_text().splitlines()):
            self.assertAlmostEqual(line["mfu"] * line["seconds"] * rate / operations, 1, delta=0.1)  # the printed rate is rounded

    def test_the_run_folder_is_a_model(self):
        for model in ("run", "run/checkpoints/" + checkpoints(self.straight)[-1]):
            out = self.workshop.check("eval", model, "--data", "../data/valid", "--json", cwd=self.straight)
            self.assertLess(json.loads(out)["nats_per_token"], 3)
            text = self.workshop.check("generate", model, "--prompt", "the ", "--max-tokens", "40", "--seed", "1", cwd=self.straight)
            self.assertGreater(len(text), 10)

    def test_the_run_folder_says_what_it_was_computed_with(self):
        def starts(run):
            return [json.loads(line) for line in (run / "run" / "environment.jsonl").read_text().splitlines()]

        (start,) = starts(self.straight)
        for key in ("program", "compiler", "onednn", "highway", "processor", "device"):
            self.assertTrue(start[key], key)
        self.assertEqual([start[key] for key in ("step", "threads", "seed", "data_seed")], [0, 2, 1, 1])
        train, valid = start["data"]
        self.assertEqual(train["tokenizer"], "bytes")
        self.assertRegex(train["index"], "^[0-9a-f]{16}$")
        self.assertNotEqual(train["index"], valid["index"])
        run = self.new_run()
        step, _ = self.workshop.stop_early(run)
        self.finish(run)
        self.assertEqual([line["step"] for line in starts(run)], [0, step])
        self.assertEqual(starts(run)[1]["data"], start["data"])
        # The same number of other tokens.
        text = self.workshop.folder / "other.txt"
        text.write_text((self.workshop.folder / "text.txt").read_text().replace("whale", "shark"))
        self.workshop.check("prepare", "--input", str(text), "--tokenizer", "bytes", "--valid-fraction", "0.1", "--out", str(run / "other"))
        other = ("--resume", "--train.steps", "48", "--data.path", "other")
        index = [json.loads(self.workshop.check("eval", "run", "--data", folder, "--json", cwd=run))["tokens"]
                 for folder in ("other/train", "../data/train")]
        self.assertEqual(index[0], index[1])
        before = files_of(run / "run/checkpoints" / checkpoints(run)[-1])
        self.refused(run, MISMATCH, f"(index {train['index']})", "of other/train (index ", "--allow-other-data", arguments=other)
        self.assertEqual(files_of(run / "run/checkpoints" / checkpoints(run)[-1]), before)
        out = self.workshop.check("train", "run.toml", *other, "--allow-other-data", cwd=run)
        self.assertIn(f"(index {starts(run)[-1]['data'][0]['index']}) from here on", out)
        self.assertNotEqual(starts(run)[-1]["data"][0]["index"], train["index"])
        self.refused(run, WRONG_USE, "--allow-other-data", "--resume", arguments=["--allow-other-data"])

    def test_goes_on_by_the_folder_of_a_run_wherever_it_is_now(self):
        run = self.new_run()
        step, _ = self.workshop.stop_early(run)
        code, _, err = self.workshop.run("train", "run", cwd=run)
        self.assertEqual(code, WRONG_USE)
        self.assertIn("Add --resume", err)
        (run / "run").rename(run / "moved")
        out = self.workshop.check("train", "moved", "--resume", cwd=run)
        self.assertIn(f"resume      moved/checkpoints/step-{step:08d}", out)
        self.assertFalse((run / "run").exists())
        self.assertEqual(metrics_of(run, "moved"), metrics_of(self.straight))

    def test_signals_save_and_stop(self):
        for number in (signal.SIGINT, signal.SIGTERM):
            run = self.new_run(number.name)
            step, out = self.workshop.stop_early(run, number)
            self.assertIn("stopping after this step", out)
            self.assertIn(f"stopped at step {step} of {STEPS}", out)
            self.assertIn("--resume", out)
            self.assertIn(f"step-{step:08d}", checkpoints(run))
            self.assertIn(f"(step {step})", self.finish(run))

    def test_a_second_signal_ends_it_at_once(self):
        for attempt in range(20):
            run = self.new_run(str(attempt))
            process = self.start(run, *ENDLESS)
            while process.poll() is None and not (run / "run" / "metrics.jsonl").exists():
                time.sleep(0.001)
            time.sleep(0.1)
            process.send_signal(signal.SIGINT)
            told = False
            for line in process.stdout:
                if "once more" in line:
                    told = True
                    process.send_signal(signal.SIGINT)
            process.communicate()
            self.assertEqual(process.returncode, -signal.SIGINT)
            self.assertEqual(checkpoints(run), [])
            if told:
                return self.finish(run)
        self.fail("every first signal came before training had begun")

    def test_falls_back_from_a_damaged_checkpoint(self):
        whole = self.new_run("whole")
        self.workshop.stop_early(whole)  # two checkpoints, at least one of them before the end
        process = self.start(whole, "--resume")
        while process.poll() is None and len([name for name in checkpoints(whole) if name.startswith("step")]) < 2:
            time.sleep(0.001)
        process.send_signal(signal.SIGTERM)
        process.communicate()
        names = checkpoints(whole)
        self.assertEqual(len(names), 2)
        newest = pathlib.Path("run/checkpoints") / names[-1]

        def flip(path):
            data = bytearray(path.read_bytes())
            data[len(data) * 2 // 3] ^= 4
            path.write_bytes(data)

        damages = {"removed": lambda path: path.unlink(), "flipped": flip, "cut": lambda path: path.write_bytes(path.read_bytes()[:-1]),
                   "empty": lambda path: path.write_bytes(b"")}
        files = sorted(files_of(whole / newest))
        self.assertEqual(len(files), 7)
        for i, file in enumerate(files):
            damage = list(damages)[i % len(damages)]
            with self.subTest(file=file, damage=damage):
                run = self.workshop.folder / f"{self._testMethodName}_{file}"
                shutil.copytree(whole, run)
                damages[damage](run / newest / file)
                out = self.finish(run)
                self.assertIn("damaged", out)
                self.assertIn(str(newest), out)
                self.assertIn(file, out)
                self.assertIn(f"resume      run/checkpoints/{names[0]}", out)
        for name in names:
            (whole / "run/checkpoints" / name / "optimizer.safetensors").write_bytes(b"0")
        self.refused(whole, CORRUPT, "every checkpoint is damaged", names[-1], "optimizer.safetensors", arguments=["--resume"])
        self.assertEqual(checkpoints(whole), names)

    def test_refuses_a_checkpoint_of_another_configuration(self):
        run = self.new_run()
        self.workshop.stop_early(run)
        before = {name: files_of(run / "run/checkpoints" / name) for name in checkpoints(run)}
        settings = (run / "run" / "run.toml").read_bytes()
        metrics = (run / "run" / "metrics.jsonl").read_bytes()
        for key, value in (("model.ffn_hidden_dim", "64"), ("model.swiglu", "true"), ("data.batch", "3"), ("data.mode", "fresh"),
                           ("train.seed", "9"), ("train.accumulate", "1")):
            self.refused(run, MISMATCH, key, value, "--out", arguments=["--resume", "--" + key, value])
        self.assertEqual({name: files_of(run / "run/checkpoints" / name) for name in checkpoints(run)}, before)
        self.assertEqual((run / "run" / "run.toml").read_bytes(), settings)
        self.assertEqual((run / "run" / "metrics.jsonl").read_bytes(), metrics)
        self.finish(run)

    def test_a_full_disk_leaves_the_last_checkpoint_whole(self):
        run = self.new_run()
        self.workshop.stop_early(run)
        last = checkpoints(run)
        before = files_of(run / "run/checkpoints" / last[-1])
        # A limit on the size of files is what a program without privileges can have of a full disk.
        for limit in (len(before["model.safetensors"]) - 1, len(before["optimizer.safetensors"]) - 1):
            self.refused(run, IO, "cannot save the checkpoint", "cannot write", last[-1], arguments=["--resume"],
                         preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY)))
            self.assertEqual(checkpoints(run), last)
            self.assertEqual(files_of(run / "run/checkpoints" / last[-1]), before)
        self.finish(run)

    def test_refuses_what_it_does_not_know(self):
        run = self.new_run()
        self.refused(run, WRONG_USE, "unknown flag --optim.warmpu", "Did you mean --optim.warmup?", arguments=["--optim.warmpu", "3"])
        self.refused(run, WRONG_USE, "--train.steps", "an integer", "many", arguments=["--train.steps", "many"])
        self.refused(run, WRONG_USE, "data.batch = 0", arguments=["--batch", "0"])
        text = (run / "run.toml").read_text()
        (run / "run.toml").write_text(text.replace("keep = 2", "kep = 2"))
        line = text.split("\n").index("keep = 2") + 1
        self.refused(run, WRONG_USE, f"run.toml:{line}", "unknown key train.kep", "Did you mean train.keep?")
        (run / "run.toml").write_text(text.replace("lr = 3e-3", 'lr = "high"'))
        self.refused(run, WRONG_USE, "optim.lr must be a number", "high")
        (run / "run.toml").unlink()
        self.refused(run, NOT_FOUND, "run.toml")
        self.assertFalse((run / "run").exists())

    def test_refuses_data_that_is_missing_or_too_short(self):
        run = self.new_run()
        self.refused(run, NOT_FOUND, "../none/train", "no finished data set", "megalodon prepare", arguments=["--data.path", "../none"])
        self.refused(run, WRONG_USE, "both given", "--data.path ''", arguments=["--data.mix", "../data 1"])
        self.refused(run, WRONG_USE, "tokens; the data set has", "data.length", arguments=["--data.length", "16000"])
        self.refused(run, MISMATCH, "vocab_size = 256", arguments=["--vocab_size", "100"])
        self.assertFalse((run / "run").exists())

    def test_refuses_a_folder_in_use(self):
        run = self.new_run()
        process = self.start(run, *ENDLESS)
        while process.poll() is None and not (run / "run" / "metrics.jsonl").exists():
            time.sleep(0.001)
        self.refused(run, IO, "another process trains or prunes in this run folder", "Wait for it to end", arguments=["--resume"])
        self.refused(run, WRONG_USE, "a run is in this folder already", "--resume")
        process.kill()
        process.communicate()
        self.finish(run)

    def test_says_which_steps_it_skips_and_ends_when_they_are_all(self):
        run = self.new_run()
        code, out, err = self.train(run, "--lr", "1e30", "--optim.clip", "0", "--max_bad_steps", "4")
        self.assertEqual(code, NOT_FINITE, err)
        self.assertEqual(err.count("\n"), 1, err)
        self.assertIn("not finite in 4 steps in a row", err)
        self.assertIn("skipped: loss", out)
        self.assertEqual([line.get("skipped", False) for line in metrics_of(run)][-5:], [False] + 4 * [True])


if __name__ == "__main__":
    PROGRAM = sys.argv.pop(1)
    unittest.main()
