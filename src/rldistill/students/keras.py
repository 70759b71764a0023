"""Keras 3 models of plain layers on the torch backend: read without executing anything, and as students.

A `.keras` file is an archive of a configuration, which may name any class, and of weights in HDF5, which may link to
other files. Only layers that compute are built, and only numbers inside the file are read.
"""

from __future__ import annotations

import importlib
import io
import json
import math
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rldistill.core.errors import (
    DOWNLOAD_HINT,
    RESAVE_HINT,
    ConfigError,
    CorruptArtifactError,
    MissingExtraError,
    RLDistillError,
    SpecMismatchError,
    UntrustedFileError,
    error_text,
    short_repr,
)
from rldistill.core.fields import import_name, validated_dataclass
from rldistill.core.policy import PolicyOutput
from rldistill.core.spec import Obs, PolicySpec
from rldistill.io.atomic import write_atomic
from rldistill.io.untrusted import (
    FREE_BYTES,
    MAX_INFLATION,
    MAX_WEIGHTS_BYTES,
    iterate_arrays,
    open_zip,
    read_member,
    read_regular,
)
from rldistill.policies.cost import BoundedCompute
from rldistill.policies.network import NetworkPolicy
from rldistill.students.student import Student

CONFIG, WEIGHTS, METADATA = "config.json", "model.weights.h5", "metadata.json"
MAX_CONFIG_BYTES = 1 << 22
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
MAX_ARRAYS, MAX_CALLS = 10_000, 2_000
NUM_TRIALS, MAX_VALUES, MAX_FLOPS = 64, 1 << 28, 1 << 40
"""Limits of the numbers and of the operations of a model for that many observations: 1 GB and some 20 seconds."""
FILE = "policy.keras"


@validated_dataclass
class Keras(Student):
    """Keras 3 model with one input and one output, with new weights.

    It takes observations as they are, images with channels last and pixels from 0 to 255, or as one vector. Its last
    layer returns the head's parameters without an activation. A Normalization is put before it. A saved student has
    `policy.keras` beside our own files, which plain Keras reads.

    Attributes:
        model: A `.keras` file, whose weights are not used, or `module:function`, called with the shape of an
            observation (channels last) and the number of outputs.
    """

    model: str

    trains_from_reward = False

    def build(self, spec: PolicySpec) -> NetworkPolicy:
        """Return the student for `spec`, with new weights; raise ConfigError if they do not fit."""
        keras = keras_on_torch()
        if spec.parts or spec.nvec:
            raise ConfigError("a keras student takes observations of one array, not dicts or integers")
        keras.utils.set_random_seed(torch.initial_seed() % (1 << 32))
        shape = (*spec.obs_shape[1:], spec.obs_shape[0]) if len(spec.obs_shape) == 3 else spec.obs_shape
        with keras.device("cpu"):
            if re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", self.model):
                inner = import_name(self.model, "model")(shape, spec.head.num_params)
            else:
                inner = keras.models.clone_model(read_keras(self.model))
            inputs = keras.Input(tuple(inner.inputs[0].shape[1:]))
            model = keras.Sequential([inputs, keras.layers.Normalization(axis=-1 if len(shape) == 1 else None), inner])
        student = KerasStudent(self, spec, model)
        student.standardize(torch.zeros(()), torch.ones(()))
        return student


class KerasStudent(NetworkPolicy):
    """Keras model as a student: its last layer is the output, the other layers are the body."""

    def __init__(self, config: Keras, spec: PolicySpec, model: Any) -> None:
        normalization, inner = model.layers
        last = innermost = inner.layers[-1]
        require_keras_fit(config.model, model, spec)
        while hasattr(innermost, "layers"):
            innermost = innermost.layers[-1]
        act = getattr(getattr(innermost, "activation", None), "__name__", "")
        act = "softmax" if type(innermost).__name__ == "Softmax" else act
        if act not in ("", "linear"):
            raise ConfigError(f"{config.model}: the last layer has the activation {act}, expected none")
        with keras_on_torch().device("cpu"):
            body = keras_on_torch().Model(inner.inputs, last.input)
        super().__init__(config, spec, body, 0, last)
        # In a tuple, so that PyTorch does not register the weights of the body a second time.
        self._model, self._normalization = (model,), normalization

    def forward(self, obs: Obs, state: Tensor | None = None) -> tuple[PolicyOutput, Tensor | None]:
        """Return the output for observations `[B, *obs_shape]`, and None as next state."""
        return self.outputs(self.body(self.standardized(obs), training=self.training)), None

    def train(self, mode: bool = True) -> KerasStudent:
        """Set the mode, and seed Keras' generators of dropout from PyTorch's seed."""
        super().train(mode)
        if mode:
            trained_or_counted = {id(variable) for variable in self._model[0].weights}
            for variable in self._model[0].variables:
                if id(variable) not in trained_or_counted:  # the state of a generator
                    variable.assign([torch.initial_seed() % (1 << 31), 0])
        return self

    def standardize(self, mean: Tensor, std: Tensor) -> None:
        """Set the mean and the standard deviation of the Normalization."""
        scale, layer = 255 if self.spec.obs_dtype == "uint8" else 1, self._normalization
        layer.adapt_mean.assign((mean * scale).broadcast_to(layer.adapt_mean.shape))
        layer.adapt_variance.assign(((std * scale) ** 2).broadcast_to(layer.adapt_variance.shape))
        layer.finalize_state()

    def standardized(self, obs: Obs) -> Obs:
        """Return the input of the model's first layer after the Normalization."""
        assert isinstance(obs, Tensor)
        return self._normalization(channels_last(obs, tuple(self._model[0].inputs[0].shape[1:])))  # type: ignore[no-any-return]

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Return the variables by number, since the names of Keras' layers change in every process."""
        values = [variable.value for variable in self._model[0].weights]
        return {f"weights.{number}": value for number, value in enumerate(values) if value.is_floating_point()}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Copy tensors into the variables; raise RuntimeError if their names or shapes differ."""
        own = self.state_dict()
        expected, found = ({name: tuple(value.shape) for name, value in part.items()} for part in (own, state_dict))
        if expected != found:
            raise RuntimeError(f"expected {expected}, found {found}")
        with torch.no_grad():
            for name, value in own.items():
                value.copy_(state_dict[name])
        self._normalization.finalize_state()

    def save_model(self, folder: Path) -> None:
        """Write `policy.keras`."""

        def write(temporary: Path) -> None:
            with tempfile.TemporaryDirectory(dir=temporary.parent) as inner:
                self._model[0].save(Path(inner) / FILE)
                (Path(inner) / FILE).replace(temporary)

        write_atomic(folder / FILE, write)

    def __reduce__(self) -> Any:
        with tempfile.TemporaryDirectory() as folder:
            self.save_model(Path(folder))
            return keras_student, (self.config, self.spec, FILE, (Path(folder) / FILE).read_bytes())


def keras_student(config: Keras, spec: PolicySpec, path: Path | str, content: bytes | None = None) -> KerasStudent:
    """Return the student that `save_model` wrote; the model that `config` names is not imported or read."""
    model = read_keras(path, content)
    if len(model.layers) != 2 or type(model.layers[0]).__name__ != "Normalization":
        raise CorruptArtifactError(f"{path}: expected a Normalization and a model, as a student is saved")
    student = KerasStudent(config, spec, model)
    student.eval()
    return student


def read_keras(path: Path | str, content: bytes | None = None) -> Any:
    """Return the model in a `.keras` file, or in its `content`.

    Raises:
        ConfigError: There is no such file.
        MissingExtraError: Keras is not installed.
        UntrustedFileError: Layers that can run code or read other files, or files that no model needs.
        SpecMismatchError: More than one input or output.
        CorruptArtifactError: The file is truncated or changed.
    """
    if content is None:
        if not Path(path).is_file():
            raise ConfigError(f"{path}: there is no such file")
        content = read_regular(Path(path), MAX_WEIGHTS_BYTES)
    try:
        with open_zip(content) as archive:
            names = archive.namelist()
            for name in names:
                if name not in (CONFIG, WEIGHTS, METADATA) or names.count(name) > 1:
                    raise UntrustedFileError(
                        f"{path}: holds {short_repr(name)}, which plain layers do not need; refused"
                    )
            for name in (CONFIG, WEIGHTS):
                if name not in names:
                    raise CorruptArtifactError(
                        f"{path}: not a Keras 3 file: it has no {name}; save it again with Keras 3"
                    )
            config = read_member(Path(path), archive, CONFIG, MAX_CONFIG_BYTES)
            weights = read_member(Path(path), archive, WEIGHTS, MAX_WEIGHTS_BYTES)
        document, keras = json.loads(config), keras_on_torch()
        _require_known(path, document)
        if (calls := _num_calls(document)) > MAX_CALLS:
            raise UntrustedFileError(f"{path}: {calls:,} calls of layers, above the limit of {MAX_CALLS:,}")
        _require_size(path, document, weights, FREE_BYTES + MAX_INFLATION * len(content))
        # Not `keras.saving.load_model`: it takes a path only, whose file could change after these checks.
        load = importlib.import_module("keras.src.saving.saving_lib").load_model
        with keras.device("cpu"):
            model = load(io.BytesIO(content), compile=False, safe_mode=True)
    except RLDistillError:
        raise
    except Exception as error:  # damaged bytes make zipfile, h5py and Keras raise errors of any class
        raise CorruptArtifactError(
            f"{path}: not a complete Keras file ({error_text(error)}); {DOWNLOAD_HINT}"
        ) from None
    for variable in model.weights:
        if not torch.isfinite(variable.value).all():
            raise CorruptArtifactError(f"{path}: it holds NaN or infinite weights; {RESAVE_HINT}")
    return model


def channels_last(obs: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return observations as inputs of that shape: float32, images with channels last or as one vector."""
    inputs = obs.float()
    if obs.ndim == 4 and tuple(obs.shape[1:]) != shape:
        inputs = inputs.movedim(1, -1)
    return inputs.reshape(len(inputs), *shape).contiguous()


def require_keras_fit(name: str, model: Any, spec: PolicySpec) -> None:
    """Raise SpecMismatchError unless the model fits the shapes of the observations and of the head's parameters."""
    shape, output = tuple(model.inputs[0].shape[1:]), tuple(model.outputs[0].shape[1:])
    last = (*spec.obs_shape[1:], *spec.obs_shape[:1])
    if shape not in (spec.obs_shape, last, (math.prod(spec.obs_shape),)):
        raise SpecMismatchError(f"{name}: takes observations of {shape}, those of the environment are {spec.obs_shape}")
    if output != (spec.head.num_params,):
        raise SpecMismatchError(f"{name}: returns {output}, expected ({spec.head.num_params},) for {spec.head.kind}")


def keras_on_torch() -> Any:
    """Return Keras on the torch backend; raise ConfigError if it already runs on another."""
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


def _require_known(path: Path | str, document: Any) -> None:
    """Refuse every class in the configuration that is not one of the plain layers."""
    if not isinstance(document, dict) or document.get("class_name") not in MODELS:
        found = document.get("class_name") if isinstance(document, dict) else type(document).__name__
        raise UntrustedFileError(f"{path}: a model of class {short_repr(found)}; supported: {', '.join(MODELS)}")
    document.pop("compile_config", None)  # the optimizer and the loss, which are never built
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
        in_keras = isinstance(module, str) and (module == "keras" or module.startswith("keras."))
        plain = name in LAYERS or name in MODELS or module in VALUE_MODULES or name in VALUES
        if not (plain and (in_keras or name == "__keras_tensor__") and value.get("registered_name") in (None, name)):
            raise UntrustedFileError(
                f"{path}: config.json names {module}.{name}, which is not one of the layers that only compute; "
                "rebuild the model from them, or export it to ONNX"
            )


def _num_calls(document: Any) -> int:
    """Return the number of calls of layers in a model, those of models inside it each time that they are called."""
    layers = document["config"].get("layers", ()) if isinstance(document.get("config"), dict) else ()
    calls = 0
    for layer in layers:
        own = _num_calls(layer) if layer.get("class_name") in MODELS else 1
        calls += max(1, len(layer.get("inbound_nodes", ()))) * own
    return calls


def _require_size(path: Path | str, document: dict[str, Any], weights: bytes, max_bytes: int) -> None:
    """Build and run the model on "meta", where it takes no memory, to measure its weights, its values and its time."""
    stored = num_bytes = 0
    for name, item in iterate_arrays(weights, f"{path}: {WEIGHTS}", MAX_ARRAYS, max_ratio=64):  # refuses links
        if item.dtype.kind not in "fiu":
            raise UntrustedFileError(f"{path}: {WEIGHTS}: {name} is no plain array of numbers; refused")
        stored, num_bytes = stored + math.prod(item.shape), num_bytes + item.nbytes
    if num_bytes > max_bytes:
        raise UntrustedFileError(f"{path}: {WEIGHTS} holds {num_bytes:,} bytes, above the limit of {max_bytes:,}")
    keras = keras_on_torch()
    with keras.device("meta"), BoundedCompute(path, MAX_VALUES, MAX_FLOPS):
        model = keras.saving.deserialize_keras_object(document, safe_mode=True)
        if model.count_params() > stored:
            problem = f"a model of {model.count_params():,} weights, of which {stored:,} are stored"
            raise UntrustedFileError(f"{path}: {problem}")
    if len(model.inputs or ()) != 1 or len(model.outputs) != 1:
        raise SpecMismatchError(
            f"{path}: {len(model.inputs or ())} inputs and {len(model.outputs)} outputs, expected one"
        )
    if None in (shape := model.inputs[0].shape[1:]):
        raise SpecMismatchError(f"{path}: takes observations of {shape}. Use a model for one shape.")
    with keras.device("meta"), torch.no_grad(), BoundedCompute(path, MAX_VALUES, MAX_FLOPS):
        model(torch.zeros(NUM_TRIALS, *shape, device="meta"), training=False)
