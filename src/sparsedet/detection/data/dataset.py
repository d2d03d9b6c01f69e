"""The images of one split, transformed and normalised: what the network sees of each.

What happens to an image depends on the seed, the epoch and its index only: neither worker processes nor an
interruption change it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Dataset

from sparsedet.common.errors import DatasetError
from sparsedet.common.runtime import mix
from sparsedet.detection.data.coco import Annotation, CocoDataset
from sparsedet.detection.data.config import DataConfig
from sparsedet.detection.data.image_cache import ImageCache
from sparsedet.detection.data.images import decode_image
from sparsedet.detection.data.samplers import Position
from sparsedet.detection.data.scene import IGNORE, Scene, has_area
from sparsedet.detection.data.transforms import Transform
from sparsedet.detection.data.transforms.resize import Resize, ResizeShorter, with_resized
from sparsedet.detection.structures import Target


@dataclass(frozen=True)
class Sample:
    """One image as the network sees it.

    Attributes:
        image: float32, shape (3, H, W), normalised.
        target: what is to be found in it.
        image_id: COCO image id.
        original_size: (height, width) of the image file, in pixels.
        inclusive_boxes: boxes went through the transforms as inclusive corners (``data.inclusive_boxes``).
    """

    image: Tensor
    target: Target
    image_id: int
    original_size: tuple[int, int]
    inclusive_boxes: bool = False


class DetectionDataset(Dataset[Sample]):
    """The images of one split, ready for the network.

    Indexed by (epoch, index): random transforms differ between epochs and are the same in each run.

    Args:
        coco: the split.
        config: transforms, normalisation, cache.
        is_train: use the settings of training instead of those of evaluation.
        seed: of the random transforms.

    Raises:
        DatasetError: no image is left.
    """

    def __init__(self, coco: CocoDataset, config: DataConfig, is_train: bool, seed: int = 0) -> None:
        self.coco = coco
        self.config = config
        self.is_train = is_train
        key = "train_without_annotations" if is_train else "val_without_annotations"
        keeps_all: bool = getattr(config, key)
        self.images = tuple(image for image in coco.images if keeps_all or coco.annotations_by_image[image.id])
        if not self.images:
            raise DatasetError(
                f"{coco.path}: expected an annotated image, got none. Annotate some images, or set data.{key}: true."
            )
        self._transforms = config.train_transforms if is_train else config.val_transforms
        self.seed = seed
        self._labels = {category_id: label for label, category_id in enumerate(coco.category_ids)}
        self._mean = torch.tensor(config.mean) * 255
        self._std = torch.tensor(config.std) * 255
        self._cache = None if config.cache is None else ImageCache(config.cache)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def __getitem__(self, position: Position) -> Sample:
        """Return one image and its target; see the class for `position`."""
        epoch, index = position
        record = self.images[index]
        scene, transforms = self._open(index)
        if transforms:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(mix(self.seed, epoch, index))
                for transform in transforms:
                    scene = transform(scene)
        return Sample(
            image=self._normalize(scene.image),
            target=_target(scene),
            image_id=record.id,
            original_size=(record.height, record.width),
            inclusive_boxes=scene.inclusive_boxes,
        )

    def load(self, index: int) -> Scene:
        """Return one image as its file has it, with its boxes; crowds become ignore regions or are left out."""
        if self._cache is None:
            return self._scene(index, self._decode(index))
        record = self.images[index]
        path, size = self.coco.image_path(record), (record.height, record.width)
        return self._scene(index, self._cache.get(path, "decoded", size, lambda: self._decode(index)))

    def _open(self, index: int) -> tuple[Scene, Sequence[Transform]]:
        """Return one image, with its first transform behind it if that is what the cache holds, and the others."""
        first = self._transforms[0] if self._transforms else None
        if self._cache is None or not (isinstance(first, Resize | ResizeShorter) and first.has_one_size):
            return self.load(index), self._transforms
        record = self.images[index]
        path, size = self.coco.image_path(record), (record.height, record.width)
        image = self._cache.get(
            path,
            first.model_dump_json(),
            first.output_size(size),
            lambda: first(self._scene(index, self._decode(index))).image,
        )
        original = self._scene(index, torch.empty(3, *size, device="meta"))  # for its boxes and size
        return with_resized(original, image), self._transforms[1:]

    def _scene(self, index: int, image: Tensor) -> Scene:
        annotations = self.coco.annotations_by_image[self.images[index].id]
        if self.config.crowds == "drop":
            annotations = tuple(annotation for annotation in annotations if not annotation.is_crowd)
        inclusive = self.config.inclusive_boxes
        boxes = _corners(annotations) - _last_pixel(inclusive)
        labels = [IGNORE if a.is_crowd else self._labels[a.category_id] for a in annotations]
        return Scene(image, boxes.float(), torch.tensor(labels, dtype=torch.int64), self, inclusive)

    def pixels(self, sample: Sample) -> Tensor:
        """Return the image of a sample before normalisation, uint8, shape (3, H, W)."""
        return (sample.image * self._std[:, None, None] + self._mean[:, None, None]).round().clamp(0, 255).byte()

    def _normalize(self, image: Tensor) -> Tensor:
        """Return an image (uint8, shape (3, H, W)) as float32, channels last."""
        height, width = image.shape[1:]
        rows = image.permute(1, 2, 0).reshape(height, width * 3).float()  # in whole rows: five times faster
        rows.sub_(self._mean.repeat(width)).div_(self._std.repeat(width))
        return rows.view(height, width, 3).permute(2, 0, 1)

    def _decode(self, index: int) -> Tensor:
        record = self.images[index]
        return decode_image(self.coco.image_path(record), (record.height, record.width))


def _corners(annotations: Sequence[Annotation]) -> Tensor:
    """Return the continuous corners of all boxes, float64, shape (N, 4)."""
    xywh = torch.tensor([annotation.bbox for annotation in annotations], dtype=torch.float64).reshape(-1, 4)
    return torch.cat([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], dim=1)


def _last_pixel(inclusive: bool) -> Tensor:
    """Return what continuous corners have more than those of a `Scene`, shape (4,)."""
    return torch.tensor([0.0, 0.0, inclusive, inclusive])


def _target(scene: Scene) -> Target:
    """Split objects from ignore regions, both as continuous corners, without boxes of no area."""
    boxes = scene.boxes_xyxy + _last_pixel(scene.inclusive_boxes)
    is_box = has_area(boxes)
    is_object = is_box & (scene.labels != IGNORE)
    return Target(boxes[is_object], scene.labels[is_object], boxes[is_box & (scene.labels == IGNORE)], scene.size)
