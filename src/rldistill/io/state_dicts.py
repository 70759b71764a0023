"""Tensors of PyTorch and safetensors in files from elsewhere: read as data, checked, or refused."""

from __future__ import annotations

import io
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from rldistill.core.errors import (
    DOWNLOAD_HINT,
    RESAVE_HINT,
    ConfigError,
    CorruptArtifactError,
    RLDistillError,
    UntrustedFileError,
    error_text,
    short_repr,
)
from rldistill.io.untrusted import FREE_BYTES, MAX_INFLATION, MAX_WEIGHTS_BYTES, open_zip, read_member, read_regular

MAX_PARAMETERS = 1 << 28
MAX_TENSORS, MAX_PICKLE_BYTES = 2_000, 1 << 20
MAX_PARTS, MAX_DEPTH = 100_000, 16
"""Limits of the dicts and lists in a checkpoint, which may contain each other many times."""
SAVE_STATE_DICT = "Save the state dict alone: torch.save(network.state_dict(), FILE)."
NUMBERS = (
    torch.float16, torch.bfloat16, torch.float32, torch.float64,
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,  # counters and indices in buffers
)  # fmt: skip


class RefusedPickleError(pickle.UnpicklingError):
    """Pickle with more than numbers."""


class PickledDtype:
    """Dtype of numbers in a pickle."""

    def __init__(self, code: str, *flags: Any) -> None:
        if not isinstance(code, str) or not re.fullmatch(r"[|<>=]?[biuf?]\d{0,2}", code):
            raise RefusedPickleError(f"it has arrays of dtype {short_repr(code)}")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        """Set the order of bytes."""
        self.dtype = self.dtype.newbyteorder(state[1] if state[1] in ("<", ">") else "=")


class PickledArray:
    """Array in a pickle, built here so that numpy's own classes are not called with values of the file."""

    def __init__(self, *ignored: Any) -> None:
        self.array: np.ndarray[Any, Any] = np.zeros(0)

    @classmethod
    def from_bytes(cls, data: Any, dtype: PickledDtype, shape: tuple[int, ...], order: str = "C") -> PickledArray:
        """Return the array with these bytes."""
        array = cls()
        array.array = np.frombuffer(data, dtype.dtype).reshape(shape, order="F" if order == "F" else "C").copy()
        return array

    @classmethod
    def scalar(cls, dtype: PickledDtype, data: Any) -> PickledArray:
        """Return an array without dimensions."""
        return cls.from_bytes(data, dtype, ())

    def __float__(self) -> float:
        """Return the number of an array with one."""
        return float(self.array.item())

    def __setstate__(self, state: Any) -> None:
        """Set the content."""
        _, shape, dtype, fortran, data = state
        self.array = self.from_bytes(data, dtype, shape, "F" if fortran else "C").array


PICKLED_NUMBERS: dict[str, Callable[..., Any]] = {
    "numpy.core.multiarray._reconstruct": PickledArray,
    "numpy.core.multiarray.scalar": PickledArray.scalar,
    "numpy.core.numeric._frombuffer": PickledArray.from_bytes,
    "numpy.ndarray": PickledArray,
    "numpy.dtype": PickledDtype,
    "_codecs.encode": lambda text, encoding="latin1": text.encode("latin1"),
}
"""Constructors of arrays by the names in pickles; `numpy._core` of NumPy 2 is `numpy.core`."""
PICKLE_GLOBALS = [
    (function, name.replace("numpy.core.", package))
    for name, function in PICKLED_NUMBERS.items()
    for package in ("numpy.core.", "numpy._core.")
]


def read_checkpoint(path: Path) -> dict[str, dict[str, Tensor]]:
    """Read the state dicts in a checkpoint by their dotted names; a state dict alone has an empty name.

    Arrays of numpy and lists of numbers are tensors too; texts, single numbers and anything else are left out. Raise
    the errors of `read_state_dict`.
    """
    content = read_regular(path, MAX_WEIGHTS_BYTES)
    if path.suffix == ".safetensors":  # which is in no order
        return {"": dict(sorted(read_state_dict(path).items(), key=lambda item: _natural_key(item[0])))}
    parts: dict[str, dict[str, Tensor]] = {}
    pending, count = [("", _unpickle(content, path, "the file"), 0)], 0
    while pending:
        name, value, depth = pending.pop(0)
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            count += 1
            if count > MAX_PARTS or depth > MAX_DEPTH:
                raise UntrustedFileError(f"{path}: it has too many parts inside each other. {SAVE_STATE_DICT}")
            if isinstance(item, PickledArray):
                item = torch.from_numpy(item.array)
            elif isinstance(item, list | tuple) and item and all(type(number) in (int, float) for number in item):
                item = torch.tensor(item, dtype=torch.float64)
            if isinstance(item, Tensor):
                parts.setdefault(name, {})[str(key)] = item
            elif isinstance(item, dict | list | tuple):
                pending.append((f"{name}.{key}" if name else str(key), item, depth + 1))
    _checked(
        {f"{name}.{key}": tensor for name, part in parts.items() for key, tensor in part.items()},
        path,
        "the file",
        len(content),
    )
    return {name: without_prefixes(part) for name, part in parts.items()}


def _natural_key(name: str) -> list[Any]:
    return [int(part) if part.isdigit() else part for part in re.split(r"([0-9]+)", name)]


def without_prefixes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors without the prefixes of `torch.compile` and of `DistributedDataParallel` in their names."""
    names = {name: name.replace("_orig_mod.", "") for name in tensors}
    while names and all(name.startswith("module.") for name in names.values()):
        names = {name: plain.removeprefix("module.") for name, plain in names.items()}
    return {plain: tensors[name] for name, plain in names.items()} if len({*names.values()}) == len(names) else tensors


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read a state dict from safetensors or a file of `torch.save`.

    Raises:
        UntrustedFileError: A script, an exported program, or anything but plain tensors.
        CorruptArtifactError: A truncated or altered file.
    """
    content = read_regular(path, MAX_WEIGHTS_BYTES)
    if path.suffix == ".safetensors":
        try:
            tensors = load_safetensors(content)
        except (SafetensorError, ValueError) as error:
            raise CorruptArtifactError(
                f"{path}: not a whole safetensors file ({error_text(error)}); {DOWNLOAD_HINT}"
            ) from None
        _require_few(tensors, path, "the file")
        return _checked(tensors, path, "the file", len(content))
    return read_tensors(content, path, "the file")


def read_tensors(content: bytes, path: Path, name: str) -> dict[str, Tensor]:
    """Read a state dict of `torch.save` from `content`, whose name in the file `path` is `name`."""
    tensors = _unpickle(content, path, name)
    if not isinstance(tensors, dict):
        raise UntrustedFileError(f"{path}: {name} is no state dict. {SAVE_STATE_DICT}")
    _require_few(tensors, path, name)
    return without_prefixes(_checked(tensors, path, name, len(content)))


def _unpickle(content: bytes, path: Path, name: str) -> Any:
    """Return a dict or a list of tensors, arrays, numbers and texts; refuse everything else."""
    try:
        if zipfile.is_zipfile(io.BytesIO(content)):
            content = _repack(content, path, name)
        with torch.serialization.safe_globals(PICKLE_GLOBALS):  # type: ignore[arg-type]
            value = torch.load(_Stream(content), map_location="cpu", weights_only=True)
    except RLDistillError:
        raise
    except pickle.UnpicklingError:
        raise UntrustedFileError(
            f"{path}: {name} holds more than tensors, and reading it could run code. {SAVE_STATE_DICT}"
        ) from None
    except Exception as error:  # zipfile and torch raise many kinds of errors for damaged bytes
        raise CorruptArtifactError(
            f"{path}: not a whole file of tensors ({error_text(error)}); {DOWNLOAD_HINT}"
        ) from None
    if not isinstance(value, dict | list | tuple):
        raise UntrustedFileError(f"{path}: {name} is no state dict. {SAVE_STATE_DICT}")
    return value


class _Stream(io.BytesIO):
    """Bytes that can be read in a limited number of pieces, since PyTorch's unpickler is slow."""

    pieces = 0

    def read(self, size: int | None = -1, /) -> bytes:
        """Return the next bytes; raise UnpicklingError after too many calls."""
        self.pieces += 1
        if self.pieces > MAX_PICKLE_BYTES:
            raise pickle.UnpicklingError
        return super().read(size)


def _repack(content: bytes, path: Path, name: str) -> bytes:
    # PyTorch's own reader may find other members than Python, so it gets only those that Python reads.
    copied, remaining = io.BytesIO(), min(MAX_WEIGHTS_BYTES, len(content) + FREE_BYTES)
    with open_zip(content) as inner, zipfile.ZipFile(copied, "w") as copy:
        if any(member.endswith(("constants.pkl", ".pt2", "models/model.json")) for member in inner.namelist()):
            raise UntrustedFileError(
                f"{path}: {name} is a TorchScript or an exported program, which runs code when read. "
                "Use its state dict, or export it to ONNX."
            )
        for member in dict.fromkeys(inner.namelist()):
            limit = min(remaining, MAX_PICKLE_BYTES) if member.endswith(".pkl") else remaining
            member_content = read_member(path, inner, member, limit)
            remaining -= len(member_content)
            copy.writestr(member, member_content)
    return copied.getvalue()


def _require_few(tensors: dict[Any, Any], path: Path, name: str) -> None:
    if len(tensors) > MAX_TENSORS:
        raise UntrustedFileError(f"{path}: {name} holds {len(tensors):,} tensors. Use a smaller network.")


def _checked(tensors: dict[Any, Any], path: Path, name: str, size: int) -> dict[str, Tensor]:
    """Return the tensors of a file of `size` bytes if they are plain, finite, and not far more than its bytes."""
    total = 0
    for key, value in tensors.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            advice, parts = SAVE_STATE_DICT, [part for part, item in tensors.items() if isinstance(item, dict)]
            statistics = [part for part in parts if {"mean", "_mean", "running_mean"} & tensors[part].keys()]
            parts = [part for part in parts if part not in statistics]
            if parts:  # a checkpoint of a training
                part = short_repr(parts[0])
                advice = (
                    f"If the state dict is {part} in it, save that alone: torch.save(torch.load(FILE)[{part}], NEW)."
                )
                if statistics:
                    advice += f" Normalize observations with {short_repr(statistics[0])} in the factory."
            raise UntrustedFileError(f"{path}: {name} holds more than tensors. {advice}")
        plain = value.layout == torch.strided and value.device.type == "cpu" and value.dtype in NUMBERS
        stored = value.untyped_storage().nbytes() // value.element_size() if plain else 0
        total += value.numel() * value.element_size()
        if not plain or value.numel() > stored or total > min(4 * MAX_PARAMETERS, FREE_BYTES + MAX_INFLATION * size):
            raise UntrustedFileError(
                f"{path}: {short_repr(key)} is not a plain tensor of numbers of a usual size. {SAVE_STATE_DICT}"
            )
        if not torch.isfinite(value).all():
            raise CorruptArtifactError(f"{path}: {short_repr(key)} holds NaN or infinite weights; {RESAVE_HINT}")
    return tensors


def load_weights(network: nn.Module, tensors: dict[str, Tensor], problem: str, remedy: str) -> None:
    """Load a state dict; raise ConfigError with `problem`, the reason and `remedy` if it does not fit."""
    own = network.state_dict()
    if {*own} != {*tensors}:  # of a network that was compiled, or a compiled network
        names = dict(zip(without_prefixes(own), own, strict=True))
        tensors = {names.get(name, name): tensor for name, tensor in without_prefixes(tensors).items()}
    for name, value in tensors.items():  # PyTorch would convert integers to floats
        if isinstance(own.get(name), Tensor) and own[name].is_floating_point() != value.is_floating_point():
            raise ConfigError(f"{problem}: {name} is of {value.dtype}, expected {own[name].dtype}. {remedy}")
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise ConfigError(f"{problem}: {error_text(error)}. {remedy}") from None
