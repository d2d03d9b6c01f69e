from itertools import islice

import pytest
import torch

from sparsedet.common.errors import DatasetError
from sparsedet.detection.data.check import load_splits
from sparsedet.detection.data.config import DataConfig
from sparsedet.detection.data.dataset import DetectionDataset, Sample
from sparsedet.detection.data.loader import collate, train_loader, val_image_ids, val_loader
from sparsedet.detection.data.samplers import AspectRatioGroups, Shuffle
from sparsedet.detection.data.transforms import (
    ColorJitter,
    HorizontalFlip,
    IouCrop,
    Resize,
    ResizeShorter,
    ZoomOut,
)
from sparsedet.detection.structures import Detections, Target

ALL_RANDOM = (ZoomOut(), IouCrop(), ColorJitter(), HorizontalFlip(), Resize(size=(32, 32)))


def equal(one, other):
    return (
        one.image_ids == other.image_ids
        and torch.equal(one.images, other.images)
        and all(torch.equal(a.boxes_xyxy, b.boxes_xyxy) for a, b in zip(one.targets, other.targets, strict=True))
    )


def test_loading_leaves_the_global_generator_alone(dataset):
    before = torch.get_rng_state()
    for _ in train_loader(dataset(train_transforms=ALL_RANDOM), 2, range(3), stride=32):
        pass
    assert torch.equal(torch.get_rng_state(), before)


def test_collate_pads_with_zeros_at_the_right_and_below(dataset):
    data = dataset(is_train=False)
    small, large = data[0, 0], dataset(is_train=False, val_transforms=(Resize(size=(33, 20)),))[0, 1]
    batch = collate([small, large], 16)
    assert batch.images.shape == (2, 3, 48, 48)
    assert torch.equal(batch.images[0, :, :30, :40], small.image)
    assert torch.equal(batch.images[1, :, :33, :20], large.image)
    assert batch.images[0, :, 30:].abs().sum() + batch.images[0, :, :, 40:].abs().sum() == 0
    assert [target.image_size for target in batch.targets] == [(30, 40), (33, 20)]
    assert batch.image_ids == (1, 2)


def test_united_perceptions_padded_batch():
    target = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4), (0, 0))
    samples = [Sample(torch.ones(3, *size), target, 1, size) for size in ((97, 131), (128, 200))]
    images = collate(samples, 32).images
    assert images.shape == (2, 3, 128, 224)
    assert images.sum(dim=(1, 2, 3)).tolist() == [38121.0, 76800.0]  # golden `batch_pad_32`
    assert images[0, :, :97, :131].min() == images[1, :, :128, :200].min() == 1


def test_batches_are_padded_to_the_multiple_that_the_data_ask_for(dataset):
    for loader in (train_loader(dataset(pad_multiple=7), 2, range(1), 32), val_loader(dataset(pad_multiple=7), 2, 32)):
        assert next(loader).images.shape[2:] == (35, 42)  # images of 30 x 40
    assert next(train_loader(dataset(), 2, range(1), 32)).images.shape[2:] == (32, 64)


def test_to_moves_images_and_targets(dataset):
    batch = next(val_loader(dataset(is_train=False), 2, stride=32)).to(torch.device("meta"))
    tensors = [batch.images, *(t for x in batch.targets for t in (x.boxes_xyxy, x.labels, x.ignore_xyxy))]
    assert {tensor.device.type for tensor in tensors} == {"meta"}


def test_batches_have_equal_size_and_each_pass_shows_every_image_once(dataset):
    batches = list(train_loader(dataset(), 3, range(14), stride=32))
    assert [len(batch.image_ids) for batch in batches] == [3] * 14
    ids = [image_id for batch in batches for image_id in batch.image_ids]
    passes = [ids[start : start + 7] for start in range(0, 42, 7)]
    assert all(sorted(one) == list(range(1, 8)) for one in passes)
    assert len({tuple(one) for one in passes}) > 1


def test_the_stream_can_be_entered_at_any_step(dataset):
    data = dataset(train_transforms=ALL_RANDOM)
    whole = list(train_loader(data, 3, range(12), stride=32))
    for first_step in (1, 5, 11):
        rest = list(train_loader(data, 3, range(first_step, 12), stride=32))
        assert len(rest) == 12 - first_step
        assert all(map(equal, rest, whole[first_step:]))


def test_every_rank_of_a_step_has_its_batch(make_root, make_coco):
    data = make_coco(images=9)
    heights = [30, 60, 70] * 3
    for image, height in zip(data["images"], heights, strict=True):
        image.update(width=40, height=height)
    sampler = AspectRatioGroups(boundaries=(1.6,))
    config = DataConfig(root=make_root(data), sampler=sampler)
    dataset = DetectionDataset(load_splits(config)[0], config, is_train=True)
    expected = list(islice(sampler.batches([0.75, 1.5, 1.75] * 3, 2, 2, seed=0, first_step=1), 8))
    found = [batch.image_ids for batch in train_loader(dataset, 2, range(1, 5), 32, num_ranks=2)]
    assert found == [tuple(index + 1 for _, index in batch) for batch in expected]
    assert all(len({heights[image_id - 1] == 70 for image_id in batch}) == 1 for batch in found)
    assert any(len(batch) == 2 for batch in found)


def test_another_seed_gives_another_order(dataset):
    def order(seed):
        return [batch.image_ids for batch in train_loader(dataset(seed=seed), 7, range(1), stride=32)]

    assert order(0) == order(0) != order(1)


def test_worker_processes_change_nothing(dataset):
    data = dataset(train_transforms=ALL_RANDOM)
    alone = list(train_loader(data, 3, range(5), stride=32))
    worked = list(train_loader(data, 3, range(5), stride=32, num_workers=2))
    assert len(worked) == len(alone)
    assert all(map(equal, worked, alone))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_batches_are_channels_last_and_a_worker_puts_them_into_shared_memory_at_once(dataset, num_workers, monkeypatch):
    copied = torch.zeros(1, dtype=torch.int64).share_memory_()  # bytes of the largest memory that was copied
    send = torch.UntypedStorage._share_fd_cpu_

    def spy(storage, *arguments):
        if not storage.is_shared():
            copied[0] = max(int(copied[0]), storage.nbytes())
        return send(storage, *arguments)

    monkeypatch.setattr(torch.UntypedStorage, "_share_fd_cpu_", spy)
    batch = next(train_loader(dataset(), 2, range(1), stride=32, num_workers=num_workers))
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert int(copied) < batch.images.nbytes


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_broken_image_is_named_also_from_a_worker_process(dataset, num_workers):
    data = dataset()
    path = data.coco.image_path(data.images[2])
    path.write_bytes(b"broken")
    with pytest.raises(DatasetError) as raised:
        list(train_loader(data, 7, range(1), stride=32, num_workers=num_workers))
    assert str(raised.value).startswith(f"{path}: expected a whole image file, got a damaged one (")
    assert str(raised.value).endswith("or remove the image from the annotation file.")


# --- evaluation batches ----------------------------------------------------------------------------------


def test_val_batches_show_every_image_once_and_never_mix_padded_sizes(make_root, make_coco):
    data = make_coco(images=6)
    for image, (width, height) in zip(
        data["images"], [(40, 30), (30, 40), (40, 20), (64, 30), (31, 33), (16, 33)], strict=True
    ):
        image.update(width=width, height=height)
    data["annotations"][0]["bbox"] = [1, 1, 5, 5]
    config = DataConfig(root=make_root(data), val_transforms=(ResizeShorter(shorter=32),))
    dataset = DetectionDataset(load_splits(config)[1], config, is_train=False)
    for batch_size in (1, 2, 6):
        batches = list(val_loader(dataset, batch_size, stride=32))
        assert sorted(image_id for batch in batches for image_id in batch.image_ids) == [1, 2, 3, 4, 5, 6]
        for batch in batches:
            padded = {tuple(-(-side // 32) * 32 for side in target.image_size) for target in batch.targets}
            assert padded == {tuple(batch.images.shape[2:])}


def test_the_order_of_evaluated_images_does_not_depend_on_the_number_of_workers(dataset):
    data = dataset(is_train=False, val_transforms=(ResizeShorter(shorter=32),))
    alone = list(val_loader(data, 2, stride=32))
    assert [image_id for batch in alone for image_id in batch.image_ids] == [1, 2, 3, 4, 5, 6, 7]
    for num_workers in (1, 2):
        worked = list(val_loader(data, 2, stride=32, num_workers=num_workers))
        assert len(worked) == len(alone) == 4
        assert all(map(equal, worked, alone))


def test_detections_map_back_to_the_pixels_of_the_file(dataset):
    data = dataset(is_train=False, val_transforms=(Resize(size=(60, 20)),))
    batch = next(val_loader(data, 7, stride=32))
    perfect = [Detections(t.boxes_xyxy, torch.full((len(t.labels),), 0.75), t.labels) for t in batch.targets]
    assert batch.to_coco_results(perfect, data.coco.category_ids) == [
        {"image_id": 1, "category_id": 3, "bbox": [2.0, 3.0, 10.0, 8.0], "score": 0.75}
    ]


@pytest.mark.parametrize("sampler", [Shuffle(), AspectRatioGroups()])
def test_processes_train_on_the_batches_of_one(sampler, dataset):
    data = dataset(sampler=sampler)
    together = list(train_loader(data, 1, range(1, 4), 32, num_ranks=4))
    shares = [list(train_loader(data, 1, range(1, 4), 32, num_ranks=4, share=slice(rank, None, 2))) for rank in (0, 1)]
    assert [len(share) for share in shares] == [6, 6]
    for number, batch in enumerate(together):
        assert equal(batch, shares[number % 2][number // 2])


def test_processes_evaluate_each_batch_of_one_once(dataset):
    data = dataset(is_train=False)
    together = list(val_loader(data, 1, 32))
    ids = [image_id for batch in together for image_id in batch.image_ids]
    assert val_image_ids(data, 1, 32) == ids
    for num_ranks in (2, 3, 4):  # the last more than there are
        shares = [list(val_loader(data, 1, 32, num_ranks=num_ranks, rank=rank)) for rank in range(num_ranks)]
        assert sum(map(len, shares)) == len(together)
        for number, batch in enumerate(together):
            assert equal(batch, shares[number % num_ranks][number // num_ranks])
