"""A deep equilibrium layer: outputs z with z = tanh(W z + U x + b), one equilibrium for each example, by ``root``."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

from imaml_lightning import root


class Equilibrium(nn.Module):
    def __init__(self, inputs, size):
        super().__init__()
        self.inside, self.outside = nn.Linear(size, size, bias=False), nn.Linear(inputs, size)
        nn.init.normal_(self.inside.weight, std=0.5 / size**0.5)

    def residual(self, z, drive):  # its own parameters are found by themselves
        return z - torch.tanh(self.inside(z) + drive)

    def forward(self, x, **options):
        drive = self.outside(x)
        z, self.report = root(self.residual, torch.zeros_like(drive), drive, batched=True, **options)
        return z


if __name__ == "__main__":
    torch.manual_seed(0)
    x, y = (torch.tensor(part) for part in load_digits(return_X_y=True))
    x = x.float() / 16
    network = nn.Sequential(Equilibrium(64, 32), nn.Linear(32, 10))
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _step in range(150):
        rows = torch.randint(1000, (64,))
        loss = cross_entropy(network(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    accuracy = (network(x[1000:]).argmax(1) == y[1000:]).float().mean()
    print(f"test accuracy {accuracy:.3f}\n{network[0].report}")
