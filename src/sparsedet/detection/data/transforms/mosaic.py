"""Four images in one."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch

from sparsedet.common.config import ConfigModel
from sparsedet.detection.data.scene import Scene, clip, has_area, shift
from sparsedet.detection.data.transforms.draws import happens, integer, uniform
from sparsedet.detection.data.transforms.fields import GreyLevel, Pixels, Probability
from sparsedet.detection.data.transforms.resize import resize_image, with_resized


class Mosaic(ConfigModel):
    """With probability `p`, put the image and three others of the split around a random point of a canvas.

    The canvas has twice `size` as sides; follow it with random_perspective, which cuts the empty margins off.

    Attributes:
        size: length of the longer side that each image is resized to, in pixels.
        p: probability.
        fill: grey level of the canvas.

    Source: Bochkovskiy et al. 2020, YOLOv4 (arXiv:2004.10934), section 3.3; layout of YOLOv5.
    """

    type: Literal["mosaic"] = "mosaic"
    size: Pixels = 1024
    p: Probability = 1.0
    fill: GreyLevel = 0

    def __call__(self, scene: Scene) -> Scene:
        """Return the canvas with the boxes of all four images, or the scene as it is."""
        if not happens(self.p):
            return scene
        centre_y, centre_x = (int(uniform(self.size / 2, self.size * 3 / 2)) for _ in range(2))
        others = [scene.others.load(integer(0, len(scene.others) - 1)) for _ in range(3)]
        return self.compose([scene, *others], (centre_x, centre_y))

    def compose(self, scenes: Sequence[Scene], centre: tuple[int, int]) -> Scene:
        """Return four scenes around a point.

        Args:
            scenes: for the upper left, upper right, lower left and lower right.
            centre: (x, y) where they meet, in pixels of the canvas.
        """
        side = 2 * self.size
        canvas = torch.full((3, side, side), self.fill, dtype=torch.uint8)
        boxes = []
        for index, scene in enumerate(scenes):
            fitted = self._fit(scene)
            height, width = fitted.size
            left = centre[0] - width if index % 2 == 0 else centre[0]
            top = centre[1] - height if index < 2 else centre[1]
            rows, columns = slice(max(top, 0), top + height), slice(max(left, 0), left + width)
            shown = canvas[:, rows, columns]
            first_row, first_column = max(-top, 0), max(-left, 0)
            shown.copy_(
                fitted.image[:, first_row : first_row + shown.shape[1], first_column : first_column + shown.shape[2]]
            )
            boxes.append(clip(shift(fitted.boxes_xyxy, left, top), side, side))
        corners, labels = torch.cat(boxes), torch.cat([scene.labels for scene in scenes])
        return replace(scenes[0].with_boxes(canvas, corners, labels, has_area(corners)), is_mosaic=True)

    def _fit(self, scene: Scene) -> Scene:
        """Return the scene with its longer side resized to `size`."""
        height, width = scene.size
        factor = min(self.size / height, self.size / width)
        new_height, new_width = max(1, int(height * factor)), max(1, int(width * factor))
        return with_resized(scene, resize_image(scene.image, (new_height, new_width), "opencv"))
