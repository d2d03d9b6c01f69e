import pytest

from sparsedet.benchmark.progress import ProgressFiles, newest_good
from sparsedet.detection.optimization import CheckpointsConfig


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def files(folder, clock, **config):
    return ProgressFiles(folder, CheckpointsConfig(**config), clock)


def test_a_checkpoint_is_due_after_so_many_minutes_since_the_last(tmp_path, clock):
    progress = files(tmp_path, clock, every_minutes=2)
    clock.now = 219.0
    assert not progress.is_due(7)
    clock.now = 220.0
    assert progress.is_due(7)
    progress.save(0, 7, {})
    assert not progress.is_due(8)
    clock.now = 340.0
    assert progress.is_due(8)
    progress.clear()  # a level has ended
    assert not progress.is_due(8)


def test_a_checkpoint_is_due_every_so_many_steps_or_never(tmp_path, clock):
    progress = files(tmp_path, clock, every_minutes=None, every_steps=3)
    clock.now = 1e9
    assert [step for step in range(1, 8) if progress.is_due(step)] == [3, 6]
    assert not files(tmp_path, clock, every_minutes=None).is_due(3)


def test_the_newest_are_kept_by_level_and_step(tmp_path, clock):
    progress = files(tmp_path, clock, keep=3)
    for level, step in ((0, 9), (0, 10), (1, 10), (1, 100), (1, 20)):
        progress.save(level, step, {"step": step})
    (progress.folder / "level-2-step-1.pt.damaged").touch()
    (progress.folder / "level-2-step-1.pt.partial").touch()
    names = ["level-1-step-100.pt", "level-1-step-20.pt", "level-1-step-10.pt"]
    assert [path.name for path in progress.newest_first()] == names
    progress.save(0, 1, {})
    assert [path.name for path in progress.newest_first()] == names
    assert progress.newest_first(first_level=2) == []
    progress.clear()
    assert progress.newest_first() == []
    assert not progress.folder.exists()


def test_what_cannot_be_read_is_named_and_put_aside(tmp_path, clock):
    progress = files(tmp_path, clock, keep=3)
    for step in (1, 2, 3):
        progress.save(0, step, {"step": step})
    third, second, first = progress.newest_first()
    third.write_bytes(third.read_bytes()[:50])
    second.write_text("no checkpoint")
    said = []
    assert newest_good(progress.newest_first(), said.append) == first
    assert [text.split(":")[0] for text in said] == [str(third), str(second)]
    assert progress.newest_first() == [first]
    assert newest_good([], said.append) is None
