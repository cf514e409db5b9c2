#!/usr/bin/env python3
"""Usage: tools/check_layers.py [ROOT]. Checks the rules that the compiler does not; one line a fault, exit code 1 when there is one.

- A file includes only headers of its own layer and of the layers to its left (docs/architecture.md); include/megalodon
  includes itself and the standard library alone; a third-party library appears only in the layers that own it.
- The library neither ends the process nor prints, and nothing is left to be done later.
- No file is longer than 800 lines.
"""
import re
import sys
from pathlib import Path

ROOT = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent.parent).resolve()
MAX_LINES = 800

# layer: the layers that it may include besides itself and the installed API ("megalodon")
SRC = {
    "core": [],
    "cpu": ["core"],
    "cuda": ["core"],
    "io": ["core"],
    "ops": ["core", "cpu", "cuda", "io"],
    "model": ["core", "cpu", "cuda", "io", "ops"],
    "train": ["core", "cpu", "cuda", "io", "ops", "model"],
    "infer": ["core", "cpu", "cuda", "io", "ops", "model"],
}
ALL = [*SRC]
OUTSIDE = {
    "apps": [*ALL, "reference", "bench"],
    "reference": ["core"],
    "tests": [*ALL, "reference", "support", "apps"],
    "bench": [*ALL, "reference", "tests"],
}
# first component of a third-party include: the layers that may have it
THIRD_PARTY = {
    "dnnl.hpp": ["cpu", "apps"],
    "dnnl.h": ["cpu"],
    "dnnl_version.h": ["cpu", "apps"],
    "omp.h": ["cpu"],
    "cublasLt.h": ["cuda"],
    "cuda.h": ["cuda", "ops"],
    "cudaTypedefs.h": ["cuda", "ops"],
    "cuda_runtime.h": ["cuda", "ops"],
    "cuda_bf16.h": ["cuda", "ops"],
    "cub": ["cuda", "ops"],
    "cuda_pipeline.h": ["cuda", "ops"],
    "mma.h": ["cuda", "ops"],
    "hwy": ["cpu", "ops", "train", "apps", "tests", "bench"],
    "nlohmann": ["io", "model", "train", "infer", "apps", "tests", "bench"],
    "sentencepiece_processor.h": ["io", "tests", "bench"],
    "sentencepiece_trainer.h": ["io"],
    "unicode": ["io"],
    "simdjson.h": ["io"],
    "xxhash.h": ["io", "train"],
    "zlib.h": ["io", "tests"],
    "zstd.h": ["io", "tests"],
    "zstd_errors.h": ["io"],
    "toml++": ["train"],
    "CLI": ["apps"],
    "cairo.h": ["apps"],
    "gtest": ["tests"],
    "gmock": ["tests"],
}
# POSIX, which every layer but the installed API may use
SYSTEM = re.compile(r"(sys/\w+|unistd|fcntl|sched|signal|cpuid|fnmatch|glob|immintrin|cxxabi|dlfcn|link|poll|errno|pthread|termios|linux/\w+)\.h$")

INCLUDE = re.compile(r'^\s*#\s*include\s*(?:"([^"]+)"|<([^>]+)>)')
# pattern in code with comments and strings taken out, and why it is refused there
FORBIDDEN = [
    (re.compile(r"\b(abort|exit|_exit|quick_exit|terminate)\s*\("), "the library never ends the process: throw megalodon::Error"),
    (re.compile(r"\b(assert|HWY_ASSERT|HWY_ABORT)\s*\("), "the library never aborts: throw megalodon::Error"),
    (re.compile(r"\b(std::(cout|cerr|clog)|printf|fprintf|puts|putchar|fputs)\b"), "the library never prints"),
]
UNFINISHED = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")

faults = []


def fault(path, line, text):
    faults.append(f"{path.relative_to(ROOT)}:{line}: {text}")


def code_only(text):
    """The text with comments and literals blanked, line numbers kept."""
    token = re.compile(r'//[^\n]*|/\*.*?\*/|R"(\w*)\(.*?\)\1"|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])+\'', re.S)
    # ' between digits separates thousands and starts no literal
    text = re.sub(r"(?<=[0-9a-fA-F])'(?=[0-9a-fA-F])", "", text)
    return token.sub(lambda m: "\n" * m.group(0).count("\n"), text)


def layer_of(path):
    parts = path.relative_to(ROOT).parts
    return parts[1] if parts[0] == "src" else "megalodon" if parts[0] == "include" else parts[0]


def check_includes(path, layer, lines):
    if layer == "megalodon":
        allowed = {"megalodon"}
    else:
        allowed = {"megalodon", layer, *(SRC[layer] if layer in SRC else OUTSIDE[layer])}
    for number, line in enumerate(lines, 1):
        match = INCLUDE.match(line)
        if not match:
            continue
        quoted, angled = match.groups()
        if quoted:
            head = quoted.split("/")[0]
            if "/" not in quoted or head.startswith("."):
                if layer == "tests" and (ROOT / "tests" / quoted).exists():
                    continue
                if not (path.parent / quoted).exists():
                    fault(path, number, f'"{quoted}": no such file beside this one')
                elif layer in SRC or layer == "megalodon":
                    fault(path, number, f'"{quoted}": name it by its layer, "{layer}/{Path(quoted).name}"')
            elif head not in allowed:
                fault(path, number, f'"{quoted}": {layer} may include only {", ".join(sorted(allowed))}')
            continue
        head = angled.split("/")[0]
        if re.fullmatch(r"[a-z_0-9]+", angled):
            continue  # the standard library
        if layer == "megalodon":
            fault(path, number, f"<{angled}>: installed headers include only themselves and the standard library")
        elif head in ("megalodon", *SRC):
            fault(path, number, f"<{angled}>: our own headers are included with quotes")
        elif head in THIRD_PARTY:
            if layer not in THIRD_PARTY[head]:
                fault(path, number, f"<{angled}>: belongs to {', '.join(THIRD_PARTY[head])}, not to {layer}")
        elif not SYSTEM.match(angled):
            fault(path, number, f"<{angled}>: unknown library; name its layers in tools/check_layers.py")


def main():
    folders = ["include", "src", "apps", "reference", "tests", "bench"]
    sources = sorted(p for f in folders for p in (ROOT / f).rglob("*") if p.suffix in (".h", ".cpp", ".cu", ".cuh"))
    for path in sources:
        layer = layer_of(path)
        if path.is_relative_to(ROOT / "tests" / "package"):
            layer = "apps"  # an outside project: its includes are checked by building it
        elif layer not in SRC and layer not in OUTSIDE and layer != "megalodon":
            fault(path, 1, f"src/{layer} is no layer")
            continue
        text = path.read_text(encoding="utf-8")
        if not path.is_relative_to(ROOT / "tests" / "package"):
            check_includes(path, layer, text.splitlines())
        if path.relative_to(ROOT).parts[0] in ("src", "include"):
            for number, line in enumerate(code_only(text).splitlines(), 1):
                for pattern, why in FORBIDDEN:
                    if pattern.search(line):
                        fault(path, number, f"{pattern.search(line).group(0)}: {why}")
    extra = [p for f in ("cmake", "tools", "scripts", "docs", "python") for p in (ROOT / f).rglob("*") if p.is_file()]
    for path in [*sources, *sorted(extra)]:
        if path.suffix in (".pyc", ".png") or path == Path(__file__).resolve():
            continue
        lines = path.read_text(encoding="utf-8").splitlines()
        if len(lines) > MAX_LINES:
            fault(path, len(lines), f"{len(lines)} lines; {MAX_LINES} at most")
        for number, line in enumerate(lines, 1):
            if UNFINISHED.search(line):
                fault(path, number, f"{UNFINISHED.search(line).group(0)}: finish it, or file it as an issue")
    print("\n".join(faults) if faults else f"{len(sources)} files keep the rules")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
