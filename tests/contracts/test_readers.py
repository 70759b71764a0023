"""Files from elsewhere are opened in `io` only, where their size and their content are checked."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import rldistill

PACKAGE = Path(rldistill.__file__).parent
LOADERS = (
    "zipfile.ZipFile", "tarfile.open", "gzip.open", "h5py.File", "yaml.load", "yaml.safe_load", "yaml.full_load",
    "yaml.unsafe_load", "torch.load", "torch.jit.load", "pickle.load", "pickle.loads", "np.load", "numpy.load",
    "np.fromfile", "np.memmap", "onnx.load", "onnx.load_model", "json.load", "joblib.load", "cloudpickle.load",
    "keras.models.load_model", "keras.saving.load_model",
)  # fmt: skip
"""Functions that open a file, or read a format whose content can run code, fill the memory or never end."""
ALLOWED = {
    "io/untrusted.py": {"zipfile.ZipFile", "h5py.File"},
    "io/state_dicts.py": {"zipfile.ZipFile", "torch.load"},
    "io/tensors.py": {"zipfile.ZipFile"},  # the checkpoint of a teacher that this program trains
    "data/dataset.py": {"np.memmap"},  # memory of this process
    "io/processes.py": {"pickle.loads"},  # a job that this program sends to a process of its own
    "io/ray_tasks.py": {"pickle.loads"},  # the same on a Ray cluster
    "exporters/int8.py": {"onnx.load"},  # a file that it has written a moment before
}


def _calls(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_io_opens_files_from_elsewhere(path: Path) -> None:
    assert _calls(path) & {*LOADERS} <= ALLOWED.get(path.relative_to(PACKAGE).as_posix(), set())
