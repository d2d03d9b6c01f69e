"""Permuted networks: the same function, and more is kept of them; errors leave them as they were."""

import copy

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from sparsedet.common.errors import ConfigError, TargetMatchError
from sparsedet.detection.models.faster_rcnn import FasterRCNNConfig
from sparsedet.detection.models.retinanet import RetinaNetConfig
from sparsedet.sparsity import NM, OneShot, Sparsifier, SparsityConfig, permute_channels

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


def flat(outputs):
    if outputs is None or isinstance(outputs, torch.Tensor):
        return [] if outputs is None else [outputs]
    return [tensor for output in outputs for tensor in flat(output)]


@torch.no_grad()
def check_same_function(model, report, original):
    """Also in training, where the norms see the batch, and with all but the order the same."""
    assert not any("put back" in reason for reason in report.left_alone.values())
    assert report.max_output_difference <= 1e-5 * report.max_output
    images = IMAGES[0].double()  # in training at one pixel a batch norm magnifies rounding errors
    for mode in (False, True):
        outputs, expected = (flat(network.double().train(mode)(images)) for network in (model, original))
        for ours, theirs in zip(outputs, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9 * float(theirs.abs().max()))
    for (name, ours), theirs in zip(original.named_parameters(), model.parameters(), strict=True):
        sums = [[float(tensor.double().pow(power).sum()) for power in (1, 2)] for tensor in (ours, theirs)]
        assert sums[0] == pytest.approx(sums[1], rel=1e-9, abs=1e-9), name


@pytest.mark.usefixtures("random_orders")
@pytest.mark.parametrize(
    ("name", "num_groups", "left_alone"),
    [
        ("resnet18", 12, {"conv1"}),
        ("resnet50", 37, {"conv1"}),
        pytest.param("densenet121", 120, {"features.conv0"}, marks=pytest.mark.slow),
        ("squeezenet1_1", 25, {"features.0"}),
    ],
)
def test_torchvision_s_classifiers(name, num_groups, left_alone):
    model = filled(torchvision.models.get_model(name))
    original = copy.deepcopy(model)
    report = permute_channels(model, IMAGES, NM())
    assert len(report.groups) == num_groups
    assert {name.removesuffix(".weight") for name in report.left_alone} == left_alone
    if name.startswith("resnet"):
        check_same_function(model, report, original)


@pytest.mark.usefixtures("random_orders")
def test_depthwise_layers_of_mobilenet_v2():
    model = filled(torchvision.models.mobilenet_v2(width_mult=0.5))
    original = copy.deepcopy(model)
    report = permute_channels(model, IMAGES, NM())
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
        {
            "backbone": {"type": "resnet18", "width": 32},
            "neck": {"channels": 32, "extra": extra},
            "head": {"num_convs": 2},
        }
    )
    model = filled(config.build(num_classes=16, pretrained=False))
    original = copy.deepcopy(model)
    report = permute_channels(model, IMAGES, NM())
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
    assert report.left_alone == {"backbone.conv1.weight": "2:4 needs in_channels/groups % 4 == 0, got 3"}
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
    report = permute_channels(model, IMAGES, NM())
    after = kept(model)
    assert [group.weights for group in report.groups] == [("3.weight",), ("5.weight",)]
    for group in report.groups:
        assert group.kept_before == pytest.approx(before[group.weights[0]], rel=1e-5)
        assert group.kept_after == pytest.approx(after[group.weights[0]], rel=1e-5)
        assert group.kept_after > group.kept_before * 1.005
    assert (list(model.state_dict()), list(map(id, model.parameters()))) == (names, parameters)
    again = permute_channels(small(), IMAGES, NM())
    assert again == report


def test_only_weights_to_be_pruned_count():
    model = small()
    report = permute_channels(model, IMAGES, NM(), weights=["5.weight"])
    assert [group.weights for group in report.groups] == [("5.weight",)]
    assert report.left_alone["3.weight"] == "not among the weights to prune"
    with pytest.raises(
        TargetMatchError, match=r"weights: expected full names .*, got '5.weigth'. Did you mean '5.weight'"
    ):
        permute_channels(model, IMAGES, NM(), weights=["5.weigth"])


@pytest.mark.parametrize(("n", "m"), [(1, 4), (4, 8), (1, 2), (2, 3)])
def test_other_patterns(n, m):
    report = permute_channels(small(), IMAGES, NM(n=n, m=m))
    assert [group.weights for group in report.groups] == ([("5.weight",)] if m == 3 else [("3.weight",), ("5.weight",)])
    assert all(group.kept_after > group.kept_before for group in report.groups)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(dtype):
    model = small().to(dtype)
    inputs = (IMAGES[0].to(dtype),)
    expected = model.eval()(*inputs)
    report = permute_channels(model, inputs, NM())
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
    report = permute_channels(model, IMAGES, NM())
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
    report = permute_channels(model, inputs, NM())
    assert {group.weights for group in report.groups} <= {("5.weight",)}
    torch.testing.assert_close(model(*inputs), expected)
    assert model[3].weight.data_ptr() == model[1].weight.data_ptr()


class Tied(nn.Module):
    """An embedding whose transposed weight gives the outputs."""

    def __init__(self, same_object):
        super().__init__()
        self.embedding, self.mlp = nn.Embedding(24, 16), nn.Linear(16, 16)
        self.between, self.out = nn.Linear(16, 16), nn.Linear(16, 24, bias=False)
        if same_object:
            self.out.weight = self.embedding.weight
        else:
            self.out.weight.data = self.embedding.weight.data

    def forward(self, tokens):
        return self.out(self.between(self.mlp(self.embedding(tokens)).relu()))


@pytest.mark.parametrize("same_object", [True, False])
def test_tied_embeddings_are_left_alone(same_object):
    report = permute_channels(Tied(same_object), (torch.arange(6).view(2, 3),), NM())
    assert [group.weights for group in report.groups] == [("between.weight",)]
    assert report.left_alone == {
        "mlp.weight": "what it reads goes through aten::embedding, which is not followed",
        "out.weight": "shared with embedding.weight",
    }


def test_wrappers_add_nothing_to_names():
    model = small()
    model[3] = torch.compile(model[3], backend="eager")
    report = permute_channels(nn.DataParallel(model), IMAGES, NM())
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


def test_a_layer_that_does_not_run_may_read_anything():
    model = WithAuxiliary()
    before = copy.deepcopy(model.state_dict())
    report = permute_channels(model, (torch.rand(2, 3),), NM())
    assert report.left_alone["head.weight"] == (
        "'auxiliary.weight' does not run on these inputs and may read it too; run=… can run all layers"
    )
    assert report.groups == ()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    both = permute_channels(model, (torch.rand(2, 3),), NM(), run=lambda x: (model(x), model.auxiliary(model.body(x))))
    assert [group.weights for group in both.groups] == [("head.weight", "auxiliary.weight")]


class Two(nn.Module):
    """`Detour` and, apart from it, layers that can be permuted."""

    def __init__(self):
        super().__init__()
        self.detour, self.plain = Detour(), small()

    def forward(self, images):
        return self.detour(images), self.plain(images)


def test_only_groups_that_change_the_outputs_are_put_back():
    torch.manual_seed(0)
    model = Two()
    original = copy.deepcopy(model)
    report = permute_channels(model, IMAGES, NM())
    assert [group.weights for group in report.groups] == [("plain.3.weight",), ("plain.5.weight",)]
    assert report.left_alone["detour.b.weight"].endswith(", so it was put back")
    assert 0 < report.max_output_difference < 1e-5
    with torch.no_grad():
        outputs, expected = (flat(network.eval()(*IMAGES)) for network in (model, original))
    differences = [float((ours - theirs).abs().max()) for ours, theirs in zip(outputs, expected, strict=True)]
    assert max(differences) == report.max_output_difference


def test_a_change_in_a_small_output_beside_a_large_one_is_seen():
    torch.manual_seed(0)
    model = Detour()
    report = permute_channels(model, IMAGES, NM(), run=lambda x: (*model(x), x * 1e4))
    assert report.groups == ()
    assert report.max_output == pytest.approx(1e4, rel=1e-3)


def test_inputs_of_zeros_are_noise():
    """With zeros every convolution without bias gives zeros."""
    model = nn.Sequential(nn.Conv2d(3, 16, 1, bias=False), nn.ReLU(), nn.Conv2d(16, 8, 1, bias=False))
    report = permute_channels(model, (torch.zeros(1, 3, 4, 4),), NM())
    assert [group.weights for group in report.groups] == [("2.weight",)]
    assert report.max_output > 0


def test_a_weight_that_reads_a_group_twice_counts_as_a_whole():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 16), nn.Linear(32, 8)

        def forward(self, x):
            x = self.a(x)
            return self.b(torch.cat([x, x.relu()], 1))

    torch.manual_seed(0)
    model = Twice()
    report = permute_channels(model, (torch.rand(2, 3),), NM())
    magnitudes = model.b.weight.detach().abs()
    assert report.groups[0].num_channels == 16
    assert report.groups[0].kept_after == pytest.approx(
        float(magnitudes.view(8, 8, 4).topk(2, dim=2).values.sum()), rel=1e-6
    )


def test_an_order_that_is_good_already_stays():
    model = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 8))
    with torch.no_grad():
        model[2].weight.fill_(1.0)
    report = permute_channels(model, (torch.rand(2, 3),), NM())
    assert report.groups == ()
    assert report.left_alone["2.weight"] == "no order was found in which more is kept"


@pytest.mark.usefixtures("random_orders")
def test_grouped_convolutions_of_regnet_are_left_alone():
    """Both ends of a grouped convolution stay; residual sums and what they feed move."""
    model = filled(torchvision.models.regnet_x_400mf())
    original = copy.deepcopy(model)
    report = permute_channels(model, IMAGES, NM())
    assert [group.num_channels for group in report.groups] == [32, 32, 64, 160, 400]
    ends = {name for name in report.left_alone if name.split(".")[-3] in ("b", "c")}
    assert ends == {name for name in original.state_dict() if name.endswith((".b.0.weight", ".c.0.weight"))}
    assert {report.left_alone[name] for name in ends} == {"what it reads goes through a convolution in groups"}
    check_same_function(model, report, original)


@pytest.mark.usefixtures("random_orders")
def test_a_vision_transformer_has_one_order_in_its_residual_stream():
    """Also where PyTorch runs attention as one operation; what the heads put out is left alone."""
    vit = torchvision.models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=4, hidden_dim=32, mlp_dim=48, num_classes=8
    )
    nn.init.normal_(vit.heads.head.weight)  # zero at the start
    original = copy.deepcopy(vit)
    report = permute_channels(vit, (IMAGES[0][..., :32, :32],), NM())
    layers = [f"encoder.layers.encoder_layer_{index}" for index in range(2)]
    stream = [f"{layer}.{name}" for layer in layers for name in ("self_attention.in_proj_weight", "mlp.0.weight")]
    assert {group.weights for group in report.groups} == {
        (*stream, "heads.head.weight"),
        *((f"{layer}.mlp.3.weight",) for layer in layers),
    }
    heads = {name for name, reason in report.left_alone.items() if "is reshaped together" in reason}
    assert heads == {f"{layer}.self_attention.out_proj.weight" for layer in layers}
    assert torch.backends.mha.get_fastpath_enabled()
    vit, original = vit.eval(), original.eval()
    torch.testing.assert_close(vit(IMAGES[0][..., :32, :32]), original(IMAGES[0][..., :32, :32]))


@pytest.mark.usefixtures("random_orders")
def test_faster_rcnn_with_pyramid_and_pooled_regions():
    config = FasterRCNNConfig.model_validate(
        {
            "backbone": {"type": "resnet18", "width": 32},
            "neck": {"channels": 32},
            "rpn": {"test_proposals": 3},
            "roi_head": {"channels": 32},
        }
    )
    model = filled(config.build(num_classes=7, pretrained=False))
    original = copy.deepcopy(model)
    report = permute_channels(model, IMAGES, NM(), model.run_all)
    groups = {group.weights: group for group in report.groups}
    assert groups["neck.extra.7.weight", "rpn.conv.weight", "box_head.fc1.weight"].num_channels == 32
    assert {("box_head.fc2.weight",), ("box_head.cls_pred.weight", "box_head.box_pred.weight")} <= set(groups)
    assert {name for name in report.left_alone if "backbone" not in name} == {
        "rpn.cls_pred.weight",
        "rpn.box_pred.weight",
    }
    with torch.no_grad():
        outputs, expected = (
            flat([network.eval()(*IMAGES).rpn, network.run_all(*IMAGES)]) for network in (model, original)
        )
    for ours, theirs in zip(outputs, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))


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
        permute_channels(model, (torch.rand(500, 3, 24, 24),), NM(), run=lambda x: run(model, x))


def test_inputs_that_do_not_fit_are_an_error():
    with pytest.raises(ConfigError, match="example_inputs: expected inputs that the model's forward accepts"):
        permute_channels(small(), (torch.rand(2, 4, 24, 24),), NM())


def test_frozen_and_eval_and_train_flags_stay():
    model = small()
    model[0].requires_grad_(False)
    model[1].eval()
    permute_channels(model, IMAGES, NM())
    assert (model[0].weight.requires_grad, model[3].weight.requires_grad) == (False, True)
    assert (model.training, model[1].training) == (True, False)
    assert model[3].weight.grad is None


def test_nothing_to_permute_is_reported():
    report = permute_channels(nn.Sequential(nn.Conv2d(3, 8, 1)), IMAGES, NM())
    assert report.groups == ()
    assert report.left_alone == {"0.weight": "2:4 needs in_channels/groups % 4 == 0, got 3"}
    assert report.max_output_difference == 0
    assert np.isfinite(report.max_output)
