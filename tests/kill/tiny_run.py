"""A training run through the real program, small enough that a step takes a few milliseconds."""

import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import time

STEPS = 40

RUN_FILE = """out = "run"
[model]
num_layers = 2
model_dim = 32
z_dim = 16
value_dim = 32
num_heads = 2
ffn_hidden_dim = 48
cema_ndim = 4
chunk_size = 16
vocab_size = 256
norm_num_groups = 4
dropout = 0.1
hidden_dropout = 0.1
attention_dropout = 0.1
dropkey = 0.1
[data]
path = "../data"
length = 64
batch = 4
mode = "{mode}"
[optim]
lr = 3e-3
warmup = 4
scheduler = "cosine"
[train]
steps = {steps}
accumulate = 2
threads = 2
validate_every = 7
sample_every = 13
sample_tokens = 8
checkpoint_every = {checkpoint_every}
keep = {keep}
"""


class Workshop:
    """A folder with a small data set, and runs in folders of their own beside it.

    All paths inside a run are relative to its folder, so that two runs of the same settings write the same bytes."""

    def __init__(self, program, folder):
        self.program = str(pathlib.Path(program).resolve())
        self.folder = pathlib.Path(folder)
        words = ["the", "of", "a", "whale", "sea", "ship", "and", "to", "captain", "wind", "old", "white"]
        draw = random.Random(1)
        text = self.folder / "text.txt"
        text.write_text(" ".join(draw.choice(words) for _ in range(2000)))
        self.check("prepare", "--input", str(text), "--tokenizer", "bytes", "--valid-fraction", "0.1", "--out", str(self.folder / "data"))

    def new_run(self, name, mode, checkpoint_every=1, steps=STEPS, keep=2):
        folder = self.folder / name
        folder.mkdir()
        (folder / "run.toml").write_text(RUN_FILE.format(mode=mode, checkpoint_every=checkpoint_every, steps=steps, keep=keep))
        return folder

    def start(self, *arguments, cwd=None, prefix=(), **options):
        return subprocess.Popen([*prefix, self.program, *arguments], cwd=cwd or self.folder, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, text=True, errors="replace", **options)

    def run(self, *arguments, **options):
        """Returns exit code, standard output, standard error."""
        process = self.start(*arguments, **options)
        out, err = process.communicate(timeout=300)
        return process.returncode, out, err

    def stop_early(self, run, number=signal.SIGTERM):
        """Trains a few steps, stops by a signal; returns the step and what was printed."""
        for _ in range(20):
            process = self.start("train", "run.toml", cwd=run)
            metrics = run / "run" / "metrics.jsonl"
            while process.poll() is None and not (metrics.exists() and metrics.read_bytes().count(b"\n") >= 3):
                time.sleep(0.001)
            process.send_signal(number)
            out, err = process.communicate()
            if process.returncode != 0:
                raise AssertionError(f"a run told to stop ended with {process.returncode}: {err}")
            step = len(metrics_of(run))
            if step < STEPS:
                return step, out
            shutil.rmtree(run / "run")  # this machine was busy elsewhere while the run came to its end
        raise AssertionError("every run was over before the signal")

    def check(self, *arguments, **options):
        code, out, err = self.run(*arguments, **options)
        if code != 0:
            raise AssertionError(f"{' '.join(arguments)} ended with {code}: {err}{out[-2000:]}")
        return out


def checkpoints(run, name="run"):
    """The names in run/NAME/checkpoints, those of unfinished ones too."""
    folder = run / name / "checkpoints"
    return sorted(os.listdir(folder)) if folder.is_dir() else []


def files_of(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def metrics_of(run, name="run"):
    """The metrics without what the clock and the machine decide."""
    ignored = ("seconds", "data_seconds", "mfu", "memory_bytes")
    lines = (run / name / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in ignored} for line in lines]


def difference(run, straight, ignore=()):
    """What differs between two finished runs, but for the files of checkpoints to ignore, or None."""
    if checkpoints(run) != checkpoints(straight):
        return f"checkpoints {checkpoints(run)} instead of {checkpoints(straight)}"
    for name in checkpoints(straight):
        ours = files_of(run / "run" / "checkpoints" / name)
        theirs = files_of(straight / "run" / "checkpoints" / name)
        if ours.keys() != theirs.keys():
            return f"{name} holds {sorted(ours)} instead of {sorted(theirs)}"
        for file in theirs.keys() - set(ignore):
            if ours[file] != theirs[file]:
                return f"{name}/{file} differs"
    ours, theirs = metrics_of(run), metrics_of(straight)
    if len(ours) != len(theirs):
        return f"metrics.jsonl has {len(ours)} lines instead of {len(theirs)}"
    for mine, other in zip(ours, theirs):
        if mine != other:
            return f"metrics.jsonl differs at step {other['step']}: {mine} instead of {other}"
    return None
