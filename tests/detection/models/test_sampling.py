import pytest
import torch

from sparsedet.detection.models.assignment import BACKGROUND, IGNORED
from sparsedet.detection.models.sampling import BalancedSampler, choose


def make_matches(num_positive, num_background, num_ignored):
    """Matches in a mixed order."""
    kinds = torch.tensor([0] * num_positive + [BACKGROUND] * num_background + [IGNORED] * num_ignored)
    return kinds[torch.randperm(len(kinds), generator=torch.Generator().manual_seed(0))]


@pytest.mark.parametrize(("available", "chosen"), [
    ((50, 500, 9), (16, 48)),  # a quarter of 64 and the rest
    ((5, 500, 9), (5, 59)),  # background fills up
    ((50, 20, 9), (16, 20)),  # positives do not
    ((0, 500, 9), (0, 64)),
    ((7, 0, 9), (7, 0)),
    ((0, 0, 9), (0, 0)),
])  # fmt: skip
def test_numbers(available, chosen):
    matches = make_matches(*available)
    positive, background = BalancedSampler(batch_size=64, positive_share=0.25).sample(matches)
    assert (len(positive), len(background)) == chosen
    assert (matches[positive] >= 0).all()
    assert (matches[background] == BACKGROUND).all()
    assert len(positive.unique()) + len(background.unique()) == sum(chosen)


def test_the_number_of_positives_is_rounded_down():
    positive, background = BalancedSampler(batch_size=10, positive_share=0.25).sample(make_matches(50, 50, 0))
    assert (len(positive), len(background)) == (2, 8)


def test_choices_are_uniform_and_follow_the_global_generator():
    torch.manual_seed(0)
    indices = torch.arange(100, 110)
    counts = torch.stack([choose(indices, 3) for _ in range(2000)]).flatten().bincount()[100:]
    assert (counts - 600).abs().max() < 5 * (2000 * 0.3 * 0.7) ** 0.5  # five standard deviations
    torch.manual_seed(1)
    first = choose(indices, 3)
    torch.manual_seed(1)
    assert torch.equal(choose(indices, 3), first)
    assert torch.equal(choose(indices, 10), indices)
