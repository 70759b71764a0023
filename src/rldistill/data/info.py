"""What a dataset on disk holds, for people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rldistill.data.dataset import Dataset
from rldistill.data.manifest import Manifest


def describe(path: Path) -> dict[str, Any]:
    """The manifest in a few lines; nothing but the manifest is read."""
    folder = dataset_folder(path)
    manifest = Manifest.read(folder)
    spec = manifest.spec
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return {
        "folder": str(folder),
        "env": manifest.document["env"]["id"],
        "steps": manifest.num_steps,
        "rounds": len({block["round"] for block in manifest.blocks}),
        "blocks": len(manifest.blocks),
        "observations": f"{spec.obs_dtype}{list(spec.obs_shape)}",
        "labels": spec.head.kind,
        "bytes": size,
        "exact": manifest.document.get("exact", True),
    }


def verify(path: Path) -> dict[str, Any]:
    """Compare every block with its hash and read them all.

    Raises:
        CorruptArtifactError: a block is missing, truncated or altered.
    """
    dataset = Dataset.read([dataset_folder(path)], verify=True)
    return {
        **describe(path),
        "episodes": dataset.num_episodes,
        "held-out steps": int(dataset.heldout.sum()),
        "state": "every block is whole",
    }


def dataset_folder(path: Path) -> Path:
    """The dataset that a path means: itself, or that of the run whose folder it is."""
    inside = path / "dataset"
    return inside if (inside / "manifest.json").exists() and not (path / "manifest.json").exists() else path
