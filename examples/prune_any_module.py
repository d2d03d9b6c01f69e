"""Prune a network of your own: LAMP, three levels, exact zeros. Run it: python examples/prune_any_module.py."""

import torch
from torch import nn

from sparsedet.sparsity import LevelWise, Sparsifier, SparsityConfig


def main() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.Flatten(), nn.Linear(32 * 144, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    sparsifier = Sparsifier(model, SparsityConfig(schedule=LevelWise(levels=(0.5, 0.7, 0.9))))
    sparsifier.attach(optimizer)  # masked weights are +0.0 after every step, their gradients too
    for step in range(30):
        sparsifier.before_step(step, total_steps=30)  # prunes where a level starts
        loss = nn.functional.cross_entropy(model(torch.randn(8, 3, 16, 16)), torch.randint(10, (8,)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for layer in sparsifier.measure().layers:
        print(f"{layer.name:<10} {layer.sparsity:.4f}")
    print(f"{'all':<10} {sparsifier.measure().measured_sparsity:.4f}")


if __name__ == "__main__":
    main()
