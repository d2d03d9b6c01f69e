"""What a single process does; several are run in tests/integration/test_processes.py."""

import pytest
import torch

from sparsedet.common.errors import ConfigError, ProcessesError
from sparsedet.common.processes import (
    any_process,
    broadcast_,
    from_first,
    gather,
    is_first,
    is_lost_process,
    join_processes,
    mean_over_processes,
    num_processes,
    rank,
)


def test_one_process_is_the_first_of_one(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert join_processes(torch.device("cpu")) == torch.device("cpu")
    assert (num_processes(), rank(), is_first()) == (1, 0, True)
    assert any_process(True, False) == (True, False)
    assert mean_over_processes([1.5]) == [1.5]
    assert gather("own") == ["own"]
    value = torch.ones(2)
    broadcast_([value])
    assert value.tolist() == [1, 1]


def test_processes_that_do_not_find_each_other(monkeypatch):
    def connect(**_):
        raise torch.distributed.DistNetworkError("connection refused\nmore of it")

    monkeypatch.setenv("WORLD_SIZE", "16")
    monkeypatch.setattr("accelerate.PartialState", connect)
    with pytest.raises(ProcessesError, match=r"expected 16 to find each other, got 'connection refused'\. See that"):
        join_processes(torch.device("cpu"))


def test_what_fails_in_the_first_process_is_for_it_to_say():
    def fail():
        raise ConfigError("wrong")

    with pytest.raises(ConfigError, match="wrong") as caught:
        from_first(fail)
    assert not caught.value.is_said
    assert from_first(lambda: 3) == 3


def test_a_broken_connection_is_none_of_a_single_process():
    assert not is_lost_process(RuntimeError("Connection closed by peer"))
