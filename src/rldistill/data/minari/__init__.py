"""Import and export of Minari datasets, and the names, folders and metadata that both share."""

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rldistill.core.errors import ConfigError, MissingExtraError

PREFIX = "minari:"
ORIGIN = "rldistill"
"""Key of our entry in the metadata of Minari."""


def open_minari(name: str) -> tuple[Any, str, Path]:
    """Return the package minari, the name without `minari:`, and the folder of the dataset of that name.

    Raises:
        MissingExtraError: Minari is not installed.
        ConfigError: The name is not valid.
    """
    try:
        import minari.data_collector
        from minari.dataset.minari_dataset import parse_dataset_id
        from minari.storage.datasets_root_dir import get_dataset_path
    except ImportError:
        raise MissingExtraError("A dataset of Minari", "minari") from None
    bare = name.removeprefix(PREFIX)
    try:
        if re.fullmatch(r"([\w-]+/)*[\w-]+-v\d+", bare) is None:
            raise ValueError
        parse_dataset_id(bare)
    except ValueError:
        raise ConfigError(
            f"{name}: not a valid name. Use one such as {PREFIX}pong/dqn-v0, with two letters or more before the /."
        ) from None
    return minari, bare, Path(get_dataset_path("")).resolve() / bare


def append_row(column: NDArray[Any]) -> NDArray[Any]:
    """Append a row of zeros, for the observation with which an episode ends."""
    return np.concatenate([column, np.zeros_like(column[:1])])
