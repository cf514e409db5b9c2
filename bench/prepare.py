#!/usr/bin/env python3
"""How fast `megalodon prepare` is, beside reading and writing the same file (dd with fsync, the disk's speed) in the same run.

    bench/prepare.py build/cpu/bin/megalodon TEXT... [--tokenizer bytes] [--megabytes 1000] [--threads 1 2]

The texts are put one behind another, over and over, up to the size. A line a call: MB/s by the clock, MB/s by the time that processors
were busy with it (what one core does), the share of the disk's speed, the most memory. The clock counts writing to the disk."""

import argparse
import os
import pathlib
import subprocess
import tempfile
import time


def measure(command):
    """Wall seconds, processor seconds, peak memory in MB."""
    begin = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    error = process.stderr.read().decode(errors="replace")
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        raise SystemExit(f"{' '.join(map(str, command))}: {error}")
    return time.monotonic() - begin, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1000


def write_text(path, sources, size):
    text = b"".join(pathlib.Path(source).read_bytes() for source in sources)
    text = text[:text.rfind(b"\n") + 1]  # whole lines, so that what is repeated stays UTF-8
    with open(path, "wb") as out:
        while size > 0:
            piece = text if len(text) <= size else text[:text.rfind(b"\n", 0, size) + 1]
            if not piece:
                break
            out.write(piece)
            size -= len(piece)
        out.flush()
        os.fsync(out.fileno())
    return os.path.getsize(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("texts", nargs="+")
    parser.add_argument("--tokenizer", default="bytes")
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, os.cpu_count()])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="megalodon_bench_") as name:
        folder = pathlib.Path(name)
        text = folder / "text.txt"
        megabytes = write_text(text, options.texts, options.megabytes * 10**6) / 1e6

        def disk():
            seconds, _, _ = measure(["dd", f"if={text}", f"of={folder / 'copy'}", "bs=1M", "conv=fsync"])
            (folder / "copy").unlink()
            return megabytes / seconds

        print(f"text of {megabytes:.0f} MB, tokenizer {options.tokenizer}")
        for threads in options.threads:
            before = disk()
            seconds, busy, memory = measure([options.program, "prepare", "--input", text, "--tokenizer", options.tokenizer, "--out",
                                             folder / "out", "--force", "--threads", str(threads)])
            speed = max(before, disk())
            print(f"threads {threads:2d}  {megabytes / seconds:7.1f} MB/s  {megabytes / busy:7.1f} MB/s a busy core  "
                  f"{megabytes / seconds / speed:5.2f} x the disk ({speed:.1f} MB/s)  {memory:.0f} MB", flush=True)


if __name__ == "__main__":
    main()
