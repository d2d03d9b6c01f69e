"""Two processes train one model: each the whole of it (DDP) or a part (FSDP2). What they do is in ``process.py``."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

KINDS = ["levels", "two_four", "growing", "soft", "channel", "zeros"]
CASES = [
    "differ",
    "refused",
    "left_whole",
    "fsdp2-activation",
    "fsdp2-obc",
    *(f"{way}-{kind}" for kind in KINDS for way in ("ddp", "fsdp2")),
]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="gloo between processes is tested on Linux and macOS"),
]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    script = Path(__file__).with_name("process.py")
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        for rank in range(2)
    ]
    try:
        printed = [process.communicate(timeout=240)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    reports = [folder / f"{rank}.json" for rank in range(2)]
    assert all(report.exists() for report in reports), "\n".join(printed)
    return [json.loads(report.read_text()) for report in reports]


@pytest.mark.parametrize("case", CASES)
def test_masks_are_those_of_one_process_with_all_images(case, found):
    for rank, results in enumerate(found):
        assert results.keys() <= set(CASES)
        assert results.get(case, "did not run: a case before it failed") == "", f"process {rank}"
