"""Where channels go: for small networks, which weights end up in one group, and why others are left alone.

Every test also holds the network to its outputs before: no group may have been put back.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import roi_align

from sparsedet.sparsity import NM, permute_channels

ANY = NM(eligibility="divisible")
pytestmark = pytest.mark.usefixtures("random_orders")


def groups_of(model, *shape, run=None):
    """Names of the weights of each group and what moved with them; left alone: name -> reason."""
    torch.manual_seed(0)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.uniform_(0.1, 1)
    inputs = (torch.rand(shape),)
    original = copy.deepcopy(model)
    report = permute_channels(model, inputs, ANY, run=None if run is None else (lambda x: run(model, x)))
    assert not any("put back" in reason for reason in report.left_alone.values())
    for network in (original, model):
        network.train()
    expected, outputs = ((run or (lambda network, x: network(x)))(network, *inputs) for network in (original, model))
    torch.testing.assert_close(outputs, expected, rtol=1e-4, atol=1e-4 * report.max_output)
    return {group.weights: group for group in report.groups}, report.left_alone


def conv(num_in, num_out, size=1, **options):
    return nn.Conv2d(num_in, num_out, size, padding=size // 2, **options)


class Net(nn.Module):
    """Layers a: 3 -> 8, b: 8 -> 8, c: `reads` -> 4, and what `flow` makes of them."""

    def __init__(self, flow, reads=8, **layers):
        super().__init__()
        self.a, self.b, self.c = conv(3, 8), conv(8, 8), conv(reads, 4)
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.flow = flow

    def forward(self, images):
        return self.flow(self, images)


def shortcut(net, x):
    x = net.a(x).relu()
    return net.c(net.b(x) + x)


def shortcut_in_place(net, x):
    x = net.a(x)
    y = net.b(x)
    y += x
    return net.c(y.relu_())


def shared_layer(net, x):
    return net.c(net.b(net.b(net.a(x)).relu()))


def two_scales(net, x):
    fine = net.a(x)
    coarse = F.interpolate(F.max_pool2d(net.b(fine), 2), scale_factor=2.0, mode="bilinear")
    return net.c(F.pad(fine + coarse, (1, 0, 1, 2)))


@pytest.mark.parametrize("flow", [shortcut, shortcut_in_place, shared_layer, two_scales])
def test_what_is_added_up_or_read_by_one_layer_has_one_order(flow):
    groups, left = groups_of(Net(flow), 2, 3, 4, 4)
    assert set(groups) == {("b.weight", "c.weight")}
    assert groups["b.weight", "c.weight"].moved == ("a.weight", "a.bias", "b.weight", "b.bias", "c.weight")
    assert left == {"a.weight": "2:4 needs in_channels/groups % 4 == 0, got 3"}


def test_what_is_concatenated_keeps_an_order_of_each_part():
    groups, _ = groups_of(Net(lambda net, x: net.c(torch.cat([y := net.a(x), net.b(y).relu()], 1)), 16), 2, 3, 4, 4)
    assert {weights: group.num_channels for weights, group in groups.items()} == {
        ("b.weight", "c.weight"): 8,  # the first part, which b reads too
        ("c.weight",): 8,
    }


def test_parts_that_do_not_fill_stripes_are_left_alone():
    """6 channels, then 10: a group of four has channels of both."""
    net = Net(lambda net, x: net.c(torch.cat([net.six(x), net.ten(x)], 1)), 16, six=conv(3, 6), ten=conv(3, 10))
    groups, left = groups_of(nn.Sequential(net), 2, 3, 4, 4, run=lambda model, x: used(model[0], x))
    assert groups == {}
    assert left["0.c.weight"] == "what it reads does not fill whole groups of 4 channels"


def used(net, x):
    """Run the layers that `flow` leaves out, too."""
    return net(x), net.a(x).sum((2, 3)), net.b(x.repeat(1, 3, 1, 1)[:, :8])


def test_a_part_that_begins_inside_a_stripe_is_left_alone():
    net = Net(
        lambda net, x: net.c(torch.cat([net.six(x), net.b(net.a(x)), net.two(x)], 1)),
        16,
        six=conv(3, 6),
        two=conv(3, 2),
    )
    groups, left = groups_of(net, 2, 3, 4, 4)
    assert set(groups) == {("b.weight",)}
    assert left["c.weight"] == "what it reads does not fill whole groups of 4 channels"


def glu(net, x):
    one, other = net.b(net.a(x)).chunk(2, dim=1)
    return net.c(one * other.sigmoid())


def test_halves_that_are_multiplied_move_together():
    groups, _ = groups_of(Net(glu, 4), 2, 3, 4, 4)
    assert groups["c.weight",].num_channels == 4
    assert groups["c.weight",].moved == ("b.weight", "b.bias", "c.weight")


def different_halves(net, x):
    x = net.a(x)
    return net.c(torch.cat([x[:, :4].relu() * 2, net.b(x)[:, 4:]], 1))


def test_what_a_slice_tells_apart_is_not_exchanged():
    groups, left = groups_of(Net(different_halves), 2, 3, 4, 4)
    assert sorted((weights, group.num_channels) for weights, group in groups.items()) == [
        (("b.weight",), 4),  # the second half of a, which only b reads
        (("b.weight", "c.weight"), 4),
        (("c.weight",), 4),
    ]
    assert set(left) == {"a.weight"}


def one_gates_all(net, x):
    x = net.b(net.a(x))
    return net.c(x * x[:, 2:3])


def test_a_single_channel_that_is_told_apart_stays():
    groups, left = groups_of(Net(one_gates_all), 2, 3, 4, 4)
    assert set(groups) == {("b.weight",)}
    assert left["c.weight"] == "what it reads does not fill whole groups of 4 channels"


@pytest.mark.parametrize(
    "norm",
    [nn.BatchNorm2d(8), nn.BatchNorm2d(8, affine=False),
     nn.LayerNorm([8, 4, 4]), nn.PReLU(8), nn.Hardswish(inplace=True), nn.Softmax(dim=1), nn.Dropout(0.0)],
    ids=lambda layer: type(layer).__name__,
)  # fmt: skip
def test_norms_and_activations_are_followed(norm):
    groups, _ = groups_of(Net(lambda net, x: net.c(net.norm(net.b(net.a(x)))), norm=norm), 2, 3, 4, 4)
    expected = {"b.weight", "b.bias", "c.weight"}
    expected |= {f"norm.{name}" for name, tensor in norm.state_dict().items() if 8 in tensor.shape}
    assert set(groups["c.weight",].moved) == expected


def squeeze_and_excite(net, x):
    x = net.b(net.a(x))
    scale = net.up(net.down(x.mean((2, 3), keepdim=True)).relu()).sigmoid()
    return net.c(F.adaptive_avg_pool2d(x * scale, 1)).flatten(1)


def test_squeeze_and_excite():
    groups, _ = groups_of(Net(squeeze_and_excite, down=conv(8, 4), up=conv(4, 8)), 2, 3, 4, 4)
    assert groups["c.weight", "down.weight"].moved == (
        "b.weight", "b.bias", "c.weight", "down.weight", "up.weight", "up.bias",
    )  # fmt: skip
    assert groups["up.weight",].num_channels == 4


def test_depthwise_layers_move_with_what_they_read():
    groups, left = groups_of(
        Net(lambda net, x: net.c(net.deep(net.b(net.a(x)))), deep=conv(8, 8, 3, groups=8)), 2, 3, 4, 4
    )
    assert groups["c.weight",].moved == ("b.weight", "b.bias", "c.weight", "deep.weight", "deep.bias")
    assert left["deep.weight"] == "2:4 needs in_channels/groups % 4 == 0, got 1"


def test_layers_of_all_kinds():
    model = nn.Sequential(
        nn.Conv3d(4, 8, 1), nn.ReLU(), nn.Conv3d(8, 8, 3, padding=1), nn.Flatten(2),
        nn.Conv1d(8, 8, 1), nn.ConvTranspose1d(8, 12, 2), nn.BatchNorm1d(12), nn.Conv1d(12, 8, 1),
        nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 2),
    )  # fmt: skip
    groups, left = groups_of(model, 2, 4, 2, 3, 3)
    assert set(groups) == {("2.weight",), ("4.weight",), ("7.weight",), ("10.weight",), ("12.weight",)}
    assert groups["7.weight",].moved == (
        "5.weight", "5.bias", "6.weight", "6.bias", "7.weight", "6.running_mean", "6.running_var",
    )  # fmt: skip
    assert left == {
        "0.weight": "what it reads is an input of the network",
        "5.weight": "2:4 does not serve transposed convolutions",
    }


class Tokens(nn.Module):
    """Channels in the last dimension, as a transformer has them."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(4, 8, 2, stride=2)
        self.position = nn.Parameter(torch.zeros(1, 4, 8))
        self.norm = nn.LayerNorm(8)
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
        self.mlp = nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8))
        self.head = nn.Linear(8, 3)

    def forward(self, images):
        x = self.embed(images).flatten(2).transpose(1, 2) + self.position
        q, k, v = self.qkv(self.norm(x)).unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        x = x + self.mlp(x)
        return self.head(x.mean(1))


def test_tokens():
    groups, left = groups_of(Tokens(), 2, 4, 4, 4)
    assert set(groups) == {("qkv.weight", "mlp.0.weight", "head.weight"), ("mlp.2.weight",)}
    assert "position" in groups["qkv.weight", "mlp.0.weight", "head.weight"].moved
    assert left == {
        "embed.weight": "what it reads is an input of the network",
        "out.weight": "what it reads is reshaped together with other dimensions",
    }


def into_a_buffer(net, x):
    buffer = torch.zeros(2, 8, 4, 4)
    buffer[:, :, 1:] = net.b(net.a(x))[:, :, 1:]
    return net.c(buffer)


def times_a_constant(net, x):
    return net.c(net.b(net.a(x)) * torch.arange(8.0)[:, None, None])


def shuffled(net, x):
    return net.c(net.b(net.a(x)).unflatten(1, (2, 4)).transpose(1, 2).flatten(1, 2))


def indexed(net, x):
    return net.c(net.b(net.a(x))[:, torch.arange(8).flip(0)])


def flipped_outside(net, x):
    """What torch does not see: the order is turned round in NumPy."""
    return net.c(torch.from_numpy(net.b(net.a(x)).detach().numpy()[:, ::-1].copy()))


def reshaped_in_place(net, x):
    x = net.b(net.a(x)).unsqueeze(1)
    x.squeeze_(1)
    return net.c(x)


def cumulated(net, x):
    return net.c(net.b(net.a(x)).cumsum(1))


def indexed_by_itself(net, x):
    x = net.b(net.a(x))
    return net.c(x[x.mean((1, 2, 3)) > -1])


def decided(net, x):
    x = net.b(net.a(x))
    return net.c(x if x.mean() > 0 else x.flip(1))


def decided_by_count(net, x):
    x = net.b(net.a(x))
    return net.c(x if len(x.nonzero()) > 3 else x.flip(1))


def normalised_by_image(net, x):
    """PyTorch makes one image of all channels of all images."""
    return net.c(F.instance_norm(net.b(net.a(x))))


def normalised_in_groups(net, x):
    return net.c(F.group_norm(net.b(net.a(x)), 4))


@pytest.mark.parametrize(
    ("flow", "reason"),
    [
        (into_a_buffer, "meets values in aten::convolution that are not followed"),
        (times_a_constant, "meets values in aten::mul that are not followed"),
        (shuffled, "is reshaped together with other dimensions"),
        (indexed, "goes through aten::index, which is not followed"),
        (indexed_by_itself, "goes through an indexing by values of its own, or by several tensors"),
        (flipped_outside, "meets values in aten::convolution that are not followed"),
        (lambda net, x: net.c(net.b(net.a(x)).roll(1, 1)), "goes through aten::roll, which is not followed"),
        (lambda net, x: net.c(net.b(net.a(x)).roll(1)), "goes through a roll of all values"),
        (reshaped_in_place, "goes through aten::squeeze_, which is not followed"),
        (cumulated, "goes through aten::cumsum, which is not followed"),
        (normalised_by_image, "is reshaped together with other dimensions"),
        (normalised_in_groups, "goes through aten::native_group_norm, which is not followed"),
        (decided, "is there when the network's values are looked at (aten::_local_scalar_dense), or comes after it"),
        (decided_by_count, "goes through aten::nonzero, which is not followed"),
    ],
)
def test_what_cannot_be_followed_is_left_alone_with_the_reason(flow, reason):
    groups, left = groups_of(Net(flow), 2, 3, 4, 4)
    assert set(groups) == {("b.weight",)}
    assert left["c.weight"] == f"what it reads {reason}"


def test_convolutions_in_groups_are_left_alone_on_both_sides():
    net = Net(lambda net, x: net.c(net.grouped(net.b(net.a(x))).relu()), grouped=conv(8, 8, groups=2))
    groups, left = groups_of(net, 2, 3, 4, 4)
    assert set(groups) == {("b.weight",)}
    assert left["c.weight"] == left["grouped.weight"] == "what it reads goes through a convolution in groups"


def test_outputs_are_left_alone_wherever_they_are():
    class Result:
        def __init__(self, features):
            self.features = {"maps": [features]}

    net = Net(lambda net, x: (net.c(y := net.b(net.a(x))), Result(y)))
    report = permute_channels(net, (torch.rand(2, 3, 4, 4),), ANY)
    assert [group.weights for group in report.groups] == [("b.weight",)]
    assert report.left_alone["c.weight"] == "what it reads is an output of the network"


def test_what_comes_after_a_decision_is_left_alone():
    def flow(net, x):
        x = net.b(net.a(x))
        y = net.c(x if x.mean() > 0 else x.flip(1))
        return net.e(net.d(y))

    groups, left = groups_of(Net(flow, d=conv(4, 8), e=conv(8, 4)), 2, 3, 4, 4)
    assert set(groups) == {("b.weight",)}
    assert {name for name, reason in left.items() if "looked at" in reason} == {"c.weight", "d.weight", "e.weight"}


def test_values_that_do_not_depend_on_the_inputs_decide_nothing():
    def flow(net, x):
        x = net.b(net.a(x))
        table = net.table[net.index.view(-1)].view(4, 4)  # as a window's table of relative positions
        return net.c(x * net.scale.item() + table if net.scale > 0 else x.flip(1))

    net = Net(flow)
    net.scale, net.table = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(7, 1))
    net.register_buffer("index", torch.arange(16).view(4, 4) % 7)
    groups, _ = groups_of(net, 2, 3, 4, 4)
    assert set(groups) == {("b.weight",), ("c.weight",)}


def test_rows_that_are_reordered_keep_their_channels():
    groups, _ = groups_of(Net(lambda net, x: net.c(net.b(net.a(x))[torch.tensor([1, 0, 1])])), 2, 3, 4, 4)
    assert groups["c.weight",].num_channels == 8


@pytest.mark.parametrize("channels_first", [True, False])
def test_flattened_maps_move_as_blocks(channels_first):
    """Each channel is read at every pixel; a layer before it reads the channels themselves."""

    def flow(net, x):
        x = net.b(net.a(x))
        flat = x.flatten(1) if channels_first else x.permute(0, 2, 3, 1).flatten(1)
        return net.c(x), net.fc(flat)

    groups, _ = groups_of(Net(flow, fc=nn.Linear(8 * 9, 4)), 2, 3, 3, 3)
    assert groups["c.weight", "fc.weight"].num_channels == 8
    assert groups["c.weight", "fc.weight"].moved == ("b.weight", "b.bias", "c.weight", "fc.weight")


def test_regions_of_maps_keep_their_channels():
    rois = torch.tensor([[0.0, 0, 0, 3, 3], [1, 1, 1, 4, 4], [0, 0, 1, 2, 4]])
    groups, _ = groups_of(Net(lambda net, x: net.c(roi_align(net.b(net.a(x)), rois, 2))), 2, 3, 4, 4)
    assert groups["c.weight",].num_channels == 8


def test_pooling_to_one_pixel_in_channels_last_memory_is_followed():
    model = nn.Sequential(conv(3, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    groups, _ = groups_of(model.to(memory_format=torch.channels_last), 2, 3, 4, 4)
    assert set(groups) == {("3.weight",)}
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("size", [(2, 4, 3, 8), (2, 8, 4, 4)])
def test_other_changes_of_strides_are_left_alone(size):
    def flow(net, x):
        x = net.b(net.a(x)).contiguous()
        return net.c(x), x.as_strided_(size, (128, 1, 32, 8) if size[1] == 8 else (128, 1, 24, 3)).relu()

    groups, left = groups_of(Net(flow), 2, 3, 4, 4)
    assert set(groups) == {("b.weight",)}
    assert left["c.weight"] == "what it reads goes through a change of strides"


def test_maps_that_are_rolled_keep_their_channels():
    """As a shifted window does; rolled channels do not."""
    groups, _ = groups_of(Net(lambda net, x: net.c(net.b(net.a(x)).roll((1, 2), (2, 3)).flip(-1))), 2, 3, 4, 4)
    assert groups["c.weight",].num_channels == 8


def test_views_as_another_type_are_left_alone():
    def flow(net, x):
        x = net.b(net.a(x))
        return net.c(x), x.view(torch.int16)[..., 0].float()

    groups, left = groups_of(Net(flow), 2, 3, 4, 4)
    assert set(groups) == {("b.weight",)}
    assert left["c.weight"] == "what it reads goes through a view as another type"


def test_two_maps_compared_as_a_whole_are_a_decision():
    def flow(net, x):
        x = net.b(net.a(x))
        return net.c(x.flip(1) if torch.equal(x, x + 1) else x)

    groups, left = groups_of(Net(flow), 2, 3, 4, 4)
    assert set(groups) == {("b.weight",)}
    assert left["c.weight"] == "what it reads goes through a comparison as a whole"
