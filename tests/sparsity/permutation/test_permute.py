"""Permuted networks: the same function, and more is kept of them; errors leave them as they were."""

import copy

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from sparsedet.common.errors import ConfigError, TargetMatchError
from sparsedet.detection.models.retinanet import RetinaNetConfig
from sparsedet.sparsity import NM, OneShot, Sparsifier, SparsityConfig, permute_channels
from sparsedet.sparsity.permutation import permute

IMAGES = (torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)),)


def filled(model):
    """Statistics and affine parameters that tell channels apart."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias, 0, 0.1)
    return model


@pytest.fixture
def random_orders(monkeypatch):
    """Any order must leave the outputs as they are, not only good ones; and no time goes into the search."""
    generator = torch.Generator().manual_seed(0)
    monkeypatch.setattr(
        permute, "search_permutation", lambda magnitudes, n, m: torch.randperm(magnitudes.shape[1], generator=generator)
    )


def flat(outputs):
    if isinstance(outputs, torch.Tensor):
        return [outputs]
    return [tensor for output in outputs for tensor in flat(output)]


def check_same_function(model, report, original):
    """Also in training, where the norms see the batch, and with all but the order the same."""
    assert not any("put back" in reason for reason in report.left_alone.values())
    assert report.max_output_difference <= 1e-5 * report.max_output
    for mode in (False, True):
        outputs, expected = flat(model.train(mode)(*IMAGES)), flat(original.train(mode)(*IMAGES))
        for ours, theirs in zip(outputs, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4 * float(theirs.abs().max()))
    for (name, ours), theirs in zip(original.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(ours.flatten().sort().values, theirs.flatten().sort().values), name


@pytest.mark.usefixtures("random_orders")
@pytest.mark.parametrize(
    ("name", "num_groups", "left_alone"),
    [
        ("resnet18", 12, {"conv1"}),
        pytest.param("resnet50", 36, {"conv1"}, marks=pytest.mark.slow),
        pytest.param("densenet121", 120, {"features.conv0"}, marks=pytest.mark.slow),
        ("squeezenet1_1", 25, {"features.0"}),
    ],
)
def test_torchvision_s_classifiers(name, num_groups, left_alone):
    model = filled(torchvision.models.get_model(name))
    original = copy.deepcopy(model)
    report = permute_channels(model, NM(), IMAGES)
    assert len(report.groups) == num_groups
    assert {name.removesuffix(".weight") for name in report.left_alone} == left_alone
    if name.startswith("resnet"):
        check_same_function(model, report, original)


@pytest.mark.usefixtures("random_orders")
def test_depthwise_layers_of_mobilenet_v2():
    model = filled(torchvision.models.mobilenet_v2(width_mult=0.5))
    original = copy.deepcopy(model)
    report = permute_channels(model, NM(), IMAGES)
    read = {name for group in report.groups for name in group.weights}
    weights = {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}
    for name, layer in weights.items():
        num_out, num_in = layer.weight.shape[:2]
        assert (f"{name}.weight" in read) == (num_out % 8 == 0 and num_in % 16 == 0), name
    check_same_function(model.apply(without_dropout), report, original.apply(without_dropout))


def without_dropout(module):
    if isinstance(module, nn.Dropout):
        module.p = 0.0


@pytest.mark.usefixtures("random_orders")
@pytest.mark.parametrize("extra", ["conv", "pool"])
def test_retinanet_with_pyramid_and_shared_heads(extra):
    config = RetinaNetConfig.model_validate(
        {"backbone": {"type": "resnet18"}, "neck": {"channels": 32, "extra": extra}, "head": {"num_convs": 2}}
    )
    model = filled(config.build(num_classes=16, pretrained=False))
    original = copy.deepcopy(model)
    report = permute_channels(model, NM(), IMAGES)
    groups = {group.weights: group for group in report.groups}
    laterals = [f"neck.output.{level}.conv.weight" for level in (3, 4, 5)]
    head = [f"head.{tower}_tower.convs.0.weight" for tower in ("cls", "box")]
    if extra == "conv":  # its first convolution reads the highest lateral
        laterals.append("neck.extra.6.weight")
        head = ["neck.extra.7.weight", *head]
    assert {f"neck.lateral.{level}.norm.running_var" for level in (3, 4, 5)} <= set(groups[tuple(laterals)].moved)
    assert tuple(head) in groups
    norms = {f"head.cls_tower.norms.0.{level}.weight" for level in range(5)}
    assert norms <= set(groups["head.cls_tower.convs.1.weight",].moved)
    assert groups["head.cls_pred.weight",].num_channels == 32
    assert set(report.left_alone) == {"backbone.conv1.weight", "head.box_pred.weight"}  # 3 in; 36 out
    check_same_function(model, report, original)


def small():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 48, 1), nn.ReLU(), nn.Conv2d(48, 8, 1)
    )


def test_more_is_kept_as_the_report_says():
    def kept(model):
        sparsifier = Sparsifier(model, SparsityConfig(schedule=OneShot(), pattern=NM()))
        sparsifier.prune_(0)
        return {name: float(model.get_parameter(name).detach().abs().double().sum()) for name in sparsifier.masks}

    before = kept(small())
    model = small()
    names, parameters = list(model.state_dict()), list(map(id, model.parameters()))
    report = permute_channels(model, NM(), IMAGES)
    after = kept(model)
    assert [group.weights for group in report.groups] == [("3.weight",), ("5.weight",)]
    for group in report.groups:
        assert group.kept_before == pytest.approx(before[group.weights[0]], rel=1e-5)
        assert group.kept_after == pytest.approx(after[group.weights[0]], rel=1e-5)
        assert group.kept_after > group.kept_before * 1.005
    assert (list(model.state_dict()), list(map(id, model.parameters()))) == (names, parameters)
    again = permute_channels(small(), NM(), IMAGES)
    assert again == report


def test_only_weights_to_be_pruned_count():
    model = small()
    report = permute_channels(model, NM(), IMAGES, weights=["5.weight"])
    assert [group.weights for group in report.groups] == [("5.weight",)]
    assert report.left_alone["3.weight"] == "not among the weights to prune"
    with pytest.raises(
        TargetMatchError, match=r"weights: expected full names .*, got '5.weigth'. Did you mean '5.weight'"
    ):
        permute_channels(model, NM(), IMAGES, weights=["5.weigth"])


@pytest.mark.parametrize(("n", "m"), [(1, 4), (4, 8), (1, 2), (2, 3)])
def test_other_patterns(n, m):
    report = permute_channels(small(), NM(n=n, m=m), IMAGES)
    assert [group.weights for group in report.groups] == ([("5.weight",)] if m == 3 else [("3.weight",), ("5.weight",)])
    assert all(group.kept_after > group.kept_before for group in report.groups)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(dtype):
    model = small().to(dtype)
    inputs = (IMAGES[0].to(dtype),)
    expected = model.eval()(*inputs)
    report = permute_channels(model, NM(), inputs)
    assert len(report.groups) == 2
    assert model[3].weight.dtype == dtype
    torch.testing.assert_close(model(*inputs), expected, rtol=0, atol=0.1 if dtype == torch.bfloat16 else 1e-12)


class Detour(nn.Module):
    """`c` reads what `a` makes in an order turned round by NumPy, which nothing in torch sees."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = (
            nn.Conv2d(3, 16, 1),
            nn.Conv2d(16, 8, 1),
            nn.Conv2d(16, 8, 1),
            nn.Conv2d(16, 16, 1),
        )

    def forward(self, images):
        x = self.a(images)
        turned = torch.from_numpy(x.detach().numpy()[:, ::-1].copy())
        return self.b(x) + self.c(turned), self.b(self.d(x))


def test_a_group_whose_permutation_changes_the_outputs_is_put_back():
    torch.manual_seed(0)
    model = Detour()
    before = copy.deepcopy(model.state_dict())
    report = permute_channels(model, NM(), IMAGES)
    assert report.groups == ()
    assert report.left_alone["b.weight"].startswith("moving what it reads changed the outputs by ")
    assert report.left_alone["b.weight"].endswith(", so it was put back")
    assert report.left_alone["c.weight"] == "what it reads meets values in aten::convolution that are not followed"
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_parameters_that_are_the_same_memory_are_left_alone():
    model = nn.Sequential(
        nn.Linear(3, 16), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 8)
    )
    model[3].weight.data = model[1].weight.data
    inputs = (torch.rand(4, 3),)
    expected = model(*inputs)
    report = permute_channels(model, NM(), inputs)
    assert {group.weights for group in report.groups} <= {("5.weight",)}
    torch.testing.assert_close(model(*inputs), expected)
    assert model[3].weight.data_ptr() == model[1].weight.data_ptr()


def test_wrappers_add_nothing_to_names():
    model = small()
    model[3] = torch.compile(model[3], backend="eager")
    report = permute_channels(nn.DataParallel(model), NM(), IMAGES)
    assert [group.weights for group in report.groups] == [("3.weight",), ("5.weight",)]
    assert report.groups[0].moved == (
        "0.weight",
        "0.bias",
        "1.weight",
        "1.bias",
        "3.weight",
        "1.running_mean",
        "1.running_var",
    )


class WithAuxiliary(nn.Module):
    """As Inception: a classifier that runs in training only."""

    def __init__(self):
        super().__init__()
        self.body, self.head, self.auxiliary = nn.Linear(3, 16), nn.Linear(16, 8), nn.Linear(16, 8)

    def forward(self, x):
        x = self.body(x)
        return (self.head(x), self.auxiliary(x)) if self.training else self.head(x)


def test_a_layer_that_does_not_run_would_be_broken_and_is_an_error():
    model = WithAuxiliary()
    before = copy.deepcopy(model.state_dict())
    message = (
        r"expected a forward pass that runs every conv and linear layer, got one without auxiliary.weight. Pass run=… "
    )
    with pytest.raises(ConfigError, match=message):
        permute_channels(model, NM(), (torch.rand(2, 3),))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    both = permute_channels(model, NM(), (torch.rand(2, 3),), run=lambda x: (model(x), model.auxiliary(model.body(x))))
    assert [group.weights for group in both.groups] == [("head.weight", "auxiliary.weight")]


@pytest.mark.parametrize(
    ("run", "got"),
    [
        (lambda model, x: model(x) * 0, "got 1936000 values, the largest 0"),
        (lambda model, x: {"label": model(x).argmax(1)}, "got 0 values, the largest 0"),
        (lambda model, x: model(x) / 0, "the largest inf"),
        (lambda model, x: model(x)[:0], "got 0 values"),
    ],
)
def test_outputs_that_tell_nothing_are_an_error(run, got):
    model = small()
    with pytest.raises(ConfigError, match=f"expected a forward pass that returns finite floating-point values.*{got}"):
        permute_channels(model, NM(), (torch.rand(500, 3, 24, 24),), run=lambda x: run(model, x))


def test_inputs_that_do_not_fit_are_an_error():
    with pytest.raises(ConfigError, match="example_inputs: expected inputs that the model's forward accepts"):
        permute_channels(small(), NM(), (torch.rand(2, 4, 24, 24),))


def test_frozen_and_eval_and_train_flags_stay():
    model = small()
    model[0].requires_grad_(False)
    model[1].eval()
    permute_channels(model, NM(), IMAGES)
    assert (model[0].weight.requires_grad, model[3].weight.requires_grad) == (False, True)
    assert (model.training, model[1].training) == (True, False)
    assert model[3].weight.grad is None


def test_nothing_to_permute_is_reported():
    report = permute_channels(nn.Sequential(nn.Conv2d(3, 8, 1)), NM(), IMAGES)
    assert report.groups == ()
    assert report.left_alone == {"0.weight": "2:4 needs in_channels/groups % 4 == 0, got 3"}
    assert report.max_output_difference == 0
    assert np.isfinite(report.max_output)
