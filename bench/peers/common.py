"""What the scripts and workers share: environments, processes that measure on request, tables."""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
BUILD = ROOT / "build" / "peers"
PROGRAM = ROOT / "build" / "cpu" / "bin" / "megalodon"


class Failed(Exception):
    """A contender that could not be measured, with the reason in one line."""


def say(text: str) -> None:
    """Tells progress, apart from the table on standard output."""
    print(text, file=sys.stderr, flush=True)


def run(command: list[Any]) -> str:
    """Runs a command; returns its standard output, raises Failed with the last line it wrote otherwise."""
    try:
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    except OSError as error:
        raise Failed(str(error)) from error
    if done.returncode != 0:
        lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        raise Failed(f"{Path(command[0]).name} ended with {done.returncode}: {lines[-1] if lines else 'no message'}")
    return done.stdout


def megalodon(*arguments: Any) -> dict[str, Any]:
    """Runs our program with --json; returns what it reports."""
    return json.loads(run([PROGRAM, *arguments, "--json"]))


def environment(name: str, packages: list[str]) -> Path:
    """The Python of the virtual environment build/peers/NAME, made on first use with these packages from PyPI."""
    folder = BUILD / name
    complete = folder / "complete"
    if not complete.exists() or complete.read_text() != " ".join(packages):
        say(f"installing {', '.join(packages)} into {folder.relative_to(ROOT)}")
        run([sys.executable, "-m", "venv", "--clear", folder])
        run([folder / "bin" / "python", "-m", "pip", "install", "--quiet", *packages])
        complete.write_text(" ".join(packages))
    return folder / "bin" / "python"


def positive(text: str) -> int:
    """The type of a flag that takes a number of at least one."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("at least 1, please")
    return value


def use_threads(count: int) -> int:
    """Binds this process and its children to count processors, or to all it has for 0; returns how many."""
    processors = sorted(os.sched_getaffinity(0))
    if count > len(processors):
        sys.exit(f"{count} threads asked for, {len(processors)} processors here")
    if count > 0:
        os.sched_setaffinity(0, processors[:count])
    return count or len(processors)


def serve(step: Callable[[], None], about: dict[str, Any]) -> None:
    """A worker's loop: warms up, says what it is, then for each count on standard input times that many steps."""
    for _ in range(3):
        step()
    print(json.dumps(about), flush=True)
    for line in sys.stdin:
        seconds = []
        for _ in range(int(line)):
            start = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - start)
        print(json.dumps({"seconds": statistics.median(seconds)}), flush=True)


class Worker:
    """A peer in a process of its own that stays, compiled and warm, between turns."""

    def __init__(self, command: list[Any], log: Path, variables: dict[str, str] | None = None) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log = log
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, **(variables or {})},
            )
        self.about = self._answer()

    def _answer(self) -> dict[str, Any]:
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        lines = [line for line in self.log.read_text().splitlines() if line.strip()]
        raise Failed(f"{lines[-1] if lines else 'no message'} ({self.log.relative_to(ROOT)})")

    def time(self, steps: int) -> float:
        """Seconds a step takes, the median of that many."""
        try:
            print(steps, file=self.process.stdin, flush=True)
        except BrokenPipeError:
            pass  # it died: the answer that does not come says why
        return self._answer()["seconds"]

    def stop(self) -> None:
        """Ends the process."""
        self.process.kill()
        self.process.wait()


def print_table(title: str, header: list[str], rows: list[list[str]], notes: list[str]) -> None:
    """Prints a Markdown table: the first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(row: list[str]) -> str:
        cells = [row[0].ljust(widths[0])] + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:])]
        return "| " + " | ".join(cells) + " |"

    rule = ["-" * widths[0]] + ["-" * (width - 1) + ":" for width in widths[1:]]
    print("\n".join([title, "", line(header), line(rule), *map(line, rows), "", *notes]), flush=True)
