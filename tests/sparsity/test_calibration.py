"""Calibration data."""

import pytest
import torch

from sparsedet.common.errors import ConfigError
from sparsedet.sparsity import Calibration
from sparsedet.sparsity.calibration import sum_of_counts


def test_the_first_batches_are_taken_and_no_more_is_read():
    read = []

    class Loader:
        def __iter__(self):
            for index in range(5):
                read.append(index)
                yield index

    calibration = Calibration(Loader(), run=lambda model, batch: None)
    assert calibration.first(2) == [0, 1]
    assert read == [0, 1]
    assert calibration.first(9) == [0, 1, 2, 3, 4]


def test_a_generator_is_empty_the_second_time():
    calibration = Calibration((batch for batch in [torch.ones(1)]), run=lambda model, batch: None)
    assert len(calibration.first(1)) == 1
    with pytest.raises(ConfigError, match=r"got none\. Give a list or a data loader; a generator is empty when"):
        calibration.first(1)


def test_counts_of_one_process():
    assert sum_of_counts(3) == 3
