#!/usr/bin/env python3
"""Usage: tools/check_format.py [--fix]. Says which C++ files differ from what clang-format makes of them; --fix rewrites them."""
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main():
    fix = sys.argv[1:] == ["--fix"]
    folders = ["include", "src", "apps", "reference", "tests", "bench"]
    files = sorted(str(p.relative_to(ROOT)) for f in folders for p in (ROOT / f).rglob("*") if p.suffix in (".h", ".cpp", ".cu", ".cuh"))
    mode = ["-i"] if fix else ["--dry-run", "--Werror"]
    run = subprocess.run(["clang-format", *mode, *files], cwd=ROOT, check=False)
    if run.returncode != 0:
        print("run: tools/check_format.py --fix")
    return run.returncode


if __name__ == "__main__":
    sys.exit(main())
