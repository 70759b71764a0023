"""Names, folders and metadata that import from and export to Minari share."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rldistill.core.errors import ConfigError, MissingExtraError

PREFIX = "minari:"
TEACHER_OBS = "teacher_obs"
ORIGIN = "rldistill"
"""Key of our entry in the metadata of Minari."""


def import_package() -> Any:
    """Return the package minari; raise MissingExtraError if it is not installed."""
    try:
        import minari
        import minari.data_collector
    except ImportError:
        raise MissingExtraError("Datasets of Minari", "minari") from None
    return minari


def parse_name(name: str) -> str:
    """Return the name without `minari:`; raise ConfigError if it is not a valid name of Minari."""
    from minari.dataset.minari_dataset import parse_dataset_id

    bare = name.removeprefix(PREFIX)
    try:
        if re.fullmatch(r"([\w-]+/)*[\w-]+-v\d+", bare) is None:
            raise ValueError
        parse_dataset_id(bare)
    except ValueError:
        raise ConfigError(
            f"{name}: not a valid name. Use one such as {PREFIX}pong/dqn-v0, with two letters or more before the /."
        ) from None
    return bare


def datasets_root() -> Path:
    """Return the folder in which Minari keeps its datasets."""
    from minari.storage.datasets_root_dir import get_dataset_path

    return Path(get_dataset_path("")).resolve()


def append_row(column: NDArray[Any]) -> NDArray[Any]:
    """Append a row of zeros, for the observation with which an episode ends."""
    return np.concatenate([column, np.zeros_like(column[:1])])
