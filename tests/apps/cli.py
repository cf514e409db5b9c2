"""What the tests of the command line share: running the program, a model that takes milliseconds, and what is expected of errors."""

import json
import pathlib
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import unittest

PROGRAM = None
ROOT = pathlib.Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden" / "tiny_plain.safetensors"
FAILED, WRONG_USE, NOT_FOUND, CORRUPT, MISMATCH, IO, OUT_OF_MEMORY, UNSUPPORTED, NOT_FINITE = 1, 2, 3, 4, 5, 6, 7, 8, 9

CONFIG = {"num_layers": 2, "model_dim": 32, "z_dim": 16, "value_dim": 48, "num_heads": 2, "ffn_hidden_dim": 40, "cema_ndim": 4,
          "chunk_size": 8, "vocab_size": 256, "norm_num_groups": 4, "swiglu": True}
PRESETS = {"200M": 220627968, "1.3B": 1342832640, "1.3B-pg19": 1327628288, "7.1B": 7117381632, "7.3B": 7385817088,
           "paper-7B": 7385817088}
TEXT = "It was the best of times, it was the worst of times. W\u00e4re es sch\u00f6n?\n" * 40


# A line that commands write to a file or a pipe where they take seconds.
PROGRESS = re.compile(r"^(?:eval|prepare)\b.*/s(?:  [\d:]+(?: left)?)?\n", re.M)


def start(*arguments, **options):
    return subprocess.Popen([PROGRAM, *map(str, arguments)],
                            **{"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options})


def run(*arguments, **options):
    """Returns exit code, standard output (bytes), standard error without the progress that a slow machine gets to see."""
    process = start(*arguments, **options)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, PROGRESS.sub("", err.decode())


class Safetensors:
    """A safetensors file taken apart, to be changed and put together again, well-formed or not."""

    def __init__(self, path):
        content = pathlib.Path(path).read_bytes()
        length, = struct.unpack("<Q", content[:8])
        self.header = json.loads(content[8:8 + length])
        self.data = bytearray(content[8 + length:])

    def bytes(self, length=None):
        text = json.dumps(self.header).encode()
        return struct.pack("<Q", len(text) if length is None else length) + text + bytes(self.data)

    def last(self):
        """The name of the tensor whose bytes come last."""
        return max((entry["data_offsets"], name) for name, entry in self.header.items() if name != "__metadata__")[1]

    def remove(self, name):
        begin, end = self.header.pop(name)["data_offsets"]
        del self.data[begin:end]
        for key, entry in self.header.items():
            if key != "__metadata__" and entry["data_offsets"][0] >= end:
                entry["data_offsets"] = [offset - (end - begin) for offset in entry["data_offsets"]]

    def add(self, name, dtype, shape, data):
        self.header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(self.data), len(self.data) + len(data)]}
        self.data += data

    def set(self, name, format, value, index=0):
        struct.pack_into(format, self.data, self.header[name]["data_offsets"][0] + index * struct.calcsize(format), value)


class CliTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.temporary = tempfile.TemporaryDirectory(prefix="megalodon_cli_")
        cls.shared = pathlib.Path(cls.temporary.name)
        (cls.shared / "config.json").write_text(json.dumps(CONFIG))
        (cls.shared / "text.txt").write_text(TEXT)
        cls.text = cls.shared / "text.txt"
        cls.model = cls.shared / "model"
        code, _, err = run("init", cls.shared / "config.json", "--seed", 1, "--out", cls.model)
        if code != 0:
            raise AssertionError(err)

    @classmethod
    def tearDownClass(cls):
        cls.temporary.cleanup()

    def setUp(self):
        self.folder = self.shared / self._testMethodName
        self.folder.mkdir()

    def ok(self, *arguments, **options):
        """The command succeeds and says nothing on stderr; returns its output."""
        code, out, err = run(*arguments, **options)
        self.assertEqual((code, err), (0, ""))
        return out

    def refused(self, code, parts, *arguments, **options):
        """The command fails with this code and one line on stderr that holds these parts, and prints nothing else."""
        got, out, err = run(*arguments, **options)
        self.assertEqual(got, code, err)
        self.assertEqual(err.count("\n"), 1, err)
        self.assertTrue(err.startswith("megalodon: ") and err.endswith("\n"), err)
        self.assertLess(len(err), 1000)
        self.assertEqual(out, b"")
        for part in parts:
            self.assertIn(str(part), err)

    def write(self, name, content):
        path = self.folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def copy_of_model(self, name="broken"):
        return pathlib.Path(shutil.copytree(self.model, self.folder / name))


def main(documentation):
    """Runs the tests of the file that was started: its arguments are the program and options of unittest."""
    global PROGRAM
    if len(sys.argv) < 2:
        sys.exit(documentation)
    PROGRAM = str(pathlib.Path(sys.argv.pop(1)).resolve())
    unittest.main()
