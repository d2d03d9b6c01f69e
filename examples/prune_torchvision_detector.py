"""Prune a detector of torchvision as it is, by multiplications. Run: python examples/prune_torchvision_detector.py."""

import torch
from torchvision.models.detection import ssdlite320_mobilenet_v3_large

from sparsedet.sparsity import OneShot, Sparsifier, SparsityConfig, Targets


def main() -> None:
    torch.manual_seed(0)
    model = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=5)  # better: trained weights
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    config = SparsityConfig(
        targets=Targets(exclude=("preset:stem", "preset:prediction", "preset:depthwise")),
        schedule=OneShot(sparsity=0.5),
        budget="macs",
        input_shape=(1, 3, 320, 320),
    )
    sparsifier = Sparsifier(model, config)
    sparsifier.attach(optimizer)
    images = torch.rand(2, 3, 320, 320)  # stands in for your data
    targets = [{"boxes": torch.tensor([[20.0, 30.0, 200.0, 180.0]]), "labels": torch.tensor([1])}] * 2
    for step in range(3):
        sparsifier.before_step(step, total_steps=3)
        optimizer.zero_grad()
        sum(model(images, targets).values()).backward()
        optimizer.step()
    found = sparsifier.measure()
    for row, layer in zip(sparsifier.selection, found.layers, strict=True):
        print(f"{layer.sparsity:.3f}  {row.name}  ({row.reason})")
    print(
        f"{found.measured_sparsity:.4f} of the weights are zero, {found.macs_kept:.4f} of the multiplications are left"
    )


if __name__ == "__main__":
    main()
