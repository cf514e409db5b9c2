#!/usr/bin/env python3
"""Kills `megalodon prepare` with SIGKILL at random moments and asks that nothing half written is ever taken for whole: where the
output stands, it is all there, and the next call gives the bytes of one that was never stopped.

    tests/kill/prepare_test.py build/cpu/bin/megalodon --kills 40 --seed 1

Inputs are text and JSONL, as they are and compressed. A third of the kills come while an older data set is replaced (--force), which
must stay whole until the new one is. Exits 1 at the first fault."""

import argparse
import collections
import gzip
import json
import pathlib
import random
import subprocess
import sys
import tempfile
import time


def write_inputs(folder, draw):
    words = ["shark", "naïve", "鯊魚", "tooth", "deep", "sea", "\n"]
    texts = [" ".join(draw.choice(words) for _ in range(200)) for _ in range(400)]
    (folder / "a.txt").write_text("\n".join(texts * 40))
    lines = "".join(json.dumps({"text": text}, ensure_ascii=draw.random() < 0.5) + "\n" for text in texts * 8)
    (folder / "b.jsonl").write_text(lines)
    (folder / "c.jsonl.gz").write_bytes(gzip.compress(lines.encode(), 1))


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


class Fault(Exception):
    pass


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    draw = random.Random(options.seed)
    hits = collections.Counter()
    with tempfile.TemporaryDirectory(prefix="megalodon_prepare_") as name:
        folder = pathlib.Path(name)
        inputs = folder / "in puts"
        inputs.mkdir()
        write_inputs(inputs, draw)

        def command(out, fraction, *flags):
            return [options.program, "prepare", "--input", str(inputs), "--tokenizer", "bytes", "--out", str(out),
                    "--valid-fraction", str(fraction), *flags]

        def check(*arguments):
            done = subprocess.run(command(*arguments), capture_output=True, text=True)
            if done.returncode != 0:
                raise Fault(f"prepare ended with {done.returncode}: {done.stderr}")
            return done.stderr

        begin = time.monotonic()
        check(folder / "straight", 0.1)
        seconds = time.monotonic() - begin
        check(folder / "older", 0.2)
        straight, older = files_of(folder / "straight"), files_of(folder / "older")
        if straight == older:
            raise Fault("the two data sets are the same: nothing is compared")
        nth = 0
        while sum(hits.values()) < options.kills:
            nth += 1
            out = folder / f"out {nth}"
            partial = pathlib.Path(f"{out}.partial")
            replaces = nth % 3 == 0
            if replaces:
                check(out, 0.2)
            process = subprocess.Popen(command(out, 0.1, *(["--force"] if replaces else [])), stdout=subprocess.DEVNULL,
                                       stderr=subprocess.PIPE)
            time.sleep(draw.uniform(0, seconds))
            process.kill()
            process.communicate()
            if process.returncode >= 0:
                continue  # it had ended
            hits["before it began" if not partial.exists() else "replacing" if replaces else "writing"] += 1
            if out.exists() and files_of(out) not in ([straight, older] if replaces else [straight]):
                raise Fault(f"call {nth}: what stands at the output is not whole")
            if replaces and not out.exists():
                raise Fault(f"call {nth}: the older data set is gone")
            left = partial.exists()
            said = check(out, 0.1, *(["--force"] if out.exists() else []))
            if left != ("interrupted" in said):
                raise Fault(f"call {nth}: left {left}, said: {said}")
            if files_of(out) != straight or partial.exists():
                raise Fault(f"call {nth}: the next call does not give the bytes of one that was never stopped")
            for path in sorted(out.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
    print(f"{sum(hits.values())} kills, seed {options.seed}: " + ", ".join(f"{n} {place}" for place, n in sorted(hits.items())))
    return 0 if hits["writing"] + hits["replacing"] > 0 else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Fault as fault:
        print(fault)
        sys.exit(1)
