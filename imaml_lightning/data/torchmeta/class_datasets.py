"""torchmeta's class data sets, imported."""

from __future__ import annotations

from imaml_lightning.data.torchmeta.repair import repair_torchmeta
from imaml_lightning.errors import UsageError

try:
    repair_torchmeta()
    from torchmeta.datasets.cifar100.cifar_fs import CIFARFSClassDataset
    from torchmeta.datasets.cifar100.fc100 import FC100ClassDataset
    from torchmeta.datasets.cub import CUBClassDataset
    from torchmeta.datasets.doublemnist import DoubleMNISTClassDataset
    from torchmeta.datasets.letter import LetterClassDataset
    from torchmeta.datasets.miniimagenet import MiniImagenetClassDataset
    from torchmeta.datasets.omniglot import OmniglotClassDataset
    from torchmeta.datasets.one_hundred_plants_margin import PlantsMarginClassDataset
    from torchmeta.datasets.one_hundred_plants_shape import PlantsShapeClassDataset
    from torchmeta.datasets.one_hundred_plants_texture import PlantsTextureClassDataset
    from torchmeta.datasets.tieredimagenet import TieredImagenetClassDataset
    from torchmeta.datasets.triplemnist import TripleMNISTClassDataset
    from torchmeta.datasets.utils import get_asset
except ModuleNotFoundError as error:
    raise UsageError(
        f"This data set needs the package {error.name}: install the project's requirements, and torchmeta by "
        "`pip install --no-deps torchmeta==1.8.0`."
    ) from error

__all__ = [
    "CIFARFSClassDataset",
    "CUBClassDataset",
    "DoubleMNISTClassDataset",
    "FC100ClassDataset",
    "LetterClassDataset",
    "MiniImagenetClassDataset",
    "OmniglotClassDataset",
    "PlantsMarginClassDataset",
    "PlantsShapeClassDataset",
    "PlantsTextureClassDataset",
    "TieredImagenetClassDataset",
    "TripleMNISTClassDataset",
    "get_asset",
]
