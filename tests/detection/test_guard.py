import pytest
import torch
from torch import nn

from sparsedet.detection.guard import MAX_SKIPPED, Guard, TrainingError

WHERE = "at step 3"
BAD = [float("nan"), float("inf"), float("-inf")]


def net():
    return nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))


@pytest.mark.parametrize("value", BAD)
def test_losses(value):
    guard = Guard(net(), scales_loss=False)
    guard.check_loss({"a": 1e38, "b": -1.0}, WHERE)
    with pytest.raises(TrainingError, match=r"expected a finite loss, got \{'a': 1.0, 'b': -?(nan|inf)\} at step 3"):
        guard.check_loss({"a": 1.0, "b": value}, WHERE)


def test_gradients_name_the_parameters():
    model = net()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    model[0].bias.grad[1] = float("nan")
    guard = Guard(model, scales_loss=False)
    assert guard.check_gradient(1e38, WHERE)
    message = r"expected a finite gradient, got norm nan at step 3, first in '0.bias' of 1 parameters\. .* fp32"
    with pytest.raises(TrainingError, match=message):
        guard.check_gradient(float("nan"), WHERE)


def test_a_loss_scaler_may_skip_steps_but_not_many_in_a_row():
    guard = Guard(net(), scales_loss=True)
    for _ in range(2):
        assert not any(guard.check_gradient(float("inf"), WHERE) for _ in range(MAX_SKIPPED - 1))
        assert guard.check_gradient(1.0, WHERE)
    for _ in range(MAX_SKIPPED - 1):
        guard.check_gradient(float("inf"), WHERE)
    with pytest.raises(TrainingError, match=rf"got norm inf in {MAX_SKIPPED} steps in a row at step 3.* bf16"):
        guard.check_gradient(float("inf"), WHERE)


@pytest.mark.parametrize("name", ["0.weight", "1.running_var"])
@pytest.mark.parametrize("value", BAD)
def test_weights_and_statistics(name, value):
    model, average = net(), net()
    guard = Guard(model, scales_loss=False)
    guard.check_state(8, model, average)
    average.state_dict()[name].view(-1)[1] = value
    guard.check_state(8, model)
    with pytest.raises(TrainingError, match=rf"finite weights, got inf or NaN in '{name}' and 0 more before step 8"):
        guard.check_state(8, model, average)
