"""Time of a sparse training step over that of a dense one.

Copies of one model take turns on the same inputs: dense, sparse (an attached `Sparsifier`: masks applied again
after each optimizer step, gradients of pruned entries zeroed), a second dense one, whose ratio to the first shows
how well the machine can tell two equal things apart, and, if asked for, copies that other tools prune to 50 %. The two
parts of our work are also timed inside the sparse step: alone in a loop they would find weights and masks in the cache
and take half as long.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any, NamedTuple

import peers
import torch
import torchvision
from timing import Timings, print_json, print_table, set_up
from torch import nn

from sparsedet.benchmark.recipe import load_recipe
from sparsedet.common.shipped import find_config
from sparsedet.detection.data.loader import Batch
from sparsedet.detection.structures import Target
from sparsedet.detection.trainer import Level, Trainer
from sparsedet.sparsity import Lamp, OneShot, Sparsifier, SparsityConfig, Targets, Uniform


def timed(sparsifier: Sparsifier) -> defaultdict[str, float]:
    """Return the CPU seconds that `sparsifier` spends on weights and on gradients from now on, added up as they go."""
    seconds: defaultdict[str, float] = defaultdict(float)
    masked = sparsifier._masked

    def clock(part: str, work: Callable[..., None]) -> Callable[..., None]:
        def run(*arguments: Any) -> None:
            before = time.process_time()
            work(*arguments)
            seconds[part] += time.process_time() - before

        return run

    for part, name in {"weights": "apply_after_step_", "gradients": "take_gradient_"}.items():
        setattr(masked, name, clock(part, getattr(masked, name)))
    return seconds


class Run(NamedTuple):
    """A model in training: `step()` trains it once."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    step: Callable[[], object]


class Case(NamedTuple):
    """What is trained.

    Attributes:
        start: makes the model and a batch from a batch size and an image size in pixels, and returns a function that
            starts a training run of a copy of it.
        batch_size: images per step.
        image_size: side of an image in pixels.
        num_rounds: rounds of dense, sparse, dense.
        sparsity: what the sparse copy is pruned to.
    """

    start: Callable[[int, int], Callable[[], Run]]
    batch_size: int
    image_size: int
    num_rounds: int
    sparsity: SparsityConfig


def classifier(name: str) -> Callable[[int, int], Callable[[], Run]]:
    """Train a network of torchvision as MSBench was measured: SGD, cross-entropy, fp32."""

    def prepare(batch_size: int, image_size: int) -> Callable[[], Run]:
        original = torchvision.models.get_model(name)
        images = torch.randn(batch_size, 3, image_size, image_size)
        labels = torch.randint(1000, (batch_size,))

        def start() -> Run:
            model = deepcopy(original).train()
            optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)

            def step() -> None:
                optimizer.zero_grad()
                torch.autograd.backward(nn.functional.cross_entropy(model(images), labels))
                optimizer.step()

            return Run(model, optimizer, step)

        return start

    return prepare


def detector(recipe_name: str, num_classes: int) -> Callable[[int, int], Callable[[], Run]]:
    """Train the detector of a shipped recipe as it says, with sparsedet's trainer."""
    recipe = load_recipe(find_config(recipe_name), ("data.root=.",)).recipe
    training = recipe.training.model_copy(update={"forward_batch_size": None})

    def prepare(batch_size: int, image_size: int) -> Callable[[], Run]:
        original = recipe.detector.build(num_classes, pretrained=False)
        corners = torch.rand(batch_size, 3, 2) * image_size / 2
        size = (image_size, image_size)
        targets = [
            Target(
                torch.cat([corner, corner + image_size / 4], dim=1), torch.tensor([0, 1, 2]), torch.empty(0, 4), size
            )
            for corner in corners
        ]
        images = torch.randn(batch_size, 3, image_size, image_size)
        batch = Batch(images, targets, tuple(range(batch_size)), (size,) * batch_size)
        config = training.model_copy(update={"batch_size": batch_size})

        def start() -> Run:
            trainer = Trainer(deepcopy(original), config, num_images=batch_size, device=torch.device("cpu"))
            return Run(trainer.model, trainer.optimizer, lambda: trainer.train(Level(0, 1), [batch]))

        return start

    return prepare


HALF = SparsityConfig(schedule=OneShot(sparsity=0.5), allocation=Uniform())
DEMO = SparsityConfig(
    targets=Targets(exclude=("backbone.conv1", "head.cls_pred", "head.box_pred")),
    schedule=OneShot(sparsity=0.9),
    allocation=Lamp(),
)
CASES = {
    "resnet18": Case(classifier("resnet18"), 8, 224, 41, HALF),
    "resnet50": Case(classifier("resnet50"), 2, 224, 41, HALF),
    "demo_detector": Case(detector("digits_dense", 4), 16, 128, 201, DEMO),
    "retinanet_r50": Case(detector("retinanet_r50", 80), 2, 480, 11, HALF),
}


PEERS: dict[str, Callable[[nn.Module], None]] = {
    "MSBench's rule": peers.msbench,
    "torch.nn.utils.prune": peers.torch_prune,
    "torch.ao.pruning": peers.torch_ao,
}


def measure(
    name: str, batch_size: int | None, image_size: int | None, num_rounds: int | None, with_peers: bool
) -> dict[str, object]:
    """Run one case, by default at its own size."""
    case = CASES[name]
    batch_size, image_size = batch_size or case.batch_size, image_size or case.image_size
    start = case.start(batch_size, image_size)
    dense, sparse, again = start(), start(), start()
    sparsifier = Sparsifier(sparse.model, case.sparsity)
    sparsifier.prune_(0)
    sparsifier.attach(sparse.optimizer)
    seconds = timed(sparsifier)
    rounds = num_rounds or case.num_rounds
    steps = {"dense": dense.step, "sparse": sparse.step, "again": again.step}
    for peer, prune in PEERS.items() if with_peers else ():
        run = start()
        prune(run.model)
        run.optimizer.param_groups.clear()  # they put other parameters in the place of the weights
        run.optimizer.add_param_group({"params": list(run.model.parameters())})
        steps[peer] = run.step
    timings = Timings({variant: lambda step=step: step for variant, step in steps.items()}, rounds)
    dense_s = timings.seconds("dense").median
    shares = {part: spent / (rounds + 1) / dense_s for part, spent in seconds.items()}
    return {
        "case": name,
        "batch_size": batch_size,
        "image_size": image_size,
        "measured_sparsity": sparsifier.measure().measured_sparsity,
        "num_rounds": rounds,
        "dense_cpu_s": timings.seconds("dense"),
        "cpu_ratio": timings.ratio("sparse", "dense"),
        "wall_ratio": timings.ratio("sparse", "dense", "wall"),
        "control_cpu_ratio": timings.ratio("again", "dense"),
        "peer_cpu_ratios": {peer: timings.ratio(peer, "dense") for peer in PEERS if with_peers},
        "weights_cpu_share": shares["weights"],
        "gradients_cpu_share": shares["gradients"],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rounds", type=int, help="rounds of each case")
    parser.add_argument("--batch-size", type=int, help="images per step")
    parser.add_argument("--image-size", type=int, help="side of an image in pixels")
    parser.add_argument("--peers", action="store_true", help="train copies pruned by other tools too")
    options = parser.parse_args(arguments)
    set_up()
    results = [
        measure(name, options.batch_size, options.image_size, options.rounds, options.peers) for name in options.cases
    ]
    print_table(
        [
            "case, batch",
            "dense step, CPU s",
            "sparse / dense, CPU",
            "wall",
            "dense / dense, CPU",
            "weights",
            "gradients",
            *(PEERS if options.peers else ()),
        ],
        [
            [
                f"{result['case']}, {result['batch_size']} × {result['image_size']} px",
                f"{result['dense_cpu_s']:.3f}",
                f"{result['cpu_ratio']:.3f}",
                f"{result['wall_ratio']:.3f}",
                f"{result['control_cpu_ratio']:.3f}",
                f"{result['weights_cpu_share']:.2%}",
                f"{result['gradients_cpu_share']:.2%}",
                *(f"{ratio:.2f}" for ratio in result["peer_cpu_ratios"].values()),
            ]
            for result in results
        ],
    )
    print_json(results)


if __name__ == "__main__":
    main()
