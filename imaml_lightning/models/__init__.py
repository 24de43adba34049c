"""Networks, of which any other nn.Module may take the place, and a learned loss."""

from imaml_lightning.models.backbone import Backbone
from imaml_lightning.models.conv4.network import Conv4
from imaml_lightning.models.densenet import DenseNet
from imaml_lightning.models.heads import AnyWay, UnitLength
from imaml_lightning.models.learned_loss import LearnedLoss
from imaml_lightning.models.mlp import MLP
from imaml_lightning.models.one_hot import OneHotSquaredError
from imaml_lightning.models.resnet import ResNet
from imaml_lightning.models.vgg import VGG
from imaml_lightning.models.weights import weights_follow

__all__ = [
    "MLP",
    "VGG",
    "AnyWay",
    "Backbone",
    "Conv4",
    "DenseNet",
    "LearnedLoss",
    "OneHotSquaredError",
    "ResNet",
    "UnitLength",
    "weights_follow",
]
