"""Transforms that show a part of the image, or the image in a larger one."""

from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from sparsedet.common.config import ConfigModel
from sparsedet.detection.data.scene import IGNORE, Scene, clip, has_area, shift
from sparsedet.detection.data.transforms.draws import happens, integer, uniform
from sparsedet.detection.data.transforms.fields import Color, Probability

MEAN_COLOR = (124, 116, 104)  # of ImageNet

_NUM_WINDOWS_TRIED = 10
_LEAST_EXPANSION = 0.01  # stitching less than this share of the image to it is not worth the cut through its boxes


class ZoomOut(ConfigModel):
    """Put the image at a random place of a larger canvas of the ImageNet mean colour, with probability `p`.

    Attributes:
        max_scale: sides of the canvas are up to this many times those of the image.
        p: probability.

    Source: Liu et al. 2016, SSD (arXiv:1512.02325), section 3.6.
    """

    type: Literal["zoom_out"] = "zoom_out"
    max_scale: Annotated[float, Field(ge=1)] = 2.0
    p: Probability = 0.5

    def __call__(self, scene: Scene) -> Scene:
        """Return the canvas and the moved boxes, or the scene as it is."""
        zoom = v2.RandomZoomOut(fill=list(MEAN_COLOR), side_range=(1.0, self.max_scale), p=self.p)
        image, boxes = zoom(tv_tensors.Image(scene.image), _as_torchvision(scene.boxes_xyxy, scene.size))
        return replace(scene, image=image.as_subclass(Tensor), boxes_xyxy=boxes.as_subclass(Tensor))


class IouCrop(ConfigModel):
    """Cut out a random part that overlaps some object by a random least IoU; those with their centre outside go.

    Follow it with a resize, since the parts differ in size. Images without objects stay whole.

    Attributes:
        min_scale: sides of the part are at least this share of those of the image.

    Source: Liu et al. 2016, SSD (arXiv:1512.02325), section 2.2.
    """

    type: Literal["iou_crop"] = "iou_crop"
    min_scale: Annotated[float, Field(gt=0, le=1)] = 0.3

    def __call__(self, scene: Scene) -> Scene:
        """Return the part and the boxes in it."""
        height, width = scene.size
        if not scene.has_objects or min(scene.size) * self.min_scale < 1:  # torchvision would look for parts in vain
            return scene
        objects = _as_torchvision(scene.boxes_xyxy[scene.labels != IGNORE], scene.size)
        places = tv_tensors.Mask(torch.arange(height * width).view(1, height, width))
        _, part, _ = v2.RandomIoUCrop(min_scale=self.min_scale)(scene.image, places, objects)
        top, left = divmod(int(part[0, 0, 0]), width)  # the only way to learn where torchvision has cut
        return crop(scene, Window(left, top, part.shape[2], part.shape[1]))


@dataclass(frozen=True)
class Window:
    """A part of an image or of a larger plane, in pixels."""

    left: int
    top: int
    width: int
    height: int


class StitchExpand(ConfigModel):
    """With probability `p`, lay copies of the image side by side and show a larger window of them.

    The window holds an object as a whole where ten tries find such a place, else the image stays as it is, as it
    does without objects. Follow it with a resize, since the windows differ in size.

    Attributes:
        max_scale: sides of the window are up to this many times those of the image.
        p: probability.

    Source: United-Perception, "stitch_expand".
    """

    type: Literal["stitch_expand"] = "stitch_expand"
    max_scale: Annotated[float, Field(ge=1, le=2)] = 2.0
    p: Probability = 0.5

    def __call__(self, scene: Scene) -> Scene:
        """Return the window and the boxes in it, or the scene as it is."""
        if not happens(self.p):
            return scene
        scale = uniform(1, self.max_scale)
        if scale - 1 <= _LEAST_EXPANSION:
            return scene
        height, width = scene.size
        new_height, new_width = int(scale * height), int(scale * width)
        plane = tile_boxes(scene)
        for _ in range(_NUM_WINDOWS_TRIED):
            left, top = integer(0, 2 * width - new_width), integer(0, 2 * height - new_height)
            window = Window(left, top, new_width, new_height)
            if holds_object(plane, window):
                return show_tiles(plane, window)
        return scene


class SquareCrop(ConfigModel):
    """Cut out a random square that holds an object as a whole.

    Where no try finds one, the image is put at the upper left of a square canvas instead; without objects, any
    square as large as the shorter side is cut out. Follow it with a resize, since the squares differ in size.

    Attributes:
        min_scale: sides of the square are at least this share of the image's shorter side.
        p: probability that a try draws the side; else it is the shorter side of the image.
        fill: colour of the canvas, RGB.
        num_tries: number of squares that are tried.

    Source: United-Perception, "crop"; variant of Liu et al. 2016, SSD (arXiv:1512.02325), section 2.2.
    """

    type: Literal["square_crop"] = "square_crop"
    min_scale: Annotated[float, Field(gt=0, le=1)] = 0.5
    p: Probability = 0.5
    fill: Color = MEAN_COLOR
    num_tries: Annotated[int, Field(ge=1)] = 100

    def __call__(self, scene: Scene) -> Scene:
        """Return the square and the boxes in it."""
        if not scene.has_objects:
            return crop(scene, _random_square(scene.size, min(scene.size)))
        for _ in range(self.num_tries):
            scale = uniform(self.min_scale, 1) if happens(self.p) else 1
            window = _random_square(scene.size, max(1, int(scale * min(scene.size))))
            if holds_object(scene, window):
                return crop(scene, window)
        return pad_to_square(scene, self.fill)


def holds_object(scene: Scene, window: Window) -> bool:
    """Tell whether the whole of some object is inside the window."""
    boxes = shift(scene.boxes_xyxy[scene.labels != IGNORE], -window.left, -window.top)
    return bool((clip(boxes, window.width, window.height) == boxes).all(dim=1).any())


def crop(scene: Scene, window: Window) -> Scene:
    """Return the part of the scene in the window, with the objects whose centre is in it."""
    rows = slice(window.top, window.top + window.height)
    columns = slice(window.left, window.left + window.width)
    return _look_through(scene, scene.image[:, rows, columns], window)


def tile_boxes(scene: Scene) -> Scene:
    """Return the scene with the boxes of its 2 x 2 copies, row by row; the image is still a single one."""
    height, width = scene.size
    places = [(x, y) for y in (0, height) for x in (0, width)]
    boxes = torch.cat([shift(scene.boxes_xyxy, x, y) for x, y in places])
    return replace(scene, boxes_xyxy=boxes, labels=scene.labels.repeat(len(places)))


def show_tiles(plane: Scene, window: Window) -> Scene:
    """Return what a window shows of the 2 x 2 copies of an image.

    Args:
        plane: what `tile_boxes` returned.
        window: part of the copies.
    """
    height, width = plane.size
    rows = (torch.arange(window.height) + window.top) % height
    columns = (torch.arange(window.width) + window.left) % width
    return _look_through(plane, plane.image[:, rows][:, :, columns], window)


def pad_to_square(scene: Scene, fill: Color) -> Scene:
    """Return the image at the upper left of a square of colour `fill`, as large as its longer side."""
    (height, width), side = scene.size, max(scene.size)
    canvas = torch.tensor(fill, dtype=torch.uint8)[:, None, None].repeat(1, side, side)
    canvas[:, :height, :width] = scene.image
    return replace(scene, image=canvas)


def _random_square(size: tuple[int, int], side: int) -> Window:
    left, top = integer(0, size[1] - side), integer(0, size[0] - side)
    return Window(left, top, side, side)


def _look_through(scene: Scene, image: Tensor, window: Window) -> Scene:
    """Return `image`, which the window shows, with what is seen of the boxes of `scene`.

    Objects with their centre outside are left out, ignore regions are not: objects that nobody annotated may be there.
    """
    shifted = shift(scene.boxes_xyxy, -window.left, -window.top)
    boxes = clip(shifted, window.width, window.height)
    centres = (shifted[:, :2] + shifted[:, 2:]) / 2
    is_inside = ((centres > 0) & (centres < centres.new_tensor([window.width, window.height]))).all(dim=1)
    return scene.with_boxes(image, boxes, scene.labels, torch.where(scene.labels == IGNORE, has_area(boxes), is_inside))


def _as_torchvision(boxes_xyxy: Tensor, size: tuple[int, int]) -> tv_tensors.BoundingBoxes:
    return tv_tensors.BoundingBoxes(boxes_xyxy, format="XYXY", canvas_size=size)
