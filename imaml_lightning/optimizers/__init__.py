"""Differentiable optimizers: the rules of torch.optim as pure functions, and hyper-parameters that are learned."""

from imaml_lightning.optimizers.adadelta import Adadelta
from imaml_lightning.optimizers.adagrad import Adagrad
from imaml_lightning.optimizers.adam import Adam, AdamW
from imaml_lightning.optimizers.adamax import Adamax
from imaml_lightning.optimizers.asgd import ASGD
from imaml_lightning.optimizers.base import DifferentiableOptimizer, State, TorchRule
from imaml_lightning.optimizers.coordinate_wise import CoordinateWise
from imaml_lightning.optimizers.learned import Learned
from imaml_lightning.optimizers.rmsprop import RMSprop
from imaml_lightning.optimizers.rprop import Rprop
from imaml_lightning.optimizers.sgd import SGD

__all__ = [
    "ASGD",
    "SGD",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "CoordinateWise",
    "DifferentiableOptimizer",
    "Learned",
    "RMSprop",
    "Rprop",
    "State",
    "TorchRule",
]
