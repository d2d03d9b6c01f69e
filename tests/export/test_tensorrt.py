import shlex
from pathlib import Path

import pytest

from sparsedet.common.errors import ConfigError
from sparsedet.export.counting import TensorCount
from sparsedet.export.tensorrt import assess, input_shapes, read_build_log, trtexec_command

LOG = """\
[08/05/2024-12:06:50] [I] [TRT] Detected 1 inputs and 2 output network tensors.
[08/05/2024-12:06:54] [I] [TRT] (Sparsity) Layers eligible for sparse math: MatMul_401, Conv_619 + Relu_620, Conv_247
[08/05/2024-12:06:54] [I] [TRT] (Sparsity) TRT inference plan picked sparse implementation for layers: Conv_247
[08/05/2024-12:06:55] [I] Engine built in 31.1935 sec.
"""


def count(name, shape, violations=0):
    numel = 1
    for size in shape:
        numel *= size
    return TensorCount(name, shape, numel, numel // 2, violations, 0)


@pytest.mark.parametrize(
    ("weight", "groups", "expected"),
    [
        (count("w", (256, 256, 3, 3)), 1, (256, 256, (3, 3), 1, "large", "")),
        (count("w", (512, 256)), None, (256, 512, (), 1, "large", "")),
        (count("w", (255, 256, 1, 1)), 1, (256, 255, (1, 1), 1, "valid", "fewer than 256 input or output")),
        (count("w", (256, 252, 1, 1)), 1, (252, 256, (1, 1), 1, "valid", "fewer than 256 input or output")),
        (count("w", (512, 256, 3, 3)), 2, (512, 512, (3, 3), 2, "valid", "2 groups: grouped convolutions are not")),
        (count("w", (512, 256, 3, 3)), None, (256, 512, (3, 3), None, "valid", "large, unless it is a grouped")),
        (count("w", (64, 3, 7, 7), None), 1, (3, 64, (7, 7), 1, "no", "3 input channels are no multiple")),
        (count("w", (512, 512), 7), 1, (512, 512, (), 1, "no", "7 of 65536 groups of 4 hold more than 2 non-zeros")),
        (count("w", (512, 1, 3, 3), None), 512, (512, 512, (3, 3), 512, "no", "1 input channels per group")),
    ],
)
def test_what_can_be_served_and_profits(weight, groups, expected):
    (found,) = assess([weight], {"w": groups})
    *facts, reason = expected
    assert [found.in_channels, found.out_channels, found.kernel, found.groups, found.state] == facts
    assert found.reason.startswith(reason)
    assert bool(found.reason) == bool(reason)


def test_the_command():
    assert trtexec_command(Path("run/net.onnx")) == (
        "trtexec --onnx=run/net.onnx --saveEngine=run/net.engine --fp16 --sparsity=enable --verbose"
    )


def test_the_command_for_a_path_with_blanks():
    words = shlex.split(trtexec_command(Path("my run/net.onnx"), {"x": (1, 3, "HEIGHT", 8), "n": (1, 2)}))
    assert words[1:4] == ["--onnx=my run/net.onnx", "--saveEngine=my run/net.engine", "--shapes=x:1x3xHEIGHTx8,n:1x2"]


@pytest.mark.parametrize(
    ("dims", "image_shape", "expected"),
    [
        (["batch", 3, "height", "width"], (2, 3, 96, 128), {"x": (1, 3, 96, 128), "n": (1, 2)}),
        (["batch", 3, "height", None], None, {"x": (1, 3, "HEIGHT", "SIZE3"), "n": (1, 2)}),
        (["batch", 3, 64, 64], (2, 3, 96, 128), {"x": (1, 3, 64, 64), "n": (1, 2)}),
    ],
)
def test_sizes_of_inputs_that_may_vary(dims, image_shape, expected):
    helper = pytest.importorskip("onnx").helper
    sizes = {"x": dims, "n": ["batch", 2], "w": [4, 4]}
    inputs = [helper.make_tensor_value_info(name, 1, shape) for name, shape in sizes.items()]
    weight = helper.make_tensor("w", 1, [4, 4], [0.0] * 16)
    assert input_shapes(helper.make_graph([], "g", inputs, [], [weight]), image_shape) == expected
    fixed = helper.make_graph([], "g", [helper.make_tensor_value_info("x", 1, [1, 3, 8, 8])], [])
    assert input_shapes(fixed, None) == {}


def test_a_build_log(tmp_path):
    path = tmp_path / "log.txt"
    path.write_text(LOG)
    log = read_build_log(path)
    assert log.eligible == ("MatMul_401", "Conv_619 + Relu_620", "Conv_247")
    assert log.picked == ("Conv_247",)
    path.write_text(LOG.replace(" Conv_247\n", "\n"))
    assert read_build_log(path).picked == ()
    path.write_text(LOG.replace("picked", "found"))
    with pytest.raises(ConfigError, match=r"Run trtexec with --sparsity=enable --verbose and keep its whole output"):
        read_build_log(path)
    with pytest.raises(ConfigError, match=r"gone: expected a log of trtexec, got 'No such file"):
        read_build_log(tmp_path / "gone")
