"""What stands between two convolutions: loops, and torch's operations as elsewhere than on a CPU, against torch.autograd."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.autograd.functional import jvp, vjp
from torch.nn.functional import max_pool2d

from imaml_lightning.models.conv4 import fused, loops
from imaml_lightning.models.conv4.fused import Mixture, ReLU, batch_norm, channel_sums, max_pool_relu

EXAMPLES, CHANNELS = 3, 5


@pytest.fixture(params=["one loop", "two threads", "operations"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    threads = torch.get_num_threads()
    if request.param == "operations":
        monkeypatch.setattr(fused, "on_cpu", lambda x: False)
    if request.param == "two threads":
        torch.set_num_threads(2)
        monkeypatch.setattr(loops, "WORTH_A_THREAD", 1)
    yield
    torch.set_num_threads(threads)


def randn(height: int, width: int) -> Tensor:
    x = torch.randn(EXAMPLES, CHANNELS, height, width, dtype=torch.float64)
    return x.contiguous(memory_format=torch.channels_last)


def pooled(y: Tensor) -> Tensor:
    return max_pool2d(y, 2).relu()


@pytest.mark.parametrize("size", [(4, 6), (5, 7), (2, 3)])
def test_pooling_and_its_derivatives_equal_autograd(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    y, dy = randn(*size), randn(*size)
    activated, da, g = (randn(size[0] // 2, size[1] // 2) for _ in range(3))
    activation = max_pool_relu(activated)
    for i in range(EXAMPLES):
        activation.forward(y[i : i + 1], slice(i, i + 1))
        activation.jvp(dy[i : i + 1], da, slice(i, i + 1))
    back, total = activation.vjp(g, torch.full_like(y, torch.nan))
    expected, change = jvp(pooled, y, dy)
    gradient = vjp(pooled, y, g)[1]
    torch.testing.assert_close(activated, expected)
    torch.testing.assert_close(da, change)
    torch.testing.assert_close(back, gradient)
    torch.testing.assert_close(total, gradient.sum((0, 2, 3)))


def test_of_equal_pixels_the_first_is_chosen_as_by_torch() -> None:
    y, g = randn(4, 4).round(), randn(2, 2)
    activation = max_pool_relu(randn(2, 2))
    activation.forward(y)
    back, _ = activation.vjp(g, torch.full_like(y, torch.nan))
    torch.testing.assert_close(back, vjp(pooled, y, g)[1], rtol=0, atol=0)


@pytest.mark.parametrize("pixel", range(4))
def test_what_is_no_number_stays_to_be_seen(pixel: int) -> None:
    y, activated = randn(2, 2), randn(1, 1)
    y.view(EXAMPLES, CHANNELS, 4)[1, 2, pixel] = torch.nan
    max_pool_relu(activated).forward(y)
    assert activated.isnan().nonzero().tolist() == [[1, 2, 0, 0]]


def test_relu_and_its_derivatives_equal_autograd() -> None:
    y, dy, g, da = (randn(3, 3) for _ in range(4))
    activation = ReLU(randn(3, 3))
    activation.forward(y)
    activation.jvp(dy, da)
    back, total = activation.vjp(g, torch.full_like(y, torch.nan))
    torch.testing.assert_close((activation.activated, da), jvp(torch.relu, y, dy))
    torch.testing.assert_close(back, vjp(torch.relu, y, g)[1])
    torch.testing.assert_close(total, back.sum((0, 2, 3)))


def test_sums_of_channels() -> None:
    u, v, centre = randn(3, 2), randn(3, 2), torch.randn(CHANNELS).double()
    total, along = channel_sums(u, v, centre)
    torch.testing.assert_close(total, torch.einsum("echw->c", u))
    torch.testing.assert_close(along, torch.einsum("echw,echw->c", u, v) - centre * total)


def test_mixtures_add_up_each_tensor_once() -> None:
    u, v, (a, b, c, d) = randn(2, 2), randn(2, 2), torch.randn(4, CHANNELS).double()
    mixture = Mixture({u: a}, b) * c + Mixture({u: d, v: a}, b)
    assert set(mixture.terms) == {u, v}
    a, b, c, d = (x[:, None, None] for x in (a, b, c, d))
    torch.testing.assert_close(mixture.value(), a * c * u + b * c + d * u + a * v + b)


@pytest.mark.parametrize("far", [0.0, 1e3])
def test_batch_norm_far_from_zero(far: float) -> None:
    torch.manual_seed(0)
    x = (far + randn(9, 9)).float()
    scale, shift = torch.randn(2, CHANNELS)
    y, mean, r = batch_norm(x, scale, shift, 1e-5)
    exact = x.double()
    variance, centre = torch.var_mean(exact, (0, 2, 3), correction=0)
    torch.testing.assert_close(mean.double(), centre, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(r.double(), (variance + 1e-5).rsqrt(), rtol=1e-5, atol=0)
    a, b, c, d = (v.double()[:, None, None] for v in (scale, shift, centre, (variance + 1e-5).rsqrt()))
    torch.testing.assert_close(y.double(), a * (exact - c) * d + b, rtol=0, atol=1e-6 * max(10, far))
