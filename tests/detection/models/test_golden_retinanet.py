"""The whole detector against United-Perception's retinanet-r18-improve, run by UP's own code."""

import re
from copy import deepcopy

import pytest
import torch
from torchvision.ops import box_iou

from sparsedet.detection.models import ATSS, ResNetConfig, RetinaNetConfig
from sparsedet.detection.models.boxes import encode_boxes
from sparsedet.detection.structures import Target

NUM_CLASSES = 80
ONE_PIXEL = torch.tensor([0.0, 0.0, 1.0, 1.0])  # from UP's inclusive corners to continuous ones

UP_NAMES = (  # our name -> UP's
    (r"^backbone\.conv1\.", "backbone.layer0.0."),
    (r"^backbone\.bn1\.", "backbone.layer0.1."),
    (r"^neck\.lateral\.(\d)\.conv\.", r"neck.c\1_lateral.conv."),
    (r"^neck\.lateral\.(\d)\.norm\.", r"neck.c\1_lateral.bn."),
    (r"^neck\.output\.(\d)\.conv\.", r"neck.p\1_conv.conv."),
    (r"^neck\.output\.(\d)\.norm\.", r"neck.p\1_conv.bn."),
    (r"^neck\.extra\.(\d)\.", r"neck.p\1_conv."),
    (r"^head\.(cls|box)_tower\.convs\.(\d)\.", r"roi_head.\1_subnet.0.\2.0."),
    (r"^head\.(cls|box)_tower\.norms\.(\d)\.(\d)\.", r"roi_head.\1_subnet.\3.\2.1."),
    (r"^head\.(cls|box)_pred\.", r"roi_head.\1_subnet_pred."),
)


def up_name(name):
    for ours, theirs in UP_NAMES:
        name = re.sub(ours, theirs, name)
    return name


@pytest.fixture(scope="module")
def recipe(golden):
    return golden("recipe.py")


@pytest.fixture(scope="module")
def expected(golden):
    return golden("golden_retinanet_r18_improve.json")


@pytest.fixture(scope="module")
def arrays(golden):
    return golden("golden_retinanet_r18_improve.npz")


@pytest.fixture(scope="module")
def images(recipe):
    return torch.from_numpy(recipe["image"]())


@pytest.fixture(scope="module")
def model(recipe):
    config = RetinaNetConfig(
        backbone=ResNetConfig(type="resnet18", frozen_stages=2),
        assigner=ATSS(top_n=18, ignore_overrides_positives=True),
        legacy_boxes=True,
    )
    model = config.build(NUM_CLASSES)
    value = recipe["value"]
    model.load_state_dict(
        {key: torch.from_numpy(value(up_name(key), old.shape)) for key, old in model.state_dict().items()}
    )
    return model.eval()


@pytest.fixture(scope="module")
def image_sizes(recipe):
    return [tuple(info[:2]) for info in recipe["IMAGE_INFO"]]


@pytest.fixture(scope="module")
def make_targets(recipe, image_sizes):
    def make(tag):
        regions = recipe["IGNORE"] if tag == "train_ignores" else [torch.zeros(0, 4)] * 2
        return [
            Target(
                torch.from_numpy(rows[:, :4]) + ONE_PIXEL,
                torch.from_numpy(rows[:, 4]).long() - 1,
                torch.as_tensor(region) + ONE_PIXEL,
                size,
            )
            for rows, region, size in zip(recipe["GT"], regions, image_sizes, strict=True)
        ]

    return make


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


def assert_probes(actual, summary, rtol, atol):
    assert list(actual.shape) == summary["shape"]
    probes = actual.detach().flatten()[summary["probe_idx"]]
    torch.testing.assert_close(probes, torch.tensor(summary["probe"]), rtol=rtol, atol=atol)
    assert actual.abs().mean().item() == pytest.approx(summary["abs_mean"], rel=rtol, abs=atol)
    assert actual.max().item() == pytest.approx(summary["max"], rel=rtol, abs=atol)


def test_the_weights_are_those_the_golden_was_made_with(model, expected):
    state = model.state_dict()
    checksum = expected["weights_checksum"]["backbone.layer0.0.weight"]
    assert state["backbone.conv1.weight"].sum().item() == pytest.approx(checksum, abs=1e-3)
    assert len({up_name(name) for name in state}) == len(state) == 404 - 32  # UP stores shared convs 5 times


@pytest.mark.parametrize("part", ["backbone", "neck"])
def test_feature_maps(part, evaluated, expected):
    for actual, summary in zip(evaluated[part], expected["eval"][part], strict=True):
        assert_probes(actual, summary, rtol=1e-4, atol=1e-4)


def test_head_outputs(evaluated, trained, expected):
    for output, summaries in zip(evaluated["roi_head"], expected["eval"]["roi_head"], strict=True):
        assert_probes(output.cls_logits, summaries[0], rtol=1e-4, atol=1e-4)
        assert_probes(output.box_deltas, summaries[1], rtol=1e-4, atol=1e-4)
    for output, summaries in zip(trained[1], expected["train"]["roi_head"], strict=True):
        assert_probes(output.cls_logits, summaries[0], rtol=1e-3, atol=1e-3)
        assert_probes(output.box_deltas, summaries[1], rtol=1e-3, atol=1e-3)


def test_anchors(model, evaluated, expected, arrays):
    anchors = [level - ONE_PIXEL for level in model.anchors(evaluated["roi_head"])]
    for actual, summary in zip(anchors, expected["anchors"], strict=True):
        assert list(actual.shape) == summary["shape"]
        assert actual.sum().item() == summary["sum"]
        assert actual[:2].tolist() == summary["first_cell"]
        assert actual[-1].tolist() == summary["last"]
    assert torch.equal(anchors[3], arrays["anchors_level3"])


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
        assert torch.equal((matches == -2).nonzero()[:, 0].int(), arrays[prefix + "clsminus1_index"])


@pytest.mark.parametrize("tag", ["train", "train_ignores"])
def test_losses(tag, trained, expected):
    losses = trained[2][tag]
    theirs = expected[tag]["losses"]
    assert losses["cls_loss"].item() == pytest.approx(theirs["BaseDetPostProcess.cls_loss"], rel=1e-4)
    assert losses["box_loss"].item() == pytest.approx(theirs["BaseDetPostProcess.loc_loss"], rel=1e-4)


def test_gradients(trained, expected):
    gradients = {up_name(name): parameter.grad for name, parameter in trained[0].named_parameters()}
    for name, summary in expected["train"]["grad_probe"].items():
        if summary is None:
            assert gradients[name] is None, name
        else:
            assert_probes(gradients[name], summary, rtol=1e-2, atol=1e-5)
    num_without = sum(gradient is None for gradient in gradients.values())
    assert num_without == expected["train"]["n_params_without_grad"]


def test_running_statistics(trained, expected):
    buffers = {up_name(name): value for name, value in trained[0].named_buffers()}
    for name, summary in expected["train"]["running_stats_after_one_train_forward"].items():
        assert_probes(buffers[name], summary, rtol=1e-3, atol=1e-4)


def test_detections(model, evaluated, image_sizes, arrays):
    found = model.detect(evaluated["roi_head"], image_sizes)
    for image, detections in enumerate(found):
        theirs = arrays["detections"][arrays["detections"][:, 0] == image]
        assert len(detections.scores) == len(theirs) == 100
        overlap = box_iou(theirs[:, 1:5] + ONE_PIXEL, detections.boxes_xyxy) > 0.99
        same_class = theirs[:, 6:7] == detections.labels + 1
        same_score = (theirs[:, 5:6] - detections.scores).abs() < 1e-4
        assert (overlap & same_class & same_score).any(dim=1).all()
