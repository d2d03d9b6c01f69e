import pytest
import torch
from torch import nn

from sparsedet.common.errors import ConfigError
from sparsedet.detection.data.loader import Batch
from sparsedet.detection.ema import EmaConfig
from sparsedet.detection.guard import MAX_SKIPPED, Guard, TrainingError
from sparsedet.detection.lr_schedules import Constant, Cosine
from sparsedet.detection.optimization import SGD, TrainingConfig
from sparsedet.detection.structures import Target
from sparsedet.detection.trainer import Level, Trainer

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


class Drawing(OneWeight):
    """A loss that weighs its weight with a number drawn at random."""

    def losses(self, outputs, targets):
        return {"a": outputs * torch.randperm(1000)[0]}


class Images(nn.Module):
    """A convolution and a norm with frozen statistics; the loss is a sum over the images of the batch."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 2)
        self.norm = nn.BatchNorm2d(4)
        self.norm.running_var.uniform_(0.5, 2.0)

    def train(self, mode=True):
        super().train(mode)
        self.norm.eval()
        return self

    def forward(self, images):
        return self.norm(self.conv(images))

    def losses(self, outputs, targets):
        return {"a": outputs.square().sum(), "b": outputs.sum()}


def trainer(steps=4, callback=None, model=None, seed=0, **config):
    config = {"optimizer": SGD(lr=0.1, momentum=0, weight_decay=0), "lr_schedule": Constant(warmup=0.0)} | config
    config = TrainingConfig(**{"steps": steps, "batch_size": 1} | config)
    return Trainer(model or OneWeight(), config, 10, CPU, seed, callback)


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

        def before_evaluate(self, model):
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


class Root(OneWeight):
    """A finite loss whose gradient is infinite where the images are 0."""

    def losses(self, outputs, targets):
        return {"a": outputs.abs().sqrt()}


def test_a_gradient_that_is_not_finite_stops_before_the_weights_change():
    for max_norm in (None, 10.0):
        run = trainer(model=Root(), max_gradient_norm=max_norm)
        message = r"finite gradient, got norm nan with the loss \{'a': 0.0\} at step 5 with .* images \[7\], first in"
        with pytest.raises(TrainingError, match=message):
            run.train(Level(5, 6), batches(0.0))
        assert run.model.weight.item() == 1.0


def test_steps_that_the_loss_scaler_skips_are_no_error_until_they_are_many():
    run = trainer(model=Root(), steps=40)
    run.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)  # as under fp16, which the trainer refuses on the CPU
    run.guard = Guard(run.model, scales_loss=True)
    reports = []
    run.report = reports.append
    run.train(Level(0, 3), batches(0.0, 0.0, 1.0))
    assert [report.gradient_norm for report in reports] == [None, None, pytest.approx(0.5)]
    assert run.model.weight.item() == pytest.approx(1 - 0.1 * 0.5)
    with pytest.raises(TrainingError, match=f"norm nan in {MAX_SKIPPED} steps in a row with the loss .* at step 27"):
        run.train(Level(3, 40), batches(*[0.0] * 37))


def channels_last(images):
    return images.contiguous(memory_format=torch.channels_last)


def test_the_norm_that_is_logged_without_clipping_changes_no_bit():
    run = trainer(model=Images(), max_gradient_norm=None)
    reference = Images().to(memory_format=torch.channels_last)
    reports = []
    run.report = reports.append
    run.train(Level(0, 3), split(images(3), 1))
    optimizer = SGD(lr=0.1, momentum=0, weight_decay=0).build(reference.parameters())
    reference.train()
    for batch, report in zip(split(images(3), 1), reports, strict=True):
        optimizer.zero_grad()
        torch.stack(list(reference.losses(reference(channels_last(batch.images)), None).values())).sum().backward()
        gradients = torch.cat([parameter.grad.flatten() for parameter in reference.parameters()])
        assert report.gradient_norm == pytest.approx(gradients.norm().item(), rel=1e-5)
        optimizer.step()
    for ours, theirs in zip(run.model.parameters(), reference.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_weights_that_are_not_finite_are_found():
    run = trainer(ema=EmaConfig())
    run.check_state(1)
    run.average.model.weight.data.fill_(float("nan"))
    with pytest.raises(TrainingError, match="in 'weight' and 0 more before step 1"):
        run.check_state(1)
    run.average.model.weight.data.fill_(1.0)
    run.model.weight.data.fill_(float("inf"))
    with pytest.raises(TrainingError, match="in 'weight' and 0 more before step 1"):
        run.check_state(1)


def test_factors_scale_the_rate_of_their_parameters():
    torch.manual_seed(0)
    config = TrainingConfig(
        steps=1, batch_size=1, optimizer=SGD(lr=0.1, momentum=0, weight_decay=0), lr_schedule=Constant(warmup=0.0),
        max_gradient_norm=None,
    )  # fmt: skip
    before, model = Images().train(), Images()
    run = Trainer(model, config, 10, CPU, lr_factors={"conv.bias": 0.5, "norm.weight": 4.0})
    run.train(Level(0, 1), split(images(1), 1))
    torch.stack(list(before.losses(before(images(1)), None).values())).sum().backward()
    for (name, old), new in zip(before.named_parameters(), model.parameters(), strict=True):
        rate = 0.1 * {"conv.bias": 0.5, "norm.weight": 4.0}.get(name, 1.0)
        torch.testing.assert_close(new, old - rate * old.grad, rtol=1e-5, atol=1e-6)
    state = run.state_dict()
    again = Trainer(Images(), config, 10, CPU, lr_factors={"conv.bias": 0.5, "norm.weight": 4.0})
    again.load_state_dict(state)
    assert [len(group["params"]) for group in again.optimizer.param_groups] == [2, 1, 1]


def test_time_is_that_of_the_steps_and_what_of_it_was_waiting(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("sparsedet.detection.trainer.time.perf_counter", lambda: now[0])

    def slow():
        for batch in batches(*[0.0] * 5):
            now[0] += 1.0  # until a batch is there
            yield batch

    class Slow(OneWeight):
        def forward(self, images):
            now[0] += 3.0
            return super().forward(images)

    class Callback:
        def before_step(self, step, total_steps):
            now[0] += 100.0  # prunes and evaluates

    run = trainer(steps=20, callback=Callback(), model=Slow(), batch_size=2)
    reports = []

    def report(step):
        now[0] += 100.0  # saves
        reports.append(step)

    run.report = report
    run.train(Level(0, 5), slow())
    assert {report.images_per_second for report in reports} == {2 / 4}
    assert {report.data_wait_share for report in reports} == {1 / 4}
    assert [report.seconds_left_in_level for report in reports] == [16.0, 12.0, 8.0, 4.0, 0.0]
    assert reports[-1].seconds_left == 15 * 4.0
    assert all(report.peak_memory_bytes > 2**20 for report in reports)


def test_fp16_on_the_cpu_is_refused():
    with pytest.raises(ConfigError, match="expected 'fp32' or 'bf16' on the CPU, got 'fp16'"):
        trainer(precision="fp16")


@pytest.mark.parametrize("ema", [None, EmaConfig(decay=0.9, ramp="linear", ramp_steps=5)])
def test_a_run_that_was_interrupted_ends_with_the_same_bits(ema):
    settings = {"optimizer": SGD(lr=1e-5, momentum=0.9), "max_gradient_norm": None, "ema": ema, "seed": 3}
    values = [1.0, 2.0, 3.0, 4.0]
    whole = trainer(model=Drawing(), **settings)
    whole.train(Level(0, 4), batches(*values))
    first, second = (trainer(model=Drawing(), **settings) for _ in range(2))
    first.train(Level(0, 2), batches(*values[:2]))
    torch.rand(7)
    second.evaluated_model.load_state_dict(first.evaluated_model.state_dict())
    second.load_state_dict(first.state_dict())
    second.train(Level(2, 4), batches(*values[2:]))
    assert second.model.weight.item() == whole.model.weight.item()
    assert second.evaluated_model.weight.item() == whole.evaluated_model.weight.item()
    assert (whole.evaluated_model.weight.item() != whole.model.weight.item()) == (ema is not None)


def test_what_a_loss_draws_depends_on_seed_and_step():
    def losses(seed, first_step):
        reports = []
        run = trainer(model=Drawing(), seed=seed, optimizer=SGD(lr=1e-30, momentum=0))
        run.report = reports.append
        torch.rand(seed + 5)
        run.train(Level(first_step, 4), batches(*[1.0] * (4 - first_step)))
        return [report.loss for report in reports]

    assert losses(0, 0) == losses(0, 0)
    assert losses(0, 0)[2:] == losses(0, 2)
    assert len(set(losses(0, 0))) == 4
    assert losses(0, 0) != losses(1, 0)


# --- several forward passes in a step --------------------------------------------------------------------


def images(num_images):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(num_images, 3, 5, 5, generator=generator)


def split(images, size):
    target = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4), (5, 5))
    return [
        Batch(part, [target] * len(part), tuple(range(len(part))), ((5, 5),) * len(part)) for part in images.split(size)
    ]


@pytest.mark.parametrize("scale", [None, 1024.0])
@pytest.mark.parametrize("max_norm", [None, 0.5])
def test_a_step_averages_the_gradients_of_its_passes(max_norm, scale):
    model, reference = Images(), Images()
    settings = {"batch_size": 8, "forward_batch_size": 2, "max_gradient_norm": max_norm}
    run = trainer(model=model, **settings)
    if scale is not None:  # as under fp16, which the trainer refuses on the CPU
        run.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    reports = []
    run.report = reports.append
    run.train(Level(0, 2), split(images(16), 2))
    reference.train()
    for report, batch in zip(reports, images(16).split(8), strict=True):
        terms = {name: value / 4 for name, value in reference.losses(reference(batch), None).items()}
        parameters = list(reference.parameters())
        gradients = torch.autograd.grad(sum(terms.values()), parameters)
        norm = torch.cat([gradient.flatten() for gradient in gradients]).norm().item()
        factor = 1.0 if max_norm is None else min(1.0, max_norm / norm)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter -= 0.1 * factor * gradient
        assert report.terms == pytest.approx({name: value.item() for name, value in terms.items()}, rel=1e-4)
        assert report.gradient_norm == pytest.approx(norm, rel=1e-4)
    for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_passes_of_fewer_images_count_as_much_as_full_ones():
    run = trainer(batch_size=4, forward_batch_size=2, max_gradient_norm=None)
    full, small = split(torch.full((2, 3, 2, 2), 1.0), 2)[0], split(torch.full((1, 3, 2, 2), 3.0), 1)[0]
    run.train(Level(0, 1), [full, small])
    assert run.model.weight.item() == pytest.approx(1 - 0.1 * 3 * (1.0 + 3.0) / 2)


def test_a_loss_that_is_not_finite_in_a_later_pass_stops_too():
    run = trainer(batch_size=2, forward_batch_size=1)
    with pytest.raises(TrainingError, match="at step 0"):
        run.train(Level(0, 1), batches(1.0, float("nan")))
    assert run.model.weight.item() == 1.0


# --- average of the weights ------------------------------------------------------------------------------


def test_the_average_follows_every_step():
    run = trainer(ema=EmaConfig(decay=0.5, ramp="linear", ramp_steps=1), max_gradient_norm=None)
    assert run.evaluated_model is run.average.model
    seen = []
    run.report = lambda _: seen.append((run.model.weight.item(), run.average.model.weight.item()))
    run.train(Level(0, 3), batches(1.0, 1.0, 1.0))
    assert [weight for weight, _ in seen] == pytest.approx([0.7, 0.4, 0.1])
    expected = [1.0 / 2 + 0.7 / 2]
    for weight, _ in seen[1:]:
        expected.append(expected[-1] / 2 + weight / 2)
    assert [average for _, average in seen] == pytest.approx(expected)


def test_without_an_average_the_trained_model_is_evaluated():
    run = trainer()
    assert run.average is None
    assert run.evaluated_model is run.model
    assert set(run.state_dict()) == {"optimizer", "scaler", "recent_losses"}
