"""The real submitit, beside programs that stand in for Slurm's: they take, run and account for jobs on this machine."""

import json
import os
import stat
import subprocess
import sys

import pytest

from sparsedet.report import load_run, read_records

SUITE = """\
title: Tiny
experiments:
- {name: dense, recipe: tiny.yaml}
- {name: lamp, start: dense, recipe: {base: tiny.yaml, sparsity: {schedule: {type: one_shot, sparsity: 0.5}}}}
- {name: other, recipe: tiny.yaml}
- {name: wrong, recipe: {base: tiny.yaml, expected_steps: 7}}
- {name: after-wrong, start: wrong, recipe: tiny.yaml}
"""

SLURM = r"""
import json, os, re, subprocess, sys, time
from pathlib import Path

HERE = Path(__file__).parent / "state"
HERE.mkdir(exist_ok=True)


def state(job, text=None):
    path = HERE / f"{job}.state"
    if text is not None:
        path.write_text(text)
    return path.read_text() if path.exists() else "PENDING"


def parse(number, script):
    options = dict(re.findall(r"^#SBATCH --([\w-]+)=(.*)$", Path(script).read_text(), re.M))
    tasks = range(int(options["array"].split("%")[0].split("-")[1]) + 1) if "array" in options else [None]
    return options, tasks, [str(number) if task is None else f"{number}_{task}" for task in tasks]


def run(number, script, folder):
    options, tasks, names = parse(number, script)
    while not all(list(Path(folder).glob(f"{name}_submitted.pkl")) for name in names):
        time.sleep(0.05)  # submitit names its files after the job only when it has its number
    if "dependency" in options:
        first = options["dependency"].removeprefix("afterok:")
        while state(first) not in ("COMPLETED", "FAILED"):
            time.sleep(0.1)
        if state(first) == "FAILED":  # --kill-on-invalid-dep
            [state(name, "CANCELLED") for name in names]
            return
    for task, name in zip(tasks, names):
        state(name, "RUNNING")
        own = {"SLURM_JOB_ID": str(number), "SLURM_JOB_NODELIST": "here", "SLURM_JOB_NUM_NODES": "1"}
        own |= {"SLURM_NTASKS": "1", "SLURM_NODEID": "0", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
        if task is not None:
            own |= {"SLURM_ARRAY_JOB_ID": str(number), "SLURM_ARRAY_TASK_ID": str(task)}
        code = subprocess.run(["bash", script], env=os.environ | own).returncode
        state(name, "FAILED" if code else "COMPLETED")


program, arguments = Path(sys.argv[0]).name, sys.argv[1:]
if arguments[:1] == ["run"]:
    run(int(arguments[1]), arguments[2], arguments[3])
elif program == "sbatch":
    number = 100 + len(list(HERE.glob("*.sh")))
    script = HERE / f"{number}.sh"
    script.write_text(Path(arguments[-1]).read_text())
    [state(name, "PENDING") for name in parse(number, script)[2]]
    own = [sys.executable, __file__, "run", str(number), str(script), str(Path(arguments[-1]).parent)]
    nothing = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)  # which sbatch would else keep open
    subprocess.Popen(own, start_new_session=True, **nothing)
    print(f"Submitted batch job {number}")
elif program == "srun":
    start = next(index for index, word in enumerate(arguments) if "python" in word)
    sys.exit(subprocess.run(arguments[start:]).returncode)
elif program == "squeue":
    for path in HERE.glob("*.state"):
        if path.read_text() in ("PENDING", "RUNNING"):
            print(path.stem)
elif program == "sacct":
    print("JobID|State|NodeList")
    for path in HERE.glob("*.state"):
        print(f"{path.stem}|{path.read_text()}|here")
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Folder of the stand-ins, which is searched first for programs."""
    folder = tmp_path / "slurm-bin"
    folder.mkdir()
    for name in ("sbatch", "srun", "squeue", "sacct"):
        path = folder / name
        path.write_text(f"#!{sys.executable}\n{SLURM}")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


@pytest.mark.long
def test_experiments_are_jobs_that_wait_for_their_start(slurm, tiny_recipe, tmp_path):
    pytest.importorskip("submitit")
    (tmp_path / "suite.yaml").write_text(SUITE)
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "sparsedet.cli", "bench", tmp_path / "suite.yaml", "--output", folder]
    command += ["--device", "cpu", "--launcher", "slurm", "--slurm", "time=5", "--slurm", "partition=small"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=240)
    assert done.returncode == 2, done.stderr
    assert "lamp: job 101, after 100_0" in done.stderr
    assert "wrong: expected_steps: expected 7 steps, got 4" in done.stderr
    run = load_run(folder)
    assert {one.name: one.is_finished for one in run.experiments} == {
        "dense": True, "lamp": True, "other": True, "wrong": False, "after-wrong": False,
    }  # fmt: skip
    assert read_records(folder / "lamp")[0][0].measured_sparsity == pytest.approx(0.5, abs=0.01)
    scripts = {path.stem: path.read_text() for path in (slurm / "state").glob("*.sh")}
    assert "#SBATCH --array=0-2%3" in scripts["100"]
    assert "#SBATCH --dependency=afterok:100_0" in scripts["101"]
    assert all("#SBATCH --partition=small" in script and "#SBATCH --time=5" in script for script in scripts.values())
    assert json.loads((folder / "wrong" / "error.json").read_text())
