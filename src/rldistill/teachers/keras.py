"""Keras 3 teachers: `.keras` files of known layers, on the torch backend, whichever they were trained on."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rldistill.errors import (
    ConfigError,
    CorruptArtifactError,
    MissingExtraError,
    RLDistillError,
    SpecMismatchError,
    UntrustedFileError,
)
from rldistill.teachers.tensors import MAX_WEIGHTS, require_small
from rldistill.types import HeadKind, Obs, PolicyOutput, PolicySpec

CONFIG, WEIGHTS, METADATA = "config.json", "model.weights.h5", "metadata.json"
MAX_CONFIG = 1 << 22
MODELS = ("Sequential", "Functional")
LAYERS = (
    "InputLayer", "Dense", "Conv1D", "Conv2D", "DepthwiseConv2D", "SeparableConv2D", "Flatten", "Reshape", "Permute",
    "Rescaling", "Normalization", "BatchNormalization", "LayerNormalization", "GroupNormalization", "Activation",
    "ReLU", "LeakyReLU", "PReLU", "ELU", "Softmax", "Dropout", "SpatialDropout2D", "GaussianNoise", "GaussianDropout",
    "MaxPooling2D", "AveragePooling2D", "GlobalAveragePooling2D", "GlobalMaxPooling2D", "ZeroPadding2D", "Cropping2D",
    "Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum", "Concatenate", "Identity",
)  # fmt: skip
VALUES = ("DTypePolicy", "__keras_tensor__")
VALUE_MODULES = ("keras.initializers", "keras.regularizers", "keras.constraints")
EPSILON = 1e-8
"""Added to the probabilities of a last softmax before their logarithm is taken."""


class KerasPolicy:
    """A policy whose head's numbers are the output of a Keras model with one input.

    Frames `[B, C, H, W]` reach a model that takes `[B, H, W, C]`, or those as one vector, with channels last. uint8
    comes as it is, 0 to 255, unless `scale` is given. Where the last layer is a softmax, the logits are log(p + 1e-8).
    """

    def __init__(self, model: Any, content: bytes, spec: PolicySpec, scale: float) -> None:
        self._model, self._content, self._spec, self._scale = model, content, spec, scale
        self._shape = tuple(self._model.inputs[0].shape[1:])
        self._softmax = _ends_in_softmax(self._model)

    @property
    def spec(self) -> PolicySpec:
        """What the policy takes and gives."""
        return self._spec

    def initial_state(self, batch_size: int) -> Tensor | None:
        """None: it has no state."""
        return None

    def parameters(self) -> Iterator[Tensor]:
        """Its weights."""
        return iter([variable.value for variable in self._model.weights])

    def __call__(self, obs: Obs, state: Tensor | None = None) -> tuple[PolicyOutput, Tensor | None]:
        """What the model says of a batch of observations."""
        assert isinstance(obs, Tensor)
        fed = obs.float() * self._scale
        if self._shape != self._spec.obs_shape and fed.ndim == 4:
            fed = fed.movedim(1, -1)
        with _keras().device("cpu"):
            said: Tensor = self._model(fed.reshape(len(fed), *self._shape).contiguous(), training=False)
        return PolicyOutput(self._spec.head, (said + EPSILON).log() if self._softmax else said), None

    def __getstate__(self) -> tuple[Any, ...]:
        return self._content, self._spec, self._scale

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        with tempfile.TemporaryDirectory() as folder:  # Keras reads from a path only
            copy = Path(folder) / "model.keras"
            copy.write_bytes(state[0])
            self.__init__(_whole_model(copy), *state)  # type: ignore[misc]


def load_keras(path: Path, spec: PolicySpec | None, head: HeadKind | None = None, scale: float = 1.0) -> KerasPolicy:
    """Read a `.keras` file.

    Args:
        path: the file.
        spec: of the environment, which it does not tell.
        head: what its numbers mean, where that is not the neutral head of the action space: `q_values`.
        scale: what its input is multiplied with, 1/255 for a model that expects pixels from 0 to 1.

    Raises:
        ConfigError: no `spec`.
        MissingExtraError: Keras is not installed.
        UntrustedFileError: layers that can run code or read other files, more in the archive than a model.
        SpecMismatchError: an input or an output that is not the environment's.
        CorruptArtifactError: truncated or altered.
    """
    if spec is None:
        raise ConfigError(f"{path}: a Keras file does not tell its environment; give the environment's spec")
    require_small(path, "it", path.stat().st_size, MAX_WEIGHTS)
    content = path.read_bytes()
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            config, weights = _members(path, archive)
        document = json.loads(config)
        _require_known(path, document)
        stored = _numbers_stored(path, weights)
        _require_size(path, document, stored)
        if head is not None:
            spec = dataclasses.replace(spec, head=dataclasses.replace(spec.head, kind=head))
        policy = KerasPolicy(_whole_model(path), content, spec, scale)
    except RLDistillError:
        raise
    except Exception as error:  # damaged bytes make zipfile, h5py and Keras raise whatever they like
        raise CorruptArtifactError(f"{path}: not a whole Keras file ({' '.join(str(error).split())[:300]})") from None
    _require_finite(path, policy)
    _require_fit(path, policy)
    return policy


def _keras() -> Any:
    os.environ.setdefault("KERAS_BACKEND", "torch")
    try:
        import keras
    except ImportError:
        raise MissingExtraError("Reading Keras files", "keras") from None
    if keras.backend.backend() != "torch":
        raise ConfigError(
            f"Keras runs on {keras.backend.backend()} here; set KERAS_BACKEND=torch in the environment and start again"
        )
    return keras


def _whole_model(path: Path) -> Any:
    keras = _keras()
    with keras.device("cpu"):
        return keras.saving.load_model(path, compile=False, safe_mode=True)


def _members(path: Path, archive: zipfile.ZipFile) -> tuple[bytes, bytes]:
    names = archive.namelist()
    for name in names:
        if name not in (CONFIG, WEIGHTS, METADATA) or names.count(name) > 1:
            raise UntrustedFileError(f"{path}: holds {name!r:.60}, which plain layers do not need; refused")
    for name in (CONFIG, WEIGHTS):
        if name not in names:
            raise CorruptArtifactError(f"{path}: not a Keras 3 file: it has no {name}; save it again with Keras 3")
    for info in archive.infolist():
        limit = MAX_WEIGHTS if info.filename == WEIGHTS else MAX_CONFIG
        require_small(path, info.filename, info.file_size, limit)
    return archive.read(CONFIG), archive.read(WEIGHTS)


def _require_known(path: Path, document: Any) -> None:
    """Refuse every class that is not one of the plain layers, wherever in the configuration it stands."""
    if not isinstance(document, dict) or document.get("class_name") not in MODELS:
        found = document.get("class_name") if isinstance(document, dict) else type(document).__name__
        raise UntrustedFileError(f"{path}: a model of class {found!r:.60}; supported: {', '.join(MODELS)}")
    document.pop("compile_config", None)  # the optimiser and the loss, which are never made
    pending: list[Any] = [document]
    while pending:
        value = pending.pop()
        if isinstance(value, list):
            pending += value
        if not isinstance(value, dict):
            continue
        pending += value.values()
        if "class_name" not in value and "module" not in value and "registered_name" not in value:
            continue
        name, module = value.get("class_name"), value.get("module")
        ours = isinstance(module, str) and (module == "keras" or module.startswith("keras."))
        plain = name in LAYERS or name in MODELS or module in VALUE_MODULES or name in VALUES
        if not (plain and (ours or name == "__keras_tensor__") and value.get("registered_name") in (None, name)):
            raise UntrustedFileError(
                f"{path}: config.json names {module}.{name}, which is not one of the layers that only compute; "
                "rebuild the model from them, or export it to ONNX"
            )


def _numbers_stored(path: Path, weights: bytes) -> int:
    """How many numbers the weights' file holds; refuses what leads outside it."""
    import h5py

    found = 0

    def visit(group: Any) -> None:
        nonlocal found
        for name in group:
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise UntrustedFileError(f"{path}: {WEIGHTS}: {name} is a link to somewhere else; refused")
            item = group[name]
            if isinstance(item, h5py.Group):
                visit(item)
            elif item.is_virtual or item.external or item.dtype.kind not in "fiu":
                raise UntrustedFileError(f"{path}: {WEIGHTS}: {name} is no plain array kept in the file; refused")
            elif item.nbytes > 64 * max(item.id.get_storage_size(), 16):
                raise UntrustedFileError(f"{path}: {WEIGHTS}: {name} claims more numbers than the file holds; refused")
            else:
                found += math.prod(item.shape)

    with h5py.File(io.BytesIO(weights), "r") as file:
        visit(file)
    return found


def _require_size(path: Path, document: dict[str, Any], stored: int) -> None:
    """Build the model on "meta", where it takes no memory, and compare it with what is stored."""
    keras = _keras()
    with keras.device("meta"):
        model = keras.saving.deserialize_keras_object(document, safe_mode=True)
    if model.count_params() > stored:
        raise UntrustedFileError(f"{path}: a model of {model.count_params():,} numbers, of which {stored:,} are stored")
    if len(model.inputs or ()) != 1 or len(model.outputs) != 1:
        raise SpecMismatchError(
            f"{path}: {len(model.inputs or ())} inputs and {len(model.outputs)} outputs, expected one"
        )


def _require_finite(path: Path, policy: KerasPolicy) -> None:
    for value in policy.parameters():
        if not torch.isfinite(value).all():
            raise CorruptArtifactError(f"{path}: it holds NaN or infinite weights")


def _require_fit(path: Path, policy: KerasPolicy) -> None:
    spec, shape, output = policy.spec, policy._shape, tuple(policy._model.outputs[0].shape[1:])
    last = (*spec.obs_shape[1:], *spec.obs_shape[:1])
    if shape not in (spec.obs_shape, last, (math.prod(spec.obs_shape),)):
        raise SpecMismatchError(f"{path}: takes observations of {shape}, the environment gives {spec.obs_shape}")
    if output != (spec.head.num_params,):
        raise SpecMismatchError(f"{path}: gives {output}; expected ({spec.head.num_params},) for {spec.head.kind}")


def _ends_in_softmax(model: Any) -> bool:
    last = model.layers[-1]
    name = getattr(getattr(last, "activation", None), "__name__", "")
    return name == "softmax" or type(last).__name__ == "Softmax"
