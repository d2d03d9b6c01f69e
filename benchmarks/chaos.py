"""What is lost when training is killed, stopped, or robbed of its disk or its data: nothing but some steps.

A small pruning run on the digit scenes is disturbed in every way and started again by the same command until it has
finished. Its checkpoints are then compared, bit for bit, with those of a run that nothing disturbed.
"""

import argparse
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from sparsedet.common.checkpoint import load_checkpoint
from sparsedet.common.errors import CheckpointError
from sparsedet.detection.data.digit_scenes import make_digit_scenes

RECIPE = """\
data: {{root: {data}, val: {{annotations: annotations/few.json, images: images}}}}
detector:
  type: retinanet
  backbone: {{type: resnet18, width: 16, levels: [3, 4]}}
  neck: {{channels: 16, num_levels: 2}}
  head: {{num_convs: 1}}
  anchors: {{scales: [3.0]}}
training:
  steps: {steps}
  batch_size: 4
  num_workers: 1
  log_every: 1
  ema: {{decay: 0.9, ramp: linear}}
  checkpoints: {{every_steps: 5}}
sparsity: {{schedule: {{type: level_wise, levels: [0.5, 0.8]}}}}
"""
SIZE_LIMIT = 2**20


@dataclass
class Result:
    """What a way of disturbing came to."""

    what: str
    starts: int = 0
    disturbed: int = 0
    exit_codes: list[int] = field(default_factory=list)
    checkpoints: int = 0
    unreadable: int = 0
    steps_lost: list[int] = field(default_factory=list)
    equal: bool = False


class Runs:
    """Starts one recipe again and again in one folder, alone or as several processes."""

    def __init__(self, recipe: Path, folder: Path, num_processes: int, what: str, *settings: str) -> None:
        self.folder = folder
        launcher = []
        if num_processes > 1:
            launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={num_processes}", "-m"]
        self.command = [sys.executable, "-m", *launcher, "sparsedet.cli", "train", recipe, "--output", folder]
        self.command += [part for setting in settings for part in ("--set", setting)]
        self.result = Result(what)

    def start(self, limit: int | None = None) -> "subprocess.Popen[str]":
        """Start the command, with files of at most `limit` bytes if that is given."""
        self.result.starts += 1
        limits = None if limit is None else lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        return subprocess.Popen(
            [str(part) for part in self.command],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            preexec_fn=limits,
        )

    def num_steps(self) -> int:
        """Return how many steps are in the metrics."""
        path = self.folder / "chaos" / "metrics.jsonl"
        whole = path.read_text().rpartition("\n")[0].splitlines() if path.exists() else []
        return max((json.loads(line)["step"] + 1 for line in whole), default=0)

    def wait_for_steps(self, process: "subprocess.Popen[str]", number: int) -> None:
        """Wait until so many steps are done, or the process has ended."""
        while process.poll() is None and self.num_steps() < number:
            time.sleep(0.01)

    def look(self) -> None:
        """Count the checkpoints that can be read, and the steps that the next start does again."""
        saved = 0
        for path in (self.folder / "chaos").rglob("*.pt"):
            self.result.checkpoints += 1
            try:
                saved = max(saved, load_checkpoint(path)["step"])
            except CheckpointError:
                self.result.unreadable += 1
        self.result.steps_lost.append(max(self.num_steps() - saved, 0))

    def finish(self, undisturbed: Path) -> Result:
        """Run to the end and compare with a folder that nothing disturbed."""
        process = self.start()
        text = process.communicate()[1]
        assert process.returncode == 0, text
        self.result.equal = same_checkpoints(self.folder, undisturbed)
        return self.result


def same_checkpoints(folder: Path, other: Path) -> bool:
    """Tell whether all levels have equal bits in weights, averages, masks, optimizer and metrics."""
    names = [sorted(path.relative_to(root) for path in root.rglob("checkpoint.pt")) for root in (folder, other)]
    return names[0] == names[1] and all(
        same(*(load_checkpoint(root / name)[part] for root in (folder, other)))
        for name in names[0]
        for part in ("model", "trainer", "sparsifier", "metrics")
    )


def same(one: Any, other: Any) -> bool:
    """Compare nested containers of tensors and plain values."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def kill(runs: Runs, number: int, steps: int, draw: random.Random, victim: Callable[[int], int]) -> None:
    """Kill with SIGKILL at random moments, `number` times."""
    for index in range(number):
        process = runs.start()
        runs.wait_for_steps(process, runs.num_steps() + draw.randrange(1, max(steps // number, 2)))
        time.sleep(draw.random() * 0.3)
        if process.poll() is None:
            os.kill(victim(process.pid), signal.SIGKILL)
            runs.result.disturbed += 1
        process.communicate()
        runs.result.exit_codes.append(process.returncode)
        print(f"  kill {index + 1} at step {runs.num_steps()}", file=sys.stderr)
        runs.look()


def worker_of(draw: random.Random) -> Callable[[int], int]:
    """Return a function that finds one of the processes that a launcher has started."""

    def find(launcher: int) -> int:
        children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
        found = [int(pid) for pid in children if "sparsedet.cli" in Path(f"/proc/{pid}/cmdline").read_text()]
        return draw.choice(found)

    return find


def stop(runs: Runs, number: signal.Signals, times: int, step: int) -> None:
    """Send a signal so many times."""
    process = runs.start()
    runs.wait_for_steps(process, step)
    for _ in range(times):
        process.send_signal(number)
        time.sleep(0.02)
    runs.result.disturbed += 1
    process.communicate()
    runs.result.exit_codes.append(process.returncode)
    runs.look()


def fill_disk(runs: Runs) -> None:
    """Let no file grow beyond a size that a checkpoint exceeds, as a full disk would."""
    process = runs.start(limit=SIZE_LIMIT)
    text = process.communicate()[1]
    assert "no checkpoint at step 5" in text, text
    runs.result.disturbed += 1
    runs.result.exit_codes.append(process.returncode)
    assert not list(runs.folder.rglob("*.partial"))
    runs.look()


def hide_data(runs: Runs, images: Path, step: int) -> None:
    """Take the images away while the run trains, start it without them, and give them back."""
    process = runs.start()
    runs.wait_for_steps(process, step)
    images.rename(images.with_name("elsewhere"))
    try:
        for again in (False, True):
            text = (runs.start() if again else process).communicate()[1]
            assert "images" in text.splitlines()[-1], text
        runs.result.disturbed += 1
    finally:
        images.with_name("elsewhere").rename(images)
    runs.result.exit_codes.append(process.returncode)
    runs.look()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data = make_digit_scenes(folder / "data")
        content = json.loads((data / "annotations" / "val.json").read_text())
        content["images"] = content["images"][:21]
        kept = {image["id"] for image in content["images"]}
        content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] in kept]
        (data / "annotations" / "few.json").write_text(json.dumps(content))
        recipe = folder / "chaos.yaml"
        recipe.write_text(RECIPE.format(data=data, steps=options.steps))
        for number in (1, 2):
            Runs(recipe, folder / f"whole-{number}", number, "nothing").finish(folder / f"whole-{number}")
        print(f"{'disturbed by':<34} starts times exit codes     checkpoints unreadable equal bits steps lost")
        results = []
        for row in _results(options, draw, recipe, folder, data):
            codes, lost = ", ".join(map(str, sorted(set(row.exit_codes)))), ", ".join(map(str, row.steps_lost))
            print(f"{row.what:<34} {row.starts:>6} {row.disturbed:>5} {codes:<14} {row.checkpoints:>11} "
                  f"{row.unreadable:>10} {row.equal!s:<10} {lost}", flush=True)  # fmt: skip
            results.append(row)
    print(json.dumps([asdict(row) for row in results]))
    sys.exit(any(row.unreadable or not row.equal for row in results))


def _results(
    options: argparse.Namespace, draw: random.Random, recipe: Path, folder: Path, data: Path
) -> Iterator[Result]:
    def runs(what: str, number: int = 1, *settings: str) -> Runs:
        print(what, file=sys.stderr)
        shutil.rmtree(folder / "run", ignore_errors=True)
        return Runs(recipe, folder / "run", number, what, *settings)

    whole, middle = folder / "whole-1", options.steps // 3
    one = runs("kill -9")
    kill(one, options.kills, options.steps, draw, lambda pid: pid)
    yield one.finish(whole)
    two = runs("kill -9 of one of two processes", 2)
    kill(two, options.kills, options.steps, draw, worker_of(draw))
    yield two.finish(folder / "whole-2")
    for what, number, times in (("SIGTERM", signal.SIGTERM, 1), ("Ctrl-C", signal.SIGINT, 1)):
        stopped = runs(what)
        stop(stopped, number, times, middle)
        yield stopped.finish(whole)
    twice = runs("Ctrl-C twice")
    stop(twice, signal.SIGINT, 2, middle)
    yield twice.finish(whole)
    # Without worker processes, which hand over batches in files of memory that have the same limit.
    full = runs(f"files limited to {SIZE_LIMIT // 2**20} MiB (full disk)", 1, "training.num_workers=0")
    fill_disk(full)
    yield full.finish(whole)
    vanished = runs("images taken away and given back")
    hide_data(vanished, data / "images", middle)
    yield vanished.finish(whole)


if __name__ == "__main__":
    main()
