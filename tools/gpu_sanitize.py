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
import subprocess
import sys

# The filters of gtest; numbers are those of the cases.
GROUPS = {
    "adamw": ("AdamWCudaTest.*", ()),
    "attention": ("Shapes/AttentionOnGpu.*/{}", (0, 1, 2, 3, 4, 5, 6, 7)),
    "attention tiles": ("Shapes/AttentionOnGpu.*/{}", (8, 9, 16)),
    "attention masks": ("Masks/AttentionOnGpu.*/{}", (0, 1, 2)),
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
    "inference": ("InferenceCudaTest.GeneratesWhatTheCpuGenerates", ()),
    "layer norm": ("Shapes/LayerNormCudaTest.*/{}", range(14)),
    "linear": ("Shapes/LinearCudaTest.*/{}", range(12)),
    "linear of few rows": ("FewRows/LinearCudaTest.*/{}", range(0, 81, 4)),
    "residual": ("ResidualCudaTest.*", ()),
    "rms norm": ("Shapes/RmsNormCudaTest.*/{}", range(14)),
    "rotary": ("Shapes/RotaryOnGpu.*/{}", range(6)),
    "sample": ("SampleCudaTest.E*", ()),
    "silu gate": ("SiluGateCudaTest.*", ()),
    "timestep norm": ("Shapes/TimestepNormCudaTest.*/{}", (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17)),
    "timestep norm tiles": ("Shapes/TimestepNormCudaTest.*/{}", (20, 21, 22, 24, 25, 26)),
    "timestep norm packed": ("Documents/TimestepNormCudaPackedTest.*", ()),
    "timestep norm apply": ("TimestepNormApplyOnGpu.*", ()),
    "training": ("TrainingCudaTest.Documents*", ()),
}
# What CUDA refuses is for the tests to expect: too large a buffer, for one.
OURS = ("--kernel-name", "kernel_substring=megalodon")
TOOLS = {"memcheck": (*OURS, "--report-api-errors", "no"), "racecheck": OURS, "initcheck": ()}


def check(tool, group, options):
    """What is to be printed of it, and whether all is well."""
    pattern, cases = GROUPS[group]
    wanted = ":".join(pattern.format(case) for case in cases) if cases else pattern

    def run(kernels, error_status):
        command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", str(error_status), "--print-limit", "10000", *kernels,
                   options.program, f"--gtest_filter={wanted}"]
        return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=options.seconds)

    try:
        done = run(TOOLS[tool], 9)
        ours = [line for line in done.stdout.splitlines() if line.startswith("=========")]
        if tool == "racecheck" and "Internal Sanitizer Error" in done.stdout:
            done = run((), 0)
            ours = [line for line in done.stdout.splitlines() if line.startswith("=========") and "megalodon" in line]
            ours.append("0 hazards in this program's kernels" if not ours else f"hazards in this program's kernels, {len(ours)} lines")
    except subprocess.TimeoutExpired as late:
        begun = re.findall(r"RUN +\] (\S+)", (late.stdout or b"").decode())
        return f"{tool:10} {group:24} not at its end after {options.seconds} s, in {begun[-1] if begun else 'no test yet'}", False
    passed = re.search(r"PASSED +\] (\d+)", done.stdout)
    tests = passed.group(1) if passed else "0"
    line = f"{tool:10} {group:24} {tests} tests, {ours[-1].strip('= ') if ours else 'compute-sanitizer said nothing'}"
    if done.returncode == 0 and int(tests) > 0 and "SKIPPED" not in done.stdout and "megalodon" not in "".join(ours[:-1]):
        return line, True
    details = ours[:20] + [text for text in done.stdout.splitlines() if "FAILED" in text or "SKIPPED" in text][:10]
    return "\n".join([line + f", exit status {done.returncode}", *("    " + text for text in details)]), False


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", type=os.path.abspath)
    parser.add_argument("--tool", action="append", choices=TOOLS)
    parser.add_argument("--group", action="append", choices=GROUPS)
    parser.add_argument("--seconds", type=int, default=200, help="for one group under one tool")
    parser.add_argument("--jobs", type=int, default=6, help="at a time")
    options = parser.parse_args()
    work = [(tool, group) for tool in options.tool or TOOLS for group in options.group or GROUPS]
    all_well = True
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        for line, well in pool.map(lambda item: check(*item, options), work):
            print(line, flush=True)
            all_well &= well
    return 0 if all_well else 1


if __name__ == "__main__":
    sys.exit(main())
