import doctest

from sparsedet.detection import models
from sparsedet.detection.models.backbones import BACKBONES, Backbone


def test_the_usage_in_the_docstring_runs():
    assert doctest.testmod(models) == (0, 10)


def test_every_backbone_in_the_table_builds_what_its_name_says():
    for name, config in BACKBONES.items():
        if name in ("resnet18", "mobilenet_v2"):  # the other ResNets differ in depth only
            backbone = config(type=name).build()
            assert isinstance(backbone, Backbone)
        assert config(type=name).type == name
