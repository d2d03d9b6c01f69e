import subprocess
import sys

import pytest
import torch

from sparsedet.detection.models.normalizers import at_least_one

OTHER_PROCESS = """
import os, sys, torch
from sparsedet.detection.models.normalizers import at_least_one
torch.distributed.init_process_group("gloo", init_method=sys.argv[1], rank=1, world_size=2)
print(at_least_one(torch.tensor([4.0, 0.25, 0.0]), True).tolist(), flush=True)
torch.distributed.destroy_process_group()
os._exit(0)  # torch now and then aborts when it tears down what has talked over gloo
"""


@pytest.mark.parametrize("over_processes", [False, True])
def test_sums_are_raised_to_one(over_processes):
    sums = torch.tensor([0.0, 0.4, 7.0])
    assert at_least_one(sums, over_processes).tolist() == [1, 1, 7]


def test_sums_of_two_processes_are_added_before_and_shared_after(tmp_path):
    store = f"file://{tmp_path}/store"
    sums = torch.tensor([3.0, 0.25, 0.0])
    other = subprocess.Popen([sys.executable, "-c", OTHER_PROCESS, store], stdout=subprocess.PIPE, text=True)
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=2)
    try:
        together, alone = at_least_one(sums, True), at_least_one(sums, False)
        output, _ = other.communicate(timeout=60)
    finally:
        torch.distributed.destroy_process_group()
        other.kill()
    assert output == "[3.5, 0.5, 0.5]\n"  # (3 + 4) / 2; half of 1 where the sum is smaller
    assert together.tolist() == [3.5, 0.5, 0.5]
    assert alone.tolist() == [3, 1, 1]
    assert sums.tolist() == [3.0, 0.25, 0.0]
