"""All parameters, biases and norms included, by the patterns that name weights."""

import pytest
import torch
from torch import nn

from sparsedet.common.errors import TargetMatchError
from sparsedet.sparsity import match_parameters

BODY = "body.stem.weight body.stem.bias body.norm.weight body.norm.bias"


class Net(nn.Module):
    """Stem, norm, a depthwise convolution, and two linear layers that share one weight."""

    def __init__(self):
        super().__init__()
        self.body = nn.ModuleDict({"stem": nn.Conv2d(3, 4, 1), "norm": nn.BatchNorm2d(4)})
        self.depthwise = nn.Conv2d(4, 4, 1, groups=4, bias=False)
        self.one = nn.Linear(4, 4)
        self.other = nn.Linear(4, 4, bias=False)
        self.other.weight = self.one.weight
        self.scale = nn.Parameter(torch.ones(1))


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ("*", f"scale {BODY} depthwise.weight one.weight one.bias"),
        ("body.*", BODY),
        ("body.stem", "body.stem.weight body.stem.bias"),
        ("body.stem.bias", "body.stem.bias"),
        ("scale", "scale"),
        (r"re:.*\.bias", "body.stem.bias body.norm.bias one.bias"),
        ("type:BatchNorm2d", "body.norm.weight body.norm.bias"),
        ("type:Linear", "one.weight one.bias"),
        ("other.weight", "one.weight"),
        ("other", "one.weight"),
        ("preset:stem", "body.stem.weight body.stem.bias"),
        ("preset:depthwise", "depthwise.weight"),
        ("preset:prediction", "one.weight one.bias"),
    ],
)  # fmt: skip
def test_grammar(selector, expected):
    assert match_parameters("freeze", selector, Net(), {"one.weight"}) == set(expected.split())


@pytest.mark.parametrize(
    ("selector", "message"),
    [
        ("body", r"freeze\[0\]: expected a pattern that matches a parameter, got 'body', .* mean 'body\.\*'"),
        ("neck.*", r"matches none of 8\. Correct or remove it"),
        ("preset:prediction", "expected example inputs"),
    ],
)  # fmt: skip
def test_what_matches_nothing_is_an_error(selector, message):
    with pytest.raises(TargetMatchError, match=message):
        match_parameters("freeze[0]", selector, Net())
