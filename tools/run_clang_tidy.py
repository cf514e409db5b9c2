#!/usr/bin/env python3
"""Usage: tools/run_clang_tidy.py BUILD_DIR [FILE...]. Runs clang-tidy, by the list in .clang-tidy, over the program's sources.

All processors at once. A file that passed is skipped until it, a header of ours that it includes, its compile command or the
list changes (BUILD_DIR/clang-tidy holds a stamp of each pass).

Left out: *_cpu.cpp, whose vector code Highway compiles several times over from within itself (clang-tidy would report each
finding once for each instruction set, and takes minutes), and tests and benchmarks, where nearly all of the time would go
into GoogleTest's macros; -Wall -Wextra -Wconversion -Werror cover them all.
"""
import concurrent.futures
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("src", "apps", "reference")
INCLUDE = re.compile(r'^\s*#\s*include\s*"([^"]+)"', re.M)


def closure(path, seen):
    """Adds to `seen` the file and every header of ours that it includes, directly or not."""
    if path in seen:
        return
    seen.add(path)
    for name in INCLUDE.findall(path.read_text(encoding="utf-8")):
        for base in (path.parent, ROOT / "src", ROOT / "include", ROOT):
            if (base / name).is_file():
                closure((base / name).resolve(), seen)
                break


def key_of(source, command, common):
    files = set()
    closure(source, files)
    digest = hashlib.sha256(common + command.encode())
    for path in sorted(files):
        digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def check(source, build):
    run = subprocess.run(["clang-tidy", "--quiet", "-p", str(build), str(source)], capture_output=True, text=True, check=False)
    return source, run.returncode, run.stdout


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__.splitlines()[0])
    build = Path(sys.argv[1]).resolve()
    wanted = {Path(name).resolve() for name in sys.argv[2:]}
    stamps = build / "clang-tidy"
    stamps.mkdir(exist_ok=True)
    version = subprocess.run(["clang-tidy", "--version"], capture_output=True, check=True).stdout
    common = version + (ROOT / ".clang-tidy").read_bytes()

    work = {}
    total = 0
    for entry in json.loads((build / "compile_commands.json").read_text()):
        source = Path(entry["file"]).resolve()
        if not source.is_relative_to(ROOT) or source.relative_to(ROOT).parts[0] not in FOLDERS:
            continue
        if source.name.endswith("_cpu.cpp") or (wanted and source not in wanted):
            continue
        total += 1
        stamp = stamps / key_of(source, entry.get("command", ""), common)
        if not stamp.exists():
            work[source] = stamp
    failed = 0
    with concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for source, code, output in pool.map(lambda s: check(s, build), sorted(work)):
            if code == 0:
                work[source].touch()
            else:
                failed += 1
                print(output.strip() or f"{source}: clang-tidy ended with {code}", flush=True)
    print(f"clang-tidy: {len(work)} of {total} files checked, {failed} with findings")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
