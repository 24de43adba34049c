"""Networks of kinds that torch's vmap, functional calls and second derivatives do not serve: each against plain torch."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from tiny_learners import gradients, implicit
from torch import Tensor, nn
from torch.nn.utils import parametrizations, weight_norm
from torch.utils.checkpoint import checkpoint

from imaml_lightning import Episode, Examples, FlatNetwork, MetaLearner, Unrolled
from imaml_lightning.errors import UsageError
from imaml_lightning.optimizers import SGD
from imaml_lightning.problem.curvature import FiniteDifference, GaussNewton, Hessian

TASKS, EXAMPLES, LENGTH, WAY, WORDS = 3, 6, 4, 3, 7


class Words(nn.Module):
    """Classes of sentences of words by number, 0 where a sentence is shorter."""

    def __init__(self, embedding: nn.Module) -> None:
        super().__init__()
        self.embedding, self.head = embedding, nn.Linear(4, WAY)

    def forward(self, x: Tensor) -> Tensor:
        embedded = self.embedding(x)
        return self.head(embedded.mean(1) if embedded.dim() == 3 else embedded)


class Sequences(nn.Module):
    """Classes of sequences of vectors."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body, self.head = body, nn.Linear(4, WAY)

    def forward(self, x: Tensor) -> Tensor:
        states = self.body(x, x, x) if isinstance(self.body, nn.MultiheadAttention) else self.body(x)
        return self.head((states[0] if isinstance(states, tuple) else states).mean(1))


class OwnAttention(nn.Module):
    """Attention called as a function."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        q = self.project(x).unsqueeze(1)
        return nn.functional.scaled_dot_product_attention(q, q, q).squeeze(1)


class Looked(nn.Module):
    """What it computes depends on a number that it looks at."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x).tanh() if x.sum() > 0 else 2 * self.inner(x).sin()


class Checkpointed(Looked):
    reentrant = False

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(lambda x: self.inner(x).tanh(), x, use_reentrant=self.reentrant)


class OldCheckpointed(Checkpointed):
    reentrant = True


def words() -> Tensor:
    return torch.randint(0, WORDS, (TASKS, EXAMPLES, LENGTH), generator=torch.Generator().manual_seed(0))


def vectors() -> Tensor:
    return torch.randn(TASKS, EXAMPLES, LENGTH, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def encoder(**options: object) -> nn.Module:
    return nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True, **options)


#: Each with its inputs.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "embedding": (lambda: Words(nn.Embedding(WORDS, 4)), words),
    "padding_idx": (lambda: Words(nn.Embedding(WORDS, 4, padding_idx=0)), words),
    "another_padding_idx": (lambda: Words(nn.Embedding(WORDS, 4, padding_idx=-1)), words),
    "lstm": (lambda: Sequences(nn.LSTM(4, 4, batch_first=True)), vectors),
    "gru": (lambda: Sequences(nn.GRU(4, 2, 2, batch_first=True, bidirectional=True)), vectors),
    "rnn": (lambda: Sequences(nn.RNN(4, 4, batch_first=True)), vectors),
    "attention": (lambda: Sequences(nn.MultiheadAttention(4, 2, batch_first=True)), vectors),
    "encoder_layer": (lambda: Sequences(encoder()), vectors),
    "norm_first": (lambda: Sequences(encoder(norm_first=True, activation="gelu")), vectors),
    "encoder": (lambda: Sequences(nn.TransformerEncoder(encoder(), 2, enable_nested_tensor=False)), vectors),
    "own_attention": (lambda: Sequences(OwnAttention()), vectors),
    "looked": (lambda: Sequences(Looked()), vectors),
    "checkpointed": (lambda: Sequences(Checkpointed()), vectors),
    "weight_norm": (lambda: Sequences(parametrizations.weight_norm(nn.Linear(4, 4))), vectors),
    "weight_norm_of_columns": (lambda: Sequences(parametrizations.weight_norm(nn.Linear(4, 4), dim=1)), vectors),
    "weight_norm_of_all": (lambda: Sequences(parametrizations.weight_norm(nn.Linear(4, 4), dim=None)), vectors),
    "old_weight_norm": (lambda: Sequences(old_weight_norm(nn.Linear(4, 4))), vectors),
    "orthogonal": (lambda: Sequences(parametrizations.orthogonal(nn.Linear(4, 4))), vectors),
}
pytestmark = pytest.mark.filterwarnings("ignore:.*is evaluated one task at a time")


def old_weight_norm(layer: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch: the other one is newer
        return weight_norm(layer)


def made(name: str) -> tuple[nn.Module, Examples]:
    torch.manual_seed(0)
    make, inputs = NETWORKS[name]
    network = make().double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network, Examples(inputs(), torch.arange(WAY).repeat(TASKS, 2))


def at(name: str, network: nn.Module, flat: FlatNetwork, phi: Tensor) -> nn.Module:
    """A network with these parameters in their places, not by a functional call."""
    other = NETWORKS[name][0]().double().train(network.training)
    other.load_state_dict(network.state_dict())
    with torch.no_grad():
        for parameter, value in flat.named(phi).items():
            other.get_parameter(parameter).copy_(value)
    return other


def plain_gradient(other: nn.Module, names: list[str], x: Tensor, y: Tensor) -> Tensor:
    """∇L of one task by ``backward``."""
    nn.functional.cross_entropy(other(x), y).backward()
    return torch.cat([other.get_parameter(name).grad.flatten() for name in names])


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_gradient_and_curvature_are_those_of_plain_torch(name: str, training: bool) -> None:
    network, support = made(name)
    network.train(training)
    learner = MetaLearner(network)
    learner.train(training)
    flat, objective = learner.flat, learner.objective(support)
    g = torch.Generator().manual_seed(1)
    phi = objective.start() + 0.1 * torch.randn(objective.start().shape, generator=g, dtype=torch.float64)
    u = torch.randn(phi.shape, generator=g, dtype=torch.float64)
    with torch.no_grad():
        outputs = flat.tasks(phi, support.x)
        linearised = objective.linearise(phi)
        u[linearised.loss.gradient == 0] = 0  # rows of padding are no variables
        product = linearised.loss.hvp(u)
    h = 1e-5
    for task, (x, y) in enumerate(zip(*support, strict=True)):

        def slope(row: Tensor, x: Tensor = x, y: Tensor = y) -> Tensor:
            return plain_gradient(at(name, network, flat, row), flat.names, x, y)

        torch.testing.assert_close(outputs[task], at(name, network, flat, phi[task])(x).detach())
        torch.testing.assert_close(linearised.loss.gradient[task].detach(), slope(phi[task]))
        change = slope(phi[task] + h * u[task]) - slope(phi[task] - h * u[task])
        torch.testing.assert_close(product[task], change / (2 * h), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", ["padding_idx", "lstm", "encoder_layer", "weight_norm", "checkpointed"])
def test_chunks_change_nothing(name: str) -> None:
    network, support = made(name)
    learner = MetaLearner(network, implicit(steps=3))
    episode = Episode(support, support)
    together, alone = (gradients(learner, episode, chunk) for chunk in (None, 1))
    for parameter, gradient in together.items():
        torch.testing.assert_close(gradient, alone[parameter])


def test_the_older_way_of_checkpoints_is_the_same() -> None:
    found = []
    for inner in (Checkpointed(), OldCheckpointed()):
        torch.manual_seed(0)
        network = Sequences(inner).double()
        for parameter in network.parameters():
            nn.init.normal_(parameter)
        _, support = made("checkpointed")
        found.append(gradients(MetaLearner(network), Episode(support, support)))
    torch.testing.assert_close(found[0], found[1])


def test_the_row_of_padding_stays_and_is_not_learned() -> None:
    network, support = made("padding_idx")
    learner = MetaLearner(network)
    row = slice(0, 4)  # of the embedding, the first parameter
    phi = learner.adapted(support).phi
    assert (phi[:, row] == learner.flat.vector()[row]).all()
    assert not (phi[:, 4:8] == learner.flat.vector()[4:8]).any()
    assert not gradients(learner, Episode(support, support))["network.embedding.weight"][0].any()


def test_a_loop_over_tasks_is_said_once() -> None:
    network, support = made("lstm")
    learner = MetaLearner(network)
    with pytest.warns(UserWarning, match="Sequences is evaluated one task at a time: torch cannot batch it"):
        learner.adapted(support)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learner.adapted(support)


def test_an_attempt_to_batch_draws_no_random_numbers() -> None:
    class Random(Looked):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x + torch.randn_like(x))

    torch.manual_seed(0)
    network = Sequences(Random()).double()
    x = vectors()
    torch.manual_seed(1)
    outputs = FlatNetwork(network).tasks(FlatNetwork(network).vector().expand(TASKS, -1), x)
    torch.manual_seed(1)
    torch.testing.assert_close(outputs, torch.stack([network(each) for each in x]))


def test_what_fails_on_one_task_as_well_is_said_in_its_own_words() -> None:
    network, support = made("lstm")
    with pytest.raises(ValueError, match="Expected input to be 2D or 3D"):
        FlatNetwork(network).tasks(FlatNetwork(network).vector().expand(TASKS, -1), support.x[..., None])


@pytest.mark.parametrize(
    ("option", "value"), [("max_norm", 1.0), ("scale_grad_by_freq", True), ("sparse", True)], ids=str
)
@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_options_of_embeddings_that_cannot_be_are_refused(kind: type[nn.Module], option: str, value: object) -> None:
    network = Words(kind(WORDS, 4, **{option: value}))
    with pytest.raises(UsageError, match=f"embedding has {option}, .*: leave {option} out"):
        MetaLearner(network)
    if option == "max_norm":
        assert MetaLearner(network, adapt=["head.*"]).flat.names == ["head.weight", "head.bias"]


def test_the_fast_path_of_attention_is_there_again() -> None:
    network, support = made("encoder_layer")
    flat = FlatNetwork(network.eval())
    assert torch.backends.mha.get_fastpath_enabled()
    flat.tasks(flat.vector().expand(TASKS, -1), support.x)
    assert torch.backends.mha.get_fastpath_enabled()


def test_finite_differences_of_a_random_network_are_of_one_function() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 8), nn.Softplus(), nn.Dropout(0.5), nn.Linear(8, WAY)).double()
    learner = MetaLearner(network)
    objective = learner.objective(Examples(vectors()[:, :, 0], torch.arange(WAY).repeat(TASKS, 2)))
    linearised = objective.linearise(objective.start())
    before, u = torch.get_rng_state(), torch.ones_like(objective.start())
    exact, differences = (curvature.product(linearised, u) for curvature in (Hessian(), FiniteDifference()))
    torch.testing.assert_close(differences, exact, rtol=1e-6, atol=1e-7)
    assert torch.equal(torch.get_rng_state(), before), "and nothing is drawn"


def test_checkpointed_steps_of_a_random_network_are_those_that_were_taken() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 8), nn.Softplus(), nn.Dropout(0.5), nn.Linear(8, WAY))
    part = Examples(vectors()[:, :, 0], torch.arange(WAY).repeat(TASKS, 2))
    found = []
    for kept in (False, True):
        learner = MetaLearner(network, Unrolled(SGD(lr=0.1), steps=4, checkpoint=kept)).double()
        torch.manual_seed(1)
        found.append(gradients(learner, Episode(part, part)))
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient)


def test_gauss_newton_of_attention() -> None:
    network, support = made("attention")
    learner = MetaLearner(network)
    objective = learner.objective(support.__class__(support.x[:1], support.y[:1]))
    phi, u = objective.start(), torch.ones_like(objective.start())
    linearised = objective.linearise(phi)
    x, y = support.x[0], support.y[0]

    def outputs(row: Tensor) -> Tensor:
        return at("attention", network, learner.flat, row)(x)

    h = 1e-6
    with torch.no_grad():
        ju = (outputs(phi[0] + h * u[0]) - outputs(phi[0] - h * u[0])) / (2 * h)
        p = outputs(phi[0]).softmax(-1)
        hju = (p * ju - p * (p * ju).sum(-1, keepdim=True)) / len(y)
    expected = (hju * ju).sum()
    actual = (u * (GaussNewton().product(linearised, u) - linearised.proximal_hvp(u))).sum()
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=0)
