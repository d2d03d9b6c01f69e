"""The whole detector against United-Perception's three RetinaNets, run by UP's own code."""

import re
from copy import deepcopy
from dataclasses import dataclass

import pytest
import torch
from torchvision.ops import box_iou

from sparsedet.detection.models import (
    ATSS,
    Anchors,
    FocalLoss,
    FPNConfig,
    IoULoss,
    L1Loss,
    MaxIoU,
    PostProcessing,
    ResNetConfig,
    RetinaHeadConfig,
    RetinaNetConfig,
)
from sparsedet.detection.models.assignment import IGNORED
from sparsedet.detection.models.boxes import encode_boxes

NUM_CLASSES = 80
ONE_PIXEL = torch.tensor([0.0, 0.0, 1.0, 1.0])  # from UP's inclusive corners to continuous ones

UP_NAMES = (  # our name -> UP's
    (r"^backbone\.conv1\.", "backbone.layer0.0."),
    (r"^backbone\.bn1\.", "backbone.layer0.1."),
    (r"^neck\.extra\.(\d)\.", r"neck.p\1_conv."),
    (r"^head\.(cls|box)_pred\.", r"roi_head.\1_subnet_pred."),
    (r"^head\.iou_pred\.", "roi_head.iou_pred."),
)
UP_NAMES_WITH_NORMS = (
    *UP_NAMES,
    (r"^neck\.lateral\.(\d)\.conv\.", r"neck.c\1_lateral.conv."),
    (r"^neck\.lateral\.(\d)\.norm\.", r"neck.c\1_lateral.bn."),
    (r"^neck\.output\.(\d)\.conv\.", r"neck.p\1_conv.conv."),
    (r"^neck\.output\.(\d)\.norm\.", r"neck.p\1_conv.bn."),
    (r"^head\.(cls|box)_tower\.convs\.(\d)\.", r"roi_head.\1_subnet.0.\2.0."),
    (r"^head\.(cls|box)_tower\.norms\.(\d)\.(\d)\.", r"roi_head.\1_subnet.\3.\2.1."),
)
UP_NAMES_WITHOUT_NORMS = (
    *UP_NAMES,
    (r"^neck\.lateral\.(\d)\.conv\.", r"neck.c\1_lateral."),
    (r"^neck\.output\.(\d)\.conv\.", r"neck.p\1_conv."),
    *((rf"^head\.(cls|box)_tower\.convs\.{i}\.", rf"roi_head.\1_subnet.{2 * i}.") for i in range(4)),
)

IMPROVE = RetinaNetConfig(
    backbone=ResNetConfig(type="resnet18", frozen_stages=2),
    assigner=ATSS(top_n=18, ignore_overrides_positives=True),
    legacy_boxes=True,
)


@dataclass(frozen=True)
class Case:
    config: RetinaNetConfig
    up_names: tuple[tuple[str, str], ...]
    loss_prefix: str
    num_tensors: int  # in the state dict; UP stores the convolutions that levels share five times, here it is once
    num_weights: int  # in parameters
    num_trained: int  # those of them with a gradient


CASES = {
    "retinanet_r50_1x": Case(
        RetinaNetConfig(
            backbone=ResNetConfig(type="resnet50", frozen_stages=2, norm="batch_norm_fixed_stats"),
            neck=FPNConfig(norm="none"),
            head=RetinaHeadConfig(norm="none"),
            anchors=Anchors(scales=(4, 5.0396842, 6.34960421), ratios=(0.5, 1, 2)),
            assigner=MaxIoU(positive_iou=0.5, negative_iou=0.4, ignore_iou=0.5, low_quality=True),
            cls_loss=FocalLoss(alpha=0.25, gamma=2.0),
            box_losses=(L1Loss(),),
            legacy_boxes=True,
        ),
        UP_NAMES_WITHOUT_NORMS,
        "BaseDetPostProcess",
        num_tensors=354,
        num_weights=33_839_924,
        num_trained=33_614_580,
    ),
    "retinanet_r18_improve": Case(
        IMPROVE,
        UP_NAMES_WITH_NORMS,
        "BaseDetPostProcess",
        num_tensors=404 - 32,
        num_weights=19_484_904,
        num_trained=19_327_400,
    ),
    "retinanet_r18_improve_cos_iou": Case(
        IMPROVE.model_copy(
            update={
                "head": RetinaHeadConfig(iou_branch=True, class_major=True),
                "box_losses": (IoULoss(type="giou", by_quality=True), L1Loss(mean=True)),
                "post_processing": PostProcessing(nms_iou=0.65),
            }
        ),
        UP_NAMES_WITH_NORMS,
        "IOUPostProcess",
        num_tensors=406 - 32,
        num_weights=19_489_514,
        num_trained=19_332_010,
    ),
}


class Recorder:
    """Stands in for a part of the configuration and keeps what the detector hands to it."""

    def __init__(self, result):
        self.result = result
        self.calls = []

    def value(self, matched):
        self.calls.append(matched)
        return self.result

    def select(self, *arguments):
        self.calls.append(arguments)
        return self.result


@pytest.fixture(scope="module", params=CASES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def case(name):
    return CASES[name]


@pytest.fixture(scope="module")
def up_name(case):
    def rename(name):
        for ours, theirs in case.up_names:
            name = re.sub(ours, theirs, name)
        return name

    return rename


@pytest.fixture(scope="module")
def expected(golden, name):
    return golden(f"golden_{name}.json")


@pytest.fixture(scope="module")
def arrays(golden, name):
    return golden(f"golden_{name}.npz")


@pytest.fixture(scope="module")
def model(name, case, up_name, recipe):
    model = case.config.build(NUM_CLASSES)
    value = recipe["value"]
    model.load_state_dict(
        {key: torch.from_numpy(value(up_name(key), old.shape, name)) for key, old in model.state_dict().items()}
    )
    return model.eval()


@pytest.fixture(scope="module")
def trained(model, make_targets, images):
    """Model and outputs of one training pass with its gradients, and the losses for both kinds of targets."""
    model = deepcopy(model).train()
    outputs = model(images)
    losses = {tag: model.losses(outputs, make_targets(tag)) for tag in ("train", "train_ignores")}
    sum(losses["train"].values()).backward()
    return model, outputs, losses


@pytest.fixture(scope="module")
def evaluated(model, images):
    with torch.no_grad():
        features = model.backbone(images)
        maps = model.neck(features)
        return {"backbone": features, "neck": maps, "roi_head": model.head(maps)}


@pytest.fixture
def with_config(model):
    """A function: changes of the configuration -> the evaluated model with them."""

    def change(**parts):
        changed = deepcopy(model)
        changed.config = model.config.model_copy(update=parts)
        return changed

    return change


def assert_probes(actual, summary, rtol, atol):
    assert list(actual.shape) == summary["shape"]
    probes = actual.detach().flatten()[summary["probe_idx"]]
    torch.testing.assert_close(probes, torch.tensor(summary["probe"]), rtol=rtol, atol=atol)
    assert actual.abs().mean().item() == pytest.approx(summary["abs_mean"], rel=rtol, abs=atol)
    assert actual.max().item() == pytest.approx(summary["max"], rel=rtol, abs=atol)


def test_the_weights_are_those_the_golden_was_made_with(model, case, up_name, expected):
    state = model.state_dict()
    checksum = expected["weights_checksum"]["backbone.layer0.0.weight"]
    assert state["backbone.conv1.weight"].sum().item() == pytest.approx(checksum, abs=1e-3)
    assert len({up_name(key) for key in state}) == len(state) == case.num_tensors
    weights = [(weight.numel(), weight.requires_grad) for weight in model.parameters()]
    assert sum(number for number, _ in weights) == case.num_weights
    assert sum(number for number, is_trained in weights if is_trained) == case.num_trained


@pytest.mark.parametrize("part", ["backbone", "neck"])
def test_feature_maps(part, evaluated, expected):
    for actual, summary in zip(evaluated[part], expected["eval"][part], strict=True):
        assert_probes(actual, summary, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("tag", "tolerance"), [("eval", 1e-4), ("train", 1e-3)])
def test_head_outputs(tag, tolerance, evaluated, trained, expected):
    outputs = evaluated["roi_head"] if tag == "eval" else trained[1]
    for output, summaries in zip(outputs, expected[tag]["roi_head"], strict=True):
        tensors = [tensor for tensor in output if tensor is not None]
        for tensor, summary in zip(tensors, summaries, strict=True):
            assert_probes(tensor, summary, rtol=tolerance, atol=tolerance)


def test_anchors(model, evaluated, expected, arrays):
    anchors = [level - ONE_PIXEL for level in model.anchors(evaluated["roi_head"])]
    for actual, summary in zip(anchors, expected["anchors"], strict=True):
        assert list(actual.shape) == summary["shape"]
        assert actual.sum().item() == pytest.approx(summary["sum"], rel=1e-6)
        torch.testing.assert_close(actual[: len(summary["first_cell"])], torch.tensor(summary["first_cell"]))
        torch.testing.assert_close(actual[-1], torch.tensor(summary["last"]))
    torch.testing.assert_close(anchors[3], arrays["anchors_level3"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("tag", ["train", "train_ignores"])
def test_assigned_targets(tag, model, evaluated, make_targets, arrays):
    anchors = model.anchors(evaluated["roi_head"])
    assignment = model.config.assigner.assign(anchors, make_targets(tag), legacy=True)
    for image, matches in enumerate(assignment.matches):
        prefix = f"{tag}_target_img{image}_"
        positive = (matches >= 0).nonzero()[:, 0]
        assert torch.equal(positive.int(), arrays[prefix + "pos_index"])
        assert torch.equal((assignment.labels[matches[positive]] + 1).short(), arrays[prefix + "pos_cls"])
        deltas = encode_boxes(assignment.boxes_xyxy[matches[positive]], torch.cat(anchors)[positive])
        torch.testing.assert_close(deltas, arrays[prefix + "pos_loc_target"], rtol=1e-5, atol=1e-5)
        assert torch.equal((matches == IGNORED).nonzero()[:, 0].int(), arrays[prefix + "clsminus1_index"])


@pytest.mark.parametrize("tag", ["train", "train_ignores"])
@pytest.mark.parametrize("name", ["retinanet_r18_improve_cos_iou"], indirect=True)
def test_iou_targets(tag, with_config, trained, make_targets, arrays):
    recorder = Recorder(torch.zeros(()))
    with_config(box_losses=(recorder,)).losses(trained[1], make_targets(tag))
    quality = recorder.calls[0].quality
    torch.testing.assert_close(quality, arrays[f"{tag}_target_iou_target"], rtol=1e-4, atol=1e-4)
    assert not quality.requires_grad


@pytest.mark.parametrize("tag", ["train", "train_ignores"])
def test_losses(tag, case, trained, expected):
    losses = trained[2][tag]
    theirs = expected[tag]["losses"]
    names = {"cls_loss": "cls_loss", "box_loss": "loc_loss", "iou_loss": "iou_loss"}
    assert {f"{case.loss_prefix}.{names[key]}" for key in losses} == {key for key in theirs if "loss" in key}
    for key, loss in losses.items():
        assert loss.item() == pytest.approx(theirs[f"{case.loss_prefix}.{names[key]}"], rel=1e-4), key


def test_gradients(trained, up_name, expected):
    gradients = {up_name(name): parameter.grad for name, parameter in trained[0].named_parameters()}
    for name, summary in expected["train"]["grad_probe"].items():
        if summary is None:
            assert gradients[name] is None, name
        else:
            assert_probes(gradients[name], summary, rtol=1e-2, atol=1e-2 * summary["abs_mean"])
    num_without = sum(gradient is None for gradient in gradients.values())
    assert num_without == expected["train"]["n_params_without_grad"]


def test_running_statistics(trained, up_name, expected):
    buffers = {up_name(name): value for name, value in trained[0].named_buffers()}
    for name, summary in expected["train"]["running_stats_after_one_train_forward"].items():
        assert_probes(buffers[name], summary, rtol=1e-3, atol=1e-4)


def test_scores(with_config, evaluated, image_sizes, expected):
    recorder = Recorder(None)
    with_config(post_processing=recorder).detect(evaluated["roi_head"], image_sizes)
    images = [arguments[0] for arguments in recorder.calls]
    for level, summary in enumerate(expected["eval"]["activated_score_summary"]):
        assert_probes(torch.stack([scores[level] for scores in images]), summary, rtol=1e-4, atol=1e-6)
        numbers = [int((scores[level] > 0.05).sum()) for scores in images]
        assert numbers == expected["eval"]["activated_scores_gt_0.05"][level]


@pytest.mark.parametrize("up_compat", [False, True])
def test_detections(up_compat, with_config, case, evaluated, image_sizes, arrays):
    post_processing = case.config.post_processing.model_copy(update={"up_compat": up_compat})
    found = with_config(post_processing=post_processing).detect(evaluated["roi_head"], image_sizes)
    for image, detections in enumerate(found):
        theirs = arrays["detections"][arrays["detections"][:, 0] == image]
        assert len(detections.scores) == len(theirs) == 100
        overlap = box_iou(theirs[:, 1:5] + ONE_PIXEL, detections.boxes_xyxy) > 0.99
        same_class = theirs[:, 6:7] == detections.labels + 1
        same_score = (theirs[:, 5:6] - detections.scores).abs() < 1e-4
        assert (overlap & same_class & same_score).any(dim=1).all()
