"""Exporting modules of all kinds: zeros, values, other sizes, and that nothing else happens."""

import copy
import re

import numpy as np
import pytest
import torch
from torch import nn

from sparsedet.common.errors import ConfigError, MissingExtraError
from sparsedet.export import export_onnx, onnx_file
from sparsedet.export.onnx_audit import audit_onnx
from sparsedet.export.onnx_file import read_onnx
from sparsedet.export.onnx_run import OnnxRunner
from sparsedet.sparsity.weights import find_weights

onnx = pytest.importorskip("onnx")

VARIANTS = {
    "plain": {},
    "no slim": {"slim": False},
    "norms": {"keep_batch_norm": True},
    "fp16": {"fp16": True},
    "fp16 norms": {"fp16": True, "keep_batch_norm": True},
}


class Net(nn.Module):
    """A shared convolution with a norm for each use, a transposed grouped one, attention, linear layers."""

    def __init__(self):
        super().__init__()
        self.shared = nn.Conv2d(3, 8, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(2))
        self.up = nn.ConvTranspose2d(8, 8, 2, stride=2, groups=2, bias=False)
        self.up_norm = nn.BatchNorm2d(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        x = sum(norm(self.shared(y)).relu() for norm, y in zip(self.norms, (x, -x), strict=True))
        x = self.up_norm(self.up(x)).relu().flatten(2).transpose(1, 2)
        return self.fc(self.attention(x, x, x)[0])


def make_net():
    torch.manual_seed(0)
    net = Net()
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
                nn.init.normal_(module.running_mean)
                nn.init.uniform_(module.running_var, 0.5, 2)
        for weight in find_weights(net):
            weight.tensor.masked_fill_(torch.rand_like(weight.tensor) < 0.6, 0.0)
    return net


def weights_of(net):
    return {weight.name: weight.tensor for weight in find_weights(net)}


@pytest.fixture(scope="module")
def net():
    """A pruned net in train mode."""
    return make_net()


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request, net, tmp_path_factory):
    """Name of a way to export, and the file it gave."""
    path = tmp_path_factory.mktemp("onnx") / "net.onnx"
    dims = [{0: "batch", 2: "height", 3: "width"}]
    export_onnx(net, (torch.randn(1, 3, 8, 8),), path, dynamic_dims=dims, input_names=["x"], **VARIANTS[request.param])
    return request.param, path


def test_zeros_are_zeros(variant, net):
    audit = audit_onnx(variant[1], weights_of(net))
    assert audit.faults == ()
    assert {weight.num_extra for weight in audit.weights} == {0}
    num_copies = {weight.name: len(weight.copies) for weight in audit.weights}
    assert num_copies["shared.weight"] == (1 if "norms" in variant[0] else 2)
    for tensor in read_onnx(variant[1]).graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.ndim >= 2:
            assert not np.signbit(values[values == 0]).any(), tensor.name


def test_the_file_computes_the_same_for_other_sizes(variant, net):
    net.eval()
    for shape in ((2, 3, 8, 8), (3, 3, 5, 12), (1, 3, 9, 6)):
        x = torch.randn(shape)
        (actual,) = OnnxRunner(variant[1])((x,)).values()
        with torch.no_grad():
            expected = net(x)
        assert actual.dtype == torch.float32
        assert (actual - expected).abs().max() < (4e-3 if "fp16" in variant[0] else 1e-5) * expected.abs().max()
    net.train()


def test_what_is_in_the_file(variant):
    name, path = variant
    model = read_onnx(path)
    assert [entry.version for entry in model.opset_import if not entry.domain] == [18]
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("BatchNormalization") == (3 if "norms" in name else 0)
    formats = {tensor.data_type for tensor in model.graph.initializer if len(tensor.dims) >= 2}
    assert formats == {onnx.TensorProto.FLOAT16 if "fp16" in name else onnx.TensorProto.FLOAT}
    assert model.graph.input[0].name == "x"
    dims = model.graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_param or dim.dim_value for dim in dims] == ["batch", 3, "height", "width"]
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["net.onnx"]
    assert not re.search(rb"\.py\b|site-packages|File ", path.read_bytes())


def test_the_model_in_memory_does_not_change(tmp_path):
    net = make_net()
    net.fc.eval()
    net.fc.weight.requires_grad = False
    calls = []
    hook = net.fc.register_forward_hook(lambda *_: calls.append(1))
    before, flags = copy.deepcopy(net.state_dict()), [module.training for module in net.modules()]
    parameters = {name: id(parameter) for name, parameter in net.named_parameters()}
    for options in ({}, {"fp16": True}):
        export_onnx(net, (torch.randn(2, 3, 8, 8),), tmp_path / "net.onnx", **options)
        for name, value in net.state_dict().items():
            assert value.dtype == before[name].dtype
            assert value.numpy().tobytes() == before[name].numpy().tobytes(), name
        assert [module.training for module in net.modules()] == flags
        assert {name: id(parameter) for name, parameter in net.named_parameters()} == parameters
        assert not net.fc.weight.requires_grad
        assert list(net.fc._forward_hooks) == [hook.id]
        assert all(parameter.grad is None for parameter in net.parameters())
    calls.clear()
    net(torch.randn(2, 3, 8, 8))
    assert calls == [1]


def test_what_onnxslim_fails_on_is_one_message(tmp_path, monkeypatch):
    def slim(*arguments, **options):
        raise KeyError("node")

    monkeypatch.setattr("onnxslim.slim", slim)
    with pytest.raises(
        ConfigError, match=r"slim: expected a graph that onnxslim reads, got KeyError: .* with --no-slim"
    ):
        export_onnx(nn.Linear(4, 3), (torch.randn(2, 4),), tmp_path / "net.onnx")


def test_wrapped_models_are_exported_as_the_plain_ones(tmp_path):
    net = nn.Sequential(nn.Linear(4, 3))
    export_onnx(torch.optim.swa_utils.AveragedModel(net), (torch.randn(2, 4),), tmp_path / "net.onnx")
    assert audit_onnx(tmp_path / "net.onnx", weights_of(net)).faults == ()


def test_weights_too_small_for_float16_are_counted(tmp_path):
    net = nn.Sequential(nn.Linear(4, 3))
    with torch.no_grad():
        net[0].weight[1, 2] = 1e-9
    export_onnx(net, (torch.randn(2, 4),), tmp_path / "net.onnx", fp16=True)
    audit = audit_onnx(tmp_path / "net.onnx", weights_of(net))
    assert (audit.faults, audit.weights[0].num_extra) == ((), 1)


class Branching(nn.Module):
    def forward(self, x):
        return x + 1 if x.sum() > 0 else x


def test_what_cannot_be_exported_is_one_message_and_leaves_an_older_file(tmp_path, monkeypatch):
    path = tmp_path / "net.onnx"
    path.write_bytes(b"older")
    with pytest.raises(
        ConfigError, match=r"model: expected a module that torch.export can trace, got .* Try torch\.exp"
    ):
        export_onnx(Branching(), (torch.ones(2, 4),), path)
    monkeypatch.setattr(onnx_file, "MAX_BYTES", 100)
    net = nn.Linear(6, 6)
    with pytest.raises(ConfigError, match="model: expected at most 2 GiB"):
        export_onnx(net, (torch.ones(2, 6),), path)
    monkeypatch.setitem(__import__("sys").modules, "onnxslim", None)
    with pytest.raises(MissingExtraError, match=r"onnxslim: .* pip install 'sparsedet\[onnx\]'"):
        export_onnx(net, (torch.ones(2, 6),), path)
    assert path.read_bytes() == b"older"
    assert [entry.name for entry in tmp_path.iterdir()] == ["net.onnx"]
