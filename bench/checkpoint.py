#!/usr/bin/env python3
"""What checkpoints cost: the d384 model of 12.1 M parameters trains with a checkpoint every 20 steps and without any, in turns, on
one machine. Prints each pair and the share of the throughput that the checkpoints leave.

    python3 bench/checkpoint.py build/cpu/bin/megalodon [--pairs 4] [--steps 50] [--every 20] [--batch 8] [-- FLAG...]

FLAGs are given to `megalodon train`, such as --train.async_checkpoint false or --train.device cuda. Time runs from the end of step
EVERY / 2 to that of the last one, by when every save but the one at the end of the run must be over."""

import argparse
import pathlib
import random
import statistics
import subprocess
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


def seconds_of(options, folder, every, out):
    """Trains, and returns the seconds from the line of step options.every / 2 to that of the last one."""
    command = [str(options.program), "train", "run.toml", "--out", out, "--steps", str(options.steps), "--batch", str(options.batch),
               "--checkpoint_every", str(every), *options.flags]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True)
    begin = end = 0.0
    saved = 0
    for line in process.stdout:
        now = time.monotonic()
        if line.startswith("step ") and " loss " in line:
            step = int(line.split()[1].split("/")[0])
            if step == options.every // 2:
                begin = now
            if step == options.steps:
                end = now
        saved += line.startswith("  checkpoint ") and end == 0
    if process.wait() != 0:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    if every and saved != (options.steps - 1) // every:
        raise SystemExit(f"{saved} checkpoints were over before the last step: give more --steps")
    return end - begin


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", type=lambda path: pathlib.Path(path).resolve())
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--every", type=int, default=20)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("flags", nargs="*")
    options = parser.parse_args()
    shares = []
    with tempfile.TemporaryDirectory(prefix="megalodon_bench_") as name:
        folder = pathlib.Path(name)
        draw = random.Random(1)
        (folder / "text.txt").write_text("".join(draw.choice("abcdefgh \n") for _ in range(1_000_000)))
        (folder / "run.toml").write_text(RUN_FILE)
        subprocess.run([options.program, "prepare", "--input", "text.txt", "--tokenizer", "bytes", "--out", "data"], cwd=folder, check=True)
        for pair in range(options.pairs):
            seconds = {}
            for every in (0, options.every) if pair % 2 == 0 else (options.every, 0):
                seconds[every] = seconds_of(options, folder, every, f"run_{pair}_{every}")
            shares.append(seconds[0] / seconds[options.every])
            print(f"pair {pair + 1}: {seconds[0]:.2f} s without, {seconds[options.every]:.2f} s with a checkpoint every {options.every} "
                  f"steps: {shares[-1]:.4f} of the throughput", flush=True)
    print(f"median of {options.pairs} pairs: checkpoints leave {statistics.median(shares):.4f} of the throughput")


if __name__ == "__main__":
    main()
