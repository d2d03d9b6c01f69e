import numpy as np
import pytest
import torch
from PIL import Image

from sparsedet.common.errors import DatasetError
from sparsedet.detection.data.check import load_splits
from sparsedet.detection.data.config import DataConfig
from sparsedet.detection.data.dataset import DetectionDataset
from sparsedet.detection.data.loader import collate, train_loader, val_loader
from sparsedet.detection.data.transforms import (
    ColorJitter,
    HorizontalFlip,
    IouCrop,
    Resize,
    ResizeShorter,
    ZoomOut,
)
from sparsedet.detection.structures import Detections

ALL_RANDOM = (ZoomOut(), IouCrop(), ColorJitter(), HorizontalFlip(), Resize(size=(32, 32)))


@pytest.fixture
def dataset(make_root, make_coco):
    """Return a function that makes the training or validation split of seven images."""
    root = make_root(make_coco(images=7))

    def dataset(is_train=True, seed=0, **settings):
        config = DataConfig(root=root, **settings)
        train, val, _ = load_splits(config)
        return DetectionDataset(train if is_train else val, config, is_train, seed)

    return dataset


def equal(one, other):
    return (
        one.image_ids == other.image_ids
        and torch.equal(one.images, other.images)
        and all(torch.equal(a.boxes_xyxy, b.boxes_xyxy) for a, b in zip(one.targets, other.targets, strict=True))
    )


# --- samples ---------------------------------------------------------------------------------------------


def test_a_sample_is_the_normalised_image_and_its_boxes(dataset):
    data = dataset(mean=(0.5, 0.25, 0.0), std=(0.5, 1.0, 2.0))
    sample = data[0, 0]
    pixels = np.asarray(Image.open(data.coco.image_path(data.images[0]))).transpose(2, 0, 1) / 255
    expected = (pixels - np.array([0.5, 0.25, 0]).reshape(3, 1, 1)) / np.array([0.5, 1, 2]).reshape(3, 1, 1)
    assert type(sample.image) is torch.Tensor
    assert np.abs(sample.image.numpy() - expected).max() < 1e-6
    assert type(sample.target.boxes_xyxy) is torch.Tensor
    assert sample.target.boxes_xyxy.tolist() == [[2, 3, 12, 11]]
    assert sample.target.labels.tolist() == [0]
    assert sample.target.ignore_xyxy.shape == (0, 4)
    assert (sample.image_id, sample.target.image_size, sample.original_size) == (1, (30, 40), (30, 40))


def test_an_image_without_boxes_has_an_empty_target(dataset):
    target = dataset()[0, 1].target
    assert (target.boxes_xyxy.shape, target.boxes_xyxy.dtype) == ((0, 4), torch.float32)
    assert (target.labels.shape, target.labels.dtype) == ((0,), torch.int64)


def test_labels_follow_ascending_category_ids_and_crowds_are_ignore_regions(make_root, make_coco):
    data = make_coco(boxes=[[0, 0, 5, 5], [1, 1, 5, 5], [2, 2, 5, 5]])
    data["categories"].reverse()
    data["annotations"][0]["category_id"] = 7
    data["annotations"][2].update(category_id=7, iscrowd=1)
    config = DataConfig(root=make_root(data), train_transforms=(Resize(size=(60, 80)),))
    target = DetectionDataset(load_splits(config)[0], config, is_train=True)[0, 0].target
    assert target.labels.tolist() == [1, 0]
    assert target.boxes_xyxy.tolist() == [[0, 0, 10, 10], [2, 2, 12, 12]]
    assert target.ignore_xyxy.tolist() == [[4, 4, 14, 14]]


def test_boxes_that_were_cropped_away_are_no_targets(make_root, make_coco):
    data = make_coco(boxes=[[0, 0, 6, 6], [33, 23, 6, 6]])
    config = DataConfig(root=make_root(data), train_transforms=(IouCrop(),))
    dataset = DetectionDataset(load_splits(config)[0], config, is_train=True)
    targets = [dataset[epoch, 0].target for epoch in range(20)]
    assert {len(target.labels) for target in targets} == {1, 2}
    for target in targets:
        assert len(target.boxes_xyxy) == len(target.labels)
        assert ((target.boxes_xyxy[:, 2:] - target.boxes_xyxy[:, :2]) > 0).all()


@pytest.mark.parametrize("without_boxes", [True, False])
def test_images_without_boxes_are_trained_by_choice_and_always_evaluated(dataset, without_boxes):
    assert len(dataset(train_without_boxes=without_boxes)) == (7 if without_boxes else 1)
    assert len(dataset(is_train=False, train_without_boxes=without_boxes)) == 7


def test_no_image_left_to_train_on(make_root, make_coco):
    data = make_coco()
    data["annotations"][0]["iscrowd"] = 1
    config = DataConfig(root=make_root(data), train_without_boxes=False)
    train = load_splits(config)[0]
    with pytest.raises(DatasetError) as raised:
        DetectionDataset(train, config, is_train=True)
    assert str(raised.value) == (
        f"{train.path}: expected an image with boxes, got none. Annotate some images, or set train_without_boxes: true."
    )


def test_the_random_transforms_of_an_image_depend_on_seed_epoch_and_index_only(dataset):
    data = dataset(train_transforms=ALL_RANDOM)
    first = data[3, 0].image
    torch.rand(5)
    assert torch.equal(data[3, 0].image, first)
    assert torch.equal(dataset(train_transforms=ALL_RANDOM)[3, 0].image, first)
    assert not torch.equal(data[4, 0].image, first)
    assert not torch.equal(dataset(train_transforms=ALL_RANDOM, seed=1)[3, 0].image, first)


def test_loading_leaves_the_global_generator_alone(dataset):
    before = torch.get_rng_state()
    for _ in train_loader(dataset(train_transforms=ALL_RANDOM), 2, 0, 3, stride=32):
        pass
    assert torch.equal(torch.get_rng_state(), before)


def test_the_cache_gives_the_same_samples_without_the_file(dataset):
    data = dataset(cache=True)
    first = data[0, 0]
    data.coco.image_path(data.images[0]).unlink()
    assert torch.equal(data[0, 0].image, first.image)
    data.coco.image_path(data.images[6]).unlink()
    with pytest.raises(DatasetError, match="expected an image file"):
        data[0, 6]


# --- batches ---------------------------------------------------------------------------------------------


def test_collate_pads_with_zeros_at_the_right_and_below(dataset):
    data = dataset(is_train=False)
    small, large = data[0, 0], dataset(is_train=False, val_transforms=(Resize(size=(33, 20)),))[0, 1]
    batch = collate([small, large], stride=16)
    assert batch.images.shape == (2, 3, 48, 48)
    assert torch.equal(batch.images[0, :, :30, :40], small.image)
    assert torch.equal(batch.images[1, :, :33, :20], large.image)
    assert batch.images[0, :, 30:].abs().sum() + batch.images[0, :, :, 40:].abs().sum() == 0
    assert [target.image_size for target in batch.targets] == [(30, 40), (33, 20)]
    assert batch.image_ids == (1, 2)


def test_to_moves_images_and_targets(dataset):
    batch = next(val_loader(dataset(is_train=False), 2, stride=32)).to(torch.device("meta"))
    tensors = [batch.images, *(t for x in batch.targets for t in (x.boxes_xyxy, x.labels, x.ignore_xyxy))]
    assert {tensor.device.type for tensor in tensors} == {"meta"}


def test_batches_have_equal_size_and_each_pass_shows_every_image_once(dataset):
    batches = list(train_loader(dataset(), 3, 0, 14, stride=32))
    assert [len(batch.image_ids) for batch in batches] == [3] * 14
    ids = [image_id for batch in batches for image_id in batch.image_ids]
    passes = [ids[start : start + 7] for start in range(0, 42, 7)]
    assert all(sorted(one) == list(range(1, 8)) for one in passes)
    assert len({tuple(one) for one in passes}) > 1


def test_the_stream_can_be_entered_at_any_step(dataset):
    data = dataset(train_transforms=ALL_RANDOM)
    whole = list(train_loader(data, 3, 0, 12, stride=32))
    for first_step in (1, 5, 11):
        rest = list(train_loader(data, 3, first_step, 12, stride=32))
        assert len(rest) == 12 - first_step
        assert all(map(equal, rest, whole[first_step:]))


def test_another_seed_gives_another_order(dataset):
    def order(seed):
        return [batch.image_ids for batch in train_loader(dataset(seed=seed), 7, 0, 1, stride=32)]

    assert order(0) == order(0) != order(1)


def test_worker_processes_change_nothing(dataset):
    data = dataset(train_transforms=ALL_RANDOM)
    alone = list(train_loader(data, 3, 0, 5, stride=32))
    assert all(map(equal, train_loader(data, 3, 0, 5, stride=32, num_workers=2), alone))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_broken_image_is_named_also_from_a_worker_process(dataset, num_workers):
    data = dataset()
    path = data.coco.image_path(data.images[2])
    path.write_bytes(b"broken")
    with pytest.raises(DatasetError) as raised:
        list(train_loader(data, 7, 0, 1, stride=32, num_workers=num_workers))
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


def test_detections_map_back_to_the_pixels_of_the_file(dataset):
    data = dataset(is_train=False, val_transforms=(Resize(size=(60, 20)),))
    batch = next(val_loader(data, 7, stride=32))
    perfect = [Detections(t.boxes_xyxy, torch.full((len(t.labels),), 0.75), t.labels) for t in batch.targets]
    assert batch.to_coco_results(perfect, data.coco.category_ids) == [
        {"image_id": 1, "category_id": 3, "bbox": [2.0, 3.0, 10.0, 8.0], "score": 0.75}
    ]
