"""Which weights a model has, and under which names."""

import re

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.testing._internal.two_tensor import TwoTensor

from sparsedet.common.errors import ConfigError
from sparsedet.sparsity import measure
from sparsedet.sparsity.weights import find_weights, unwrap

DETECTOR_NAMES = (
    "backbone.conv1.weight", "backbone.depthwise.weight", "backbone.frozen.weight",
    "down.weight", "tower.weight", "cls_pred.weight", "fc.weight",
)  # fmt: skip


def names(model):
    return [weight.name for weight in find_weights(model)]


class MyLinear(nn.Linear):
    """A layer of someone else's code."""


class MyAttention(nn.MultiheadAttention):
    """An attention of someone else's code."""


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv1d(2, 2, 1), nn.Conv2d(2, 2, 1), nn.Conv3d(2, 2, 1), nn.ConvTranspose1d(2, 2, 1),
        nn.ConvTranspose2d(2, 2, 1), nn.ConvTranspose3d(2, 2, 1), nn.Linear(2, 2), MyLinear(2, 2),
    ],
)  # fmt: skip
def test_every_kind_of_conv_and_linear_layer(layer):
    (weight,) = find_weights(nn.Sequential(nn.BatchNorm1d(2), nn.Embedding(3, 2), layer))
    assert (weight.name, weight.layer_names, weight.layer) == ("2.weight", ("2",), layer)
    assert weight.tensor is layer.weight


@pytest.mark.parametrize("kind", [nn.MultiheadAttention, MyAttention])
def test_projections_of_attention(kind):
    model = nn.ModuleDict({"same": kind(8, 2), "other": kind(8, 2, kdim=6, vdim=4, add_bias_kv=True)})
    assert names(model) == [
        "same.in_proj_weight",
        "same.out_proj.weight",
        "other.q_proj_weight",
        "other.k_proj_weight",
        "other.v_proj_weight",
        "other.out_proj.weight",
    ]
    first = find_weights(model)[0]
    assert (first.layer_names, first.modules) == (("same",), (model.same,))
    assert first.tensor is model.same.in_proj_weight


def test_projections_of_attention_look_like_linear_layers_to_a_pattern():
    attention = nn.MultiheadAttention(8, 2, kdim=6)
    random = torch.get_rng_state()
    key = next(weight for weight in find_weights(attention) if weight.name == "k_proj_weight")
    layer = key.layer
    assert (type(layer), layer.out_features, layer.in_features, layer.bias) == (nn.Linear, 8, 6, None)
    assert layer.weight.data_ptr() == attention.k_proj_weight.data_ptr()
    assert torch.equal(random, torch.get_rng_state())
    assert list(dict(attention.named_modules())) == ["", "out_proj"]


def test_shared_weights_are_one_under_their_first_name():
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    model = nn.ModuleDict({"a": first, "b": second, "c": first, "d": nn.Linear(4, 4)})
    weights = find_weights(model)
    assert [weight.names for weight in weights] == [("a.weight", "b.weight", "c.weight"), ("d.weight",)]
    assert weights[0].modules == (first, second)
    assert [weight.others for weight in weights] == [(), ()]


def test_parameters_of_the_same_memory_are_one_weight():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight.data = model[0].weight.data
    halves = torch.randn(8, 4)
    model[2].weight.data, model[3].weight.data = halves[:4], halves[4:]  # parts of one block of memory
    assert [weight.names for weight in find_weights(model)] == [("0.weight", "1.weight"), ("2.weight",), ("3.weight",)]


def test_parameters_that_share_memory_in_another_way_are_named():
    model = nn.ModuleDict({"tied": nn.Linear(4, 6), "back": nn.Linear(6, 4), "part": nn.Linear(4, 2)})
    model.back.weight.data = model.tied.weight.data.T
    model.part.weight.data = model.tied.weight.data[4:]
    columns = torch.randn(6, 8)
    model.update({"left": nn.Linear(4, 6), "right": nn.Linear(4, 6), "norm": nn.LayerNorm(4)})
    model.left.weight.data, model.right.weight.data = columns[:, :4], columns[:, 4:]  # no entry in common
    model.norm.weight.data = columns[2, 2:6]
    others = {weight.layer_names[0]: set(weight.others) for weight in find_weights(model)}
    assert others == {
        "tied": {"back.weight", "part.weight"},
        "back": {"tied.weight", "part.weight"},
        "part": {"tied.weight", "back.weight"},
        "left": {"norm.weight"},
        "right": {"norm.weight"},
    }


def test_attention_may_share_a_weight_with_a_linear_layer():
    attention, linear = nn.MultiheadAttention(4, 2), nn.Linear(4, 12)
    linear.weight = attention.in_proj_weight
    weight = find_weights(nn.ModuleList([attention, linear]))[0]
    assert (weight.names, weight.tensor) == (("0.in_proj_weight", "1.weight"), linear.weight)


def test_a_tied_embedding_is_named():
    embedding, linear = nn.Embedding(5, 4), nn.Linear(4, 5)
    linear.weight = embedding.weight
    (weight,) = find_weights(nn.ModuleDict({"embedding": embedding, "out": linear}))
    assert (weight.name, weight.others) == ("out.weight", ("embedding.weight",))


def test_names_are_those_of_the_plain_model_in_wrappers(detector):
    wrapped = (nn.DataParallel(detector), torch.compile(detector), torch.compile(nn.DataParallel(detector)))
    for model in wrapped:
        assert tuple(names(model)) == DETECTOR_NAMES
        assert unwrap(model) is detector
    assert tuple(names(torch.optim.swa_utils.AveragedModel(detector))) == DETECTOR_NAMES
    detector.compile(backend="eager")
    assert tuple(names(detector)) == DETECTOR_NAMES


def test_names_are_those_of_the_plain_model_under_ddp(detector):
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(detector)
        assert tuple(names(wrapped)) == DETECTOR_NAMES
        assert names(nn.Sequential(wrapped)) == [f"0.{name}" for name in DETECTOR_NAMES]
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel])
def test_names_are_those_of_the_plain_model_where_a_part_is_wrapped(wrap, detector):
    detector.backbone = wrap(detector.backbone)
    assert tuple(names(detector)) == DETECTOR_NAMES


def test_a_submodule_called_module_keeps_its_name():
    assert names(nn.ModuleDict({"module": nn.Linear(2, 2)})) == ["module.weight"]
    assert names(nn.Linear(2, 2)) == ["weight"]


def test_computed_weights_are_told_from_parameters():
    class Sign(nn.Module):
        def forward(self, weight):
            return weight.sign()

    attention = nn.MultiheadAttention(4, 2)
    parametrize.register_parametrization(attention, "in_proj_weight", Sign())
    linear = parametrizations.weight_norm(nn.Linear(4, 4))
    weights = find_weights(nn.ModuleList([linear, attention, linear]))
    assert [(weight.names, weight.is_parameter) for weight in weights] == [
        (("0.weight", "2.weight"), False),
        (("1.in_proj_weight",), False),
        (("1.out_proj.weight",), True),
    ]
    assert weights[1].tensor.abs().unique().tolist() == [1]


def test_looking_at_a_computed_weight_leaves_no_trace():
    model = nn.Sequential(parametrizations.spectral_norm(nn.Linear(4, 4)), nn.Linear(4, 4)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert measure(model).layers[0].name == "0.weight"
    assert find_weights(model)[0].tensor.shape == (4, 4)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())


def test_layers_without_a_weight_of_their_own_are_no_candidates():
    layer = nn.Linear(2, 2)
    layer.weight = None
    assert names(nn.Sequential(layer, nn.Linear(2, 2))) == ["1.weight"]


@pytest.mark.parametrize(
    ("layer", "name"), [(nn.LazyLinear(4), "1.weight"), (nn.LazyBatchNorm2d(affine=False), "1.running_mean")]
)
def test_lazy_layers_are_refused(layer, name):
    with pytest.raises(ConfigError, match=f"model: expected weights with a shape, got the lazy layer '{name}'"):
        find_weights(nn.Sequential(nn.Linear(4, 4), layer))


@pytest.mark.parametrize(
    ("weight", "got"),
    [
        (torch.ones(2, 2, dtype=torch.int8), "dtype torch.int8"),
        (torch.ones(2, 2).to(torch.float8_e4m3fn), "dtype torch.float8_e4m3fn"),
        (torch.eye(2).to_sparse(), "layout torch.sparse_coo"),
        (TwoTensor(torch.ones(2, 2), torch.ones(2, 2)), "class TwoTensor"),
    ],
    ids=["int8", "float8", "sparse", "subclass"],
)
def test_weights_that_are_no_dense_numbers_are_refused(weight, got):
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].weight = nn.Parameter(weight, requires_grad=False)
    message = f"model: expected dense floating-point weights, got '0.weight' of {got}. Prune the model before it is"
    with pytest.raises(ConfigError, match=re.escape(message)):
        find_weights(model)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_quantised_tensors_are_refused():
    layer = nn.Linear(2, 2)
    quantised = torch.quantize_per_tensor(torch.ones(2, 2), 0.1, 0, torch.qint8)
    layer.weight = nn.Parameter(quantised, requires_grad=False)
    with pytest.raises(ConfigError, match=r"got 'weight' of dtype torch.qint8"):
        find_weights(layer)


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_scripted_layers_are_refused_and_norms_are_not():
    model = nn.ModuleDict({"norm": torch.jit.script(nn.BatchNorm1d(4)), "fc": nn.Linear(4, 4)})
    assert names(model) == ["fc.weight"]
    model["stem"] = torch.jit.script(nn.Sequential(nn.Linear(4, 4)))
    with pytest.raises(ConfigError, match=r"expected layers of Python, got the scripted or traced 'stem.0'"):
        find_weights(model)


@pytest.mark.filterwarnings("ignore")
def test_quantised_layers_are_refused():
    import torch.ao.nn.quantized

    model = nn.ModuleDict({"stem": nn.Conv2d(3, 4, 1), "head": torch.ao.nn.quantized.Linear(4, 4)})
    with pytest.raises(ConfigError, match=r"got 'head.weight' of the quantised layer Linear"):
        find_weights(model)
