import torch
from torchvision import models

from sparsedet.detection.models import MobileNetV2Config


def test_names_and_features_are_torchvisions(tmp_path):
    torch.manual_seed(0)
    theirs = models.mobilenet_v2(weights=None).eval()
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    config = MobileNetV2Config(levels=(2, 3, 4, 5), weights=str(tmp_path / "weights.pth"))
    backbone = config.build().eval()
    assert "features.0.0.weight" in backbone.state_dict()
    assert backbone.channels == (24, 32, 96, 320)
    x = images = torch.randn(1, 3, 64, 64)
    features = iter(backbone(images))
    for index, block in enumerate(theirs.features[:18]):
        x = block(x)
        if index in (3, 6, 13, 17):
            torch.testing.assert_close(next(features), x)


def test_blocks_above_the_highest_level_are_not_built():
    backbone = MobileNetV2Config(width_mult=0.5, levels=(3,)).build()
    assert len(backbone.features) == 7
    assert backbone.channels == (16,)
