#!/usr/bin/env python3
"""Kills the program with SIGKILL at random moments and goes on, and asks that nothing shows.

    tests/kill/kill_test.py build/cpu/bin/megalodon --kills 100 --seed 1

Seven kills in ten hit training runs, one to three each, the later ones while the run is resumed: the last two checkpoints, every file
of them, and the metrics but for the times must be those of a run that was never stopped, bit for bit. Half of them come at a random
time, the others while a random one of its saves is going on, which the test tells by the folder that is being written. Runs save
after every step or every eighth; both modes of data.mode take turns. The other kills hit `prepare`, after which the same command must
give the same data set, and `checkpoint prune`, after which every checkpoint that is left is whole, and a run goes on to the same
bits. Exits 1 when anything differs or fails."""

import argparse
import collections
import os
import random
import shutil
import sys
import tempfile
import time

from tiny_run import STEPS, Workshop, checkpoints, difference

KINDS = [(mode, every) for every in (1, 8) for mode in ("fresh", "carry")]


def wait_for_save(process, run, nth):
    """Returns while the nth save from now is going on, or when the process has ended."""
    seen = set()
    while process.poll() is None:
        saving = [name for name in checkpoints(run) if name.startswith(".saving-")]
        seen.update(saving)
        if saving and len(seen) >= nth:
            return
        time.sleep(0.0002)


def kill_once(workshop, run, resume, seconds, draw):
    """Starts or resumes the run and kills it. Returns where it was hit, or None when it had ended before."""
    process = workshop.start("train", "run.toml", *(["--resume"] if resume else []), cwd=run)
    if draw.random() < 0.5:
        time.sleep(draw.uniform(0, seconds))
    else:
        wait_for_save(process, run, draw.randint(1, STEPS // 2))
        time.sleep(draw.uniform(0, 0.004))
    process.kill()
    out, err = process.communicate()
    if process.returncode > 0:
        raise AssertionError(f"training ended with {process.returncode}: {err}{out[-2000:]}")
    if process.returncode == 0:
        return None
    names = checkpoints(run)
    if any(name.startswith(".saving-") for name in names):
        return "during a save"
    if any(name.startswith(".removing-") for name in names):
        return "while an old checkpoint was removed"
    return "elsewhere" if names else "before the first checkpoint"


def kill_within(seconds, process, draw):
    """Kills a process at a random moment of the seconds that it takes. Returns whether it was still at work."""
    time.sleep(draw.uniform(0, seconds))
    process.kill()
    process.communicate()
    return process.returncode != 0


class Preparing:
    """Kills of `prepare`."""

    def __init__(self, workshop):
        self.workshop = workshop
        self.count = 0
        text = workshop.folder / "long.txt"
        text.write_text((workshop.folder / "text.txt").read_text() * 400)
        self.command = ["prepare", "--input", str(text), "--tokenizer", "bytes", "--valid-fraction", "0.1", "--out"]
        begin = time.monotonic()
        workshop.check(*self.command, str(workshop.folder / "whole"))
        self.seconds = time.monotonic() - begin
        self.whole = self.files(workshop.folder / "whole")

    @staticmethod
    def files(folder):
        return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}

    def kill_once(self, draw):
        """Returns whether the kill came in time, and what is wrong."""
        self.count += 1
        folder = self.workshop.folder / f"data_{self.count}"
        process = self.workshop.start(*self.command, str(folder))
        if not kill_within(self.seconds, process, draw):
            return False, None
        fault = None
        # A data set that opens is whole: the other files differ in nothing.
        opens = all((folder / part / "index.json").exists() for part in ("train", "valid"))
        code, _, err = self.workshop.run(*self.command, str(folder), *(["--force"] if opens else []))
        if code != 0:
            fault = f"prepare again ended with {code}: {err}"
        elif self.files(folder) != self.whole:
            fault = f"prepared again, {folder.name} holds other bytes"
        shutil.rmtree(folder)
        return True, fault


class Pruning:
    """Kills of `checkpoint prune`."""

    def __init__(self, workshop, straight):
        self.workshop = workshop
        self.straight = straight
        self.count = 0
        self.many = workshop.new_run("many", "carry", 1, keep=0)
        workshop.check("train", "run.toml", cwd=self.many)
        run = self.copy()
        begin = time.monotonic()
        self.prune(run)
        self.seconds = time.monotonic() - begin

    def copy(self):
        self.count += 1
        run = self.workshop.new_run(f"pruned_{self.count}", "carry", 1)
        shutil.copytree(self.many / "run", run / "run", copy_function=os.link)
        return run

    def prune(self, run):
        self.workshop.check("checkpoint", "prune", "run", "--keep", "2", cwd=run)

    def kill_once(self, draw):
        run = self.copy()
        process = self.workshop.start("checkpoint", "prune", "run", "--keep", "2", cwd=run)
        if not kill_within(self.seconds, process, draw):
            return False, None
        fault = None
        code, out, err = self.workshop.run("checkpoint", "verify", "run", cwd=run)
        if code != 0:
            fault = f"after a prune that was killed, verify ended with {code}: {out}{err}"
        elif checkpoints(run)[-2:] != checkpoints(self.straight):
            fault = f"after a prune that was killed, the newest checkpoints are {checkpoints(run)[-2:]}"
        else:
            self.prune(run)
            fault = difference(run, self.straight, ignore=("trainer.json", "checksums.json"))  # train.keep stands in them
        shutil.rmtree(run)
        return True, fault


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--verbose", action="store_true", help="a line for each run")
    options = parser.parse_args()
    draw = random.Random(options.seed)
    failures = []
    hits = collections.Counter()
    with tempfile.TemporaryDirectory(prefix="megalodon_kill_") as folder:
        workshop = Workshop(options.program, folder)
        straight, seconds = {}, {}
        for mode, every in KINDS:
            run = workshop.new_run(f"straight_{mode}_{every}", mode, every)
            begin = time.monotonic()
            workshop.check("train", "run.toml", cwd=run)
            seconds[mode, every] = time.monotonic() - begin
            straight[mode, every] = run
        # The comparison must be able to fail: the two modes train differently.
        if difference(straight["fresh", 1], straight["carry", 1]) is None:
            raise AssertionError("a run in fresh mode and one in carry mode do not differ: nothing is compared")
        others = {"in prepare": Preparing(workshop), "in prune": Pruning(workshop, straight["carry", 1])}
        for place, hunt in others.items():
            while hits[place] < options.kills * 15 // 100:
                hit, fault = hunt.kill_once(draw)
                hits[place] += hit
                if fault:
                    failures.append(f"{place}: {fault}")
        elsewhere = len(failures)
        runs = unhurt = 0
        while sum(hits.values()) < options.kills:
            kind = KINDS[(runs + unhurt) % len(KINDS)]
            run = workshop.new_run(f"run_{runs + unhurt}", *kind)
            places = []
            for _ in range(min(draw.randint(1, 3), options.kills - sum(hits.values()))):
                resume = (run / "run" / "run.toml").exists()
                place = kill_once(workshop, run, resume, seconds[kind], draw)
                if place is None:
                    break
                places.append(place)
                hits[place] += 1
            if not places:  # it had ended before the first kill
                unhurt += 1
                continue
            runs += 1
            resume = (run / "run" / "run.toml").exists()
            code, _, err = workshop.run("train", "run.toml", *(["--resume"] if resume else []), cwd=run)
            fault = f"exit code {code}: {err}" if code != 0 else difference(run, straight[kind])
            if fault:
                failures.append(f"run {runs} ({kind[0]}, killed {', '.join(places)}): {fault}")
            if options.verbose or fault:
                print(f"run {runs:3d}  {kind[0]}, saves after every {kind[1]}; killed {', '.join(places)}: {fault or 'same bits'}",
                      flush=True)
    print(f"{sum(hits.values())} kills in {runs} runs, seed {options.seed}: " +
          ", ".join(f"{count} {place}" for place, count in sorted(hits.items())))
    print(f"{runs - len(failures) + elsewhere} of {runs} runs have the bits of the run that was never stopped")
    for failure in failures:
        print(failure)
    return 1 if failures or not hits else 0


if __name__ == "__main__":
    sys.exit(main())
