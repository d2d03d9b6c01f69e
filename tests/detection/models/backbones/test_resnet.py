import pytest
import torch
from torchvision import models

from sparsedet.detection.models import ResNetConfig
from sparsedet.detection.models.backbones import BACKBONES


@pytest.mark.parametrize("name", [name for name in BACKBONES if name != "mobilenet_v2"])
def test_names_and_shapes_are_torchvisions(name):
    with torch.device("meta"):
        ours = ResNetConfig(type=name).build(pretrained=False).state_dict()
        theirs = models.get_model(name, weights=None).state_dict()
    shapes = {key: value.shape for key, value in theirs.items() if not key.startswith("fc.")}
    assert {key: value.shape for key, value in ours.items()} == shapes


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_features_are_torchvisions(name, tmp_path):
    torch.manual_seed(0)
    theirs = models.get_model(name, weights=None).eval()
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    config = ResNetConfig(type=name, levels=(2, 5), weights=str(tmp_path / "weights.pth"))
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        fine, coarse = config.build().eval()(images)
        x = theirs.layer1(theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(images)))))
        torch.testing.assert_close(fine, x)
        torch.testing.assert_close(coarse, theirs.layer4(theirs.layer3(theirs.layer2(x))))


def test_width_scales_all_channels_and_unused_stages_are_not_built():
    backbone = ResNetConfig(width=24, levels=(2, 3)).build()
    assert backbone.channels == (24, 48)
    assert not any(name.startswith(("layer3", "layer4", "fc")) for name in backbone.state_dict())
