import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from sparsedet.common.errors import DatasetError
from sparsedet.common.runtime import mix
from sparsedet.detection.data.check import load_splits
from sparsedet.detection.data.config import DataConfig
from sparsedet.detection.data.dataset import DetectionDataset
from sparsedet.detection.data.image_cache import ImageCacheConfig
from sparsedet.detection.data.loader import collate
from sparsedet.detection.data.transforms import (
    ColorJitter,
    HorizontalFlip,
    HsvJitter,
    IouCrop,
    Mosaic,
    RandomPerspective,
    Resize,
    ResizeShorter,
    SquareCrop,
    StitchExpand,
    ZoomOut,
)
from sparsedet.detection.evaluation import to_coco_results
from sparsedet.detection.structures import Detections

ALL_RANDOM = (
    StitchExpand(),
    SquareCrop(),
    Mosaic(size=32, p=0.5),
    RandomPerspective(degrees=5),
    HsvJitter(),
    ZoomOut(),
    IouCrop(),
    ColorJitter(),
    HorizontalFlip(),
    Resize(size=(32, 32)),
)


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


@pytest.mark.parametrize("transforms", [(), (HorizontalFlip(p=1),), (Mosaic(size=32, p=1),)])
def test_a_sample_has_the_bits_of_subtracting_the_mean_and_dividing_by_the_deviation(dataset, transforms):
    data = dataset(train_transforms=transforms)
    mean, std = (torch.tensor(values).view(3, 1, 1) * 255 for values in (data.config.mean, data.config.std))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(mix(0, 0, 0))
        scene = data.load(0)
        for transform in transforms:
            scene = transform(scene)
    image = data[0, 0].image
    assert torch.equal(image, (scene.image.float() - mean) / std)
    assert image.permute(1, 2, 0).is_contiguous()


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


# --- which images and which of their annotations ------------------------------------------------------------


@pytest.fixture
def with_crowds(make_root, make_coco):
    """Return a function that opens a split: an image with an object and a crowd, one with a crowd, one with nothing."""
    data = make_coco(images=3, boxes=[[2, 3, 10, 8], [20, 10, 15, 15], [1, 2, 3, 4]])
    for annotation in data["annotations"][1:]:
        annotation["iscrowd"] = 1
    data["annotations"][2]["image_id"] = 2
    root = make_root(data)

    def with_crowds(is_train=True, **settings):
        config = DataConfig(root=root, **settings)
        train, val, _ = load_splits(config)
        return DetectionDataset(train if is_train else val, config, is_train)

    return with_crowds


@pytest.mark.parametrize("is_train", [True, False])
def test_images_without_annotations_are_left_out_by_choice_those_with_crowds_are_not(with_crowds, is_train):
    key, other = "train_without_annotations", "val_without_annotations"
    if not is_train:
        key, other = other, key
    for settings, expected in (({}, [1, 2, 3]), ({other: False}, [1, 2, 3]), ({key: False}, [1, 2])):
        assert [image.id for image in with_crowds(is_train, **settings).images] == expected
    assert len(with_crowds(is_train, crowds="drop", **{key: False})) == 2


def test_crowds_are_ignore_regions_or_nothing(with_crowds):
    ignored = [with_crowds()[0, index].target for index in range(3)]
    assert [target.labels.tolist() for target in ignored] == [[0], [], []]
    assert [target.ignore_xyxy.tolist() for target in ignored] == [[[20, 10, 35, 25]], [[1, 2, 4, 6]], []]
    dropped = [with_crowds(crowds="drop")[0, index].target for index in range(3)]
    assert [target.boxes_xyxy.tolist() for target in dropped] == [[[2, 3, 12, 11]], [], []]
    assert {tuple(target.ignore_xyxy.shape) for target in dropped} == {(0, 4)}


@pytest.mark.parametrize("is_train", [True, False])
def test_no_image_left(make_root, make_coco, is_train):
    data = make_coco()
    key = "train_without_annotations" if is_train else "val_without_annotations"
    config = DataConfig(root=make_root(data), **{key: False})
    data["annotations"][0]["bbox"] = [1, 1, 0, 5]  # left out when the file is read
    for name in ("train", "val"):
        (config.root / "annotations" / f"{name}.json").write_text(json.dumps(data))
    train, val, _ = load_splits(config)
    split = train if is_train else val
    with pytest.raises(DatasetError) as raised:
        DetectionDataset(split, config, is_train)
    assert str(raised.value) == (
        f"{split.path}: expected an annotated image, got none. Annotate some images, or set data.{key}: true."
    )


# --- random transforms -----------------------------------------------------------------------------------


def test_the_random_transforms_of_an_image_depend_on_seed_epoch_and_index_only(dataset):
    data = dataset(train_transforms=ALL_RANDOM)
    first = data[3, 0].image
    torch.rand(5)
    assert torch.equal(data[3, 0].image, first)
    assert torch.equal(dataset(train_transforms=ALL_RANDOM)[3, 0].image, first)
    assert not torch.equal(data[4, 0].image, first)
    assert not torch.equal(dataset(train_transforms=ALL_RANDOM, seed=1)[3, 0].image, first)


def test_a_mosaic_is_made_of_untransformed_images_of_the_split(dataset):
    data = dataset(train_transforms=(HorizontalFlip(p=1), Mosaic(size=40), Resize(size=(80, 80))))
    plain = dataset()
    whole = 0
    for epoch in range(4):
        canvas = data[epoch, 0].image
        for index in range(7):
            image = plain[0, index].image
            corners = (canvas[:, :51, :41] - image[:, 0, 0].view(3, 1, 1)).abs().amax(dim=0) < 1e-6
            for y, x in corners.nonzero().tolist():
                whole += torch.equal(canvas[:, y : y + 30, x : x + 40], image)
    assert whole > 0
    assert torch.equal(data.load(3).image, plain.load(3).image)


@pytest.mark.parametrize(
    ("transforms", "shape"),
    [
        ((Resize(size=(33, 20)), HorizontalFlip(), Mosaic(size=32, p=0.5)), (33, 20, 3)),
        ((ResizeShorter(shorter=40, max_longer=50, interpolation="opencv"), ColorJitter()), (38, 50, 3)),
        ((ResizeShorter(shorter=(20, 24)), HorizontalFlip()), (30, 40, 3)),
        ((HorizontalFlip(), Resize(size=(33, 20))), (30, 40, 3)),
        ((), (30, 40, 3)),
    ],
)
def test_the_cache_changes_no_bit_and_holds_the_image_before_anything_random(dataset, tmp_path, transforms, shape):
    cache = ImageCacheConfig(folder=tmp_path / "cache", max_gb=1)
    plain = dataset(train_transforms=transforms)
    made = [plain[epoch, index] for epoch in range(3) for index in range(7)]
    for data in (dataset(train_transforms=transforms, cache=cache), dataset(train_transforms=transforms, cache=cache)):
        found = [data[epoch, index] for epoch in range(3) for index in range(7)]
        for one, other in zip(found, made, strict=True):
            assert torch.equal(one.image, other.image)
            assert torch.equal(one.target.boxes_xyxy, other.target.boxes_xyxy)
            assert torch.equal(one.target.labels, other.target.labels)
            assert (one.target.image_size, one.original_size) == (other.target.image_size, other.original_size)
    lengths = {path.stat().st_size for path in cache.folder.glob("*.rgb")}
    assert lengths - {30 * 40 * 3} == {math.prod(shape)} - {30 * 40 * 3}


def test_resized_and_interpolated_otherwise_is_another_image_in_the_cache(dataset, tmp_path):
    cache = ImageCacheConfig(folder=tmp_path / "cache", max_gb=1)
    for interpolation in ("antialias", "opencv"):
        resize = (Resize(size=(33, 20), interpolation=interpolation),)
        plain, cached = dataset(train_transforms=resize), dataset(train_transforms=resize, cache=cache)
        assert torch.equal(cached[0, 0].image, plain[0, 0].image)


def test_an_image_that_is_gone_is_missed_also_with_a_cache(dataset, tmp_path):
    data = dataset(cache=ImageCacheConfig(folder=tmp_path / "cache", max_gb=1))
    assert data[0, 6].image_id == 7
    data.coco.image_path(data.images[6]).unlink()
    with pytest.raises(DatasetError, match="expected an image file"):
        data[0, 6]


# --- United-Perception's conventions ---------------------------------------------------------------------


@pytest.fixture
def golden_dataset(golden, blocks, tmp_path):
    """The golden annotation file as a split for evaluation, with its images and the settings of a translated file."""
    file = golden["coco"]["annotation_file"]
    for folder in ("annotations", "images"):
        (tmp_path / folder).mkdir()
    for name in ("train", "val"):
        (tmp_path / "annotations" / f"{name}.json").write_text(json.dumps(file))
    for seed, image in enumerate(file["images"], start=31):
        pixels = blocks(image["height"], image["width"], seed)
        if seed != 31:  # written to their files with red and blue swapped
            pixels = np.ascontiguousarray(pixels[:, :, ::-1])
        Image.fromarray(pixels).save(tmp_path / "images" / image["file_name"])
    config = DataConfig(
        root=tmp_path,
        val_transforms=(ResizeShorter(shorter=200, interpolation="opencv"),),
        crowds="drop",
        val_without_annotations=False,
        inclusive_boxes=True,
    )
    return DetectionDataset(load_splits(config)[1], config, is_train=False)


def test_united_perceptions_data_set_has_the_same_items(golden, golden_dataset):
    expected = golden["coco"]
    assert [image.id for image in golden_dataset.images] == expected["img_ids"]
    assert len(golden_dataset) == len(expected["items"])
    assert [image.height / image.width for image in golden_dataset.images] == expected["aspect_ratios"]
    for index, item in enumerate(expected["items"]):
        sample = golden_dataset[0, index]
        assert sample.image_id == item["image_id"]
        assert [*sample.target.image_size, *sample.original_size] == item["image_info"][:2] + item["image_info"][3:5]
        rows = torch.tensor(item["gt_bboxes"])
        rows[:, 2:4] += 1
        # No targets for UP either: its stand-in for "no box", and a box that its "- 1" has turned inside out.
        rows = rows[(rows[:, 4] > 0) & (rows[:, 2] > rows[:, 0]) & (rows[:, 3] > rows[:, 1])]
        assert len(rows) == (sample.image_id == 7)
        assert torch.allclose(sample.target.boxes_xyxy, rows[:, :4], rtol=0, atol=1e-4)
        assert sample.target.labels.tolist() == (rows[:, 4] - 1).tolist()
        assert sample.target.ignore_xyxy.shape == (0, 4)
        image = item["image"]
        assert list(sample.image.shape) == image["shape"]
        one_grey_level = 1 / 255 / 0.224
        probes = sample.image.flatten()[image["probe_idx"]]
        assert (probes - torch.tensor(image["probe"])).abs().max() <= one_grey_level + 1e-5
        assert abs(sample.image.double().sum() - image["sum"]) < 0.1 * one_grey_level * sample.image.numel()


def test_united_perceptions_results_are_in_the_same_pixels(golden, golden_dataset):
    dump = golden["coco"]["dump"]
    rows = torch.tensor(dump["dt_bboxes"])
    rows = rows[rows[:, 6] > 0]  # without UP's stand-in for "no detection"
    found = []
    for place, (info, image_id) in enumerate(zip(dump["image_info"], dump["image_id"], strict=True)):
        mine = rows[rows[:, 0] == place]
        detections = Detections(mine[:, 1:5] + torch.tensor([0, 0, 1, 1]), mine[:, 5], mine[:, 6].long() - 1)
        found += to_coco_results(
            detections, image_id, tuple(info[:2]), tuple(info[3:5]), golden_dataset.coco.category_ids, True
        )
    expected = [result for result in dump["out"] if result["category_id"] != 0]
    for one, other in zip(
        sorted(found, key=lambda r: r["score"]), sorted(expected, key=lambda r: r["score"]), strict=True
    ):
        assert one["bbox"] == pytest.approx(other["bbox"], abs=1e-4)
        assert {**one, "bbox": None} == {**other, "bbox": None}


def test_inclusive_boxes_go_there_and_back(dataset):
    resize = (Resize(size=(60, 20)),)
    for is_train in (True, False):
        data = dataset(is_train, train_transforms=resize, val_transforms=resize, inclusive_boxes=True)
        batch = collate([data[0, 0]], 32)
        assert batch.targets[0].boxes_xyxy.tolist() == [[1, 6, 6.5, 21]]  # (2, 3) to (11, 10) in pixels of the file
        perfect = [Detections(t.boxes_xyxy, torch.full((len(t.labels),), 0.75), t.labels) for t in batch.targets]
        assert batch.to_coco_results(perfect, data.coco.category_ids) == [
            {"image_id": 1, "category_id": 3, "bbox": [2.0, 3.0, 10.0, 8.0], "score": 0.75}
        ]


@pytest.mark.parametrize("name", ["to_tensor", "normalize"])
def test_united_perceptions_normalisation(name, golden, blocks, make_root, make_coco):
    settings = {"mean": (0, 0, 0), "std": (1, 1, 1)} if name == "to_tensor" else {}
    annotations = make_coco(images=1)
    annotations["images"][0].update(width=131, height=97)
    config = DataConfig(root=make_root(annotations), **settings)
    data = DetectionDataset(load_splits(config)[0], config, is_train=True)
    Image.fromarray(blocks()).save(data.coco.image_path(data.images[0]))
    expected = golden["transforms"][name]["image"]
    found = data[0, 0].image
    assert list(found.shape) == expected["shape"]
    assert (found.flatten()[expected["probe_idx"]] - torch.tensor(expected["probe"])).abs().max() < 1e-5
    assert found.double().sum() == pytest.approx(expected["sum"], abs=1e-5 * found.numel())
    steps = [
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(list(config.mean), list(config.std)),
    ]
    assert torch.allclose(found, v2.Compose(steps)(Image.fromarray(blocks())), rtol=0, atol=1e-5)
