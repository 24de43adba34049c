"""A Conv4 that was edited is computed as it was edited: the written-out route is for exactly what it computes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest
import torch
from tiny_learners import gradients
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian
from torch.nn.utils import parametrizations, parametrize

from imaml_lightning import Episode, Examples, FlatNetwork, MetaLearner
from imaml_lightning.models import Conv4

Edit = Callable[[Conv4], object]
TASKS, SIZE = 2, 24


def each_block(edit: Callable[[nn.Sequential], object]) -> Edit:
    return lambda network: [edit(block) for block in network.body]


def one(path: str, **options: object) -> Edit:
    """One layer with other attributes."""

    def edit(network: Conv4) -> None:
        layer = network.get_submodule(path)
        for name, value in options.items():
            assert hasattr(layer, name)
            setattr(layer, name, value)

    return edit


def other(path: str, make: Callable[[nn.Module], nn.Module]) -> Edit:
    """Another layer in its place."""
    return lambda network: network.set_submodule(path, make(network.get_submodule(path)))


def conv(**options: object) -> Callable[[nn.Module], nn.Module]:
    return lambda old: nn.Conv2d(old.in_channels, old.out_channels, **{"kernel_size": 3, "padding": 1} | options)


def order(*names: str) -> Edit:
    """The layers of the second block in another order."""

    def edit(network: Conv4) -> None:
        block = network.body[1]
        layers = dict(block.named_children())
        network.body[1] = nn.Sequential(*(layers[name] for name in names))

    return edit


class Doubled(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Halving(nn.ReLU):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / 2


class Twice(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def replaced(path: str, method: str = "forward") -> Edit:
    """A method replaced on the instance."""

    def edit(network: Conv4) -> None:
        layer = network.get_submodule(path)
        old = getattr(layer, method)
        setattr(layer, method, lambda *arguments: 2 * old(*arguments))

    return edit


def tied(network: Conv4) -> None:
    network.body[2].conv.weight = network.body[1].conv.weight


def frozen(network: Conv4) -> None:
    network.body[0].requires_grad_(False)


def kept_statistics(network: Conv4) -> None:
    norm = network.body[1].norm
    norm.running_mean, norm.running_var = torch.full((4,), 0.3).double(), torch.full((4,), 2.0).double()
    network.eval()


def extra_parameter(network: Conv4) -> None:
    network.shift = nn.Parameter(torch.tensor(0.5))
    network.register_forward_hook(lambda module, _, outputs: outputs + module.shift)


def order_of_parameters(network: Conv4) -> None:
    head = network.head
    weight = head.weight
    del head.weight
    head.weight = weight  # its name now comes after the bias


def wrapped(method: str, hook: Callable[..., object], path: str = "body.1.conv") -> Edit:
    return lambda network: getattr(network.get_submodule(path), method)(hook)


#: Edits that change what the network computes, or how gradients go through it.
EDITS: dict[str, Edit] = {
    "leaky_relu": each_block(lambda block: setattr(block, "relu", nn.LeakyReLU(0.2))),
    "subclass_of_relu": other("body.0.relu", lambda _: Halving()),
    "gelu_in_the_last": other("body.3.relu", lambda _: nn.GELU()),
    "average_pool": other("body.1.pool", lambda _: nn.AvgPool2d(2)),
    "pool_3": one("body.1.pool", kernel_size=3),
    "pool_padding": one("body.1.pool", padding=1),
    "pool_dilation": one("body.0.pool", dilation=2),
    "pool_stride": one("body.3.pool", stride=1, kernel_size=1),
    "pool_ceil_mode": one("body.0.pool", ceil_mode=True),
    "kernel_1": other("body.1.conv", conv(kernel_size=1, padding=0)),
    "conv_stride": one("body.3.conv", stride=(2, 1)),
    "conv_dilation": one("body.1.conv", dilation=(2, 2), padding=(2, 2)),
    "conv_groups": other("body.1.conv", conv(groups=2)),
    "conv_without_bias": other("body.1.conv", conv(bias=False)),
    "conv_reflects": other("body.1.conv", conv(padding_mode="reflect")),
    "norm_eps_of_one": one("body.1.norm", eps=0.1),
    "norm_without_scale": other("body.1.norm", lambda _: nn.BatchNorm2d(4, affine=False, track_running_stats=False)),
    "norm_with_statistics": kept_statistics,
    "norm_of_groups": other("body.1.norm", lambda _: nn.GroupNorm(2, 4)),
    "norm_of_instances": other("body.1.norm", lambda _: nn.InstanceNorm2d(4, affine=True)),
    "one_norm_less": other("body.2.norm", lambda _: nn.Identity()),
    "norm_first": order("conv", "norm", "pool", "relu"),
    "relu_before_pool": order("conv", "relu", "pool", "norm"),
    "five_blocks": lambda network: network.body.append(nn.Sequential(Twice())),
    "dropped_block": lambda network: network.body.__delitem__(3),
    "scaled_block": lambda network: network.body.__setitem__(1, Doubled(*network.body[1])),
    "block_in_a_block": lambda network: network.body.__setitem__(1, nn.Sequential(network.body[1], Twice())),
    "layer_after_the_body": lambda network: network.body.append(Twice()),
    "deeper_head": other("head", lambda old: nn.Sequential(nn.Linear(old.in_features, 6), nn.Tanh(), nn.Linear(6, 3))),
    "head_without_bias": other("head", lambda old: nn.Linear(old.in_features, 3, bias=False)),
    "forward_of_a_layer": replaced("body.1.relu"),
    "forward_of_a_block": replaced("body.1"),
    "forward_of_the_network": replaced(""),
    "method_of_a_convolution": replaced("body.1.conv", "_conv_forward"),
    "forward_hook": wrapped("register_forward_hook", lambda module, inputs, outputs: 2 * outputs),
    "hook_of_the_network": wrapped("register_forward_hook", lambda module, inputs, outputs: 2 * outputs, ""),
    "forward_pre_hook": wrapped("register_forward_pre_hook", lambda module, inputs: (2 * inputs[0],)),
    "pre_hook_of_the_network": wrapped("register_forward_pre_hook", lambda module, inputs: (2 * inputs[0],), ""),
    "tied": tied,
    "frozen": frozen,
    "extra_parameter": extra_parameter,
    "order_of_parameters": order_of_parameters,
    "parametrized": lambda network: parametrize.register_parametrization(network.head, "weight", Twice()),
    "orthogonal": lambda network: parametrizations.orthogonal(network.head, "weight", "householder"),
    "own_class": lambda network: setattr(network, "__class__", type("Conv4", (Conv4,), {"forward": forward})),
}


def forward(self: Conv4, x: Tensor) -> Tensor:
    """Of a subclass: attention to each feature by itself."""
    features = self.body(x).flatten(1)
    return self.head(features * features.sigmoid())


def edited(edit: Edit) -> Conv4:
    torch.manual_seed(0)
    network = Conv4(way=3, size=SIZE, filters=4, zero_head=False)
    if edit is EDITS["dropped_block"]:
        network.head = nn.Linear(4, 3)
    edit(network)
    network.double()
    with torch.no_grad():
        size = network.body(torch.zeros(2, 1, SIZE, SIZE).double()).flatten(1).shape[1]
        for head in (m for m in (network.head, *network.head.modules()) if type(m) is nn.Linear):
            if head.in_features not in (size, 6):
                network.head = nn.Linear(size, head.out_features, bias=head.bias is not None).double()
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def episode() -> Episode:
    x = torch.randn(TASKS, 6, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    part = Examples(x, torch.arange(3).repeat(TASKS, 2))
    return Episode(part, part)


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_an_edited_network_is_computed_as_edited(edit: Edit) -> None:
    network = edited(edit)
    learner = MetaLearner(network)
    assert not learner.flat.can_fold
    x = episode().query.x
    expected = torch.stack([network(images) for images in x])
    before = learner.outputs(episode())[0]
    torch.testing.assert_close(before, expected.detach())


def loss_of_a_task(learner: MetaLearner, task: int) -> Callable[[Tensor], Tensor]:
    """L_S of one task as a function of its φ, in plain torch."""
    x, y = (part[task] for part in episode().support)

    def loss(phi: Tensor) -> Tensor:
        return nn.functional.cross_entropy(functional_call(learner.network, learner.flat.named(phi), (x,)), y)

    return loss


@pytest.mark.parametrize("edit", ["leaky_relu", "pool_padding", "norm_eps_of_one", "forward_pre_hook"])
def test_gradient_and_curvature_are_those_of_the_edited_network(edit: str) -> None:
    learner = MetaLearner(edited(EDITS[edit]))
    objective = learner.objective(episode().support)
    phi = objective.start() + 0.01
    u = torch.randn(phi.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    at = objective.linearise(phi)
    gradient, product = at.loss.gradient.detach(), at.loss.hvp(u)
    for task in range(TASKS):
        slope = grad(loss_of_a_task(learner, task))
        torch.testing.assert_close(gradient[task], slope(phi[task]))
        torch.testing.assert_close(product[task], torch.func.vjp(slope, phi[task])[1](u[task])[0])


@contextlib.contextmanager
def global_hook(kind: str) -> Iterator[None]:
    register = getattr(nn.modules.module, f"register_module_{kind}")
    change = {
        "forward_hook": lambda module, inputs, outputs: 2 * outputs if type(module) is nn.ReLU else None,
        "forward_pre_hook": lambda module, inputs: (2 * inputs[0],) if type(module) is nn.Conv2d else None,
    }[kind]
    handle = register(change)
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.parametrize("kind", ["forward_hook", "forward_pre_hook"])
def test_hooks_of_all_modules_are_called(kind: str) -> None:
    learner = MetaLearner(edited(lambda network: None))
    assert learner.flat.can_fold
    with global_hook(kind):
        assert not learner.flat.can_fold
        expected = torch.stack([learner.network(images) for images in episode().query.x])
        torch.testing.assert_close(learner.outputs(episode())[0], expected.detach())
    assert learner.flat.can_fold, "once they are gone"


#: Edits after which the network computes the same, in the written-out way or not.
HARMLESS: dict[str, Edit] = {
    "unedited": lambda network: None,
    "evaluation": lambda network: network.eval(),
    "relu_in_place": each_block(lambda block: setattr(block.relu, "inplace", True)),
    "options_as_numbers": one("body.1.conv", stride=1, padding=1, dilation=1),
    "options_as_pairs": one("body.1.pool", kernel_size=(2, 2), stride=(2, 2)),
    "the_same_eps_in_all": each_block(lambda block: setattr(block.norm, "eps", 0.1)),
    "momentum": one("body.1.norm", momentum=0.9),
    "state_dict_hook": lambda network: network.register_state_dict_pre_hook(lambda *_: None),
    "other_names": lambda network: network.body.__setitem__(0, nn.Sequential(*network.body[0])),
}


@pytest.mark.parametrize("edit", HARMLESS.values(), ids=HARMLESS)
def test_what_computes_the_same_keeps_the_fast_route(edit: Edit) -> None:
    network = edited(edit)
    learner = MetaLearner(network)
    assert learner.flat.can_fold
    expected = torch.stack([network(images) for images in episode().query.x])
    torch.testing.assert_close(learner.outputs(episode())[0], expected.detach())


def test_an_edit_after_the_learner_was_built_counts_too() -> None:
    learner = MetaLearner(edited(lambda network: None))
    plain = gradients(learner, episode())
    learner.network.body[1].relu = nn.Softplus()
    assert not learner.flat.can_fold
    assert not torch.allclose(gradients(learner, episode())["network.head.weight"], plain["network.head.weight"])


@pytest.mark.parametrize(
    ("network", "adapt"),
    [(Conv4(filters=4, norm="group"), ("*",)), (Conv4(filters=4), ("head.*",))],
    ids=["group_norm", "head_only"],
)
def test_what_is_not_written_out_takes_the_general_route(network: nn.Module, adapt: tuple[str]) -> None:
    flat = FlatNetwork(network, adapt)
    phi, x = flat.vector().detach().expand(2, -1) + 0.1, torch.randn(2, 5, 1, 28, 28)
    assert not flat.can_fold
    expected = [functional_call(network, flat.named(phi[i]), (x[i],)) for i in range(2)]
    torch.testing.assert_close(flat.tasks(phi, x), torch.stack(expected), rtol=1e-4, atol=1e-4)


def test_the_hessian_of_replaced_activations_is_that_of_dense_algebra() -> None:
    learner = MetaLearner(edited(each_block(lambda block: setattr(block, "relu", nn.Softplus()))), adapt=["head.*"])
    objective = learner.objective(episode().support)
    phi, u = objective.start(), torch.ones_like(objective.start())
    expected = hessian(loss_of_a_task(learner, 0))(phi[0]).detach() @ u[0]
    torch.testing.assert_close(objective.linearise(phi).loss.hvp(u)[0], expected)
