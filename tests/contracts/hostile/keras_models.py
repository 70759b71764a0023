"""Hostile Keras models."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .sb3_zips import alone, pickled, repack
from .watch import Case, Make

LAMBDA = {"class_name": "__lambda__", "config": {"value": base64.b64encode(b"x").decode()}}


def keras_file(change: Callable[[dict[str, bytes], dict[str, Any]], None]) -> Make:
    """A Keras model of one Dense layer, after `change` of the archive's members and of its configuration."""

    def make(folder: Path, canary: Path) -> Path:
        keras = pytest.importorskip("keras", reason="needs the extra keras")
        path = folder / "policy.keras"
        keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(2)]).save(path)

        def edit(members: dict[str, bytes]) -> None:
            document = json.loads(members["config.json"])
            change(members, document)
            members["config.json"] = json.dumps(document).replace("CANARY", str(canary)).encode()

        return repack(path, edit)

    return make


def keras_layer(where: str, name: str, **config: Any) -> Make:
    """A Keras model with one more layer."""

    def change(members: dict[str, bytes], document: dict[str, Any]) -> None:
        layer = {"module": where, "class_name": name, "config": {"name": "evil", **config}, "registered_name": None}
        document["config"]["layers"].append(layer)

    return keras_file(change)


def keras_value(field: str, value: Any) -> Make:
    """A Keras model whose Dense layer has something else in a field."""
    return keras_file(lambda members, document: document["config"]["layers"][1]["config"].update({field: value}))


def keras_weights(change: Callable[[Any], None]) -> Make:
    """A Keras model after `change` of its HDF5 file."""

    def edit(members: dict[str, bytes], document: dict[str, Any]) -> None:
        h5py = pytest.importorskip("h5py", reason="needs the extra keras")
        buffer = io.BytesIO(members["model.weights.h5"])
        with h5py.File(buffer, "r+") as file:
            change(file)
        members["model.weights.h5"] = buffer.getvalue()

    return keras_file(edit)


def keras_link(kind: str) -> Make:
    def change(file: Any) -> None:
        import h5py

        group = file["layers/dense/vars"]
        del group["0"]
        target = "/etc/SECRET.h5"
        if kind == "storage":
            group.create_dataset("0", (4, 2), "f4", external=[(target, 0, 32)])
        elif kind == "virtual":
            layout = h5py.VirtualLayout((4, 2), "f4")
            layout[:] = h5py.VirtualSource(target, "x", (4, 2), "f4")
            group.create_virtual_dataset("0", layout)
        else:
            group["0"] = h5py.ExternalLink(target, "/x") if kind == "external" else h5py.SoftLink("/layers")

    return keras_weights(change)


def keras_claim(file: Any) -> None:
    del file["layers/dense/vars/0"]
    file["layers/dense/vars"].create_dataset("0", (1 << 20, 1 << 12), "f4", chunks=(1 << 10, 1 << 10))


def keras_bomb(members: dict[str, bytes], document: dict[str, Any]) -> None:
    document["config"]["padding"] = "x" * (5 << 20)


def keras_names(file: Any) -> None:
    """Groups that hold each other twice over: 2^40 ways through a small file."""
    group = file.create_group("deep")
    for _ in range(40):
        inner = group.create_group("a")
        group["b"] = inner
        group = inner


def keras_padding() -> Make:
    def make(folder: Path, canary: Path) -> Path:
        keras = pytest.importorskip("keras", reason="needs the extra keras")
        layers = keras.layers
        model = keras.Sequential(
            [layers.Input((4,)), layers.Reshape((2, 2, 1)), layers.ZeroPadding2D(30_000), layers.GlobalMaxPooling2D()]
        )
        model.save(folder / "policy.keras")
        return folder / "policy.keras"

    return make


KERAS_LOSS = {"loss": {"module": "builtins", "class_name": "function", "config": "eval", "registered_name": "eval"}}


def keras_model(build: Callable[[Any], Any]) -> Make:
    """A model that Keras itself writes."""

    def make(folder: Path, canary: Path) -> Path:
        keras = pytest.importorskip("keras", reason="needs the extra keras")
        build(keras).save(folder / "policy.keras")
        return folder / "policy.keras"

    return make


def _images(keras: Any, *layers: Any) -> Any:
    first = [keras.layers.Input((4,)), keras.layers.Reshape((2, 2, 1))]
    return keras.Sequential([*first, *layers, keras.layers.GlobalMaxPooling2D(), keras.layers.Dense(2)])


def _inner(keras: Any, *layers: Any) -> Any:
    return _images(keras, keras.Sequential([keras.layers.Input((None, None, 1)), *layers]))


def keras_nested(calls: int, depth: int) -> Make:
    """Models in models, each called several times: the number of calls grows with the depth."""

    def change(members: dict[str, bytes], document: dict[str, Any]) -> None:
        history = lambda layer: ["__keras_tensor__", layer]  # noqa: E731
        layer = {"module": "keras.layers", "class_name": "Dense", "config": {"name": "d", "units": 4}, "name": "d",
                 "inbound_nodes": [{"args": [history("i")], "kwargs": {}}] * calls}  # fmt: skip
        for level in range(depth):
            model = {"module": "keras", "class_name": "Functional", "name": f"m{level}",
                     "config": {"name": f"m{level}", "layers": [layer], "input_layers": [], "output_layers": []},
                     "inbound_nodes": [{"args": [history("i")], "kwargs": {}}] * calls}  # fmt: skip
            layer = model
        document.update(class_name="Functional", config=layer["config"])

    return keras_file(change)


def keras_padded(folder: Path, canary: Path) -> Path:
    """Weights of zeros that are compressed twice."""
    h5py = pytest.importorskip("h5py", reason="needs the extra keras")

    def change(members: dict[str, bytes], document: dict[str, Any]) -> None:
        buffer = io.BytesIO()
        with h5py.File(buffer, "w") as file:
            for number in range(8):
                options = {"chunks": (1 << 10, 1 << 10), "compression": 9}
                data = file.create_dataset(f"layers/dense/vars/{number}", (1 << 14, 1 << 14), "f4", **options)
                data[:1] = 0
        members["model.weights.h5"] = buffer.getvalue()

    return keras_file(change)(folder, canary)


MAKES: dict[str, Make] = {
    "keras: padding in an inner model": keras_model(lambda keras: _inner(keras, keras.layers.ZeroPadding2D(20_000))),
    "keras: many filters": keras_model(
        lambda keras: _images(keras, keras.layers.ZeroPadding2D(1_000), keras.layers.Conv2D(64, 3))
    ),
    "keras: a large pooling": keras_model(
        lambda keras: _images(keras, keras.layers.ZeroPadding2D(200), keras.layers.MaxPooling2D(300, 1, "same"))
    ),
    "keras: a large kernel": keras_model(
        lambda keras: _images(keras, keras.layers.ZeroPadding2D(250), keras.layers.Conv2D(1, 250, padding="same"))
    ),
    "keras: an open shape": keras_model(lambda keras: _inner(keras, keras.layers.Conv2D(2, 1))),
    "keras: models in models": keras_nested(20, 8),
    "keras: models in models in models": keras_nested(1, 200),
    "keras: compressed twice": keras_padded,
    "keras: groups in groups": keras_weights(keras_names),
    "keras: endless padding": keras_padding(),
    "keras: lambda": keras_layer("keras.layers", "Lambda", function=LAMBDA),
    "keras: lambda by another name": keras_layer("keras.src.layers.core.lambda_layer", "Lambda", function=LAMBDA),
    "keras: a torch module": keras_layer("keras.layers", "TorchModuleWrapper", module="gASVAAAA"),
    "keras: a saved model": keras_layer("keras.layers", "TFSMLayer", filepath="/etc/SECRET"),
    "keras: a vocabulary": keras_layer("keras.layers", "StringLookup", vocabulary="/etc/SECRET"),
    "keras: os": keras_layer("os", "system", command="touch CANARY"),
    "keras: a known name of elsewhere": keras_layer("os", "Dense", units=2),
    "keras: a function": keras_value("activation", {"module": "os", "class_name": "function", "config": "system"}),
    "keras: a lambda in a field": keras_value("kernel_initializer", LAMBDA),
    "keras: registered": keras_value(
        "kernel_initializer", {"module": "builtins", "class_name": "eval", "registered_name": "eval", "config": {}}
    ),
    "keras: huge": keras_value("units", 10**10),
    "keras: more than is stored": keras_value("units", 10**6),
    "keras: a loss": keras_file(lambda members, document: document.update(compile_config=KERAS_LOSS)),
    "keras: slip": keras_file(lambda members, document: members.update({"../../../../etc/rldistill": b"x"})),
    "keras: assets": keras_file(lambda members, document: members.update({"assets/layers/x/SECRET": b"x"})),
    "keras: another class of model": keras_file(lambda members, document: document.update(class_name="Evil")),
    "keras: config bomb": keras_file(keras_bomb),
    "keras: a link": keras_link("external"),
    "keras: a soft link": keras_link("soft"),
    "keras: storage elsewhere": keras_link("storage"),
    "keras: a virtual array": keras_link("virtual"),
    "keras: an array that claims more": keras_weights(keras_claim),
    "keras: a pickle": alone("policy.keras", pickled),
    "keras: the format before": alone("policy.h5", pickled),
}
KERAS_CASES = {name: Case(make) for name, make in MAKES.items()}
