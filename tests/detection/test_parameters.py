import pytest
from torch import nn

from sparsedet.common.errors import ConfigError
from sparsedet.detection.parameters import by_factor, freeze_, train_


def net():
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.BatchNorm2d(4, affine=False))


def test_frozen_norms_keep_their_statistics():
    model = net()
    freeze_(model, {"0.weight", "1.weight", "1.bias", "2.weight"})
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == ["0.bias", "2.bias"]
    assert [norm.training for norm in model[1:]] == [False, True, True]
    train_(model.eval())
    assert model[0].training
    assert [norm.training for norm in model[1:]] == [False, True, True]


def test_groups_by_factor_hold_every_trained_parameter_once():
    model = net()
    freeze_(model, {"1.weight"})
    one, tenth = model[0], model[2]
    groups = by_factor(model, {"2.weight": 0.1, "2.bias": 0.1, "1.weight": 0.1})
    assert list(groups) == [1.0, 0.1]
    assert [id(p) for p in groups[1.0]] == [id(p) for p in (one.weight, one.bias, model[1].bias)]
    assert [id(p) for p in groups[0.1]] == [id(p) for p in tenth.parameters()]
    assert list(by_factor(model, {})) == [1.0]


def test_with_all_frozen_nothing_is_left_to_train():
    model = net()
    freeze_(model, {name for name, _ in model.named_parameters()})
    with pytest.raises(ConfigError, match=r"training.freeze: expected a parameter left to train, got all of them"):
        by_factor(model, {})
