#!/usr/bin/env python3
"""Kills training runs with SIGKILL at random moments, resumes them, and asks that nothing shows: the last two checkpoints, every
file of them, and the metrics but for the times must be those of a run that was never stopped, bit for bit.

    tests/kill/kill_test.py build/cpu/bin/megalodon --kills 60 --seed 1

One run takes one to three kills, the later ones while it is resumed. Half of the kills come at a random time, the others while a
random one of its saves is going on, which the test tells by the folder that is being written. Runs save after every step or every
eighth. Both modes of data.mode take turns. Exits 1 when a resumed run differs or fails."""

import argparse
import collections
import pathlib
import random
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
    print(f"{runs - len(failures)} of {runs} runs have the bits of the run that was never stopped")
    return 1 if failures or not hits else 0


if __name__ == "__main__":
    sys.exit(main())
