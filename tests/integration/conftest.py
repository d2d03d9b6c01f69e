"""What tests of whole runs share."""

import pytest
import torch


@pytest.fixture
def assert_equal():
    """Function that compares plain data and tensors bit for bit."""

    def compare(one, other, place=""):
        assert type(one) is type(other), place
        if isinstance(one, torch.Tensor):
            assert torch.equal(one, other), place
        elif isinstance(one, dict):
            assert one.keys() == other.keys(), place
            for key in one:
                compare(one[key], other[key], f"{place}.{key}")
        elif isinstance(one, list | tuple):
            assert len(one) == len(other), place
            for index, pair in enumerate(zip(one, other, strict=True)):
                compare(*pair, f"{place}[{index}]")
        else:
            assert one == other, place

    return compare
