"""A few-shot learner: sinusoids of any amplitude and phase from five points, by features that are learned over many of them."""

import math

import torch
from torch import nn

from imaml_lightning import argmin
from imaml_lightning.inner import Newton
from imaml_lightning.linear import Dense

torch.manual_seed(0)
body = nn.Sequential(nn.Linear(1, 40), nn.Tanh(), nn.Linear(40, 20), nn.Tanh())
theta, log_strength = nn.Parameter(torch.zeros(21)), nn.Parameter(torch.tensor(-3.0))


def tasks(count):
    """x and y ``[task, example, 1]``: five examples to learn from, ten to be judged by."""
    amplitude, phase = 0.1 + 4.9 * torch.rand(count, 1, 1), math.pi * torch.rand(count, 1, 1)
    x = 10 * torch.rand(count, 15, 1) - 5
    y = amplitude * torch.sin(x - phase)
    return (x[:, :5], y[:, :5]), (x[:, 5:], y[:, 5:])


def losses(phi, x, y):
    outputs = body(x) @ phi[:, :20, None] + phi[:, None, 20:]
    return (outputs - y).square().mean((1, 2))


def G(phi, x, y):  # φ, one row a task, stays near θ
    return losses(phi, x, y) + 0.5 * log_strength.exp() * (phi - theta).square().sum(1)


def query_loss(support, query):
    phi, report = argmin(
        G, theta.expand(len(support[0]), -1), *support, inner_solver=Newton(), linear_solver=Dense(), batched=True
    )
    return losses(phi, *query).mean(), report


if __name__ == "__main__":
    optimizer = torch.optim.Adam([*body.parameters(), theta, log_strength], lr=3e-3)
    for step in range(401):
        loss, report = query_loss(*tasks(25))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step in (0, 400):
            print(f"step {step}, query loss {query_loss(*tasks(500))[0]:.3f}\n{report}")
