"""The strength of a logistic regression's regulariser, one for each feature, by the gradient of the loss on other data."""

import torch
from sklearn.datasets import load_breast_cancer
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy

from imaml_lightning import argmin
from imaml_lightning.inner import Newton
from imaml_lightning.linear import Dense

x, y = (torch.tensor(part, dtype=torch.float64) for part in load_breast_cancer(return_X_y=True))
train, validation, test = torch.randperm(len(x), generator=torch.Generator().manual_seed(0)).split([100, 200, 269])
x = (x - x[train].mean(0)) / x[train].std(0)


def G(w, log_strength):
    return cross_entropy(x[train] @ w, y[train]) + 0.5 * (log_strength.exp() * w.square()).sum()


def validation_loss(log_strength):
    solvers = {"inner_solver": Newton(rtol=1e-10), "linear_solver": Dense(1e-10)}
    w, report = argmin(G, torch.zeros(30, dtype=x.dtype), log_strength, **solvers, strict=True)
    return cross_entropy(x[validation] @ w, y[validation]), w, report


if __name__ == "__main__":
    log_strength = torch.full((30,), -3.0, dtype=x.dtype, requires_grad=True)
    optimizer = torch.optim.Adam([log_strength], lr=0.2)
    for step in range(30):
        loss, w, report = validation_loss(log_strength)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step in (0, 29):
            print(f"validation {loss:.4f}, test {cross_entropy(x[test] @ w, y[test]):.4f}\n{report}")
