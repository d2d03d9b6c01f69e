"""Norms; the synchronised one in real processes against one process with all images."""

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn

from sparsedet.detection.models.norms import FixedStatsBatchNorm2d, SyncBatchNorm2d, conv_norm, make_norm

PROCESS = """
import os
import sys
import warnings
import torch
import torch.distributed as dist
from sparsedet.detection.models.norms import SyncBatchNorm2d

warnings.simplefilter("error")
folder, rank = sys.argv[1], int(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=4)
images = torch.load(f"{folder}/images.pt")[rank]
found = {}
if rank == 0:  # without the other processes: neither may wait for them
    found["eval"] = SyncBatchNorm2d(3).eval()(images).detach()
    found["alone"] = SyncBatchNorm2d(3, 1)(images).detach()
for group_size in (None, 8, 1, 2, 3):
    norm = SyncBatchNorm2d(3, group_size)
    norm.load_state_dict(torch.load(f"{folder}/norm.pt"))
    x = images.clone().requires_grad_()
    try:
        norm(images)
        y = norm(x)
    except Exception as error:
        found[group_size] = str(error)
        continue
    (y * torch.linspace(-1, 1, 5)).square().sum().backward()
    gradients = {"x": x.grad, "weight": norm.weight.grad, "bias": norm.bias.grad}
    found[group_size] = {"y": y.detach(), "gradients": gradients, "state": norm.state_dict()}
found["bfloat16"] = SyncBatchNorm2d(3)(images.bfloat16()).detach()
torch.save(found, f"{folder}/{rank}.pt")
dist.destroy_process_group()
os._exit(0)  # torch now and then aborts when it tears down what has talked over gloo
"""


def plain_norm():
    norm = nn.BatchNorm2d(3)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 0.5, -2.0]))
        norm.bias.copy_(torch.tensor([0.0, 1.0, 2.0]))
    return norm


def images_of(num_processes):
    """Images of different number and statistics for each process."""
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(1 + rank % 2, 3, 4, 5, generator=generator) * (1 + rank) + rank for rank in range(num_processes)
    ]


def assert_close(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6 * float(expected.abs().max()))


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each of four processes found after two training steps on its images, by group size."""
    folder = tmp_path_factory.mktemp("processes")
    torch.save(images_of(4), folder / "images.pt")
    torch.save(plain_norm().state_dict(), folder / "norm.pt")
    processes = [subprocess.Popen([sys.executable, "-c", PROCESS, str(folder), str(rank)]) for rank in range(4)]
    assert [process.wait(timeout=300) for process in processes] == [0] * 4
    return [torch.load(folder / f"{rank}.pt") for rank in range(4)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("group_size", "groups"),
    [(None, [[0, 1, 2, 3]]), (8, [[0, 1, 2, 3]]), (1, [[0], [1], [2], [3]]), (2, [[0, 1], [2, 3]])],
)
def test_synchronised_statistics_are_those_of_all_images_of_a_group(group_size, groups, found):
    images = images_of(4)
    for ranks in groups:
        results = [found[rank][group_size] for rank in ranks]
        norm = plain_norm()
        x = torch.cat([images[rank] for rank in ranks]).requires_grad_()
        norm(x.detach())
        y = norm(x)
        (y * torch.linspace(-1, 1, 5)).square().sum().backward()
        assert_close(torch.cat([result["y"] for result in results]), y.detach())
        assert_close(torch.cat([result["gradients"]["x"] for result in results]), x.grad)
        for name in ("weight", "bias"):
            assert_close(sum(result["gradients"][name] for result in results), norm.get_parameter(name).grad)
        for result in results:
            for key, value in norm.state_dict().items():
                assert_close(result["state"][key], value)


@pytest.mark.slow
def test_the_result_has_the_precision_of_the_images(found):
    y = torch.cat([result["bfloat16"] for result in found])
    expected = nn.BatchNorm2d(3)(torch.cat(images_of(4)).bfloat16().float()).detach()
    torch.testing.assert_close(y, expected.bfloat16(), rtol=0, atol=0.016)


@pytest.mark.slow
def test_one_process_needs_no_other_to_evaluate_or_in_a_group_of_its_own(found):
    images = images_of(4)[0]
    assert_close(found[0]["eval"], nn.BatchNorm2d(3).eval()(images).detach())
    assert_close(found[0]["alone"], nn.BatchNorm2d(3)(images).detach())


@pytest.mark.slow
def test_processes_that_cannot_be_grouped(found):
    message = (
        "sync_group_size: expected a divisor of the 4 processes, got 3. "
        "Start another number of processes, or set it to null."
    )
    assert [result[3] for result in found] == [message] * 4


def test_alone_it_is_a_plain_batch_norm_that_can_be_copied():
    x = images_of(1)[0]
    plain, synchronised = plain_norm(), SyncBatchNorm2d(3, 8)
    synchronised.load_state_dict(plain.state_dict())
    assert torch.equal(copy.deepcopy(synchronised)(x), plain(x))
    assert torch.equal(synchronised.eval()(x), plain_norm().eval()(x))
    with pytest.raises(ValueError, match=r"input: expected 4 dimensions \(B, C, H, W\), got 3"):
        synchronised(x[0])


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("batch_norm", nn.BatchNorm2d),
        ("batch_norm_fixed_stats", FixedStatsBatchNorm2d),
        ("sync_batch_norm", SyncBatchNorm2d),
        ("none", nn.Identity),
    ],
)
def test_norms_by_name(name, kind):
    assert type(make_norm(name, 3)) is kind


def test_fixed_statistics_stay_while_weight_and_bias_are_trained():
    norm = FixedStatsBatchNorm2d(2).train()
    norm.running_mean.copy_(torch.tensor([1.0, 2.0]))
    x = torch.randn(4, 2, 3, 3)
    norm(x).square().sum().backward()
    assert norm.running_mean.tolist() == [1.0, 2.0]
    assert not norm.training
    assert norm.weight.grad.abs().sum() > 0
    assert norm.bias.grad.abs().sum() > 0
    torch.testing.assert_close(norm(x), (x - torch.tensor([1.0, 2.0])[:, None, None]) / (1 + 1e-5) ** 0.5)


def test_conv_norm_has_a_bias_or_a_norm():
    assert set(conv_norm(3, 4, 3, "none").state_dict()) == {"conv.weight", "conv.bias"}
    with_norm = conv_norm(3, 4, 3, "batch_norm")
    assert set(dict(with_norm.named_parameters())) == {"conv.weight", "norm.weight", "norm.bias"}
    assert with_norm(torch.zeros(2, 3, 5, 6)).shape == (2, 4, 5, 6)
