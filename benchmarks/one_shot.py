"""Criteria right after pruning, before fine-tuning: accuracy of a net trained here, with and without new BN statistics.

A small convolutional net with batch norms is trained on the handwritten digits of scikit-learn, once for each seed, and
pruned from there by each criterion to each sparsity. Criteria are compared within a seed: same weights, same images.
"""

import argparse
import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.datasets import load_digits
from timing import print_json, print_table, set_up
from torch import Tensor, nn
from torch.nn import functional

from sparsedet.sparsity import (
    ALLOCATIONS,
    CRITERIA,
    NM,
    Calibration,
    OneShot,
    Sparsifier,
    SparsityConfig,
    reestimate_batch_norm,
)

NUM_TEST = 597
BATCH_SIZE = 64
NUM_CALIBRATION = 8  # batches, of training images


class Digits(NamedTuple):
    """Images (N, 1, 8, 8), float32, and labels (N,)."""

    images: Tensor
    labels: Tensor

    def batches(self) -> list["Digits"]:
        """Return them in parts of `BATCH_SIZE`."""
        return [
            Digits(*pair) for pair in zip(self.images.split(BATCH_SIZE), self.labels.split(BATCH_SIZE), strict=True)
        ]


def digits(seed: int) -> tuple[Digits, Digits]:
    """Return training and test images, split by `seed`."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(images))
    data = Digits(
        torch.from_numpy(images[order]).float().reshape(-1, 1, 8, 8) / 8 - 1, torch.from_numpy(labels[order]).long()
    )
    return Digits(*(part[NUM_TEST:] for part in data)), Digits(*(part[:NUM_TEST] for part in data))


def build() -> nn.Sequential:
    """Return four convolutions, each with a batch norm, and a linear layer: 61 thousand weights."""
    layers: list[nn.Module] = []
    for num_in, num_out, stride in ((1, 16, 1), (16, 32, 1), (32, 64, 2), (64, 64, 1)):
        layers += [nn.Conv2d(num_in, num_out, 3, stride, 1, bias=False), nn.BatchNorm2d(num_out), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def train(data: Digits, num_epochs: int, seed: int) -> nn.Module:
    """Train a net with SGD and a cosine learning rate."""
    torch.manual_seed(seed)
    model = build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3, nesterov=True)
    num_steps = num_epochs * (len(data.labels) // BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    for _ in range(num_epochs):
        order = torch.randperm(len(data.labels))
        for chosen in order.split(BATCH_SIZE)[: len(order) // BATCH_SIZE]:
            optimizer.zero_grad()
            loss_of(model, Digits(data.images[chosen], data.labels[chosen])).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def run(model: nn.Module, batch: Digits) -> Tensor:
    """Return the scores of the classes."""
    scores: Tensor = model(batch.images)
    return scores


def loss_of(model: nn.Module, batch: Digits) -> Tensor:
    """Return the loss of a batch."""
    return functional.cross_entropy(run(model, batch), batch.labels)


@torch.no_grad()
def evaluate(model: nn.Module, data: Digits) -> tuple[float, float]:
    """Return accuracy and loss, in eval mode."""
    scores = run(model.eval(), data)
    accuracy = (scores.argmax(1) == data.labels).float().mean()
    return accuracy.item(), functional.cross_entropy(scores, data.labels).item()


def config_of(criterion: str, level: str, allocation: str) -> SparsityConfig:
    """Return the configuration for a sparsity such as 0.5, or for an N:M such as 2:4."""
    if ":" in level:
        n, m = map(int, level.split(":"))
        return SparsityConfig(criterion=CRITERIA[criterion](), pattern=NM(n=n, m=m), schedule=OneShot())
    return SparsityConfig(
        criterion=CRITERIA[criterion](), schedule=OneShot(sparsity=float(level)), allocation=ALLOCATIONS[allocation]()
    )


def prune(dense: nn.Module, config: SparsityConfig, train_data: Digits, test_data: Digits) -> dict[str, float]:
    """Prune a copy of `dense`; return sparsity, accuracy and loss, and both with batch norms estimated anew."""
    model = copy.deepcopy(dense)
    batches = train_data.batches()[:NUM_CALIBRATION]
    sparsifier = Sparsifier(model, config, calibration=Calibration(batches, run, loss_of))
    sparsifier.prune_(0)
    accuracy, loss = evaluate(model, test_data)
    reestimate_batch_norm(model, batches, run)
    accuracy_bn, loss_bn = evaluate(model, test_data)
    return {
        "measured_sparsity": sparsifier.measure().measured_sparsity,
        "accuracy": accuracy,
        "loss": loss,
        "accuracy_bn": accuracy_bn,
        "loss_bn": loss_bn,
    }


def summary(rows: Sequence[dict[str, Any]], base: Sequence[dict[str, Any]]) -> list[str]:
    """Return sparsity, mean ± standard deviation of both accuracies, and in how many seeds the loss is below `base`."""
    cells = [f"{np.mean([row['measured_sparsity'] for row in rows]):.3f}"]
    for key in ("", "_bn"):
        values = np.array([row[f"accuracy{key}"] for row in rows]) * 100
        wins = sum(row[f"loss{key}"] < other[f"loss{key}"] for row, other in zip(rows, base, strict=True))
        cells += [
            f"{values.mean():.1f} ± {values.std():.1f}",
            f"{np.mean([row[f'loss{key}'] for row in rows]):.3f}",
            "" if rows is base else f"{wins} of {len(rows)}",
        ]
    return cells


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="nets that are trained")
    parser.add_argument("--epochs", type=int, default=20, help="of each training")
    parser.add_argument("--levels", nargs="*", default=["0.5", "0.6", "0.7", "0.8", "0.9", "2:4"])
    parser.add_argument("--criteria", nargs="*", default=["magnitude", "random", "gradient", "activation", "obc"])
    parser.add_argument("--allocation", default="lamp", choices=["lamp", "uniform", "erk", "global"])
    options = parser.parse_args(arguments)
    set_up()
    results: list[dict[str, Any]] = []
    for seed in range(options.seeds):
        train_data, test_data = digits(seed)
        dense = train(train_data, options.epochs, seed)
        accuracy, loss = evaluate(dense, test_data)
        results.append({"seed": seed, "level": "dense", "criterion": "", "accuracy": accuracy, "loss": loss})
        for level in options.levels:
            for criterion in options.criteria:
                row = prune(dense, config_of(criterion, level, options.allocation), train_data, test_data)
                results.append({"seed": seed, "level": level, "criterion": criterion, **row})

    def rows_of(level: str, criterion: str) -> list[dict[str, Any]]:
        return [row for row in results if (row["level"], row["criterion"]) == (level, criterion)]

    dense_rows = rows_of("dense", "")
    values = np.array([row["accuracy"] for row in dense_rows]) * 100
    table = [
        [
            "dense",
            "",
            "0",
            f"{values.mean():.1f} ± {values.std():.1f}",
            f"{np.mean([r['loss'] for r in dense_rows]):.3f}",
        ]
        + [""] * 4
    ]
    for level in options.levels:
        base = rows_of(level, options.criteria[0])
        for criterion in options.criteria:
            rows = base if criterion == options.criteria[0] else rows_of(level, criterion)
            table.append([level, criterion, *summary(rows, base)])
    better = f"better than {options.criteria[0]}"
    print_table(
        ["level", "criterion", "zeros", "accuracy %", "loss", better, "accuracy % with BN", "loss with BN", better],
        table,
    )
    print_json(results)


if __name__ == "__main__":
    main()
