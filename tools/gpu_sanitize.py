#!/usr/bin/env python3
"""Runs the GPU's tests under compute-sanitizer: memcheck, racecheck and initcheck. Prints a line for each group of tests and what was
found; ends with 1 if anything was, or did not come to an end.

    python3 tools/gpu_sanitize.py build/cuda/bin/cuda_test [--tool racecheck] [--group cema]... [--seconds 200] [--jobs 6]

Of every op the cases that are small enough for it: a kernel takes a hundred times as long, and racecheck more. memcheck and racecheck
look at this program's kernels alone; initcheck has to see cuBLASLt's too, which write what ours read. So does racecheck where it
cannot run beside them otherwise ("failed to handle a hardware exception"): what it then reports inside them is left out."""

import argparse
import concurrent.futures
import os
import re
import shutil
import signal
import subprocess
import sys

# The filters of gtest; numbers are those of the cases.
GROUPS = {
    "adamw": ("AdamWCudaTest.*", ()),
    "attention": ("Shapes/AttentionOnGpu.*/{}", (0, 1, 2, 3, 4, 5, 6, 7)),
    "attention tiles": ("Shapes/AttentionOnGpu.*/{}", (8, 9, 16)),
    "attention masks": ("Masks/AttentionOnGpu.*/{}", (0, 1, 2)),
    "attention gated": ("Shapes/GatedAttentionOnGpu.*/{}", (0, 1, 3)),
    "attention gated, odd": ("Shapes/GatedAttentionOnGpu.*/{}", (4, 6, 7)),
    "attention packed": ("In*/PackedAttentionOnGpu.*/{}", (0, 1, 3, 4)),
    "attention packed masks": ("Masks/PackedAttentionOnGpu.*/{}", (0, 1, 2)),
    "attention state": ("Unknown/AttentionStateOnGpu.*/{}", (0, 1, 2, 3)),
    "attention state known": ("Known/AttentionStateOnGpu.*/{}", (0, 1, 2)),
    "cema": ("Shapes/CemaOnGpu.*/{}", (0, 1, 2, 3, 4, 5, 7, 8)),
    "cema blocks": ("Shapes/CemaOnGpu.*/{}", (10, 11, 12, 13, 17)),
    "cema packed": ("Documents/CemaPackedOnGpu.*/{}", (0, 1, 2, 3, 4)),
    "cross entropy": ("CrossEntropyCudaTest.*", ()),
    "device": ("DeviceTest.*", ()),
    "dropout": ("DropoutCudaTest.*", ()),
    "embedding": ("EmbeddingCudaTest.*", ()),
    "head norm": ("Shapes/HeadNormCudaTest.*/{}", range(18)),
    "a token's kernel": ("InferenceCudaTest.FewTokens*", ()),
    "tokens' kernel": ("InferenceCudaTest.SingleTokensEqualAWindow", ()),
    "inference": ("InferenceCudaTest.GeneratesWhatTheCpuGenerates", ()),
    "layer norm": ("Shapes/LayerNormCudaTest.*/{}", range(14)),
    "linear": ("Shapes/LinearCudaTest.*/{}", range(8)),
    "linear of many rows": ("Shapes/LinearCudaTest.*/{}", (8, 9, 10, 11)),
    "linear weight": ("Shapes/SmallWeightsCudaTest.*/{}", range(6)),
    "linear tiles": ("Shapes/LinearTilesCudaTest.*/{}", (0, 1, 2, 3, 4)),
    "linear tiles of long sums": ("Shapes/LinearTilesCudaTest.*/{}", (5, 6)),
    "linear of few rows": ("FewRows/LinearCudaTest.*/{}", range(0, 81, 4)),
    "residual": ("ResidualCudaTest.*", ()),
    "rms norm": ("Shapes/RmsNormCudaTest.*/{}", range(14)),
    "rotary": ("Shapes/RotaryOnGpu.*/{}", range(6)),
    "sample": ("SampleCudaTest.E*", ()),
    "silu gate": ("SiluGateCudaTest.*", ()),
    "timestep norm": ("Shapes/TimestepNormCudaTest.*/{}", range(18)),
    "timestep norm tiles": ("Shapes/TimestepNormCudaTest.*/{}", (20, 21, 22, 24, 25, 26)),
    "timestep norm packed": ("Documents/TimestepNormCudaPackedTest.*", ()),
    "timestep norm apply": ("TimestepNormApplyOnGpu.*", ()),
    "training": ("TrainingCudaTest.Documents*", ()),
}
# What CUDA refuses is for the tests to expect: too large a buffer, for one.
OURS = ("--kernel-name", "kernel_substring=megalodon")
TOOLS = {"memcheck": (*OURS, "--report-api-errors", "no"), "racecheck": OURS, "initcheck": ()}
# What racecheck is not asked of. It does not end in minutes beside products of cuBLASLt's over many rows, and over weights by the
# hundred megabytes. And a copy of adjacent bytes (cp.async.bulk) by another warp's thread it takes for that thread's write, ordered by
# no barrier: FlashAttention reports it, with maps (cp.async.bulk.tensor) it does not. The token's kernel gets its weights so.
NOT_ASKED = {
    "racecheck": "Shapes/GatedAttentionOnGpu.*/6:Shapes/LinearCudaTest.*/10:"
                 "InferenceCudaTest.SingleTokensEqualAWindow:InferenceCudaTest.FewTokens*",
}
BROKEN = "Internal Sanitizer Error"


def output_of(command, seconds):
    """What a command printed, and its exit status: None where it had to be ended, with all that it had started."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
                          start_new_session=True) as process:
        try:
            return process.communicate(timeout=seconds)[0], process.returncode
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return process.communicate()[0], None


def check(tool, group, options):
    """What is to be printed of it, and whether all is well."""
    pattern, cases = GROUPS[group]
    wanted = ":".join(pattern.format(case) for case in cases) if cases else pattern
    left_out = NOT_ASKED.get(tool, "")
    if wanted in left_out.split(":"):
        return f"{tool:10} {group:24} left out: NOT_ASKED says why", True

    def run(kernels, error_status):
        return output_of(["compute-sanitizer", "--tool", tool, "--error-exitcode", str(error_status), "--print-limit", "10000", *kernels,
                          options.program, f"--gtest_filter={wanted}-{left_out}"], options.seconds)

    text, status = run(TOOLS[tool], 9)
    again = tool == "racecheck" and status is not None and BROKEN in text
    if again:
        text, status = run((), 0)
    if status is None:
        begun = re.findall(r"RUN +\] (\S+)", text)
        return f"{tool:10} {group:24} not at its end after {options.seconds} s, in {begun[-1] if begun else 'no test yet'}", False
    whole = "SKIPPED" not in text and BROKEN not in text
    said = [line for line in text.splitlines() if line.startswith("=========")]
    if again and whole:
        said = [line for line in said if "megalodon" in line]
        said.append(f"hazards in this program's kernels, {len(said)} lines" if said else "0 hazards in this program's kernels")
    passed = re.search(r"PASSED +\] (\d+)", text)
    tests = passed.group(1) if passed else "0"
    line = f"{tool:10} {group:24} {tests} tests, {said[-1].strip('= ') if said else 'compute-sanitizer said nothing'}"
    if status == 0 and int(tests) > 0 and whole and "megalodon" not in "".join(said[:-1]):
        return line, True
    details = said[:20] + [each for each in text.splitlines() if "FAILED" in each or "SKIPPED" in each][:10]
    return "\n".join([line + f", exit status {status}", *("    " + each for each in details)]), False


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", type=os.path.abspath)
    parser.add_argument("--tool", action="append", choices=TOOLS)
    parser.add_argument("--group", action="append", choices=GROUPS)
    parser.add_argument("--seconds", type=int, default=200, help="for one group under one tool")
    parser.add_argument("--jobs", type=int, default=6, help="at a time")
    options = parser.parse_args()
    if shutil.which("compute-sanitizer") is None:
        parser.error("compute-sanitizer is not on PATH; it comes with CUDA")
    work = [(tool, group) for tool in options.tool or TOOLS for group in options.group or GROUPS]
    all_well = True
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        for line, well in pool.map(lambda item: check(*item, options), work):
            print(line, flush=True)
            all_well &= well
    return 0 if all_well else 1


if __name__ == "__main__":
    sys.exit(main())
