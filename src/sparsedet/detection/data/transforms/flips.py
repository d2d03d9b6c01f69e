"""Mirror images."""

from dataclasses import replace
from typing import Literal

from sparsedet.common.config import ConfigModel
from sparsedet.detection.data.scene import Scene
from sparsedet.detection.data.transforms.draws import happens
from sparsedet.detection.data.transforms.fields import Probability


class HorizontalFlip(ConfigModel):
    """Mirror left and right with probability `p`."""

    type: Literal["horizontal_flip"] = "horizontal_flip"
    p: Probability = 0.5

    def __call__(self, scene: Scene) -> Scene:
        """Return the scene, mirrored or as it is."""
        return mirror(scene, axis=0) if happens(self.p) else scene


class VerticalFlip(ConfigModel):
    """Mirror top and bottom with probability `p`; for pictures without an up, such as aerial ones."""

    type: Literal["vertical_flip"] = "vertical_flip"
    p: Probability = 0.5

    def __call__(self, scene: Scene) -> Scene:
        """Return the scene, mirrored or as it is."""
        return mirror(scene, axis=1) if happens(self.p) else scene


def mirror(scene: Scene, axis: int) -> Scene:
    """Return the scene mirrored along x (0) or y (1)."""
    image_axis = 2 - axis
    far = scene.image.shape[image_axis] - int(scene.inclusive_boxes)
    boxes = scene.boxes_xyxy.clone()
    boxes[:, axis::2] = far - scene.boxes_xyxy[:, axis::2].flip(1)
    return replace(scene, image=scene.image.flip(image_axis), boxes_xyxy=boxes)
