import errno
import fcntl
import logging
import os

import numpy as np
import pytest
import torch

from sparsedet.detection.data.config import DataConfig
from sparsedet.detection.data.image_cache import ImageCache, ImageCacheConfig
from sparsedet.detection.data.loader import train_loader

SIZE = (4, 5)
NUM_BYTES = 60


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def paths(tmp_path):
    """Twenty files that stand for images."""
    paths = [tmp_path / f"{number}.jpg" for number in range(20)]
    for path in paths:
        path.write_bytes(b"x")
    return paths


def open_cache(folder, max_bytes=10**6):
    return ImageCache(ImageCacheConfig(folder=folder, max_gb=max_bytes / 1e9))


class Maker:
    """Makes the image of a number and counts how often."""

    def __init__(self, number=0):
        self.image = torch.from_numpy(np.random.default_rng(number).integers(0, 256, (3, *SIZE), dtype=np.uint8))
        self.times = 0

    def __call__(self):
        self.times += 1
        return self.image


def files(folder):
    return sorted(folder.glob("*.rgb"))


def test_an_image_is_made_once(folder, paths):
    make = Maker()
    for cache in (open_cache(folder), open_cache(folder)):
        for _ in range(2):
            found = cache.get(paths[0], "as it is", SIZE, make)
            assert found.dtype == torch.uint8
            assert torch.equal(found, make.image)
    assert make.times == 1
    pixels = make.image.permute(1, 2, 0).numpy().tobytes()
    assert [path.read_bytes() for path in files(folder)] == [pixels]


def test_what_is_read_can_be_written_to_and_stays_in_the_cache_as_it_was(folder, paths):
    cache, make = open_cache(folder), Maker()
    cache.get(paths[0], "", SIZE, make)
    cache.get(paths[0], "", SIZE, make).zero_()
    assert torch.equal(cache.get(paths[0], "", SIZE, make), make.image)


def test_another_file_variant_size_length_or_time_is_another_image(folder, paths):
    cache = open_cache(folder)
    make = Maker()
    for path in paths:
        os.utime(path, ns=(10**18, 10**18))
    cache.get(paths[0], "a", SIZE, make)
    cache.get(paths[1], "a", SIZE, make)
    cache.get(paths[0], "b", SIZE, make)
    cache.get(paths[0], "a", SIZE[::-1], make)
    status = paths[0].stat()
    paths[0].write_bytes(b"xx")
    os.utime(paths[0], ns=(status.st_atime_ns, status.st_mtime_ns))
    cache.get(paths[0], "a", SIZE, make)
    os.utime(paths[0], ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    cache.get(paths[0], "a", SIZE, make)
    assert make.times == len(files(folder)) == 6
    assert str(paths[0]) not in " ".join(path.name for path in folder.iterdir())


@pytest.mark.parametrize("content", [b"", b"x" * (NUM_BYTES - 1), b"x" * (NUM_BYTES + 1)])
def test_a_file_of_another_length_is_made_anew_with_one_warning(folder, paths, content, caplog):
    cache, make = open_cache(folder), Maker()
    for path in paths[:3]:
        cache.get(path, "", SIZE, make)
    for file in files(folder):
        file.write_bytes(content)
    for path in paths[:3]:
        assert torch.equal(cache.get(path, "", SIZE, make), make.image)
    assert make.times == 6
    assert [path.stat().st_size for path in files(folder)] == [NUM_BYTES] * 3
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.message in {
        f"{file}: expected 60 bytes, got a file of another length. The image is decoded again."
        for file in files(folder)
    }


def test_the_folder_stays_within_its_limit(folder, paths, caplog):
    make = Maker()
    for cache in (open_cache(folder, 3 * NUM_BYTES + 10), open_cache(folder, 3 * NUM_BYTES + 10)):
        for path in paths:
            assert torch.equal(cache.get(path, "", SIZE, make), make.image)
    assert len(files(folder)) == 3
    assert make.times == 20 + 17
    assert [record.message for record in caplog.records] == [
        f"{folder}: expected room for another image, got '1.9e-07 GB of images, as many as data.cache.max_gb allows'. "
        "Images that are not in the cache are decoded each time."
    ] * 2  # one for each of the two that were opened


def test_what_was_deleted_makes_room_and_rests_of_killed_processes_go(folder, paths):
    cache = open_cache(folder, 2 * NUM_BYTES)
    for path in paths[:2]:
        cache.get(path, "", SIZE, Maker())
    files(folder)[0].unlink()
    (folder / "0.partial").write_bytes(b"x")
    cache = open_cache(folder, 2 * NUM_BYTES)
    cache.get(paths[2], "", SIZE, Maker())
    assert len(files(folder)) == 2
    assert not list(folder.glob("*.partial"))


def test_a_full_disk_leaves_no_part_and_one_warning(folder, paths, caplog, monkeypatch):
    cache, make = open_cache(folder), Maker()
    cache.get(paths[0], "", SIZE, make)

    def full(partial, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("pathlib.Path.replace", full)
    for path in paths:
        assert torch.equal(cache.get(path, "", SIZE, make), make.image)
    assert make.times == 20
    assert sorted(path.suffix for path in folder.iterdir()) == ["", ".rgb"]
    assert [record.message for record in caplog.records] == [
        f"{folder}: expected room for another image, got 'No space left on device'. "
        "Images that are not in the cache are decoded each time."
    ]


def test_a_folder_that_cannot_be_made_is_one_warning(tmp_path, paths, caplog):
    (tmp_path / "file").write_text("")
    cache, make = open_cache(tmp_path / "file" / "cache"), Maker()
    for path in paths[:3]:
        assert torch.equal(cache.get(path, "", SIZE, make), make.image)
    assert [record.message.split(". ")[0] for record in caplog.records] == [
        f"{tmp_path / 'file' / 'cache'}: expected room for another image, got 'Not a directory'"
    ]


def test_the_folder_is_locked_before_an_image_is_counted_and_written(folder, paths, monkeypatch):
    cache = open_cache(folder)
    locked = []
    monkeypatch.setattr(fcntl, "flock", lambda stream, how: locked.append((stream.name, how, len(files(folder)))))
    for path in paths[:3]:
        cache.get(path, "", SIZE, Maker())
    assert locked == [(str(folder / "size"), fcntl.LOCK_EX, number) for number in range(3)]


def test_worker_processes_share_the_limit_and_the_warning(dataset, folder, caplog):
    images = {}
    for workers, settings in ((0, {}), (2, {"cache": ImageCacheConfig(folder=folder, max_gb=4 * 3600 / 1e9)})):
        data = dataset(**settings)
        images[workers] = torch.cat([batch.images for batch in train_loader(data, 1, range(21), 32, 1, workers)])
    assert torch.equal(images[2], images[0])
    assert [path.stat().st_size for path in files(folder)] == [30 * 40 * 3] * 4
    assert len({data[0, index].image_id for index in range(7)}) == 7
    assert not caplog.records  # a worker said that the cache is full


def test_recipes_in_older_checkpoints_asked_for_memory(tmp_path):
    for value in (True, False):
        assert DataConfig(root=tmp_path, cache=value).cache is None
