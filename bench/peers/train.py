#!/usr/bin/env python3
"""A training step beside PyTorch's Llama and megalodon-jax: installs them, measures in turns, prints one table."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import BUILD, Failed, Worker, environment, megalodon, positive, print_table, say, use_threads

HERE = Path(__file__).resolve().parent
PEERS = {  # name: label, packages, worker, its flags
    "torch": ("Llama, eager PyTorch", ["torch", "numpy"], "torch_llama", []),
    "torch-compiled": ("Llama, compiled PyTorch", ["torch", "numpy"], "torch_llama", ["--compile"]),
    "jax": ("megalodon-jax", ["megalodon-jax", "optax"], "jax_megalodon", []),
}


class Contender:
    """A row of the table: something that times a turn, or says why it cannot."""

    def __init__(self, label: str, dtype: str) -> None:
        self.label = label
        self.dtype = dtype
        self.parameters = 0
        self.seconds: list[float] = []  # of a step, one value a turn
        self.failure = ""

    def prepare(self) -> None:
        """Installs, compiles and warms up."""

    def turn(self, steps: int) -> float:
        """Seconds a step takes."""
        raise NotImplementedError

    def stop(self) -> None:
        """Frees what prepare took."""


class Ours(Contender):
    """`megalodon bench train`; it also measures the machine's ceiling, each turn anew."""

    def __init__(self, dtype: str, flags: list[Any]) -> None:
        super().__init__("megalodon", dtype)
        self.flags = flags
        self.ceiling = 0.0  # the best of all turns, like the step's time

    def turn(self, steps: int) -> float:
        report = megalodon("bench", "train", "--preset", "d384", "--dtype", self.dtype, "--steps", steps, *self.flags)
        self.parameters = report["parameters"]
        self.ceiling = max(self.ceiling, report[f"onednn_{self.dtype}_flops"])
        return report["step_seconds"]


class Peer(Contender):
    """A worker in an environment of its own."""

    def __init__(self, name: str, dtype: str, flags: list[Any]) -> None:
        label, self.packages, self.script, more = PEERS[name]
        super().__init__(label, dtype)
        self.flags = ["--dtype", dtype, *flags, *more]
        self.log = BUILD / "logs" / f"{name}-{dtype}.log"
        self.worker: Worker | None = None

    def prepare(self) -> None:
        python = environment(self.packages[0], self.packages)
        say(f"{self.label}, {self.dtype}: starts, compiles, warms up")
        self.worker = Worker(
            [python, HERE / f"{self.script}.py", *self.flags],
            self.log,
            {"TORCHINDUCTOR_CACHE_DIR": str(BUILD / "inductor")},
        )
        self.parameters = self.worker.about["parameters"]
        self.label += f" {self.worker.about['version']}"

    def turn(self, steps: int) -> float:
        return self.worker.time(steps)

    def stop(self) -> None:
        if self.worker:
            self.worker.stop()


def measure(contenders: list[Contender], turns: int, steps: int) -> None:
    """Gives one contender a turn after the other, so that what disturbs the machine disturbs all alike."""
    try:
        for contender in contenders:
            attempt(contender, contender.prepare)
        for _ in range(turns):
            for contender in contenders:
                if not contender.failure:
                    attempt(contender, lambda: contender.seconds.append(contender.turn(steps)))
    finally:
        for contender in contenders:
            contender.stop()


def attempt(contender: Contender, action: Callable[[], None]) -> None:
    """Does an action of a contender; a failure is noted with it, and its row will say so."""
    try:
        action()
    except Failed as failure:
        contender.failure = str(failure)
    if contender.failure or contender.seconds:
        say(f"{contender.label}, {contender.dtype}: {contender.failure or f'{1e3 * contender.seconds[-1]:.0f} ms'}")


def row(contender: Contender, ours: Ours, tokens: int) -> list[str]:
    """The table's row of a contender."""
    if contender.failure:
        return [contender.label, contender.dtype, *["-"] * 6]
    best = min(contender.seconds)
    rate = 6 * contender.parameters * tokens / best
    share = f"{100 * rate / ours.ceiling:.1f} %" if ours.ceiling else "-"
    ratio = f"{best / min(ours.seconds):.2f}" if ours.seconds else "-"
    return [
        contender.label,
        contender.dtype,
        f"{contender.parameters / 1e6:.1f} M",
        f"{1e3 * best:.0f}",
        f"{tokens / best:,.0f}",
        ratio,
        f"{rate / 1e9:.0f}",
        share,
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--peers", nargs="*", choices=list(PEERS), default=list(PEERS), metavar="PEER", help=", ".join(PEERS)
    )
    parser.add_argument(
        "--dtypes", nargs="+", choices=["bf16", "f32"], default=["bf16", "f32"], metavar="DTYPE", help="bf16, f32"
    )
    parser.add_argument("--batch", type=positive, default=8, help="sequences (%(default)s)")
    parser.add_argument("--length", type=positive, default=512, help="tokens a sequence (%(default)s)")
    parser.add_argument(
        "--turns", type=positive, default=5, help="turns each contender gets; its best counts (%(default)s)"
    )
    parser.add_argument("--steps", type=positive, default=3, help="steps a turn; their median counts (%(default)s)")
    parser.add_argument("--threads", type=int, default=0, help="threads, and processors to run on; 0 means all (0)")
    options = parser.parse_args()
    threads = use_threads(options.threads)
    flags = ["--batch", options.batch, "--length", options.length, "--threads", threads]
    tokens = options.batch * options.length
    rows, notes = [], []
    for dtype in options.dtypes:
        ours = Ours(dtype, flags)
        contenders = [ours, *(Peer(name, dtype, flags) for name in options.peers)]
        measure(contenders, options.turns, options.steps)
        rows += [row(contender, ours, tokens) for contender in contenders]
        notes += [f"Not measured: {c.label}, {c.dtype}: {c.failure}" for c in contenders if c.failure]
        if ours.ceiling:
            notes.append(f"oneDNN {dtype} product, packed: {ours.ceiling / 1e9:.0f} GFLOP/s.")
    print_table(
        f"Training step of {options.batch} x {options.length} tokens, {threads} threads; "
        f"best of {options.turns} turns, each the median of {options.steps} steps",
        ["", "dtype", "parameters", "ms", "tokens/s", "time a token / ours", "GFLOP/s", "of oneDNN"],
        rows,
        ["GFLOP/s as 6 x parameters x tokens; the best oneDNN rate of all turns is the yardstick.", *notes],
    )


if __name__ == "__main__":
    main()
