#!/usr/bin/env python3
"""Prefill and decode at 1.3 B parameters beside llama.cpp: builds it, measures in turns, prints one table."""

import argparse
import json
import sys
import tarfile
from pathlib import Path

from common import BUILD, Failed, environment, megalodon, positive, print_table, run, say, use_threads

HERE = Path(__file__).resolve().parent
PACKAGE = "llama-cpp-python"
FLAGS = ["-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON"] + [
    f"-DLLAMA_{part}=OFF" for part in ("CURL", "OPENSSL", "BUILD_TESTS", "BUILD_EXAMPLES", "BUILD_SERVER", "BUILD_APP")
]
MODEL = BUILD / "llama-1.35B-bf16.gguf"
CEILINGS = ("onednn_bf16_flops", "read_bandwidth")  # fields of our reports: of prefill, of decode
EMBEDDING = 2 * 32000 * 2048  # bytes of the Llama of which a token reads one row only


def build_llama_bench() -> tuple[Path, str]:
    """The llama-bench program, built for this machine on first use, and the version of the package it comes from."""
    source, build = BUILD / "llama-cpp-source", BUILD / "llama-cpp-build"
    program = build / "bin" / "llama-bench"
    if not program.exists():
        say(f"downloading the source archive of {PACKAGE}")
        pip = ["-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", PACKAGE]
        run([environment("gguf", ["gguf"]), *pip, "--dest", source, PACKAGE])
    (archive,) = source.glob("*.tar.gz")
    folder = source / archive.name.removesuffix(".tar.gz")
    if not program.exists():
        with tarfile.open(archive) as tar:
            wanted = [member for member in tar if "/vendor/llama.cpp/" in member.name and "/.git" not in member.name]
            tar.extractall(source, wanted, filter="data")
        say("building llama-bench, which takes some minutes")
        run(["cmake", "-G", "Ninja", "-S", folder / "vendor" / "llama.cpp", "-B", build, *FLAGS])
        run(["nice", "-n", "10", "ninja", "-C", build, "llama-bench"])
    return program, folder.name.rpartition("-")[2]


def write_model() -> None:
    """The random Llama, 2.7 GB."""
    if not MODEL.exists():
        say(f"writing {MODEL.name}")
        run([environment("gguf", ["gguf"]), HERE / "random_llama_gguf.py", MODEL])


class Contender:
    """The best tokens a second of each work, or why there are none."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.parameters = 0
        self.weight_bytes = 0.0  # that a token reads
        self.best: dict[str, float] = {}
        self.failures: dict[str, str] = {}

    def turn(self, work: str, prompt: int, tokens: int, threads: int) -> None:
        """Measures a work once more: reading a prompt, or for an empty one writing that many tokens."""
        if work in self.failures:
            return
        try:
            rate = self.measure(prompt, tokens, threads)
        except Failed as failure:
            self.failures[work] = str(failure)
            say(f"{work}: {self.label}: {failure}")
            return
        self.best[work] = max(rate, self.best.get(work, 0.0))
        say(f"{work}: {self.label}: {rate:.2f} tokens/s")

    def measure(self, prompt: int, tokens: int, threads: int) -> float:
        """Tokens a second."""
        raise NotImplementedError


class Ours(Contender):
    """`megalodon bench prefill` and `bench decode`, which also measure the machine's ceilings, each time anew."""

    def __init__(self) -> None:
        super().__init__("megalodon")
        self.ceilings: dict[str, float] = {}

    def measure(self, prompt: int, tokens: int, threads: int) -> float:
        flags = ["prefill", "--length", prompt] if prompt else ["decode", "--tokens", tokens]
        report = megalodon("bench", *flags, "--preset", "1.3B", "--dtype", "bf16", "--threads", threads)
        self.parameters = report["parameters"]
        self.weight_bytes = report.get("weight_bytes", self.weight_bytes)
        for name in CEILINGS:
            self.ceilings[name] = max(self.ceilings.get(name, 0.0), report[name])
        return report["tokens_per_second"]


class Llama(Contender):
    """llama-bench; it decodes behind an empty prompt."""

    def __init__(self, program: Path, version: str) -> None:
        super().__init__(f"llama.cpp ({PACKAGE} {version})")
        self.program = program

    def measure(self, prompt: int, tokens: int, threads: int) -> float:
        flags = f"-p {prompt} -n {0 if prompt else tokens} -t {threads} -r 2 -o json"
        (test,) = json.loads(run([self.program, "-m", MODEL, *flags.split()]))
        self.parameters = test["model_n_params"]
        self.weight_bytes = test["model_size"] - EMBEDDING
        return max(test["samples_ts"])


def cells(row: Contender, work: str, ceilings: dict[str, float]) -> list[str]:
    """A table row: the rate of a work, in tokens, in operations or bytes, and as a share of the machine's."""
    label = f"{work}: {row.label}"
    if work not in row.best or work in row.failures:
        return [label, *["-"] * 4]
    if work == "decode":
        each, ceiling, unit = row.weight_bytes, CEILINGS[1], "GB/s"
    else:
        each, ceiling, unit = 2 * row.parameters, CEILINGS[0], "GFLOP/s"
    rate = each * row.best[work]
    share = f"{100 * rate / ceilings[ceiling]:.1f} %" if ceilings else "-"
    return [label, f"{row.parameters / 1e6:,.0f} M", f"{row.best[work]:.2f}", f"{rate / 1e9:.1f} {unit}", share]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--prefill", type=positive, nargs="+", default=[512, 4096], metavar="TOKENS", help="prompts (512 4096)"
    )
    parser.add_argument("--decode", type=positive, default=64, metavar="TOKENS", help="tokens to decode (%(default)s)")
    parser.add_argument(
        "--turns", type=positive, default=3, help="turns each contender gets; its best counts (%(default)s)"
    )
    parser.add_argument("--threads", type=int, default=0, help="threads, and processors to run on; 0 means all (0)")
    options = parser.parse_args()
    threads = use_threads(options.threads)
    works = {f"prefill {tokens}": tokens for tokens in options.prefill} | {"decode": 0}
    try:
        ours, theirs = Ours(), Llama(*build_llama_bench())
        write_model()
    except Failed as failure:
        sys.exit(str(failure))
    for _ in range(options.turns):
        for work, prompt in works.items():
            for contender in (ours, theirs):
                contender.turn(work, prompt, options.decode, threads)
    ceilings = ours.ceilings
    notes = ["Prefill as 2 x parameters x tokens; decode as bytes of weights: once a token, all but the embedding."]
    if ceilings:
        product, read = (ceilings[name] / 1e9 for name in CEILINGS)
        notes.append(f"Ceilings: oneDNN bf16 product, packed, {product:.0f} GFLOP/s; reading memory {read:.1f} GB/s.")
    notes += [f"Not measured: {w}: {c.label}: {why}" for c in (ours, theirs) for w, why in c.failures.items()]
    print_table(
        f"Prefill, and decode of {options.decode} tokens, bf16, {threads} threads; best of {options.turns} turns",
        ["", "parameters", "tokens/s", "rate", "of the ceiling"],
        [cells(row, work, ceilings) for work in works for row in (ours, theirs)],
        notes,
    )


if __name__ == "__main__":
    main()
