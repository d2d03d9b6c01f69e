"""Images per second of the data path: decoding, transforming, collating, normalising, padding.

sparsedet's loader, with and without its cache, and one like that of torchvision's detection references take turns on
the same files with the same transform (short side 800 px, long side at most 1333 px, flips, padding to 32 px).
torchvision's networks normalise, resize and pad in the main process; a second variant does it in the workers. All use
one thread per process. A training step of a RetinaNet at that size says how fast a loader must be on this machine.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from timing import Spread, Timings, print_json, print_table, set_up
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.transforms import v2
from torchvision.tv_tensors import BoundingBoxes, BoundingBoxFormat

from sparsedet.benchmark.recipe import load_recipe
from sparsedet.common.shipped import find_config
from sparsedet.detection.data.config import DataConfig, SplitConfig
from sparsedet.detection.data.dataset import DetectionDataset
from sparsedet.detection.data.image_cache import ImageCacheConfig
from sparsedet.detection.data.loader import Batch, train_loader
from sparsedet.detection.data.splits import open_splits
from sparsedet.detection.data.transforms import HorizontalFlip, ResizeShorter
from sparsedet.detection.trainer import Level, Trainer

STRIDE = 32  # pixels
Start = Callable[[int], Iterator[Any]]
"""Begins an endless stream of batches from a number of worker processes."""


def write_copies(source: DataConfig, folder: Path, size: tuple[int, int], num_images: int) -> DataConfig:
    """Write JPEG copies, resized to `size` (width, height), of the first training images, and return where they are."""
    content = json.loads(source.train_annotations.read_text())
    images = content["images"][:num_images]
    for image in images:
        with Image.open(source.root / source.train.images / image["file_name"]) as original:
            copy = original.convert("RGB").resize(size)
        copy.save(folder / f"{image['id']}.jpg", quality=95)
    by_id = {image["id"]: image for image in images}
    annotations = []
    for annotation in content["annotations"]:
        if image := by_id.get(annotation["image_id"]):
            x, y = size[0] / image["width"], size[1] / image["height"]
            box = [value * factor for value, factor in zip(annotation["bbox"], (x, y, x, y), strict=True)]
            annotations.append({**annotation, "bbox": box, "area": annotation["area"] * x * y})
    content["images"] = [{"id": key, "file_name": f"{key}.jpg", "width": size[0], "height": size[1]} for key in by_id]
    content["annotations"] = annotations
    (folder / "all.json").write_text(json.dumps(content))
    split = SplitConfig(annotations="all.json", images=".")
    return DataConfig(root=folder, train=split, val=split)


def ours(dataset: DetectionDataset, batch_size: int) -> Start:
    """Load as sparsedet trains."""
    return lambda num_workers: train_loader(dataset, batch_size, range(10**6), STRIDE, num_workers=num_workers)


class Reference(Dataset[tuple[Tensor, dict[str, Any]]]):
    """Images and targets as torchvision's detection references make them before their networks see them."""

    def __init__(self, dataset: DetectionDataset) -> None:
        self.dataset = dataset
        self.transforms = v2.Compose(
            [v2.PILToTensor(), v2.RandomHorizontalFlip(0.5), v2.ToDtype(torch.float, scale=True), v2.ToPureTensor()]
        )

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        record = self.dataset.images[index]
        with Image.open(self.dataset.coco.image_path(record)) as opened:
            image = opened.convert("RGB")
        found = self.dataset.coco.annotations_by_image[record.id]
        boxes = torch.tensor([annotation.bbox for annotation in found], dtype=torch.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        boxes = BoundingBoxes(boxes, format=BoundingBoxFormat.XYXY, canvas_size=(record.height, record.width))
        labels = torch.tensor([annotation.category_id for annotation in found], dtype=torch.int64)
        return self.transforms(image, {"boxes": boxes, "labels": labels})


def reference(dataset: DetectionDataset, batch_size: int, resize: ResizeShorter, resize_in_worker: bool) -> Start:
    """Load as torchvision's references do, up to what the first convolution of their networks sees."""
    config = dataset.config
    (shorter,) = resize.choices
    to_batch = GeneralizedRCNNTransform(
        shorter, resize.max_longer, list(config.mean), list(config.std), size_divisible=STRIDE
    ).train()
    images = Reference(dataset)

    def finish(batch: list[tuple[Tensor, dict[str, Any]]]) -> Any:
        found, targets = to_batch([image for image, _ in batch], [target for _, target in batch])
        return found.tensors, targets

    def start(num_workers: int) -> Iterator[Any]:
        loader = DataLoader(
            images,
            batch_sampler=_Groups(len(images), batch_size),
            num_workers=num_workers,
            collate_fn=finish if resize_in_worker else list,
        )
        return iter(loader) if resize_in_worker else map(finish, loader)

    return start


class _Groups:
    """Batches in random order, without end."""

    def __init__(self, num_images: int, batch_size: int) -> None:
        self.num_images = num_images
        self.batch_size = batch_size

    def __iter__(self) -> Iterator[list[int]]:
        indices = (index for _ in cycle([0]) for index in torch.randperm(self.num_images).tolist())
        while True:
            yield list(islice(indices, self.batch_size))


def measure(
    variants: dict[str, Start], num_workers: int, num_batches: int, batch_size: int, rounds: int
) -> list[dict[str, object]]:
    """Return the images per second of each variant, and their ratio to those of torchvision's way."""

    def prepare(start: Start) -> Callable[[], object]:
        batches = start(num_workers)
        for _ in islice(batches, 2 * num_workers + 1):  # until the workers run, and what they made meanwhile is gone
            pass
        return lambda: [None for _ in islice(batches, num_batches)]

    timings = Timings({name: partial(prepare, start) for name, start in variants.items()}, rounds)
    num_images = num_batches * batch_size
    return [
        {
            "variant": name,
            "num_workers": num_workers,
            "images_per_s": _rate(timings.seconds(name, "wall"), num_images),
            "main_process_cpu_ms": _each(timings.seconds(name), num_images),
            "over_torchvision": timings.ratio("torchvision", name, "wall"),
        }
        for name in variants
    ]


def _rate(seconds: Spread, num_images: int) -> Spread:
    return Spread(num_images / seconds.median, num_images / seconds.upper, num_images / seconds.lower)


def _each(seconds: Spread, num_images: int) -> Spread:
    return Spread(*(value / num_images * 1000 for value in seconds))


def measure_step(dataset: DetectionDataset, batch_size: int, num_steps: int) -> dict[str, object]:
    """Return the images per second of training steps of a RetinaNet R18 on one batch, in fp32, without loading.

    Seconds are CPU seconds of the only thread: what they would be if nothing else ran on the machine.
    """
    changes = ("data.root=.", "detector.backbone.type=resnet18", "detector.backbone.weights=none")
    recipe = load_recipe(find_config("retinanet_r50"), changes).recipe
    model = recipe.detector.build(num_classes=80)
    training = recipe.training.model_copy(update={"batch_size": batch_size, "forward_batch_size": None})
    trainer = Trainer(model, training, num_images=batch_size, device=torch.device("cpu"))
    batch: Batch = next(train_loader(dataset, batch_size, range(1), STRIDE))
    seconds = []
    for step in range(num_steps + 1):
        before = time.process_time()
        trainer.train(Level(step, step + 1), [batch])
        seconds.append(time.process_time() - before)
    return {
        "variant": "training step of RetinaNet R18",
        "num_workers": None,
        "images_per_s": _rate(Spread.of(seconds[1:]), batch_size),
        "input_size": list(batch.images.shape[2:]),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path, help="folder of a data set with annotations/train.json and images/")
    parser.add_argument("--copies", type=int, nargs=2, default=(640, 480), help="width and height of the JPEG copies")
    parser.add_argument("--images", type=int, default=32, help="images that are used, again and again")
    parser.add_argument("--shorter", type=int, default=800, help="short side after resizing, in pixels")
    parser.add_argument("--max-longer", type=int, default=1333, help="most that the long side may have, in pixels")
    parser.add_argument("--batch-size", type=int, default=2, help="images per batch")
    parser.add_argument("--batches", type=int, default=50, help="batches per round")
    parser.add_argument("--rounds", type=int, default=7, help="rounds that count")
    parser.add_argument("--workers", type=int, nargs="*", default=(0, 1, 2, 3, 4), help="numbers of worker processes")
    parser.add_argument("--steps", type=int, default=3, help="training steps; 0 leaves them out")
    options = parser.parse_args(arguments)
    set_up()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copies = write_copies(DataConfig(root=options.data), folder, tuple(options.copies), options.images)
        resize = ResizeShorter(shorter=options.shorter, max_longer=options.max_longer, interpolation="opencv")
        config = copies.model_copy(update={"train_transforms": (resize, HorizontalFlip())})
        cache = ImageCacheConfig(folder=folder / "cache", max_gb=10)
        plain = open_splits(config, seed=0).train
        cached = open_splits(config.model_copy(update={"cache": cache}), seed=0).train
        for index in range(len(cached)):
            cached[0, index]
        num_bytes = [path.stat().st_size for path in folder.glob("*.jpg")]
        variants = {
            "sparsedet": ours(plain, options.batch_size),
            "sparsedet, cached": ours(cached, options.batch_size),
            "torchvision": reference(plain, options.batch_size, resize, resize_in_worker=False),
            "torchvision, all in workers": reference(plain, options.batch_size, resize, resize_in_worker=True),
        }
        results = [
            {**result, "mean_file_bytes": sum(num_bytes) / len(num_bytes)}
            for num_workers in options.workers
            for result in measure(variants, num_workers, options.batches, options.batch_size, options.rounds)
        ]
        if options.steps:
            results.append(measure_step(plain, options.batch_size, options.steps))
    print_table(
        ["workers", "loader", "images/s", "over torchvision", "CPU ms per image, main process"],
        [
            [
                "" if result["num_workers"] is None else result["num_workers"],
                result["variant"],
                f"{result['images_per_s']:.3g}",
                f"{result['over_torchvision']:.2f}" if "over_torchvision" in result else "",
                f"{result['main_process_cpu_ms']:.1f}" if "main_process_cpu_ms" in result else "",
            ]
            for result in results
        ],
    )
    print_json(results)


if __name__ == "__main__":
    main()
