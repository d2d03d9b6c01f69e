from random import Random

import pytest

from sparsedet.common.errors import DatasetError


@pytest.mark.parametrize(
    ("target", "num_inputs"),
    [("coco", 300), ("results", 100), ("onnx", 100), ("compact", 15), ("checkpoint", 15), ("records", 15)],
)
@pytest.mark.filterwarnings("ignore")
def test_a_short_run_ends_without_a_crash_and_is_repeatable(load, target, num_inputs):
    fuzz = load("fuzz")
    ends, crashes = fuzz.fuzz(target, num_inputs, seed=1)
    assert not crashes
    assert ends["accepted"] > 1
    assert sum(ends.values()) == num_inputs
    assert fuzz.fuzz(target, num_inputs, seed=1)[0] == ends


def test_a_run_ends_when_its_time_is_over(load):
    assert not load("fuzz").fuzz("coco", 10**9, seed=1, seconds=-1)[0]


@pytest.mark.parametrize("text", ["\x1b[2J", "x" * 100_000])
def test_crashes_and_dangerous_messages_are_found(load, monkeypatch, capsys, text):
    fuzz = load("fuzz")

    class Raw(DatasetError):
        def __str__(self):  # without what the class does about it
            return text

    def read(value, folder):
        if value > 0.8:
            raise Raw if value > 0.9 else DatasetError("refused")
        if value < 0.1:
            raise OverflowError

    monkeypatch.setitem(fuzz.TARGETS, "mine", (Random.random, read))
    ends, crashes = fuzz.fuzz("mine", 1000, seed=0)
    assert 130 < ends["crash"] < 270
    assert 50 < ends["DatasetError"] < 150
    assert len(crashes) == ends["crash"]
    with pytest.raises(SystemExit) as done:
        fuzz.main(["mine", "--inputs", "1", "--first", str(crashes[0][0])])
    assert done.value.code == 1
    assert "crash 1" in capsys.readouterr().out


def test_every_way_of_damage_comes_up(load):
    fuzz = load("fuzz")
    made = [fuzz.make_coco(Random(f"0 {number}")) for number in range(500)]
    assert len(set(made)) > 400
    assert any(content.count(b"[") > 500 for content in made)
