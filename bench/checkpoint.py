#!/usr/bin/env python3
"""What checkpoints cost: the d384 model of 12.1 M parameters trains with a checkpoint every 20 steps. Prints, for each save, the time of
the steps around it and the share of the throughput that the checkpoints leave.

    python3 bench/checkpoint.py build/cpu/bin/megalodon [--saves 8] [--every 20] [--batch 8] [-- FLAG...]

FLAGs are given to `megalodon train`, such as --train.async_checkpoint false, --train.threads 1 or --train.device cuda. A save costs
something in the EVERY / 2 steps that follow it, by whose end it must be over, and nothing in those before and after them: the three are
compared, so that a machine that grows faster or slower in the course of a run cancels out, which two runs, minutes apart, do not. The
first steps and the save at the end of the run are not counted.

What other processes take of the machine's processors is printed too: with more than some percent of it, look at the processor seconds,
which they disturb less. Those of a save are the whole process's, so an upper bound: a thread that waits for another is awake at first."""

import argparse
import os
import pathlib
import random
import statistics
import subprocess
import sys
import tempfile
import time

RUN_FILE = """[model]
num_layers = 6
model_dim = 384
num_heads = 1
z_dim = 96
value_dim = 768
ffn_hidden_dim = 768
cema_ndim = 16
chunk_size = 512
norm_num_groups = 12
vocab_size = 256
swiglu = true
[data]
path = "data"
length = 512
[train]
keep = 2
"""
TICK = 1 / os.sysconf("SC_CLK_TCK")


def clocks(pid):
    """Seconds: the clock, the processors' time of the process, that of the whole machine that was not idle."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    user, nice, system, _, _, *interrupts_and_stolen = map(int, pathlib.Path("/proc/stat").read_text().split("\n")[0].split()[1:9])
    busy = user + nice + system + sum(interrupts_and_stolen)
    return time.monotonic(), (int(fields[11]) + int(fields[12])) * TICK, busy * TICK


def halves_of(options, folder):
    """Trains, and returns for each EVERY / 2 steps, but for the first, the differences of the three clocks."""
    half = options.every // 2
    steps = options.every * (options.saves + 1)
    command = [str(options.program), "train", "run.toml", "--out", "run", "--steps", str(steps), "--batch", str(options.batch),
               "--checkpoint_every", str(options.every), *options.flags]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True)
    marks = []
    saved = 0
    try:
        for line in process.stdout:
            if line.startswith("step ") and " loss " in line:
                step = int(line.split()[1].split("/")[0])
                if step % half == 0:
                    marks.append(clocks(process.pid))
                    if saved != (step - 1) // options.every:
                        raise SystemExit(f"{saved} checkpoints were over before step {step}: a save takes longer than {half} steps, give a larger "
                                         "--every")
            saved += line.startswith("  checkpoint ")
    except BaseException:
        process.kill()
        process.wait()
        raise
    if process.wait() != 0:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return [tuple(b - a for a, b in zip(begin, end)) for begin, end in zip(marks, marks[1:])]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", type=lambda path: pathlib.Path(path).resolve())
    parser.add_argument("--saves", type=int, default=8)
    parser.add_argument("--every", type=int, default=20)
    parser.add_argument("--batch", type=int, default=8)
    cut = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    options = parser.parse_args(sys.argv[1:cut])
    options.flags = sys.argv[cut + 1:]
    if options.every % 2 or options.every < 2 or options.saves < 1:
        parser.error("--every must be even and --saves at least 1")
    with tempfile.TemporaryDirectory(prefix="megalodon_bench_") as name:
        folder = pathlib.Path(name)
        draw = random.Random(1)
        (folder / "text.txt").write_text("".join(draw.choice("abcdefgh \n") for _ in range(1_000_000)))
        (folder / "run.toml").write_text(RUN_FILE)
        subprocess.run([options.program, "prepare", "--input", "text.txt", "--tokenizer", "bytes", "--out", "data"], cwd=folder, check=True)
        halves = halves_of(options, folder)
    shares, seconds, processors = [], [], []
    for save in range(options.saves):
        before, after_save, later = halves[2 * save:2 * save + 3]
        without = [(a + b) / 2 for a, b in zip(before, later)]
        shares.append(2 * without[0] / (without[0] + after_save[0]))
        seconds.append(after_save[0] - without[0])
        processors.append(after_save[1] - without[1])
        print(f"save {save + 1}: {options.every // 2} steps in {after_save[0]:.2f} s with it, {without[0]:.2f} s without: {shares[-1]:.4f} of "
              f"the throughput; {processors[-1]:+.2f} processor seconds", flush=True)
    wall, own, busy = (sum(column) for column in zip(*halves))
    print(f"median of {options.saves} saves: {1e3 * statistics.median(seconds):.0f} ms and {1e3 * statistics.median(processors):.0f} ms of "
          f"processors each")
    print(f"other processes took {max(0, busy - own) / (wall * os.cpu_count()):.1%} of the processors")
    print(f"checkpoints every {options.every} steps leave {statistics.median(shares):.4f} of the throughput")


if __name__ == "__main__":
    main()
