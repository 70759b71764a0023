"""Summary of a dataset on disk."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from rldistill.data.dataset import Dataset
from rldistill.data.manifest import Manifest


def describe(path: Path) -> dict[str, Any]:
    """Return a summary of the manifest; the blocks are not read."""
    folder = dataset_folder(path)
    manifest = Manifest.read(folder)
    spec = manifest.spec
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return {
        "folder": str(folder),
        "env": manifest.env.id,
        "steps": manifest.num_steps,
        "rounds": len({block.round for block in manifest.blocks}),
        "blocks": len(manifest.blocks),
        "observations": f"{spec.obs_dtype}{list(spec.obs_shape)}",
        "labels": spec.head.kind,
        "bytes": size,
        "exact": manifest.exact,
    }


def verify(path: Path) -> dict[str, Any]:
    """Compare every block with its hash and read it; raise CorruptArtifactError for a damaged one."""
    dataset = Dataset.read([dataset_folder(path)], verify=True)
    return {
        **describe(path),
        "episodes": dataset.num_episodes,
        "held-out steps": int(dataset.heldout.sum()),
        "state": "every block is whole",
    }


def open_dataset(path: Path | str, gamma: float = 0.99, memory_gb: float = math.inf) -> Dataset:
    """Read a dataset, given its folder or the folder of its run; see `Dataset.read`."""
    path = Path(path)
    return Dataset.read([dataset_folder(path)], gamma, memory_gb=memory_gb)


def dataset_folder(path: Path) -> Path:
    """Return the folder of a dataset, given itself or the folder of its run."""
    inside = path / "dataset"
    return inside if (inside / "manifest.json").exists() and not (path / "manifest.json").exists() else path
