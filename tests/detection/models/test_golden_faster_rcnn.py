"""The whole detector against United-Perception's faster_rcnn_r50_fpn_improve, run by UP's own code."""

import re
from copy import copy, deepcopy

import pytest
import torch
from torchvision.ops import box_iou

from sparsedet.detection.models import FasterRCNNConfig, MaxIoU, ResNetConfig
from sparsedet.detection.models.assignment import BACKGROUND, IGNORED
from sparsedet.detection.models.roi_head import RoIHeadConfig
from sparsedet.detection.models.roi_pooling import roi_levels
from sparsedet.detection.models.rpn import RPNConfig
from sparsedet.detection.models.sampling import BalancedSampler

NUM_CLASSES = 80
ONE_PIXEL = torch.tensor([0.0, 0.0, 1.0, 1.0])  # from UP's inclusive corners to continuous ones
TAGS = ("train", "train_ignores")

UP_NAMES = (  # our name -> UP's
    (r"^backbone\.conv1\.", "backbone.layer0.0."),
    (r"^backbone\.bn1\.", "backbone.layer0.1."),
    (r"^neck\.lateral\.(\d)\.conv\.", r"neck.c\1_lateral."),
    (r"^neck\.output\.(\d)\.conv\.", r"neck.p\1_conv."),
    (r"^rpn\.conv\.", "roi_head.conv3x3."),
    (r"^rpn\.cls_pred\.", "roi_head.conv_cls."),
    (r"^rpn\.box_pred\.", "roi_head.conv_loc."),
    (r"^box_head\.fc1\.", "bbox_head.fc6."),
    (r"^box_head\.fc2\.", "bbox_head.fc7."),
    (r"^box_head\.cls_pred\.", "bbox_head.fc_rcnn_cls."),
    (r"^box_head\.box_pred\.", "bbox_head.fc_rcnn_loc."),
)


def up_name(name):
    for ours, theirs in UP_NAMES:
        name = re.sub(ours, theirs, name)
    return name


@pytest.fixture(scope="module")
def expected(golden):
    return golden("golden_faster_rcnn_r50_fpn_improve.json")


@pytest.fixture(scope="module")
def arrays(golden):
    return golden("golden_faster_rcnn_r50_fpn_improve.npz")


@pytest.fixture(scope="module")
def model(recipe):
    config = FasterRCNNConfig(
        backbone=ResNetConfig(type="resnet50", levels=(2, 3, 4, 5), frozen_stages=2),
        rpn=RPNConfig(assigner=MaxIoU(positive_iou=0.7, negative_iou=0.3, low_quality=True, low_quality_iou=0.3)),
        roi_head=RoIHeadConfig(cls_weight=4.0, box_weight=4.5, up_compat=True),
        legacy_boxes=True,
    )
    model = config.build(NUM_CLASSES)
    value = recipe["value"]
    model.load_state_dict(
        {key: torch.from_numpy(value(up_name(key), old.shape)) for key, old in model.state_dict().items()}
    )
    return model.eval()


@pytest.fixture(scope="module")
def targets(make_targets):
    """The targets of both kinds of training pass, without and with ignore regions."""
    return {tag: make_targets(tag) for tag in TAGS}


@pytest.fixture(scope="module")
def outputs(model, images):
    with torch.no_grad():
        return model(images)


@pytest.fixture(scope="module")
def proposals(arrays):
    """UP's own proposals: order and last entries of ours may differ, as scores differ by as little as 1e-6."""
    names = {"eval": "rpn_proposals_eval", "train": "train_rpn_proposals"}
    return {
        mode: [arrays[name][arrays[name][:, 0] == image][:, 1:5] + ONE_PIXEL for image in (0, 1)]
        for mode, name in names.items()
    }


def sampled(arrays, tag, stage, image):
    return tuple(arrays[f"{tag}_{stage}_img{image}_sampled_{kind}"].long() for kind in ("pos", "neg"))


class Samples:
    """Stands in for `BalancedSampler.sample`: hands out the golden's samples and keeps what it was given."""

    def __init__(self, arrays, tag, stages):
        self.left = [sampled(arrays, tag, stage, image) for stage in stages for image in (0, 1)]
        self.matches = []

    def sample(self, matches):
        self.matches.append(matches)
        return self.left.pop(0)


@pytest.fixture(scope="module")
def trained(model, targets, proposals, images, arrays):
    """Model, outputs and gradients of one training pass; matches and losses for both kinds of targets."""
    model = deepcopy(model).train()
    outputs = model(images)
    matches, losses = {}, {}
    for tag in TAGS:
        samples = Samples(arrays, tag, ("rpn", "bbox"))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(BalancedSampler, "sample", lambda self, given, samples=samples: samples.sample(given))
            patch.setattr(model.rpn, "proposals", lambda *arguments: proposals["train"])
            losses[tag] = model.losses(outputs, targets[tag])
        matches[tag] = samples.matches
    sum(losses["train"].values()).backward()
    return model, outputs, matches, losses


def outputs_of(mode, request):
    """Return what the network makes of the images in eval or training mode; the latter takes seconds."""
    return request.getfixturevalue("outputs") if mode == "eval" else request.getfixturevalue("trained")[1]


def assert_probes(actual, summary, rtol, atol):
    assert list(actual.shape) == summary["shape"]
    probes = actual.detach().flatten()[summary["probe_idx"]]
    torch.testing.assert_close(probes, torch.tensor(summary["probe"]), rtol=rtol, atol=atol)
    assert actual.abs().mean().item() == pytest.approx(summary["abs_mean"], rel=rtol, abs=atol)


def test_names_shapes_and_frozen_parameters(model, golden):
    keys = golden("golden_faster_rcnn_r50_fpn_improve_keys.json")
    theirs = {row["key"]: tuple(row["shape"]) for row in keys["keys"]}
    assert {up_name(key): tuple(value.shape) for key, value in model.state_dict().items()} == theirs
    trainable = {row["key"] for row in keys["keys"] if row["requires_grad"]}
    assert {up_name(name) for name, value in model.named_parameters() if value.requires_grad} == trainable


def test_the_weights_are_those_the_golden_was_made_with(model, expected):
    checksum = expected["weights_checksum"]["backbone.layer0.0.weight"]
    assert model.backbone.conv1.weight.sum().item() == pytest.approx(checksum, abs=1e-3)


def test_feature_maps(model, images, outputs, expected):
    with torch.no_grad():
        features = model.backbone(images)
    for part, maps in (("backbone", features), ("neck", outputs.features)):
        for actual, summary in zip(maps, expected["eval"][part], strict=True):
            assert_probes(actual, summary, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("mode", "tolerance"), [("eval", 1e-4), pytest.param("train", 1e-3, marks=pytest.mark.slow)])
def test_rpn_outputs(mode, tolerance, request, expected):
    for output, summaries in zip(outputs_of(mode, request).rpn, expected[mode]["roi_head"], strict=True):
        assert_probes(output.cls_logits, summaries[0], rtol=tolerance, atol=tolerance)
        assert_probes(output.box_deltas, summaries[1], rtol=tolerance, atol=tolerance)


def test_anchors(model, outputs, expected, arrays):
    anchors = [level - ONE_PIXEL for level in model.rpn.anchors(outputs.rpn)]
    for actual, summary in zip(anchors, expected["anchors"], strict=True):
        assert list(actual.shape) == summary["shape"]
        assert actual.sum().item() == summary["sum"]
        assert actual[:3].tolist() == summary["first_cell"]
        assert actual[-1].tolist() == summary["last"]
    assert torch.equal(anchors[3], arrays["anchors_level3"])


@pytest.mark.parametrize(("mode", "top_n", "share_in_place"), [
    ("eval", 1000, 0.99),
    pytest.param("train", 2000, 0.95, marks=pytest.mark.slow),
])  # fmt: skip
def test_proposals(mode, top_n, share_in_place, request, model, proposals, image_sizes):
    ours = model.rpn.proposals(outputs_of(mode, request).rpn, image_sizes, top_n, 1000)
    for boxes, theirs in zip(ours, proposals[mode], strict=True):
        assert len(boxes) == len(theirs) == 1000
        overlap = box_iou(theirs, boxes) > 0.999
        assert overlap.any(dim=1).sum() >= 998
        assert overlap.any(dim=0).sum() >= 998
        # but for neighbours of nearly the same score, the order is the same
        assert overlap.diagonal().float().mean() > share_in_place


@pytest.mark.slow
@pytest.mark.parametrize("tag", TAGS)
def test_matches(tag, trained, targets, expected, arrays):
    for index, row in enumerate(expected[tag]["assignment"]):
        matches = trained[2][tag][index]
        prefix = f"{tag}_{row['stage']}_img{row['image']}_match_"
        positive = (matches >= 0).nonzero()[:, 0]
        first = 4 if row["stage"] == "rpn" and row["image"] == 1 else 0  # the RPN counts boxes over all images
        assert torch.equal(positive.int(), arrays[prefix + "pos_index"])
        assert torch.equal((matches[positive] - first).short(), arrays[prefix + "pos_gt"])
        assert len(matches) == row["candidates"]
        assert (matches == BACKGROUND).sum() == row["match_neg"]
        assert (matches == IGNORED).sum() == row["match_ignore"]


@pytest.mark.slow
@pytest.mark.parametrize("tag", TAGS)
def test_losses(tag, trained, expected):
    losses = trained[3][tag]
    theirs = expected[tag]["losses"]
    assert list(losses) == ["rpn_cls_loss", "rpn_box_loss", "cls_loss", "box_loss"]
    assert losses["rpn_cls_loss"].item() == pytest.approx(theirs["RPNPostProcess.cls_loss"], rel=1e-4)
    assert losses["rpn_box_loss"].item() == pytest.approx(theirs["RPNPostProcess.loc_loss"], rel=1e-4)
    assert losses["cls_loss"].item() == pytest.approx(theirs["BboxNet.cls_loss"], rel=1e-4)
    assert losses["box_loss"].item() == pytest.approx(theirs["BboxNet.loc_loss"], rel=1e-4)


@pytest.mark.slow
def test_gradients(trained, expected):
    # Measured: head and neck differ by less than 1e-3 from float64 and from UP; in layer2 the random network with
    # the batch norm of two images is chaotic: 1e-7 more or less in the images moves ours by 2 %, float64 by 4 %.
    gradients = {up_name(name): parameter.grad for name, parameter in trained[0].named_parameters()}
    for name, summary in expected["train"]["grad_probe"].items():
        if summary is None:
            assert gradients[name] is None, name
        else:
            tolerance = 0.1 if name.startswith("backbone.") else 2e-3
            assert_probes(gradients[name], summary, rtol=tolerance, atol=tolerance * summary["abs_mean"])
    num_without = sum(gradient is None for gradient in gradients.values())
    assert num_without == expected["train"]["n_params_without_grad"]


@pytest.fixture(scope="module")
def samples(model, targets, proposals, arrays):
    stand_in = Samples(arrays, "train", ("bbox",))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BalancedSampler, "sample", lambda self, matches: stand_in.sample(matches))
        return model.config.roi_head.sample(proposals["train"], targets["train"], legacy=True)


def test_second_stage_targets(samples, arrays):
    in_order = arrays["train_bbox_rois_level_ordered"][arrays["train_bbox_recover_inds"].long()]
    images = torch.cat([torch.full((len(rois),), float(image)) for image, rois in enumerate(samples.rois)])
    assert torch.equal(images, in_order[:, 0])
    torch.testing.assert_close(torch.cat(samples.rois) - ONE_PIXEL, in_order[:, 1:], rtol=0, atol=1e-4)
    assert torch.equal(samples.classes.short(), arrays["train_bbox_cls_target"])
    deltas = torch.zeros(len(samples.classes), 4)
    deltas[samples.positive] = samples.deltas
    torch.testing.assert_close(deltas, arrays["train_bbox_loc_target"], rtol=1e-5, atol=1e-5)
    weights = torch.zeros(len(samples.classes), 4, dtype=torch.int8)
    weights[samples.positive] = 1
    assert torch.equal(weights, arrays["train_bbox_loc_weight"])


def level_order(model, samples):
    """Return the order in which UP's head sees the regions: by level, then as sampled."""
    config = model.config.roi_head
    levels = roi_levels(torch.cat(samples.rois), config.num_levels, config.base_scale)
    assert len(levels.unique()) > 2
    return levels.argsort(stable=True)


def test_levels_of_the_sampled_regions(model, samples, arrays):
    order = level_order(model, samples)
    assert torch.equal(order.argsort().int(), arrays["train_bbox_recover_inds"])


@pytest.mark.slow
def test_predictions_for_the_sampled_regions(trained, samples, expected):
    model, outputs = trained[:2]
    with torch.no_grad():
        output = model.predict(outputs.features, samples.rois)
    order = level_order(model, samples)
    for actual, summary in zip(output, expected["train"]["bbox_head"], strict=True):
        assert_probes(actual[order], summary, rtol=1e-3, atol=1e-3)


def test_predictions_that_pool_from_every_level(model, outputs, proposals, expected):
    """The probes of UP's 8000 regions: 1000 proposals of each image, from the finest level, from the next …"""
    summaries = expected["eval"]
    assert summaries["n_rois_into_bbox_head"] == 8000
    for field, summary in enumerate(summaries["bbox_head"]):
        probes = torch.tensor(summary["probe_idx"])
        rows, columns = probes // summary["shape"][1], probes % summary["shape"][1]
        levels, images, numbers = rows // 2000, rows % 2000 // 1000, rows % 1000
        chosen = [proposals["eval"][image][numbers[images == image]] for image in (0, 1)]
        with torch.no_grad():
            output = model.predict(outputs.features, chosen, every_level=True)[field].view(4, len(rows), -1)
        order = torch.cat([(images == image).nonzero()[:, 0] for image in (0, 1)]).argsort()
        values = output[:, order][levels, torch.arange(len(rows)), columns]
        torch.testing.assert_close(values, torch.tensor(summary["probe"]), rtol=1e-4, atol=1e-4)


def num_found(model, outputs, proposals, image_sizes, arrays):
    """Return how many of UP's 200 detections are among those that UP's proposals give."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model.rpn, "proposals", lambda *arguments: proposals["eval"])
        found = model.detect(outputs, image_sizes)
    number = 0
    for image, detections in enumerate(found):
        theirs = arrays["detections"][arrays["detections"][:, 0] == image]
        assert len(detections.scores) == len(theirs) == 100
        overlap = box_iou(theirs[:, 1:5] + ONE_PIXEL, detections.boxes_xyxy) > 0.99
        same_class = theirs[:, 6:7] == detections.labels + 1
        same_score = (theirs[:, 5:6] - detections.scores).abs() < 1e-4
        number += int((overlap & same_class & same_score).any(dim=1).sum())
    return number


@pytest.mark.slow
def test_detections_equal_ups_when_all_levels_compete(model, outputs, proposals, image_sizes, arrays):
    assert num_found(model, outputs, proposals, image_sizes, arrays) >= 198


def test_detections_differ_from_ups_when_each_region_has_one_level(model, outputs, proposals, image_sizes, arrays):
    right = copy(model)
    roi_head = model.config.roi_head.model_copy(update={"up_compat": False})
    right.config = model.config.model_copy(update={"roi_head": roi_head})
    assert 168 <= num_found(right, outputs, proposals, image_sizes, arrays) <= 178  # 173 in an independent rebuild


@pytest.mark.slow
def test_random_choices_follow_torchs_generator_as_ups_do(trained, arrays):
    torch.manual_seed(0)
    for image in (0, 1):
        ours = BalancedSampler(batch_size=256, positive_share=0.5).sample(trained[2]["train"][image])
        for chosen, theirs in zip(ours, sampled(arrays, "train", "rpn", image), strict=True):
            assert torch.equal(chosen, theirs)
