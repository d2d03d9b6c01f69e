import pytest
import torch
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from sparsedet.detection.models.cls_losses import FocalLoss, QualityFocalLoss

LOSSES = {"quality_focal": QualityFocalLoss, "focal": FocalLoss}


@pytest.fixture(scope="module")
def units(golden):
    return golden("golden_units.npz")


@pytest.fixture(scope="module")
def expected(golden):
    return golden("golden_units.json")["losses"]


def random_case(seed, num_anchors=50, num_classes=7):
    generator = torch.Generator().manual_seed(seed)
    logits = (4 * torch.randn(num_anchors, num_classes, generator=generator)).requires_grad_()
    kind = torch.randint(0, 3, (num_anchors,), generator=generator)  # ignored, background, positive
    positive = (kind == 2).nonzero()[:, 0]
    labels = torch.randint(0, num_classes, positive.shape, generator=generator)
    return logits, kind > 0, positive, labels, torch.rand(len(positive), generator=generator)


@pytest.mark.parametrize(("loss", "name"), [
    (QualityFocalLoss(gamma=2.0), "quality_focal_loss"),
    (FocalLoss(alpha=0.25, gamma=2.0), "sigmoid_focal_loss__SUBSTITUTED_KERNEL"),
    (FocalLoss(alpha=0.25, gamma=2.0), "torch_sigmoid_focal_loss"),
])  # fmt: skip
def test_value_and_gradient_equal_ups(loss, name, units, expected):
    logits = units["loss_logits"].flatten(0, 1).requires_grad_()
    target = units["loss_target"].flatten().long()
    positive = (target > 0).nonzero()[:, 0]
    quality = units["loss_scores"].flatten()[positive]
    value = loss.sum(logits, target >= 0, positive, target[positive] - 1, quality) / expected["n_pos"]
    value.backward()
    theirs = expected[name]
    assert value.item() == pytest.approx(theirs["value"], rel=1e-6)
    assert logits.grad.abs().sum().item() == pytest.approx(theirs["grad_abs_sum"], rel=1e-6)
    assert logits.grad.sum().item() == pytest.approx(theirs["grad_sum"], rel=1e-6)
    probes = logits.grad.flatten()[theirs["grad_probe_idx"]]
    torch.testing.assert_close(probes, torch.tensor(theirs["grad_probe"]), rtol=1e-4, atol=1e-6)
    assert (logits.grad[target < 0] == 0).all()


def test_focal_loss_as_its_formula_says():
    logits = torch.tensor([[2.0, -1.0], [0.5, 0.0], [3.0, 3.0]])
    is_counted, positive, labels = torch.tensor([True, True, False]), torch.tensor([1]), torch.tensor([0])
    p = logits.sigmoid()
    right = 0.3 * (1 - p[1, 0]) ** 1.5 * -p[1, 0].log()
    others = torch.stack([0.7 * q**1.5 * -(1 - q).log() for q in (p[0, 0], p[0, 1], p[1, 1])])
    value = FocalLoss(alpha=0.3, gamma=1.5).sum(logits, is_counted, positive, labels, torch.tensor([0.1]))
    torch.testing.assert_close(value, right + others.sum())


@pytest.mark.parametrize("seed", range(3))
def test_focal_loss_is_torchvisions_over_the_counted_anchors(seed):
    logits, is_counted, positive, labels, quality = random_case(seed)
    target = torch.zeros_like(logits)
    target[positive, labels] = 1
    expected = sigmoid_focal_loss(logits[is_counted], target[is_counted], 0.4, 1.0, reduction="sum")
    value = FocalLoss(alpha=0.4, gamma=1.0).sum(logits, is_counted, positive, labels, quality)
    torch.testing.assert_close(value, expected)


@pytest.mark.parametrize("seed", range(3))
def test_quality_focal_loss_without_modulation_is_cross_entropy(seed):
    logits, is_counted, positive, labels, quality = random_case(seed)
    target = torch.zeros_like(logits)
    target[positive, labels] = quality
    expected = F.binary_cross_entropy_with_logits(logits[is_counted], target[is_counted], reduction="sum")
    value = QualityFocalLoss(gamma=0.0).sum(logits, is_counted, positive, labels, quality)
    torch.testing.assert_close(value, expected)


@pytest.mark.parametrize("loss", LOSSES.values())
def test_ignored_anchors_count_nothing(loss):
    logits, is_counted, positive, labels, quality = random_case(5)
    loss().sum(logits, is_counted, positive, labels, quality).backward()
    assert (logits.grad[~is_counted] == 0).all()
    assert (logits.grad[is_counted] != 0).all()


@pytest.mark.parametrize("loss", LOSSES.values())
def test_without_positive_anchors_the_loss_stays_in_the_graph(loss):
    logits = torch.zeros(5, 3, requires_grad=True)
    none = torch.zeros(0, dtype=torch.long)
    loss().sum(logits, torch.ones(5, dtype=torch.bool), none, none, torch.zeros(0)).backward()
    assert (logits.grad > 0).all()


@pytest.mark.parametrize("loss", LOSSES.values())
def test_no_anchor_counted_at_all_gives_zero_and_no_nan(loss):
    logits = torch.full((4, 2), 30.0, requires_grad=True)
    none = torch.zeros(0, dtype=torch.long)
    value = loss().sum(logits, torch.zeros(4, dtype=torch.bool), none, none, torch.zeros(0))
    value.backward()
    assert value == 0
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("loss", LOSSES.values())
def test_extreme_logits_give_finite_losses_and_gradients(loss):
    logits = torch.tensor([[200.0, -200.0], [-200.0, 200.0]], requires_grad=True)
    index = torch.tensor([0, 1])
    value = loss().sum(logits, torch.ones(2, dtype=torch.bool), index, index * 0, torch.ones(2))
    value.backward()
    assert value.isfinite()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("loss", LOSSES.values())
def test_weight_scales_the_loss(loss):
    case = random_case(1)
    torch.testing.assert_close(loss(weight=2.5).sum(*case), 2.5 * loss().sum(*case))
