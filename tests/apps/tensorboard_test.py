#!/usr/bin/env python3
"""Usage: tensorboard_test.py MEGALODON. Trains, is stopped and resumed, and reads the run with the tensorboard package.

Skips where the package is not installed (scripts/setup test installs it)."""
import json
import pathlib
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "kill"))
from tiny_run import Workshop  # noqa: E402

try:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
except ImportError as error:
    print(f"skipped: no tensorboard package in {sys.executable} ({error})")
    sys.exit(77)

with tempfile.TemporaryDirectory() as folder:
    shop = Workshop(sys.argv[1], folder)
    run = shop.new_run("board", "fresh", checkpoint_every=5, steps=20)
    shop.check("train", "run.toml", "--train.steps", "12", cwd=run)
    (run / "run" / "checkpoints" / "step-00000012").rename(run / "gone")  # go on from step 10: 11 and 12 are told twice
    shop.check("train", "run.toml", "--resume", cwd=run)

    events = EventAccumulator(str(run / "run"))
    events.Reload()
    lines = [json.loads(line) for line in (run / "run" / "metrics.jsonl").read_text().splitlines()]
    for tag, key in (("loss/train", "loss"), ("optim/lr", "lr"), ("optim/grad_norm", "grad_norm"), ("data/epoch", "epoch"),
                     ("speed/mfu", "mfu"), ("memory/bytes", "memory_bytes")):
        seen = [(e.step, e.value) for e in events.Scalars(tag)]
        told = [(line["step"], line[key]) for line in lines]
        assert [s for s, _ in seen] == [s for s, _ in told] == list(range(1, 21)), (tag, seen)
        assert all(abs(a - b) <= 1e-6 * abs(b) for (_, a), (_, b) in zip(seen, told)), (tag, seen, told)
    valid = [(e.step, e.value) for e in events.Scalars("loss/valid")]
    assert [s for s, _ in valid] == [line["step"] for line in lines if "valid_loss" in line], valid
    assert len(events.Scalars("speed/tokens_per_second")) == 20
print("tensorboard reads every step once")
