"""Conv4 on many tasks at once: its outputs and Jacobian products against torch.func on one task at a time."""

import gc

import pytest
import torch
from tiny_learners import gradients
from torch import Tensor, nn
from torch.func import functional_call, jacrev

from imaml_lightning import (
    Episode,
    Examples,
    FlatNetwork,
    Implicit,
    InnerObjective,
    MetaLearner,
    ProximalTerm,
    Unrolled,
)
from imaml_lightning.adaptation import Adaptation
from imaml_lightning.models import Conv4
from imaml_lightning.models.conv4 import fused
from imaml_lightning.models.conv4.folded import FoldedPoint
from imaml_lightning.optimizers import SGD
from imaml_lightning.problem.curvature import GaussNewton, Hessian
from imaml_lightning.problem.derivatives import _FromFold

TASKS, EXAMPLES, WAY = 3, 4, 2

NETWORKS = {
    "pooled": {"size": 21},  # 21, 10, 5, 2, 1: odd sizes, whose last row and column pooling leaves out
    "strided": {"size": 11, "downsample": "stride"},
    "bare": {"size": 16, "norm": "none"},
    "bare_strided": {"size": 9, "norm": "none", "downsample": "stride"},
    "colour": {"size": 16, "channels": 3},
}


@pytest.fixture(params=["loops", "operations"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a CPU, by strips and in loops, and as elsewhere."""
    if request.param == "operations":
        monkeypatch.setattr(fused, "on_cpu", lambda x: False)
    monkeypatch.setattr(
        "imaml_lightning.models.conv4.first_convolution.IN_CACHE", 2**13
    )  # of small images several strips as well


def folded(options: dict) -> tuple[FlatNetwork, Tensor, Tensor]:
    """A Conv4, different parameters for each task, and images."""
    torch.manual_seed(0)
    network = FlatNetwork(Conv4(way=WAY, filters=8, zero_head=False, **options).double())
    phi = network.vector().detach() + 0.1 * torch.randn(TASKS, sum(network.sizes), dtype=torch.float64)
    shape = (options.get("channels", 1), options["size"], options["size"])
    return network, phi, torch.randn(TASKS, EXAMPLES, *shape, dtype=torch.float64)


@pytest.mark.parametrize("tasks", [1, TASKS])
@pytest.mark.parametrize("options", NETWORKS.values(), ids=NETWORKS)
def test_outputs_and_jacobian_products_equal_those_of_one_task_at_a_time(options: dict, tasks: int) -> None:
    network, phi, x = folded(options)
    phi, x = phi[:tasks], x[:tasks]
    assert network.can_fold
    at = network.fold(x)(phi)
    u, g = torch.randn_like(phi), torch.randn(tasks, EXAMPLES, WAY, dtype=torch.float64)
    ju, jg = at.jvp(network.split(u)), network.join(at.vjp(g))
    for i in range(tasks):

        def one(vector: Tensor, i: int = i) -> Tensor:
            return functional_call(network.network, network.named(vector), (x[i],))

        jacobian = jacrev(one)(phi[i])  # [example, output, param]
        torch.testing.assert_close(at.outputs[i], one(phi[i]))
        torch.testing.assert_close(ju[i], jacobian @ u[i])
        torch.testing.assert_close(jg[i], torch.einsum("eop,eo->p", jacobian, g[i]))


def test_autograd_goes_through_the_outputs() -> None:
    network, phi, x = folded(NETWORKS["pooled"])
    weight = torch.randn(TASKS, EXAMPLES, WAY, dtype=torch.float64)
    phi.requires_grad_()
    (actual,) = torch.autograd.grad((network.tasks(phi, x) * weight).sum(), phi)
    with torch.no_grad():
        torch.testing.assert_close(actual, network.join(network.fold(x)(phi).vjp(weight)))


class Plain(Conv4):
    """The same network, for which autograd has to do."""


@pytest.mark.parametrize("options", NETWORKS.values(), ids=NETWORKS)
def test_linearisation_equals_autograd(options: dict) -> None:
    network, phi, x = folded(options)
    plain = FlatNetwork(Plain(way=WAY, filters=8, **options).double())
    assert not plain.can_fold
    y, u = torch.randint(WAY, (TASKS, EXAMPLES)), torch.randn_like(phi)
    theta, proximal = network.vector().detach(), ProximalTerm().double()
    written, graph = (
        InnerObjective(n, Examples(x, y), theta, proximal, nn.CrossEntropyLoss()).linearise(phi)
        for n in (network, plain)
    )
    torch.testing.assert_close(written.loss.loss, graph.loss.loss)
    torch.testing.assert_close(written.gradient, graph.gradient)
    for curvature in (GaussNewton(), Hessian()):
        product = curvature.product(written, u)
        torch.testing.assert_close(product, curvature.product(graph, u))
        torch.testing.assert_close(curvature.product(written, u), product, rtol=0, atol=0)  # may be asked again
        assert not product.requires_grad


def meta_gradient(network: type[Conv4], adaptation: Adaptation) -> dict[str, Tensor]:
    torch.manual_seed(1)
    learner = MetaLearner(network(way=WAY, size=16, filters=4, zero_head=False), adaptation).double()
    part = Examples(torch.randn(TASKS, EXAMPLES, 1, 16, 16).double(), torch.arange(EXAMPLES).expand(TASKS, -1) % WAY)
    return gradients(learner, Episode(part, part))


@pytest.mark.parametrize("backward_steps", [None, 2])
def test_meta_gradient_through_steps_equals_autograd(backward_steps: int | None) -> None:
    adaptation = Unrolled(SGD(lr=0.1), steps=3, backward_steps=backward_steps)
    torch.testing.assert_close(meta_gradient(Conv4, adaptation), meta_gradient(Plain, adaptation))


def test_derivatives_may_be_asked_again() -> None:
    network, phi, x = folded(NETWORKS["pooled"])
    phi.requires_grad_()
    y, theta = torch.randint(WAY, (TASKS, EXAMPLES)), network.vector().detach()
    objective = InnerObjective(network, Examples(x, y), theta, ProximalTerm().double(), nn.CrossEntropyLoss())
    z = network.tasks(phi - 0.1 * objective.gradient(phi), x)
    first, second = (torch.autograd.grad(z.square().sum(), phi, retain_graph=True)[0] for _ in range(2))
    torch.testing.assert_close(first, second)


def points() -> int:
    """How many sets of activations are in memory."""
    return sum(type(o) is FoldedPoint for o in gc.get_objects())


def test_activations_of_a_step_go_with_its_derivative(monkeypatch: pytest.MonkeyPatch) -> None:
    product, counts = _FromFold.hvp, []

    def counted(self: _FromFold, u: Tensor) -> Tensor:
        counts.append(points())
        return product(self, u)

    monkeypatch.setattr(_FromFold, "hvp", counted)
    gc.collect()  # what other tests have left in cycles
    meta_gradient(Conv4, Unrolled(SGD(lr=0.1), steps=4))
    assert counts == [4, 3, 2, 1]  # and none of the query set


@pytest.mark.parametrize("adaptation", [Unrolled(), Implicit()], ids=["unrolled", "implicit"])
def test_activations_go_when_the_meta_gradient_is_there(adaptation: Adaptation) -> None:
    gc.collect()
    gc.disable()  # what is held in a cycle would go some time, and fill memory until then
    try:
        meta_gradient(Conv4, adaptation)
        assert not points()
    finally:
        gc.enable()


@pytest.mark.parametrize("options", [{"size": 28}, {"size": 28, "downsample": "stride"}], ids=["pooled", "strided"])
def test_float32_has_the_digits_of_float32(options: dict) -> None:
    """Of many images: the sums of batch normalisation are over tens of thousands of numbers."""
    torch.manual_seed(0)
    single = FlatNetwork(Conv4(way=WAY, filters=8, zero_head=False, **options))
    phi, x = single.vector().detach().expand(TASKS, -1) + 0.01, torch.rand(TASKS, 75, 1, 28, 28)
    double = FlatNetwork(Conv4(way=WAY, filters=8, **options).double())
    expected = torch.stack([double(row, images) for row, images in zip(phi.double(), x.double(), strict=True)])
    error = single.tasks(phi, x) - expected
    assert error.norm() < 1e-5 * expected.norm()
