import urllib.error
from collections import OrderedDict

import pytest
import torch
from torchvision import models

from sparsedet.common.errors import CheckpointError, ConfigError
from sparsedet.detection.models import ResNetConfig


@pytest.fixture(scope="module")
def state():
    """A state dict with a classifier, as torchvision publishes them."""
    state = ResNetConfig(width=4).build().state_dict()
    state["fc.weight"], state["fc.bias"] = torch.zeros(10, 32), torch.zeros(10)
    return state


def build(state, tmp_path, **options):
    path = tmp_path / "weights.pth"
    torch.save(state, path)
    return ResNetConfig(**{"width": 4, **options}, weights=str(path)).build()


def test_the_classifier_and_levels_not_asked_for_are_left_out(state, tmp_path):
    backbone = build(state, tmp_path, levels=(2, 3))
    torch.testing.assert_close(backbone.state_dict(), OrderedDict(
        (key, value) for key, value in state.items() if not key.startswith(("fc", "layer3", "layer4"))
    ))  # fmt: skip


def test_old_files_without_batch_counters_are_read(state, tmp_path):
    old = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    assert torch.equal(build(old, tmp_path).conv1.weight, state["conv1.weight"])


def test_weights_are_not_read_when_a_checkpoint_follows():
    ResNetConfig(width=4, weights="/nowhere/weights.pth").build(pretrained=False)


def without_bn1(state):
    return {key: value for key, value in state.items() if key not in ("bn1.weight", "bn1.bias")}


FIT = "weights: expected the keys and shapes of this resnet18, got {} in '{}'. "
HINT = "Check the backbone's type and width, or use weights 'none'."


@pytest.mark.parametrize(("change", "width", "fault"), [
    (without_bn1, 4, "2 missing (first: bn1.weight)"),
    (lambda state: {**state, "neck.weight": torch.zeros(1)}, 4, "1 unknown (first: neck.weight)"),
    (dict, 5, "100 of another shape (first: conv1.weight (4, 3, 7, 7) instead of (5, 3, 7, 7))"),
])  # fmt: skip
def test_weights_that_do_not_fit(state, tmp_path, change, width, fault):
    with pytest.raises(CheckpointError) as error:
        build(change(state), tmp_path, width=width)
    assert str(error.value) == FIT.format(fault, tmp_path / "weights.pth") + HINT


def test_missing_file():
    with pytest.raises(CheckpointError) as error:
        ResNetConfig(weights="no.pth").build()
    assert str(error.value) == "weights: expected a file, got the missing 'no.pth'. Check the path."


def test_damaged_file(tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(b"not a torch file")
    with pytest.raises(CheckpointError) as error:
        ResNetConfig(weights=str(path)).build()
    assert str(error.value).startswith(f"weights: expected a state dict of tensors, got the unreadable '{path}' (")
    assert str(error.value).endswith("). Save the model's state_dict() with torch.save.")


def test_a_file_with_other_content(tmp_path):
    with pytest.raises(CheckpointError) as error:
        build({"model": {"conv1.weight": torch.zeros(1)}}, tmp_path)
    assert str(error.value) == (
        f"weights: expected a state dict of tensors, got other content in '{tmp_path / 'weights.pth'}'. "
        "Save the model's state_dict() with torch.save."
    )


def test_no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    with pytest.raises(ConfigError) as error:
        ResNetConfig(weights="imagenet").build()
    assert str(error.value) == (
        "weights: expected weights that can be downloaded, got 'imagenet' "
        "(<urlopen error no route to host>). Fetch https://download.pytorch.org/models/resnet18-f37072fd.pth "
        "elsewhere and give the file's path."
    )


def test_downloaded_weights_are_used_without_executing_the_file(monkeypatch):
    asked = {}

    def download(url, **options):
        asked.update(options, url=url)
        return models.resnet18(weights=None).state_dict()

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", download)
    ResNetConfig(weights="IMAGENET1K_V1").build()
    assert asked["url"].endswith("resnet18-f37072fd.pth")
    assert asked["weights_only"]
    assert asked["check_hash"]
