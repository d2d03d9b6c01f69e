"""What goes with dead channels: found by the flow of tensors, zeroed, kept zero in training, and reported."""

import copy

import pytest
import torch
from torch import nn

from sparsedet.common.errors import ConfigError, TargetMatchError, UnsupportedShapeError
from sparsedet.sparsity import (
    Channel,
    DeadChannels,
    LevelWise,
    OneShot,
    Sparsifier,
    SparsityConfig,
    Targets,
    Uniform,
)
from sparsedet.sparsity.followers import find_followers

IMAGES = (torch.zeros(1, 3, 16, 16),)


class Net(nn.Module):
    """A norm behind each convolution but one; a residual sum; a norm shared by two layers; a head on two scales."""

    def __init__(self):
        super().__init__()
        self.norm_of_stem = nn.BatchNorm2d(8)  # registered before what it follows
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.branch = nn.Conv2d(8, 8, 3, padding=1)
        self.norm_of_sum = nn.BatchNorm2d(8)
        self.left, self.right = nn.Conv2d(8, 6, 1), nn.Conv2d(8, 6, 1)
        self.shared_norm = nn.GroupNorm(2, 6)
        self.tower = nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(6), nn.BatchNorm2d(6)])
        self.pred = nn.Conv2d(6, 2, 1)

    def forward(self, images):
        x = self.norm_of_stem(self.stem(images)).relu()
        x = self.norm_of_sum(self.branch(x) + x).relu()
        features = (self.shared_norm(self.left(x)), self.shared_norm(nn.functional.avg_pool2d(self.right(x), 1)))
        scales = (features[0] + features[1], nn.functional.max_pool2d(features[0], 2))
        return [self.pred(norm(self.tower(scale))) for norm, scale in zip(self.norms, scales, strict=True)]


def randomised(model):
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if "num_batches" not in name:
            with torch.no_grad():
                tensor.uniform_(0.1, 1.0)
    return model.eval()


@pytest.fixture
def net():
    torch.manual_seed(0)
    return randomised(Net())


def half(**fields):
    return SparsityConfig(
        schedule=OneShot(sparsity=0.5), pattern=Channel(), allocation=Uniform(), scope="chosen", **fields
    )


def names(followers):
    return {follower.name: follower.weights for follower in followers}


def test_what_follows_is_told_by_the_tensors_not_by_names(net):
    chosen = ["stem.weight", "branch.weight", "left.weight", "right.weight", "tower.weight"]
    assert names(find_followers(net, chosen, IMAGES)) == {
        "stem.bias": ("stem.weight",),
        "branch.bias": ("branch.weight",),  # and not norm_of_sum, which reads a sum
        "left.bias": ("left.weight",),
        "right.bias": ("right.weight",),  # and not shared_norm, which once reads something pooled
        "norm_of_stem.weight": ("stem.weight",),
        "norm_of_stem.bias": ("stem.weight",),
        "norms.0.weight": ("tower.weight",),
        "norms.0.bias": ("tower.weight",),
        "norms.1.weight": ("tower.weight",),
        "norms.1.bias": ("tower.weight",),
    }


def test_a_norm_that_reads_another_layer_too_is_left(net):
    model = nn.Sequential(net.left, net.shared_norm)
    both = nn.ModuleDict({"left": net.left, "right": net.right, "norm": net.shared_norm})

    def run(x):
        return both["norm"](both["left"](x)) + both["norm"](both["right"](x))

    inputs = (torch.zeros(1, 8, 4, 4),)
    assert "1.bias" in names(find_followers(model, ["0.weight"], inputs))
    assert set(names(find_followers(both, ["left.weight"], inputs, run))) == {"left.bias"}
    shared = names(find_followers(both, ["left.weight", "right.weight"], inputs, run))
    assert shared["norm.bias"] == ("left.weight", "right.weight")


@pytest.mark.parametrize(("in_place", "expected"), [(False, {"0.bias", "1.weight", "1.bias"}), (True, {"0.bias"})])
def test_a_tensor_changed_in_place_is_another_one(in_place, expected):
    """``out += shortcut`` gives the norm the same Python object that the convolution returned."""
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))

    def run(x):
        out = model[0](x)
        if in_place:
            out += x
        return model[1](out)

    assert set(names(find_followers(model, ["0.weight"], (torch.ones(1, 4, 2, 2),), run))) == expected


class FrozenBatchNorm(nn.Module):
    """Like torchvision's: weight and bias are buffers, and no class of torch."""

    def __init__(self, size):
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.ones(size))

    def forward(self, x):
        scale = self.weight / self.running_var.sqrt()
        return x * scale[:, None, None] + (self.bias - self.running_mean * scale)[:, None, None]


@pytest.mark.parametrize(
    ("layer", "norm", "shape", "is_zeroed"),
    [
        (nn.Conv2d(4, 6, 1), FrozenBatchNorm(6), (2, 4, 5, 5), True),
        (nn.Conv1d(4, 6, 1), nn.BatchNorm1d(6), (2, 4, 5), True),
        (nn.Conv3d(4, 6, 1), nn.InstanceNorm3d(6, affine=True), (2, 4, 5, 5, 5), True),
        (nn.Conv2d(4, 6, 1), nn.GroupNorm(3, 6), (2, 4, 5, 5), True),
        (nn.Linear(4, 6), nn.BatchNorm1d(6), (2, 4), True),
        (nn.Linear(4, 6), nn.BatchNorm1d(6), (2, 6, 4), False),  # of 6 tokens: the norm is over those
        (nn.Linear(4, 6), nn.LayerNorm(6), (2, 4), False),
        (nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6, affine=False), (2, 4, 5, 5), False),
        (nn.Conv2d(4, 6, 1), nn.InstanceNorm2d(6), (2, 4, 5, 5), False),
    ],
)
def test_kinds_of_norms(layer, norm, shape, is_zeroed):
    model = nn.Sequential(layer, norm, nn.Identity())
    expected = {"0.bias", "1.weight", "1.bias"} if is_zeroed else {"0.bias"}
    assert set(names(find_followers(model, ["0.weight"], (torch.zeros(shape),)))) == expected


def test_dead_channels_are_zero_and_reported(net):
    sparsifier = Sparsifier(net, half(), IMAGES)
    before = net.norm_of_sum.bias.clone()
    sparsifier.prune_(0)
    assert [row.reason for row in sparsifier.selection if row.name == "pred.weight"] == [
        "its channels are outputs of the model"
    ]
    rows = {row.name: row for row in sparsifier.dead_channels()}
    assert rows["stem.weight"] == DeadChannels(
        "stem.weight", 8, 4, ("stem.bias", "norm_of_stem.weight", "norm_of_stem.bias")
    )
    assert rows["tower.weight"].num_dead == 3
    assert "pred.weight" not in rows
    dead = ~sparsifier.masks["stem.weight"].flatten(1).any(1)
    outputs = net.norm_of_stem(net.stem(torch.rand(2, 3, 8, 8)))
    assert (outputs[:, dead] == 0).all()
    assert (outputs[:, ~dead] != 0).all()
    assert torch.equal(net.norm_of_sum.bias, before)
    num_chosen = sum(row.numel for row in sparsifier.selection if row.chosen)
    assert sparsifier.measure().measured_sparsity_chosen == pytest.approx(0.5, abs=36 / num_chosen)
    assert set(sparsifier.masks) == {row.name for row in sparsifier.selection if row.chosen}


def test_a_shared_norm_goes_where_all_layers_before_it_are_dead():
    model = nn.ModuleDict(
        {"a": nn.Conv2d(3, 4, 1), "b": nn.Conv2d(3, 4, 1), "norm": nn.BatchNorm2d(4), "out": nn.Conv2d(4, 1, 1)}
    )

    def run(x):
        return model["out"](model["norm"](model["a"](x)) * model["norm"](model["b"](x)))

    with torch.no_grad():
        model["a"].weight.copy_(torch.tensor([0.1, 0.1, 1, 1]).view(4, 1, 1, 1).expand(4, 3, 1, 1))
        model["b"].weight.copy_(torch.tensor([0.1, 1, 0.1, 1]).view(4, 1, 1, 1).expand(4, 3, 1, 1))
    sparsifier = Sparsifier(randomise_norm(model), half(), (torch.zeros(1, 3, 4, 4),), run)
    sparsifier.prune_(0)
    assert (model["a"].bias == 0).tolist() == [True, True, False, False]
    assert (model["norm"].weight == 0).tolist() == [True, False, False, False]


def randomise_norm(model):
    nn.init.uniform_(model["norm"].weight, 0.5, 1)
    return model


def test_followers_stay_zero_in_training_and_in_copies(net):
    net.train()
    config = SparsityConfig(
        schedule=LevelWise(levels=(0.3, 0.6)), pattern=Channel(), allocation=Uniform(), scope="chosen"
    )
    sparsifier = Sparsifier(net, config, IMAGES)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1, weight_decay=0.01)
    average = torch.optim.swa_utils.AveragedModel(net)
    sparsifier.attach(optimizer)
    for step in range(4):
        sparsifier.before_step(step, 4)
        optimizer.zero_grad()
        sum(output.square().mean() for output in net(torch.rand(2, 3, 16, 16))).backward()
        dead = ~sparsifier.masks["stem.weight"].flatten(1).any(1)
        assert not net.norm_of_stem.bias.grad[dead].any()
        optimizer.step()
        average.update_parameters(net)
        for vector in (net.stem.bias, net.norm_of_stem.weight, net.norm_of_stem.bias):
            assert (vector[dead].view(torch.int32) == 0).all()
            assert not optimizer.state[vector]["exp_avg"][dead].any()
        assert (net.norm_of_stem.bias[~dead] != 0).all()
    assert int(dead.sum()) == 5
    assert average.module.norm_of_stem.bias[dead].any()
    sparsifier.apply_(average)
    assert not average.module.norm_of_stem.bias[dead].any()
    other = Sparsifier(randomised(Net()), config, IMAGES)
    other.load_state_dict(sparsifier.state_dict())
    assert not other._model.norm_of_stem.bias[dead].any()
    assert (other._model.norm_of_stem.bias[~dead] != 0).all()


def test_names_are_those_of_the_plain_model_where_a_part_is_wrapped():
    part = nn.DataParallel(torch.compile(nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8))))
    model = nn.Sequential(part, nn.ReLU(), nn.Conv2d(8, 2, 1))
    sparsifier = Sparsifier(model, half(), IMAGES)
    sparsifier.prune_(0)
    (row,) = sparsifier.dead_channels()
    assert (row.name, row.zeroed) == ("0.0.weight", ("0.0.bias", "0.1.weight", "0.1.bias"))
    plain = nn.Sequential(nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)), nn.ReLU(), nn.Conv2d(8, 2, 1))
    sparsifier.apply_(plain)
    assert plain[0][1].weight.count_nonzero() == row.num_channels - row.num_dead == 4


def test_the_state_is_that_of_the_weights_alone(net):
    sparsifier = Sparsifier(net, half(), IMAGES)
    assert sparsifier.state_dict() == {"level": None, "target_sparsity": None, "updated_at": None, "masks": {}}
    sparsifier.prune_(0)
    assert set(sparsifier.state_dict()["masks"]) == {row.name for row in sparsifier.selection if row.chosen}
    copied = copy.deepcopy(net)
    assert torch.equal(copied.stem.bias, net.stem.bias)


def test_example_inputs_are_needed(net):
    message = r"sparsity.input_shape: expected the shape of an input, which the pattern 'channel' needs, got null"
    with pytest.raises(ConfigError, match=message):
        Sparsifier(net, half())


def test_a_prediction_layer_named_exactly_is_refused(net):
    with pytest.raises(UnsupportedShapeError, match=r"its channels are outputs of the model\. Remove it from include"):
        Sparsifier(net, half(targets=Targets(include=("pred", "stem"))), IMAGES)
    with pytest.raises(TargetMatchError, match="its channels are outputs of the model"):
        Sparsifier(net, half(targets=Targets(include=("pre*",))), IMAGES)


def test_nothing_is_left_behind(net):
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    net.train()
    find_followers(net, ["stem.weight"], IMAGES)
    assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())
    assert net.stem.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
