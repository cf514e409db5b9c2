#!/usr/bin/env python3
"""What `megalodon train` shows on a terminal: lines no wider than it is, and a status line that is drawn again in its place; and that
a pipe, a file and a terminal that cannot redraw have none of it.

    tests/apps/terminal_test.py build/cpu/bin/megalodon [unittest options]"""

import fcntl
import os
import pathlib
import pty
import re
import struct
import sys
import tempfile
import termios
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "kill"))
from tiny_run import Workshop, checkpoints, metrics_of  # noqa: E402

PROGRAM = None
STEPS, EVERY = 60, 20
ARGUMENTS = ("train", "run.toml", "--log_every", str(EVERY), "--validate_every", str(EVERY), "--checkpoint_every", "30",
             "--sample_every", "0", "--train.accumulate", "8")


class Terminal:
    """Runs the program on a pseudo-terminal of its own and reads what it writes there."""

    def __init__(self, arguments, cwd, columns, environment=(), stdout=None):
        self.columns = columns
        self.written = b""
        self.pid, self.master = pty.fork()
        if self.pid == 0:
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
            os.chdir(cwd)
            if stdout is not None:
                os.dup2(os.open(stdout, os.O_WRONLY | os.O_CREAT, 0o644), 1)
            os.execve(PROGRAM, [PROGRAM, *arguments], {**os.environ, "TERM": "xterm", **dict(environment)})

    def read(self):
        """Some more of what is written; false at the end."""
        try:
            more = os.read(self.master, 65536)
        except OSError:  # what the end looks like once nobody holds the other side
            more = b""
        self.written += more
        return bool(more)

    def finish(self):
        while self.read():
            pass
        self.close()
        return self.wait()

    def close(self):
        os.close(self.master)

    def wait(self):
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def look(self):
        """The lines that stand there in the end, and all that were drawn over, in their order."""
        lines, erased, column = [""], [], 0
        for part in re.findall(r"\r|\n|\033\[K|[^\r\n\033]+|\033", self.written.decode()):
            if part == "\r":
                column = 0
            elif part == "\n":
                lines.append("")
                column = 0
            elif part == "\033[K":
                if lines[-1][column:]:
                    erased.append(lines[-1][column:])
                lines[-1] = lines[-1][:column]
            else:
                lines[-1] = lines[-1][:column] + part + lines[-1][column + len(part):]
                column += len(part)
        return lines, erased


class TerminalTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.temporary = tempfile.TemporaryDirectory(prefix="megalodon_terminal_")
        cls.workshop = Workshop(PROGRAM, cls.temporary.name)

    @classmethod
    def tearDownClass(cls):
        cls.temporary.cleanup()

    def new_run(self, name=""):
        return self.workshop.new_run(self._testMethodName + name, "fresh", steps=STEPS)

    def on_terminal(self, columns, name="", **options):
        terminal = Terminal(ARGUMENTS, self.new_run(name), columns, **options)
        self.assertEqual(terminal.finish(), 0, terminal.written)
        return terminal

    def test_a_status_line_is_redrawn_between_the_lines(self):
        for columns in (80, 160):
            with self.subTest(columns=columns):
                terminal = self.on_terminal(columns, str(columns))
                lines, erased = terminal.look()
                # What stays is what a pipe gets too: the first step's line and one every EVERY.
                self.assertEqual([int(re.match(r"step +(\d+)/", line)[1]) for line in lines if line.startswith("step")],
                                 [1, 20, 40, 60])
                self.assertEqual(len([line for line in lines if line.startswith("  validation")]), 3)
                self.assertEqual(lines[-1], "")
                self.assertIn(f"all {STEPS} steps done", lines)
                steps = [int(re.search(r"step +(\d+)/", line)[1]) for line in erased]
                self.assertGreater(len(steps), 6)
                self.assertEqual(steps, sorted(steps))
                self.assertTrue(any(step % EVERY not in (0, 1) for step in steps), steps)
                shown = [line for line in lines if line.startswith("step")] + erased
                for line in shown:
                    self.assertLessEqual(len(line), columns, line)
                    for part in ("loss", "tok/s", "left"):
                        self.assertIn(part, line)
                self.assertEqual(set(re.findall(r"\033.{0,2}", terminal.written.decode())), {"\033[K"}, "no colours")
                if columns == 160:
                    self.assertTrue(any(re.match(r"\[=+ *\] +\d+ %  step ", line) for line in erased), erased)
                    self.assertTrue(any("next validation at 40, checkpoint at 30" in line for line in erased), erased)
                    for part in ("tok  ", "valid", "lr", "norm", "MFU", "MiB"):
                        self.assertIn(part, lines[[line.startswith("step") for line in lines].index(True)])

    def test_a_narrow_terminal_has_what_counts(self):
        lines, erased = self.on_terminal(30).look()
        shown = [line for line in lines if line.startswith("step")] + erased
        self.assertGreater(len(shown), 4)
        for line in shown:
            self.assertRegex(line, rf"^step +\d+/{STEPS}  loss +\d+\.\d{{4}}$")

    def test_a_pipe_and_a_dumb_terminal_have_none(self):
        out = self.workshop.check(*ARGUMENTS, cwd=self.new_run("_pipe"))
        dumb = self.on_terminal(80, "_dumb", environment={"TERM": "dumb"})
        for text in (out, dumb.written.decode().replace("\r\n", "\n")):
            self.assertNotIn("\r", text)
            self.assertNotIn("\033", text)
            self.assertEqual(len(re.findall("^step", text, re.M)), 4)
        for line in out.split("\n"):
            if line.startswith("step"):
                for part in ("tok  ", "loss", "valid", "lr", "norm", "tok/s", "MFU", "MiB", "left"):
                    self.assertIn(part, line)

    def test_a_file_gets_the_lines_and_the_terminal_the_status(self):
        file = self.workshop.folder / "out.txt"
        terminal = self.on_terminal(80, stdout=file)
        self.assertNotIn(b"\r", file.read_bytes())
        self.assertEqual(len(re.findall("^step.* MiB .*left$", file.read_text(), re.M)), 4)
        lines, erased = terminal.look()
        self.assertEqual(lines, [""])
        self.assertGreater(len(erased), 4)

    def test_a_terminal_that_closes_saves_and_stops(self):
        run = self.new_run()
        terminal = Terminal((*ARGUMENTS, "--train.steps", "100000"), run, 80)
        while b"/100000" not in terminal.written:
            self.assertTrue(terminal.read(), terminal.written)
        terminal.close()
        self.assertEqual(terminal.wait(), 0)
        self.assertIn(f"step-{len(metrics_of(run)):08d}", checkpoints(run))


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    PROGRAM = str(pathlib.Path(sys.argv.pop(1)).resolve())
    unittest.main()
