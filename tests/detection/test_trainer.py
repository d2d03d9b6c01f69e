import pytest
import torch
from torch import nn

from sparsedet.common.errors import ConfigError
from sparsedet.detection.data.loader import Batch
from sparsedet.detection.optimization import SGD, Constant, Cosine, TrainingConfig
from sparsedet.detection.structures import Target
from sparsedet.detection.trainer import Level, Trainer, TrainingError

CPU = torch.device("cpu")


class OneWeight(nn.Module):
    """Loss = 3 w times the mean of the images, so that the gradient is known."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(1.0))

    def forward(self, images):
        return self.weight * images.mean()

    def losses(self, outputs, targets):
        return {"a": outputs, "b": 2 * outputs}


def batches(*values):
    target = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4), (2, 2))
    return [Batch(torch.full((1, 3, 2, 2), value), [target], (7,), ((2, 2),)) for value in values]


def trainer(steps=4, callback=None, **config):
    config = {"optimizer": SGD(lr=0.1, momentum=0, weight_decay=0), "lr_schedule": Constant(warmup=0.0)} | config
    return Trainer(OneWeight(), TrainingConfig(steps=steps, batch_size=1, **config), steps, CPU, callback)


def test_steps_worked_out_by_hand():
    run = trainer(max_gradient_norm=None)
    loss = run.train(Level(0, 2), batches(1.0, 2.0))
    # gradient 3, weight 1 - 0.3 = 0.7; gradient 6, weight 0.7 - 0.6 = 0.1
    assert run.model.weight.item() == pytest.approx(0.1)
    assert loss == pytest.approx((3 * 1 * 1 + 3 * 0.7 * 2) / 2)


def test_gradients_are_clipped_and_their_norm_reported():
    run = trainer(max_gradient_norm=1.5)
    reports = []
    run.report = reports.append
    run.train(Level(0, 1), batches(1.0))
    assert run.model.weight.item() == pytest.approx(1 - 0.1 * 1.5)
    assert reports[0].gradient_norm == pytest.approx(3.0)
    assert reports[0].terms == pytest.approx({"a": 1.0, "b": 2.0})


def test_the_learning_rate_starts_again_at_each_level():
    run = trainer(steps=8, lr_schedule=Cosine(warmup=0.0))
    reports = []
    run.report = reports.append
    run.train(Level(0, 4), batches(*[0.0] * 4))
    run.train(Level(4, 8), batches(*[0.0] * 4))
    rates = [report.lr for report in reports]
    assert [report.step for report in reports] == list(range(8))
    assert rates[:4] == rates[4:]
    assert rates[0] == 0.1 > rates[1] > rates[2] > rates[3]


def test_the_callback_acts_before_the_forward_pass():
    calls = []

    class Callback:
        def before_step(self, step, total_steps):
            calls.append((step, total_steps))
            if step == 1:
                run.model.weight.data.fill_(10.0)

        def before_evaluate(self):
            raise AssertionError("not asked for")

    run = trainer(callback=Callback())
    reports = []
    run.report = reports.append
    run.train(Level(0, 2), batches(1.0, 1.0))
    assert calls == [(0, 4), (1, 4)]
    assert reports[1].loss == pytest.approx(30.0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_before_the_weights_change(value):
    run = trainer()
    with pytest.raises(TrainingError, match=r"expected a finite loss, got \{'a': .*\} at step 5 .* images \[7\]"):
        run.train(Level(5, 6), batches(value))
    assert run.model.weight.item() == 1.0


def test_fp16_on_the_cpu_is_refused():
    with pytest.raises(ConfigError, match="expected 'fp32' or 'bf16' on the CPU, got 'fp16'"):
        trainer(precision="fp16")


def test_state_goes_on_where_it_was():
    with_momentum = {"optimizer": SGD(lr=0.1, momentum=0.9, weight_decay=0), "max_gradient_norm": None}
    whole = trainer(**with_momentum)
    whole.train(Level(0, 2), batches(1.0, 1.0))
    first, second = trainer(**with_momentum), trainer(**with_momentum)
    first.train(Level(0, 1), batches(1.0))
    second.model.load_state_dict(first.model.state_dict())
    second.load_state_dict(first.state_dict())
    second.train(Level(1, 2), batches(1.0))
    assert second.model.weight.item() == whole.model.weight.item()
