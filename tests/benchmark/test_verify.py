"""What `verify` finds in each kind of file."""

import copy
import math
import re

import pytest
import torch
from safetensors.torch import save_file

from sparsedet.benchmark.compact import read_any, write_compact
from sparsedet.benchmark.verify import assess_file, engine_command, verify_file
from sparsedet.common.checkpoint import load_checkpoint
from sparsedet.common.errors import CheckpointError
from sparsedet.export import export_onnx
from sparsedet.export.compact import read_weights, save_compact

LEVELS = {"schedule": {"type": "level_wise", "levels": (0.8, 0.9)}}
TWO_FOUR = {"pattern": {"type": "n_m"}, "schedule": {"type": "one_shot"}}


@pytest.fixture
def checkpoint(save_pruned, tmp_path):
    """Path of a checkpoint at 80 %."""
    save_pruned(tmp_path / "c.pt", LEVELS)
    return tmp_path / "c.pt"


@pytest.fixture
def state(checkpoint):
    """Its state dict."""
    return load_checkpoint(checkpoint)["model"]


def counted(weights):
    """Count by hand: zeros and entries of the tensors of two and more dimensions."""
    kernels = [weight for weight in weights.values() if weight.ndim >= 2]
    return sum(int((kernel == 0).sum()) for kernel in kernels) / sum(kernel.numel() for kernel in kernels)


def test_all_files_of_the_same_weights_give_the_same_counts(checkpoint, state, tmp_path):
    write_compact(tmp_path / "w.safetensors", load_checkpoint(checkpoint), 0.8)
    save_file({name: value.clone() for name, value in state.items()}, tmp_path / "plain.safetensors")
    torch.save({"state_dict": state}, tmp_path / "state.pth")
    own = verify_file(checkpoint)
    assert own.faults == ()
    assert own.sparsity == counted(state)
    assert own.target_sparsity == 0.8
    by_name = {row["name"]: row for row in own.layers}
    for file in ("w.safetensors", "plain.safetensors", "state.pth"):
        other = verify_file(tmp_path / file, None if file == "w.safetensors" else checkpoint)
        assert other.faults == ()
        assert other.sparsity_chosen == own.sparsity_chosen
        assert {row["name"]: row for row in other.layers} == by_name
        assert all(row["agrees_with_mask"] for row in other.layers)


def test_rows_are_what_a_loop_counts(checkpoint, state):
    for row in verify_file(checkpoint).layers:
        weight = state[row["name"]]
        assert row["shape"] == list(weight.shape)
        assert (row["num_weights"], row["num_zeros"]) == (weight.numel(), int((weight == 0).sum()))
        num_out, num_in = weight.shape[:2]
        assert row["dead_channels"] == sum(not weight[channel].any() for channel in range(num_out))
        if num_in % 4:
            assert row["violations_of_2_4"] is None
            continue
        lanes = weight.flatten(2).permute(0, 2, 1).reshape(-1, 4)
        assert row["violations_of_2_4"] == sum(int(lane.count_nonzero()) > 2 for lane in lanes)


def test_a_file_of_another_program_is_only_counted(state, tmp_path):
    torch.save(state, tmp_path / "state.pth")
    result = verify_file(tmp_path / "state.pth")
    assert (result.faults, result.compared_with, result.sparsity_chosen, result.target_sparsity) == (
        (),
        None,
        None,
        None,
    )
    assert {row["agrees_with_mask"] for row in result.layers} == {None}
    assert result.summary[-1].startswith("the file holds no masks to compare with; --against CHECKPOINT")


def test_floats_of_eight_bits_are_counted(tmp_path):
    weight = torch.tensor([[0.0, 1.0, -0.0, 2.0]]).to(torch.float8_e4m3fn)
    torch.save({"layer.weight": weight}, tmp_path / "float8.pt")
    result = verify_file(tmp_path / "float8.pt")
    assert (result.layers[0]["num_zeros"], result.faults) == (2, ())


def test_weights_that_are_not_finite_are_a_fault(tmp_path):
    layer = torch.nn.Linear(4, 2)
    layer.weight.data = torch.tensor([[0.0, float("nan"), 1, float("inf")], [-float("inf"), 0, 1, 2]])
    save_file(layer.state_dict(), tmp_path / "diverged.safetensors")
    export_onnx(layer, (torch.zeros(1, 4),), tmp_path / "diverged.onnx")
    for name in ("diverged.safetensors", "diverged.onnx"):
        (fault,) = verify_file(tmp_path / name).faults
        assert fault.endswith("weight: expected finite weights, got 3 that are NaN or infinite")


def test_renamed_weights_are_found_by_their_zeros(checkpoint, state, upstream, small_detectors, build, tmp_path):
    model = build(small_detectors["C2"], 0)
    model.load_state_dict(state)
    theirs = upstream(model)
    assert not theirs.keys() & {name for name in state if name.startswith("head")}
    torch.save(theirs, tmp_path / "theirs.pth")
    assert verify_file(tmp_path / "theirs.pth", checkpoint).faults == ()
    broken = {name: value.clone() for name, value in theirs.items()}
    lost = {id(value): name for name, value in theirs.items() if "head" in name and value.ndim == 4}
    for name in lost.values():
        broken[name][broken[name] == 0] = 1.0
    torch.save(broken, tmp_path / "theirs.pth")
    faults = verify_file(tmp_path / "theirs.pth", checkpoint).faults
    assert faults
    assert all(re.match(r"head\..*: expected a weight with its zeros, got none of shape", fault) for fault in faults)


def test_a_weight_that_is_not_zero_is_found_in_every_kind_of_file(checkpoint, state, tmp_path):
    name, mask = next(iter(load_checkpoint(checkpoint)["sparsifier"]["masks"].items()))
    place = tuple((~mask).nonzero()[0])
    pruned = int((~mask).sum())
    broken = {key: value.clone() for key, value in state.items()}
    broken[name][place] = 1e-30
    info = None
    for file in ("c.pt", "w.safetensors", "plain.safetensors"):
        path = tmp_path / "broken" / file
        path.parent.mkdir(exist_ok=True)
        if file == "c.pt":
            torch.save(load_checkpoint(checkpoint) | {"model": broken}, path)
            expected = f"{name}: expected +0.0 at {pruned} pruned places, got another value at 1"
        elif file == "w.safetensors":
            write_compact(tmp_path / file, load_checkpoint(checkpoint), 0.8)
            info = read_weights(tmp_path / file).info
            save_compact(path, broken, info=info)
            expected = f"{name}: expected at least {pruned} zeros, got {pruned - 1}"
        else:
            save_file(broken, path)
            expected = f"{name}: expected zero at {pruned} pruned places, got another value at 1"
        result = verify_file(path, checkpoint if file.startswith("plain") else None)
        assert expected in result.faults
    assert read_any(tmp_path / "broken" / "w.safetensors")["sparsifier"]["num_pruned"][name] == pruned


def test_minus_zero_is_zero_for_other_programs(checkpoint, state, tmp_path):
    masks = load_checkpoint(checkpoint)["sparsifier"]["masks"]
    state = {name: value.masked_fill(~masks[name], -0.0) if name in masks else value for name, value in state.items()}
    torch.save(state, tmp_path / "theirs.pth")
    assert verify_file(tmp_path / "theirs.pth", checkpoint).faults == ()


def test_half_precision_is_verified(checkpoint, tmp_path):
    write_compact(tmp_path / "w.safetensors", load_checkpoint(checkpoint), 0.8, fp16=True)
    assert verify_file(tmp_path / "w.safetensors").faults == ()
    assert verify_file(tmp_path / "w.safetensors", checkpoint).faults == ()


def test_masks_of_the_recorded_count_that_miss_the_target_are_a_fault(checkpoint, tmp_path):
    content = load_checkpoint(checkpoint)
    mask = next(iter(content["sparsifier"]["masks"].values()))
    mask[tuple((~mask).nonzero()[0])] = True
    write_compact(tmp_path / "w.safetensors", content, 0.8)
    (fault,) = verify_file(tmp_path / "w.safetensors").faults
    assert re.fullmatch(r"masks: expected exactly \d+ pruned weights, got \d+", fault)


@pytest.mark.parametrize("state", [None, {"masks": {}}])
def test_no_masks_in_the_file_of_a_pruned_level_are_a_fault(state, checkpoint, tmp_path):
    content = load_checkpoint(checkpoint)
    path = tmp_path / "unmasked.pt"
    torch.save(content | {"sparsifier": state and content["sparsifier"] | state}, path)
    assert verify_file(path).faults == ("masks: expected those of level 0, which its recipe prunes, got none",)


def test_two_four_is_checked_in_a_compact_file(save_pruned, tmp_path):
    save_pruned(tmp_path / "c.pt", TWO_FOUR)
    content = load_checkpoint(tmp_path / "c.pt")
    write_compact(tmp_path / "w.safetensors", content, 0.5)
    result = verify_file(tmp_path / "w.safetensors")
    assert result.faults == ()
    violations = {row["name"]: row["violations_of_2_4"] for row in result.layers}
    pruned = content["sparsifier"]["masks"]
    assert {violations[name] for name in pruned} == {0}
    name = next(iter(pruned))
    content["model"][name][0, :3] = 1.0
    content["sparsifier"]["masks"][name][0, :3] = True  # so that only the groups tell
    write_compact(tmp_path / "w.safetensors", content, 0.5)
    faults = verify_file(tmp_path / "w.safetensors").faults
    assert f"{name}: expected at most 2 of every 4 weights, got {math.prod(pruned[name].shape[2:])} groups" in faults[0]


def test_what_cannot_be_compared(checkpoint, state, save, small_detectors, build, recipe_of, tmp_path):
    save(tmp_path / "dense.pt", recipe_of(small_detectors["C2"]), build(small_detectors["C2"], 0))
    with pytest.raises(CheckpointError, match=r"dense\.pt: expected a checkpoint with masks, got a dense one"):
        verify_file(checkpoint, tmp_path / "dense.pt")
    torch.save({"bias": torch.ones(3)}, tmp_path / "vectors.pt")
    with pytest.raises(CheckpointError, match="expected weights of at least two dimensions, got none"):
        verify_file(tmp_path / "vectors.pt")
    name = next(iter(load_checkpoint(checkpoint)["sparsifier"]["masks"]))
    torch.save(state | {name: torch.zeros(4, 4)}, tmp_path / "shape.pt")
    (fault,) = verify_file(tmp_path / "shape.pt", checkpoint).faults
    assert re.fullmatch(rf"{re.escape(name)}: expected the shape \(.*\) of its mask, got \(4, 4\)", fault)


class Grouped(torch.nn.Module):
    """Two convolutions, the second one grouped, and a linear layer, all 2:4."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Conv2d(256, 512, 1)
        self.second = torch.nn.Conv2d(512, 512, 1, groups=2)
        self.last = torch.nn.Linear(512, 256)
        for weight in (self.first.weight, self.second.weight, self.last.weight):
            weight.data[:, ::2] = 0

    def forward(self, images):
        return self.last(self.second(self.first(images)).mean((2, 3)))


@pytest.mark.slow
def test_onnx_is_counted_compared_and_assessed(checkpoint, save_pruned, tmp_path):
    from sparsedet.benchmark.checkpoint import open_checkpoint

    saved = open_checkpoint(checkpoint)
    export_onnx(saved.model.backbone, (torch.zeros(1, 3, 64, 64),), tmp_path / "backbone.onnx")
    alone = verify_file(tmp_path / "backbone.onnx")
    assert (alone.faults, alone.compared_with) == ((), None)
    kernels = {name: value for name, value in saved.model.backbone.state_dict().items()}
    assert alone.sparsity == counted(kernels)
    result = verify_file(tmp_path / "backbone.onnx", checkpoint)
    assert all(row["agrees_with_mask"] for row in result.layers)
    assert result.target_sparsity == 0.8
    assert result.faults
    assert all(fault.startswith(("neck.", "head.")) for fault in result.faults)  # which were not exported
    weight = saved.model.backbone.layer2[0].conv2.weight
    weight.data[tuple((weight == 0).nonzero()[0])] = 1e-6
    export_onnx(saved.model.backbone, (torch.zeros(1, 3, 64, 64),), tmp_path / "backbone.onnx")
    broken = verify_file(tmp_path / "backbone.onnx", checkpoint)
    assert [row["agrees_with_mask"] for row in broken.layers].count(False) == 1
    assert any(fault.startswith("backbone.layer2.0.conv2.weight: ") for fault in broken.faults)
    save_pruned(tmp_path / "other.pt", TWO_FOUR)
    other = verify_file(tmp_path / "backbone.onnx", tmp_path / "other.pt")
    assert any(fault.startswith("backbone.layer3.0.conv2.weight: ") for fault in other.faults)


def test_onnx_copies_count_once_and_dead_channels_are_told(checkpoint, tmp_path):
    from sparsedet.benchmark.checkpoint import open_checkpoint

    backbone = open_checkpoint(checkpoint).model.backbone

    class Twice(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, norms = (
                backbone.layer2[0].conv2,
                [torch.nn.BatchNorm2d(backbone.layer2[0].conv2.out_channels)] * 2,
            )
            self.norms = torch.nn.ModuleList(copy.deepcopy(norm) for norm in norms)

        def forward(self, images):
            return [norm(self.conv(images)) for norm in self.norms]

    model = Twice().eval()
    torch.nn.init.uniform_(model.norms[1].weight)
    dead = int(model.conv.weight.detach().flatten(1).any(1).nonzero()[0])  # the first that is none yet
    model.norms[1].weight.data[dead] = 0
    export_onnx(model, (torch.zeros(1, model.conv.in_channels, 8, 8),), tmp_path / "twice.onnx")
    name = "backbone.layer2.0.conv2.weight"
    result = verify_file(tmp_path / "twice.onnx", checkpoint)
    assert len(result.layers) == 2
    assert result.sparsity == counted({name: model.conv.weight})
    assert result.notes[0].startswith(f"{name}: 1 output channels are zero in the file only")
    assert result.notes[1] == "1 of 2 tensors are copies of a weight, which is counted once"
    assert [line.partition(":")[0] for line in result.summary[1:3]] == ["note", "note"]


def test_the_command_for_an_engine_has_the_sizes_of_the_json_file(tmp_path):
    dims = [{0: "batch", 2: "height", 3: "width"}]
    export_onnx(torch.nn.Conv2d(3, 4, 1), (torch.zeros(1, 3, 4, 4),), tmp_path / "n.onnx", dynamic_dims=dims)
    path, sidecar = tmp_path / "n.onnx", tmp_path / "n.json"
    for text in (None, "{", '{"macs": {"input_shape": [1, 3, -1, 1]}}', '{"macs": 3}'):
        if text is not None:
            sidecar.write_text(text)
        assert ":1x3xHEIGHTxWIDTH " in engine_command(path)
    sidecar.write_text('{"macs": {"input_shape": [2, 3, 96, 128]}}')
    assert ":1x3x96x128 " in engine_command(path)
    assert "--shapes" not in engine_command(tmp_path / "n.pt")


def test_onnx_without_weights_is_refused_and_others_are_named(tmp_path):
    class Scaled(torch.nn.Module):
        def __init__(self, with_conv):
            super().__init__()
            self.table = torch.nn.Embedding(40, 8)
            self.layer = torch.nn.Linear(8, 4) if with_conv else torch.nn.Identity()

        def forward(self, x):
            return self.layer(self.table(x))

    path = tmp_path / "e.onnx"
    inputs = (torch.zeros(1, 3, dtype=torch.int64),)
    export_onnx(Scaled(True), inputs, path)
    (note,) = verify_file(path).notes
    assert note == (
        "1 tensors are not counted, since no convolution, linear layer or product of matrices reads them as they are: "
        "table.weight"
    )
    export_onnx(Scaled(False), inputs, path)
    for look in (verify_file, assess_file):
        with pytest.raises(CheckpointError, match=r"expected weights of convolutions, .*, got none"):
            look(path)


def test_onnx_says_which_convolutions_are_grouped(tmp_path):
    export_onnx(Grouped(), (torch.zeros(1, 256, 4, 4),), tmp_path / "grouped.onnx")
    found = {
        (*layer.kernel, layer.groups): (layer.in_channels, layer.state)
        for layer in assess_file(tmp_path / "grouped.onnx")
    }
    assert found == {(1, 1, 1): (256, "large"), (1, 1, 2): (512, "valid"), (1,): (512, "large")}


def test_a_checkpoint_is_assessed_with_the_groups_of_its_layers(save_pruned, tmp_path):
    save_pruned(tmp_path / "c.pt", TWO_FOUR)
    layers = {layer.name: layer for layer in assess_file(tmp_path / "c.pt")}
    conv = layers["backbone.layer4.1.conv2.weight"]
    assert (conv.in_channels, conv.groups, conv.state) == (128, 1, "valid")
    assert layers["backbone.conv1.weight"].state == "no"
    torch.save(Grouped().state_dict(), tmp_path / "grouped.pt")
    states = {layer.name: (layer.groups, layer.state) for layer in assess_file(tmp_path / "grouped.pt")}
    assert states == {"first.weight": (None, "valid"), "second.weight": (None, "valid"), "last.weight": (1, "large")}
