#!/usr/bin/env python3
"""What `megalodon train` does when the system fails it: errors of the disk, a disk that is full, a terminal that closes, a clock
that jumps, a data file that is cut short. Each is said by name, the checkpoints that were there stay whole, and the run, gone on
or resumed, has the bits of one that nothing happened to.

    tests/kill/fault_test.py build/cpu/bin/megalodon build/cpu/tests/libfaults.so [unittest options]"""

import errno
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

from tiny_run import STEPS, Workshop, checkpoints, difference, files_of, metrics_of

PROGRAM = None
FAULTS = None
EVERY = 8
CORRUPT, IO = 4, 6


class Faults(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.temporary = tempfile.TemporaryDirectory(prefix="megalodon_faults_")
        os.chmod(cls.temporary.name, 0o755)  # for the test without rights
        cls.workshop = Workshop(PROGRAM, cls.temporary.name)
        cls.straight = cls.workshop.new_run("straight", "carry", EVERY)
        cls.workshop.check("train", "run.toml", cwd=cls.straight)

    @classmethod
    def tearDownClass(cls):
        cls.temporary.cleanup()

    def new_run(self, name=""):
        return self.workshop.new_run(self._testMethodName + name, "carry", EVERY)

    def train(self, run, *arguments, fault=None, clock=None, **options):
        environment = dict(os.environ)
        if fault or clock:
            environment["LD_PRELOAD"] = FAULTS
        if fault:
            environment["MEGALODON_FAULT"] = fault
        if clock:
            environment["MEGALODON_CLOCK"] = clock
        return self.workshop.run("train", "run.toml", *arguments, cwd=run, env=environment, **options)

    def same_bits(self, run):
        self.assertIsNone(difference(run, self.straight))

    def refused(self, result, code, *parts):
        got, out, err = result
        self.assertEqual(got, code, err + out)
        self.assertEqual(err.count("\n"), 1, err)
        for part in parts:
            self.assertIn(part, err)

    def wait_for_steps(self, process, run, steps):
        metrics = run / "run" / "metrics.jsonl"
        while process.poll() is None and not (metrics.exists() and metrics.read_text().count("\n") >= steps):
            time.sleep(0.001)
        self.assertIsNone(process.poll(), "the run was over too soon")

    def test_one_failure_on_the_way_is_told_and_the_run_goes_on(self):
        for call, file, number in (("fsync", "optimizer.safetensors", errno.EIO), ("fsync", "model.safetensors", errno.ENOSPC),
                                   ("write", "state.safetensors", errno.ENOSPC), ("write", "trainer.json", errno.EIO),
                                   ("write", "checksums.json", errno.EDQUOT), ("fsync", "metrics.jsonl", errno.EIO)):
            with self.subTest(call=call, file=file):
                run = self.new_run(f"_{call}_{file}")
                place = "run/" + file if file == "metrics.jsonl" else f".saving-step-{2 * EVERY:08d}/{file}"
                code, out, err = self.train(run, fault=f"{call}:{number}:{place}:{1 if file == 'metrics.jsonl' else 0}:1")
                self.assertEqual(code, 0, err)
                line = next(line for line in out.split("\n") if "failed, the run goes on" in line)
                for part in (f"of step {2 * EVERY} failed", file, os.strerror(number)):
                    self.assertIn(part, line)
                self.same_bits(run)

    def test_the_last_failure_ends_the_run_with_its_error(self):
        run = self.new_run()
        result = self.train(run, fault=f"fsync:{errno.EIO}:.saving-step-{STEPS:08d}/model")
        self.refused(result, IO, "cannot save the checkpoint", "model.safetensors", os.strerror(errno.EIO),
                     f"The checkpoint before it is run/checkpoints/step-{4 * EVERY:08d}")
        self.assertEqual(checkpoints(run), [f"step-{3 * EVERY:08d}", f"step-{4 * EVERY:08d}"])
        self.workshop.check("checkpoint", "verify", "run", cwd=run)
        self.workshop.check("train", "run.toml", "--resume", cwd=run)
        self.same_bits(run)

    def test_a_best_checkpoint_that_fails_leaves_the_one_before(self):
        run = self.new_run()
        # Validations come every 7 steps, each better than the last. The saves of steps 30 to 39 fail.
        result = self.train(run, "--train.keep_best", "true", "--keep", "1", "--train.steps", "39", fault=f"write:{errno.ENOSPC}:.saving-step-0000003")
        self.refused(result, IO, "cannot save the checkpoint")
        self.assertEqual(checkpoints(run), ["best", "step-00000028"])
        self.assertEqual(os.readlink(run / "run/checkpoints/best"), "step-00000028")
        self.workshop.check("generate", "run/checkpoints/best", "--max-tokens", "4", cwd=run)

    def test_writes_and_reads_cut_short_make_no_difference(self):
        run = self.new_run("_writes")
        code, _, err = self.train(run, fault="write:short:")
        self.assertEqual(code, 0, err)
        self.same_bits(run)
        run = self.new_run("_reads")
        self.workshop.stop_early(run)
        code, _, err = self.train(run, "--resume", fault="read:short:")
        self.assertEqual(code, 0, err)
        self.same_bits(run)

    def test_a_disk_that_is_full_for_a_while(self):
        run = self.new_run()
        code, out, err = self.train(run, fault=f"write:{errno.ENOSPC}:/run/:12:10")
        self.assertEqual(code, 0, err)
        self.assertIn(os.strerror(errno.ENOSPC), out)
        self.same_bits(run)

    def test_a_full_disk(self):
        disk = pathlib.Path(self.temporary.name) / "disk"
        disk.mkdir()
        if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", disk], capture_output=True).returncode:
            self.skipTest("a small disk can not be mounted here")
        try:
            run = self.new_run()
            (disk / "run").mkdir()
            (run / "run").symlink_to(disk / "run")
            process = self.workshop.start("train", "run.toml", "--train.accumulate", "8", cwd=run)
            self.wait_for_steps(process, run, 10)
            subprocess.run(["dd", "if=/dev/zero", f"of={disk / 'ballast'}", "bs=4096"], stderr=subprocess.DEVNULL, check=False)
            self.wait_for_steps_or_failure(process, run)
            (disk / "ballast").unlink()
            out, err = process.communicate()
            self.assertEqual(process.returncode, 0, err)
            self.assertIn(os.strerror(errno.ENOSPC), self.said + out)
            straight = self.new_run("_straight")
            self.workshop.check("train", "run.toml", "--train.accumulate", "8", cwd=straight)
            self.assertIsNone(difference(run, straight))
        finally:
            subprocess.run(["umount", "-l", disk], check=False)

    def wait_for_steps_or_failure(self, process, run):
        self.said = ""
        for line in process.stdout:
            self.said += line
            if "goes on" in line:
                return
        self.fail("the disk was full and nothing was said: " + self.said[-2000:])

    def test_a_read_error_is_no_damage(self):
        run = self.new_run()
        self.train(run, "--train.steps", "24")
        before = {name: files_of(run / "run/checkpoints" / name) for name in checkpoints(run)}
        for file in sorted(before["step-00000024"]):
            result = self.train(run, "--resume", fault=f"read:{errno.EIO}:step-00000024/{file}")
            self.refused(result, IO, f"step-00000024/{file}", "cannot read", os.strerror(errno.EIO), "step-00000016")
        self.assertEqual({name: files_of(run / "run/checkpoints" / name) for name in checkpoints(run)}, before)

    def test_a_flipped_bit_in_any_file_of_a_checkpoint(self):
        run = self.new_run()
        shutil.copytree(self.straight / "run", run / "run")
        newest = run / "run/checkpoints" / checkpoints(run)[-1]
        for name, content in files_of(newest).items():
            flipped = bytearray(content)
            flipped[len(flipped) * 3 // 5] ^= 1
            (newest / name).write_bytes(flipped)
            code, out, err = self.workshop.run("checkpoint", "verify", "run", cwd=run)
            self.assertEqual(code, CORRUPT, out)
            self.assertEqual(err.count("\n"), 1, err)
            for part in (newest.name, name, f"The newest whole one is run/checkpoints/{checkpoints(run)[0]}"):
                self.assertIn(part, err)
            (newest / name).write_bytes(content)
        self.workshop.check("checkpoint", "verify", "run", cwd=run)

    def test_a_data_file_cut_short_while_it_is_in_use(self):
        data = self.workshop.folder / "short"
        shutil.copytree(self.workshop.folder / "data", data)
        run = self.new_run()
        process = self.workshop.start("train", "run.toml", "--data.path", str(data), "--train.steps", "100000", cwd=run)
        while process.poll() is None and f"step-{EVERY:08d}" not in checkpoints(run):
            time.sleep(0.001)
        os.truncate(data / "train" / "00000.tokens", 0)
        out, err = process.communicate()
        self.refused((process.returncode, out, err), IO, str(data / "train" / "00000.tokens"), "cut short")
        self.workshop.check("checkpoint", "verify", "run", cwd=run)

    def test_a_flipped_bit_in_any_file_of_a_data_set(self):
        data = self.workshop.folder / "flipped"
        shutil.copytree(self.workshop.folder / "data", data)
        run = self.new_run()
        process = self.workshop.start("train", "run.toml", cwd=run)
        self.wait_for_steps(process, run, 3)
        process.send_signal(signal.SIGTERM)
        process.communicate()
        before = {name: files_of(run / "run/checkpoints" / name) for name in checkpoints(run)}
        self.assertTrue(before)
        for part in ("train", "valid"):
            for kind in ("tokens", "blocks", "documents"):
                with self.subTest(part=part, kind=kind):
                    file = data / part / f"00000.{kind}"
                    whole = file.read_bytes()
                    flipped = bytearray(whole)
                    flipped[len(flipped) * 3 // 5] ^= 1
                    file.write_bytes(flipped)
                    self.refused(self.train(run, "--resume", "--data.path", str(data)), CORRUPT, str(file), "damaged", "Prepare the data set again")
                    file.write_bytes(whole)
                    self.assertEqual({name: files_of(run / "run/checkpoints" / name) for name in before}, before)
        self.workshop.check("train", "run.toml", "--resume", cwd=run)
        self.same_bits(run)

    def test_a_clock_that_jumps(self):
        run = self.new_run()
        code, _, err = self.train(run, clock="jump")
        self.assertEqual(code, 0, err)
        self.same_bits(run)
        self.assertGreater(sum(json.loads(line)["seconds"] for line in (run / "run/metrics.jsonl").read_text().splitlines()), 60 * STEPS)

    def test_a_terminal_that_closes_saves_and_stops(self):
        run = self.new_run()
        process = self.workshop.start("train", "run.toml", "--train.steps", "100000", cwd=run)
        self.wait_for_steps(process, run, 3)
        process.stdout.close()  # what is written from here on has no reader
        process.stderr.close()
        for _ in range(3):  # a shell passes it on to those whom the system told already
            process.send_signal(signal.SIGHUP)
        self.assertEqual(process.wait(), 0)
        step = len(metrics_of(run))
        self.assertIn(f"step-{step:08d}", checkpoints(run))
        self.workshop.check("checkpoint", "verify", "run", cwd=run)

    def test_nohup_trains_on(self):
        run = self.new_run()
        process = self.workshop.start("train", "run.toml", "--train.accumulate", "16", cwd=run,
                                      preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
        self.wait_for_steps(process, run, 1)
        process.send_signal(signal.SIGHUP)
        out, err = process.communicate()
        self.assertEqual(process.returncode, 0, err)
        self.assertIn(f"all {STEPS} steps done", out)

    def test_a_lost_output_does_not_end_the_run(self):
        run = self.new_run("_pipe")
        process = self.workshop.start("train", "run.toml", cwd=run)
        process.stdout.close()
        err = process.stderr.read()
        self.assertEqual(process.wait(), 0, err)
        self.assertIn("standard output", err)
        self.same_bits(run)
        run = self.new_run("_full")
        with open("/dev/full", "w") as full:
            process = subprocess.Popen([self.workshop.program, "train", "run.toml"], cwd=run, stdout=full, stderr=subprocess.PIPE, text=True)
            err = process.communicate()[1]
        self.assertEqual(process.returncode, 0, err)
        self.assertIn("standard output", err)
        self.same_bits(run)

    def test_saves_when_asked(self):
        run = self.new_run()
        process = self.workshop.start("train", "run.toml", "--checkpoint_every", "0", "--keep", "0", "--train.accumulate", "16", cwd=run)
        self.wait_for_steps(process, run, 3)
        process.send_signal(signal.SIGUSR1)
        out, err = process.communicate()
        self.assertEqual(process.returncode, 0, err)
        names = checkpoints(run)
        self.assertEqual(len(names), 2, names)
        self.assertEqual(names[1], f"step-{STEPS:08d}")
        self.assertIn(f"checkpoint    run/checkpoints/{names[0]}", out)
        self.workshop.check("checkpoint", "verify", "run", cwd=run)

    def test_prune_keeps_the_newest_whole_ones(self):
        run = self.new_run()
        self.train(run, "--keep", "0")
        steps = [EVERY * i for i in range(1, 6)]
        folders = [f"run/checkpoints/step-{step:08d}" for step in steps]
        (run / folders[3] / "optimizer.safetensors").write_bytes(b"0")
        out = self.workshop.check("checkpoint", "list", "run", cwd=run)
        self.assertEqual([line.split()[-1] for line in out.split("\n")[1:6]], ["whole"] * 3 + ["damaged", "whole"])
        listed = json.loads(self.workshop.check("checkpoint", "list", "run", "--json", cwd=run))
        metrics = {line["step"]: line for line in metrics_of(run)}
        for entry, step in zip(listed, steps):
            self.assertEqual((entry["step"], entry["loss"]), (step, metrics[step]["loss"]))
        self.assertEqual(listed[-1]["valid_loss"], metrics[STEPS]["valid_loss"])
        (run / "run/checkpoints/best").symlink_to(pathlib.Path(folders[0]).name)
        out = self.workshop.check("checkpoint", "prune", "run", "--keep", "2", cwd=run)
        for i, folder in enumerate(folders):
            self.assertIn(["kept ", "removed ", "kept ", "left: ", "kept "][i] + folder, out)
            self.assertEqual((run / folder).exists(), i != 1)
        process = self.workshop.start("train", "run.toml", "--resume", "--train.steps", "100000", cwd=run)
        self.wait_for_steps(process, run, STEPS + 2)
        self.refused(self.workshop.run("checkpoint", "prune", "run", "--keep", "1", cwd=run), IO, "another process trains",
                     "Wait for it; a run removes its own")
        process.kill()
        process.communicate()

    def test_a_file_system_without_locks(self):
        run = self.new_run()
        reasons = "No locks available. Use a file system that has locks"
        self.refused(self.train(run, fault=f"flock:{errno.ENOLCK}:run/.lock"), IO, "run/.lock: cannot be locked", reasons)
        self.assertEqual(os.listdir(run / "run"), [".lock"])
        self.train(run)
        before = checkpoints(run)
        faulty = {**os.environ, "LD_PRELOAD": FAULTS, "MEGALODON_FAULT": f"flock:{errno.ENOLCK}:"}
        self.refused(self.workshop.run("checkpoint", "prune", "run", "--keep", "1", cwd=run, env=faulty), IO, reasons)
        self.assertEqual(checkpoints(run), before)
        self.same_bits(run)
        text = str(self.workshop.folder / "text.txt")
        self.refused(self.workshop.run("prepare", "--input", text, "--tokenizer", "bytes", "--out", "data", cwd=run, env=faulty), IO,
                     reasons)
        self.assertFalse((run / "data").exists())

    def test_a_read_only_folder(self):
        run = self.new_run()
        shutil.copytree(self.straight / "run", run / "run")
        before = files_of(run / "run/checkpoints" / checkpoints(run)[-1])
        for folder, _, _ in os.walk(run):
            os.chmod(folder, 0o555)
        nobody = {"user": 65534} if os.geteuid() == 0 else {}
        own = self.workshop.program  # which may lie where nobody but root may look
        self.workshop.program = shutil.copy(own, self.workshop.folder / "megalodon")
        self.addCleanup(setattr, self.workshop, "program", own)
        self.refused(self.train(run, "--resume", "--train.steps", "48", **nobody), IO, "run/.lock", "Permission denied")
        self.refused(self.train(run, "--out", "other", **nobody), IO, "other", "Permission denied")
        self.assertEqual(files_of(run / "run/checkpoints" / checkpoints(run)[-1]), before)
        for folder, _, _ in os.walk(run):
            os.chmod(folder, 0o755)

    def test_paths_with_spaces_and_letters_of_all_kinds(self):
        run = self.new_run(" with spaces, ü, 鯨 and 'quotes\"")
        shutil.copytree(self.workshop.folder / "data", run / "meine Daten é")
        run_folder = "Ann's Lauf 🐋"
        (run / "mein Programm").mkdir()
        program = run / "mein Programm" / "megalodon"
        program.symlink_to(self.workshop.program)
        process = subprocess.Popen([program, "train", "run.toml", "--data.path", "meine Daten é", "--out", run_folder,
                                    "--train.steps", "100000"], cwd=run, stdout=subprocess.PIPE, text=True, errors="replace")
        while process.poll() is None and not checkpoints(run, run_folder):
            time.sleep(0.001)
        process.send_signal(signal.SIGTERM)
        out = process.communicate()[0]
        self.assertEqual(process.returncode, 0)
        step = int(re.search(r"stopped at step (\d+)", out)[1])

        def pasted(command, *more):
            done = subprocess.run(["bash", "-c", " ".join([command, *more])], cwd=run, capture_output=True)
            self.assertEqual((done.returncode, done.stderr), (0, b""), command)
            return done.stdout.decode(errors="replace")

        (command,) = re.findall("^  (.*)$", out.split("go on with:\n")[1], re.M)
        out = pasted(command, "--train.steps", str(step + 8))
        self.assertIn(f"all {step + 8} steps done", out)
        commands = re.findall("^  (.*)$", out.split("next:\n")[1], re.M)
        self.assertEqual(len(commands), 3, commands)
        self.assertIn("nats per token", pasted(commands[0]))
        self.assertGreater(len(pasted(commands[1])), 10)
        self.assertEqual(pasted(commands[2]), f"{run_folder}/plot.html\n")
        self.assertTrue((run / run_folder / "plot.html").is_file())
        listed = json.loads(self.workshop.check("checkpoint", "list", run_folder, "--json", cwd=run))
        self.assertEqual((listed[-1]["step"], listed[-1]["whole"]), (step + 8, True))
        self.assertTrue(self.workshop.check("generate", run_folder, "--prompt", "é", "--max-tokens", "4", cwd=run))


if __name__ == "__main__":
    PROGRAM = sys.argv.pop(1)
    FAULTS = str(pathlib.Path(sys.argv.pop(1)).resolve())
    unittest.main()
