import pytest
import torch

from sparsedet.common.config import validate
from sparsedet.common.document import Document
from sparsedet.common.errors import ConfigError
from sparsedet.detection.models import MobileNetV2Config, ResNetConfig, RetinaNetConfig
from sparsedet.detection.models.backbones import BACKBONES
from sparsedet.detection.models.norms import FixedStatsBatchNorm2d


def make_config(name, **options):
    config = BACKBONES[name]
    small = {"width_mult": 0.25} if config is MobileNetV2Config else {"width": 8}
    return config(type=name, **small, **options)


SMALL = ["resnet18", "resnet50", "mobilenet_v2"]


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("levels", [(2, 3, 4, 5), (3, 4), (5,)])
def test_feature_maps_have_the_promised_channels_and_strides(name, levels):
    backbone = make_config(name, levels=levels).build()
    features = backbone(torch.randn(2, 3, 32, 64))
    assert backbone.strides == tuple(2**level for level in levels)
    for feature, channels, stride in zip(features, backbone.channels, backbone.strides, strict=True):
        assert feature.shape == (2, channels, 32 // stride, 64 // stride)
    assert all(parameter.requires_grad for parameter in backbone.parameters())


@pytest.mark.parametrize("name", SMALL)
def test_frozen_stages_stay_frozen_in_training(name):
    backbone = make_config(name, frozen_stages=2).build()
    for _ in range(2):
        backbone.train()
        for index, stage in enumerate(backbone.stages()):
            is_frozen = index < 2
            for module in stage:
                assert module.training is not is_frozen
                assert all(parameter.requires_grad is not is_frozen for parameter in module.parameters())
        backbone.eval()
    buffers = {name: value.clone() for name, value in backbone.stages()[1][-1].named_buffers()}
    backbone.train()(torch.randn(2, 3, 32, 32))
    assert buffers
    assert all(torch.equal(value, buffers[name]) for name, value in backbone.stages()[1][-1].named_buffers())


@pytest.mark.parametrize("name", SMALL)
def test_fixed_statistics_everywhere(name):
    backbone = make_config(name, norm="batch_norm_fixed_stats").build().train()
    norms = [module for module in backbone.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert norms
    assert all(isinstance(norm, FixedStatsBatchNorm2d) and not norm.training for norm in norms)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
@pytest.mark.parametrize("init", ["kaiming_fan_out", "lecun_normal"])
def test_initial_weights(name, init):
    torch.manual_seed(0)
    backbone = BACKBONES[name](type=name, init=init).build()
    for module in backbone.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()
        elif isinstance(module, torch.nn.Conv2d):
            num_out, num_in, height, width = module.weight.shape
            fan_in, fan_out = num_in * height * width, num_out * height * width
            std = (1 / fan_in if init == "lecun_normal" else 2 / fan_out) ** 0.5
            z, n = module.weight / std, module.weight.numel()
            assert module.bias is None
            assert abs(z.mean()) < 5 / n**0.5
            assert abs(z.var() - 1) < 5 * (2 / n) ** 0.5
            assert abs((z.abs() < 1).float().mean() - 0.6827) < 5 * 0.4654 / n**0.5  # of a normal distribution


@pytest.mark.parametrize(("backbone", "message"), [
    ({"type": "resnet18", "levels": [3, 2]},
     "backbone.levels: expected ascending levels out of 2, 3, 4, 5, got [3, 2]. Correct the list."),
    ({"type": "resnet18", "levels": [3, 6]},
     "backbone.levels: expected ascending levels out of 2, 3, 4, 5, got [3, 6]. Correct the list."),
    ({"type": "mobilenet_v2", "frozen_stages": 5, "levels": [3, 4]},
     "backbone.frozen_stages: expected at most 4 with levels=[3, 4], got 5. Lower it."),
    ({"type": "resnet18", "weights": "imagnet"},
     "backbone.weights: expected one of ['none', 'imagenet', 'IMAGENET1K_V1'] or a file ending in .pth or "
     ".pt, got 'imagnet'. Did you mean 'imagenet'? Correct it."),
])  # fmt: skip
def test_wrong_values_are_explained(backbone, message):
    with pytest.raises(ConfigError) as error:
        validate(RetinaNetConfig, Document({"backbone": backbone}))
    assert str(error.value) == f"configuration: {message}"


def test_every_torchvision_weight_name_is_known():
    assert ResNetConfig(type="resnet50", weights="IMAGENET1K_V2").weights == "IMAGENET1K_V2"
    assert MobileNetV2Config(weights="imagenet").weights == "imagenet"
