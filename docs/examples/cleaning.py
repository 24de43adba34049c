"""Data hyper-cleaning: half of the labels are wrong; a weight for each example is learned from a few clean ones."""

import torch
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy

from imaml_lightning import argmin

x, y = (torch.tensor(part) for part in load_digits(return_X_y=True))
x, generator = x / 16, torch.Generator().manual_seed(0)
train, clean, test = torch.randperm(len(x), generator=generator).split([500, 250, 1047])
wrong = torch.rand(len(train), generator=generator) < 0.5
labels = torch.where(wrong, torch.randint(10, wrong.shape, generator=generator), y[train])
start = {"weight": torch.zeros(10, 64, dtype=x.dtype), "bias": torch.zeros(10, dtype=x.dtype)}


def outputs(phi, x):
    return x @ phi["weight"].T + phi["bias"]


def G(phi, trust):
    losses = cross_entropy(outputs(phi, x[train]), labels, reduction="none")
    return (trust.sigmoid() * losses).mean() + 5e-4 * (phi["weight"].square().sum() + phi["bias"].square().sum())


def clean_loss(trust, start=start, **options):
    phi, report = argmin(G, start, trust, **options)
    return cross_entropy(outputs(phi, x[clean]), y[clean]), phi, report


if __name__ == "__main__":
    trust = torch.zeros(len(train), dtype=x.dtype, requires_grad=True)
    optimizer = torch.optim.Adam([trust], lr=0.5)
    for step in range(20):
        loss, phi, report = clean_loss(trust, start)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        start = phi  # the next solve begins where this one ended
        if step in (0, 19):
            accuracy = (outputs(phi, x[test]).argmax(1) == y[test]).double().mean()
            print(f"clean loss {loss:.3f}, test accuracy {accuracy:.3f}\n{report}")
    print(f"trust in right labels {trust[~wrong].sigmoid().mean():.2f}, wrong {trust[wrong].sigmoid().mean():.2f}")
