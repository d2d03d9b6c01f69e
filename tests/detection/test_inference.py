import pytest
import torch
from torch import nn

from sparsedet.detection.data.loader import Batch
from sparsedet.detection.inference import detect
from sparsedet.detection.structures import Detections, Target


class Echo(nn.Module):
    """Finds one box, the lower right quarter, with the mean of the image as score; refuses to be in train mode."""

    def forward(self, images):
        assert not self.training
        assert not torch.is_grad_enabled()
        return images.mean(dim=(1, 2, 3))

    def detect(self, outputs, image_sizes):
        if float(outputs[0]) < 0:
            raise ValueError("negative")
        boxes = [torch.tensor([[w / 2, h / 2, w, h]]) for h, w in image_sizes]
        return [
            Detections(box, score[None], torch.tensor([1])) for box, score in zip(boxes, outputs.float(), strict=True)
        ]


def batch(value):
    target = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4), (4, 8))
    return Batch(torch.full((1, 3, 4, 8), value), [target], (11,), ((40, 160),))


@pytest.mark.parametrize("is_training", [True, False])
def test_results_are_in_pixels_of_the_original_and_the_mode_is_restored(is_training):
    model = Echo().train(is_training)
    (result,) = detect(model, [batch(0.5)], (3, 7), torch.device("cpu"))
    assert result == {"image_id": 11, "category_id": 7, "bbox": [80.0, 20.0, 80.0, 20.0], "score": 0.5}
    assert model.training is is_training
    with pytest.raises(ValueError, match="negative"):
        detect(model, [batch(-1.0)], (3, 7), torch.device("cpu"))
    assert model.training is is_training
