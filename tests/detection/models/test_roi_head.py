import math

import pytest
import torch

from sparsedet.detection.models import sampling
from sparsedet.detection.models.boxes import decode_boxes
from sparsedet.detection.models.max_iou import MaxIoU
from sparsedet.detection.models.roi_head import RoIHeadConfig, RoIOutput, RoISamples
from sparsedet.detection.models.sampling import BalancedSampler
from sparsedet.detection.structures import Target

ONE_PIXEL = torch.tensor([0.0, 0.0, 1.0, 1.0])  # from UP's inclusive corners to continuous ones


def make_target(boxes=(), labels=None, ignore=(), image_size=(60, 80)):
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    labels = torch.arange(len(boxes)) if labels is None else torch.tensor(labels)
    return Target(boxes, labels, torch.tensor(ignore, dtype=torch.float32).reshape(-1, 4), image_size)


def test_the_head_is_two_hidden_layers_and_two_predictors():
    head = RoIHeadConfig(channels=8, pool_size=3).build(in_channels=4, num_classes=5)
    pooled = torch.randn(6, 4, 3, 3)
    output = head(pooled)
    hidden = (pooled.flatten(1) @ head.fc1.weight.T + head.fc1.bias).clamp(min=0)
    hidden = (hidden @ head.fc2.weight.T + head.fc2.bias).clamp(min=0)
    torch.testing.assert_close(output.cls_logits, hidden @ head.cls_pred.weight.T + head.cls_pred.bias)
    torch.testing.assert_close(output.box_deltas, hidden @ head.box_pred.weight.T + head.box_pred.bias)
    assert output.cls_logits.shape == (6, 6)
    assert output.box_deltas.shape == (6, 24)


def test_initial_weights():
    head = RoIHeadConfig(channels=100, pool_size=5).build(in_channels=16, num_classes=30)
    expected = {"fc1": math.sqrt(1 / 400), "fc2": 0.1, "cls_pred": 0.01, "box_pred": 0.001}
    for name, std in expected.items():
        layer = head.get_submodule(name)
        assert layer.weight.std().item() == pytest.approx(std, rel=4 / math.sqrt(2 * layer.weight.numel()))
        assert not layer.bias.any()


def test_samples_equal_ups(golden, monkeypatch):
    monkeypatch.setattr(sampling, "choose", lambda indices, number: indices[:number])
    units, two_stage = golden("golden_units.npz"), golden("golden_units_two_stage.npz")
    proposals, targets = [], []
    for image, info in enumerate(golden("golden_units.json")["assign"]["image_info"][:2]):
        rows = two_stage["bboxsup_proposals"]
        proposals.append(rows[rows[:, 0] == image][:, 1:5] + ONE_PIXEL)
        boxes = units[f"assign_gt{image}"]
        regions = units[f"assign_ignore{image}"] + ONE_PIXEL
        targets.append(Target(boxes[:, :4] + ONE_PIXEL, boxes[:, 4].long() - 1, regions, tuple(info[:2])))
    config = RoIHeadConfig(sampler=BalancedSampler(batch_size=128, positive_share=0.25))
    samples = config.sample(proposals, targets, legacy=True)
    assert [len(rois) for rois in samples.rois] == [128, 113]
    theirs = two_stage["bboxsup_rois"][:, 1:] + ONE_PIXEL
    torch.testing.assert_close(torch.cat(samples.rois), theirs, rtol=0, atol=1e-4)
    assert torch.equal(samples.classes.short(), two_stage["bboxsup_cls"])
    assert torch.equal(samples.positive, two_stage["bboxsup_weight"][:, 0].nonzero()[:, 0])
    torch.testing.assert_close(samples.deltas, two_stage["bboxsup_loc"][samples.positive], rtol=1e-5, atol=1e-5)


def test_true_boxes_are_candidates_and_the_deltas_lead_to_them():
    target = make_target([[10.0, 10.0, 30.0, 30.0], [40.0, 20.0, 70.0, 50.0]], [3, 1])
    proposals = torch.tensor([[12.0, 9.0, 31.0, 30.0], [0.0, 40.0, 20.0, 60.0], [50.0, 20.0, 90.0, 50.0]])
    config = RoIHeadConfig(box_stds=(0.1, 0.2, 0.3, 0.4))
    samples = config.sample([proposals], [target], legacy=False)
    # the third proposal, clipped at x = 80, has IoU 20 / 40 with the second box: neither positive nor background
    assert samples.rois[0].tolist() == [
        [12, 9, 31, 30], [10, 10, 30, 30], [40, 20, 70, 50], [0, 40, 20, 60],
    ]  # fmt: skip
    assert samples.classes.tolist() == [4, 4, 2, 0]
    assert samples.positive.tolist() == [0, 1, 2]
    boxes = decode_boxes(samples.deltas * torch.tensor([0.1, 0.2, 0.3, 0.4]), samples.rois[0][:3])
    torch.testing.assert_close(boxes, target.boxes_xyxy[[0, 0, 1]])


def test_positives_of_later_images_are_counted_on():
    first, second = make_target(image_size=(90, 90)), make_target([[10.0, 10.0, 30.0, 30.0]], [5])
    proposals = [torch.tensor([[1.0, 1.0, 20.0, 20.0]]), torch.tensor([[50.0, 10.0, 60.0, 20.0]])]
    samples = RoIHeadConfig().sample(proposals, [first, second], legacy=False)
    assert [len(rois) for rois in samples.rois] == [1, 2]
    assert samples.classes.tolist() == [0, 6, 0]
    assert samples.positive.tolist() == [1]


def test_ignored_proposals_are_not_sampled():
    target = make_target(ignore=[[0.0, 0.0, 40.0, 60.0]])
    proposals = torch.tensor([[1.0, 1.0, 20.0, 20.0], [30.0, 0.0, 60.0, 30.0]])
    samples = RoIHeadConfig().sample([proposals], [target], legacy=False)
    assert samples.rois[0].tolist() == [[30, 0, 60, 30]]


@pytest.mark.parametrize("ignore", [(), ((0.0, 0.0, 80.0, 60.0),)])
def test_no_proposals_and_no_boxes(ignore):
    target = make_target(ignore=ignore)
    samples = RoIHeadConfig().sample([torch.zeros(0, 4)] * 2, [target] * 2, legacy=True)
    assert [rois.shape for rois in samples.rois] == [(0, 4)] * 2
    head = RoIHeadConfig(channels=4, pool_size=2).build(3, 5)
    losses = RoIHeadConfig().losses(head(torch.zeros(0, 3, 2, 2)), samples)
    assert losses["cls_loss"] == losses["box_loss"] == 0
    sum(losses.values()).backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in head.parameters())


def test_class_loss_equals_ups(golden):
    units = golden("golden_units.npz")
    expected = golden("golden_units_two_stage.json")["losses"]["softmax_cross_entropy_w4"]
    logits = torch.cat([units["loss_logits"][0], units["loss_logits"][1][:, :1]], dim=1).requires_grad_()
    classes = units["loss_target"][0].clamp(min=0).long()
    samples = RoISamples([], classes, torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))
    loss = RoIHeadConfig(cls_weight=4.0).losses(RoIOutput(logits, torch.zeros(200, 81 * 4)), samples)["cls_loss"]
    assert loss.item() == pytest.approx(expected["value"], rel=1e-5)
    loss.backward()
    gradient = logits.grad.flatten()[expected["grad_probe_idx"]]
    torch.testing.assert_close(gradient, torch.tensor(expected["grad_probe"]), rtol=1e-4, atol=1e-8)


def test_box_loss_equals_ups(golden):
    units = golden("golden_units.npz")
    expected = golden("golden_units_two_stage.json")["losses"]["l1_loss_norm13"]  # 40 boxes divided by 13
    deltas = torch.zeros(40, 3, 4)
    deltas[:, 1] = units["loc_pred"]
    samples = RoISamples([], torch.ones(40, dtype=torch.int64), torch.arange(40), units["loc_target"])
    output = RoIOutput(torch.zeros(40, 3), deltas.flatten(1))
    loss = RoIHeadConfig(box_weight=4.5).losses(output, samples)["box_loss"]
    assert loss.item() * 40 / 13 == pytest.approx(expected["value"], rel=1e-5)


def test_the_box_loss_looks_at_the_columns_of_the_right_class():
    deltas = torch.arange(2 * 3 * 4.0).view(2, 12).requires_grad_()  # two regions, background and two classes
    samples = RoISamples([], torch.tensor([0, 2]), torch.tensor([1]), torch.zeros(1, 4))
    loss = RoIHeadConfig().losses(RoIOutput(torch.zeros(2, 3), deltas), samples)["box_loss"]
    assert loss.item() == (20 + 21 + 22 + 23) / 2  # divided by both regions
    loss.backward()
    assert deltas.grad.nonzero().tolist() == [[1, 8], [1, 9], [1, 10], [1, 11]]


def test_second_stage_thresholds_by_default():
    config = RoIHeadConfig()
    assert config.assigner == MaxIoU(positive_iou=0.5, negative_iou=0.5, ignore_iou=0.5, low_quality=False)
    assert config.sampler == BalancedSampler(batch_size=512, positive_share=0.25)
