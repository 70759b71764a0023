"""Hostile files: each is refused with one clear error, or read without what was hostile in it; nothing of it runs."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import os
import pickle
import struct
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
import torch
from safetensors.torch import save_file
from stable_baselines3 import DQN, PPO, SAC

from rldistill.collection.collect import collect
from rldistill.collection.config import CollectConfig
from rldistill.collection.relabel import relabel
from rldistill.core.errors import RLDistillError
from rldistill.core.heads import CategoricalHead
from rldistill.core.spec import EnvConfig, PolicySpec
from rldistill.data.dataset import open_dataset
from rldistill.data.manifest import Manifest
from rldistill.data.merge import merge
from rldistill.envs.spaces import spec_from_env
from rldistill.evaluation.verify import VerifyConfig, verify
from rldistill.io.atomic import write_json
from rldistill.students import STUDENTS, Mlp
from rldistill.students.storage import save_policy
from rldistill.teachers.load import SavedTeacher, load_policy

pytestmark = pytest.mark.slow

FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.remove", "os.rename", "os.mkdir", "os.link")
FORBIDDEN += (
    "subprocess.Popen",
    "socket.connect",
    "socket.bind",
    "pickle.find_class",
    "shutil.rmtree",
    "ctypes.dlopen",
)
_watched: list[str] | None = None


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if _watched is None:
        return
    if event in FORBIDDEN or (event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+")):
        _watched.append(f"{event} {args!r:.200}")
    if event == "open" and "SECRET" in str(args[0]):
        _watched.append(f"{event} {args!r:.200}")


sys.addaudithook(_hook)


@contextmanager
def watched() -> Iterator[list[str]]:
    global _watched
    _watched = seen = []
    try:
        yield seen
    finally:
        _watched = None


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.canary}",)


CARTPOLE = PolicySpec((4,), "float32", CategoricalHead((2,)))
os.environ.setdefault("KERAS_BACKEND", "torch")
Make = Callable[[Path, Path], Path]
"""From a folder and the file that a payload would make: the file to load."""


def _model(folder: Path, algorithm: Any = PPO, env: str = "CartPole-v1") -> Path:
    settings = {"buffer_size": 100} if algorithm is not PPO else {}
    algorithm("MlpPolicy", env, policy_kwargs={"net_arch": [4]}, **settings).save(folder / "agent.zip")
    return folder / "agent.zip"


def _repack(path: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def field(name: str, algorithm: Any, env: str) -> Make:
    """A cloudpickled field of an SB3 zip that runs something."""

    def make(folder: Path, canary: Path) -> Path:
        def change(members: dict[str, bytes]) -> None:
            data = json.loads(members["data"])
            evil = base64.b64encode(cloudpickle.dumps(Payload(canary))).decode()
            data[name] = (
                {**data[name], ":serialized:": evil} if isinstance(data.get(name), dict) else {":serialized:": evil}
            )
            members["data"] = json.dumps(data).encode()

        return _repack(_model(folder, algorithm, env), change)

    return make


def member(name: str, content: Callable[[Path], bytes]) -> Make:
    """An SB3 zip with one member replaced or added."""

    def make(folder: Path, canary: Path) -> Path:
        return _repack(_model(folder), lambda members: members.update({name: content(canary)}))

    return make


def torch_bytes(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def text(field: str, value: Any) -> Make:
    """Plain text of an SB3 zip that would be dangerous if it were evaluated or believed."""

    def make(folder: Path, canary: Path) -> Path:
        def change(members: dict[str, bytes]) -> None:
            data = json.loads(members["data"])
            node, *rest = field.split(".")
            if rest:
                data[node][rest[0]] = str(value).replace("CANARY", str(canary)) if isinstance(value, str) else value
            else:
                data[node] = value
            members["data"] = json.dumps(data).encode()

        return _repack(_model(folder), change)

    return make


def beside(name: str, content: Callable[[Path], bytes]) -> Make:
    """A sound agent with a hostile file beside it."""

    def make(folder: Path, canary: Path) -> Path:
        path = _model(folder)
        (folder / "agent").mkdir()
        (folder / "agent" / name).write_bytes(content(canary))
        return path

    return make


def yml(body: str) -> Callable[[Path], bytes]:
    return lambda canary: body.replace("CANARY", str(canary)).encode()


def native(change: Callable[[dict[str, Any]], None] = lambda document: None, header: bytes | None = None) -> Make:
    """A policy of ours with its document or its tensors tampered with."""

    def make(folder: Path, canary: Path) -> Path:
        spec = PolicySpec((4,), "float32", CategoricalHead((2,)))
        save_policy(Mlp((4,)).build(spec), folder, {})
        document = json.loads((folder / "policy.json").read_text())
        change(document)
        write_json(folder / "policy.json", document)
        if header is not None:
            (folder / "policy.safetensors").write_bytes(header)
        return folder

    return make


def put(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        *parents, last = path.split(".")
        for parent in parents:
            document = document[parent]
        document[last] = value

    return change


def lying(header: dict[str, Any], body: bytes = b"\0" * 64) -> bytes:
    packed = json.dumps(header).encode()
    return struct.pack("<Q", len(packed)) + packed + body


def alone(name: str, content: Callable[[Path], bytes]) -> Make:
    def make(folder: Path, canary: Path) -> Path:
        (folder / name).write_bytes(content(canary))
        return folder / name

    return make


def script(canary: Path) -> bytes:
    class Module(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(Module()), buffer)
    return buffer.getvalue()


def slip(folder: Path, canary: Path) -> Path:
    with zipfile.ZipFile(_model(folder), "a") as archive:
        archive.writestr(f"../../../../{canary}", b"x")
        archive.writestr("/etc/rldistill-was-here", b"x")
    return folder / "agent.zip"


def bomb(name: str) -> Make:
    def make(folder: Path, canary: Path) -> Path:
        with zipfile.ZipFile(folder / "agent.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            other = "policy.pth" if name == "data" else "data"
            archive.writestr(other, b"{}")
            with archive.open(name, "w", force_zip64=True) as file:
                for _ in range(65 if name == "data" else 1025):
                    file.write(b"\0" * (1 << 20))
        return folder / "agent.zip"

    return make


def linked(folder: Path, canary: Path) -> Path:
    """A member that is a symbolic link, which must be read as bytes if at all."""
    info = zipfile.ZipInfo("policy.pth")
    info.external_attr = 0o120777 << 16
    path = _repack(_model(folder), lambda members: members.pop("policy.pth"))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(info, "/etc/SECRET")
    return path


def pickled(canary: Path) -> bytes:
    return pickle.dumps(Payload(canary))


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

        return _repack(path, edit)

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


def onnx_file(change: Callable[[Any], None]) -> Make:
    """An ONNX graph of one matrix product, after `change`."""

    def make(folder: Path, canary: Path) -> Path:
        onnx = pytest.importorskip("onnx", reason="needs the extra export")
        helper, floats = onnx.helper, onnx.TensorProto.FLOAT
        graph = helper.make_graph(
            [helper.make_node("MatMul", ["obs", "w"], ["q"])],
            "policy",
            [helper.make_tensor_value_info("obs", floats, ["batch", 4])],
            [helper.make_tensor_value_info("q", floats, ["batch", 2])],
            [helper.make_tensor("w", floats, (4, 2), [0.5] * 8)],
        )
        model = helper.make_model(graph)
        change(model)
        (folder / "policy.onnx").write_bytes(model.SerializeToString())
        return folder / "policy.onnx"

    return make


def onnx_outside(location: str) -> Make:
    def change(model: Any) -> None:
        tensor = model.graph.initializer[0]
        tensor.ClearField("float_data")
        tensor.data_location = 1
        entry = tensor.external_data.add()
        entry.key, entry.value = "location", location

    return onnx_file(change)


def onnx_domain(model: Any) -> None:
    model.graph.node[0].domain = "evil.python"


def onnx_huge(model: Any) -> None:
    model.graph.initializer[0].dims[:] = [1 << 40, 1 << 20]


def onnx_endless(model: Any) -> None:
    model.graph.node[0].op_type = "Loop"


def onnx_exploding(model: Any) -> None:
    import onnx

    shape = onnx.helper.make_tensor("shape", onnx.TensorProto.INT64, (2,), [1 << 16, 1 << 14])
    model.graph.initializer.append(shape)
    model.graph.node.insert(0, onnx.helper.make_node("ConstantOfShape", ["shape"], ["big"]))


def onnx_function(model: Any) -> None:
    import onnx

    tensor = onnx.helper.make_tensor("e", onnx.TensorProto.FLOAT, (1,), [1.0])
    tensor.ClearField("float_data")
    tensor.data_location = 1
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "/etc/SECRET"
    node = onnx.helper.make_node("Constant", [], ["y"], value=tensor)
    model.functions.append(onnx.helper.make_function("local", "f", [], ["y"], [node], model.opset_import))


def packed(compression: int, declared: int) -> Make:
    """A member that says it is smaller than it is, or that is packed in an unusual way."""

    def make(folder: Path, canary: Path) -> Path:
        path = folder / "agent.zip"
        with zipfile.ZipFile(path, "w", compression) as archive:
            archive.writestr("policy.pth", b"{}")
            archive.writestr("data", b" " * (80 << 20) + b"{}")
        raw = bytearray(path.read_bytes())
        size = struct.pack("<L", (80 << 20) + 2)
        while (at := raw.find(size)) >= 0:
            raw[at : at + 4] = struct.pack("<L", declared)
        path.write_bytes(raw)
        return path

    return make


def shared_storage(canary: Path) -> bytes:
    one = torch.zeros(1).expand(1 << 28)
    return torch_bytes({f"x{number}": one for number in range(60)})


def nested_moments(canary: Path) -> bytes:
    mean: Any = [0.0] * 10
    for _ in range(8):
        mean = [mean] * 10
    record = b"cstable_baselines3.common.running_mean_std\nRunningMeanStd\n)\x81}(X\4\0\0\0mean"
    whole = b"\x80\x02cstable_baselines3.common.vec_env.vec_normalize\nVecNormalize\n)\x81}("
    whole += b"X\x07\0\0\0epsilonG>Ez\xe1G\xae\x14{X\x08\0\0\0clip_obsG@$\0\0\0\0\0\0X\x07\0\0\0obs_rms"
    return whole + record + pickle.dumps(mean, 2)[2:-1] + b"X\3\0\0\0varG?\xf0\0\0\0\0\0\0ubub."


MERGED = "\n".join(
    ["m0: &m0 {x: 1}"] + [f"m{i}: &m{i} {{<<: [{', '.join([f'*m{i - 1}'] * 9)}]}}" for i in range(1, 10)]
)
PPO_FIELDS = ("policy_class", "observation_space", "action_space", "lr_schedule", "clip_range", "rollout_buffer_class")
PPO_FIELDS += ("_last_obs", "_last_episode_starts", "ep_info_buffer", "policy_kwargs", "rollout_buffer_kwargs")
DQN_FIELDS = (
    "replay_buffer_class",
    "exploration_schedule",
    "train_freq",
    "optimize_memory_usage",
    "_last_original_obs",
)
SAC_FIELDS = ("action_noise", "target_entropy", "ent_coef", "replay_buffer_kwargs", "batch_norm_stats")
TENSOR = {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64]}
PAIRED = (
    "!!python/object/apply:collections.OrderedDict\n- - - a\n    - !!python/object/apply:os.system ['touch CANARY']"
)
BOMB = "\n".join(["a0: &a0 [x]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)])
CASES: dict[str, Make] = {
    **{f"ppo {name}": field(name, PPO, "CartPole-v1") for name in PPO_FIELDS},
    **{f"dqn {name}": field(name, DQN, "CartPole-v1") for name in DQN_FIELDS},
    **{f"sac {name}": field(name, SAC, "Pendulum-v1") for name in SAC_FIELDS},
    "weights: a pickle": member("policy.pth", pickled),
    "weights: a payload": member("policy.pth", lambda canary: torch_bytes({"action_net.weight": Payload(canary)})),
    "weights: a module": member("policy.pth", lambda canary: torch_bytes(torch.nn.Linear(2, 2))),
    "weights: a script": member("policy.pth", script),
    "weights: an optimiser's": member("policy.optimizer.pth", pickled),
    "weights: variables": member("pytorch_variables.pth", pickled),
    "weights: nested zip": member("policy.pth", lambda canary: torch_bytes({})[:-30]),
    "data: not JSON": member("data", pickled),
    "data: python": member("data", lambda canary: b"__import__('os').system('touch x')"),
    "data: deep": member("data", lambda canary: b"[" * 200_000),
    "text: class": text("policy_class", {"__module__": "os", "__init__": "system"}),
    "text: activation": text("policy_kwargs", {"activation_fn": "__import__('os').system('x')"}),
    "text: extractor": text("policy_kwargs", {"features_extractor_class": "<class 'os.system'>"}),
    "text: bounds": text("action_space.n", "__import__('os').system('touch CANARY')"),
    "text: huge actions": text("action_space.n", 10**12),
    "text: huge shape": text("observation_space._shape", [10**9, 10**9]),
    "text: dtype": text("observation_space.dtype", "__class__"),
    "zip: slip": slip,
    "zip: bomb in data": bomb("data"),
    "zip: bomb in weights": bomb("policy.pth"),
    "zip: a link": linked,
    "vecnormalize: a pickle": beside("vecnormalize.pkl", pickled),
    "vecnormalize: a builtin": beside("vecnormalize.pkl", lambda canary: b"cbuiltins\neval\n(S'1'\ntR."),
    "vecnormalize: getattr": beside("vecnormalize.pkl", lambda canary: b"cbuiltins\ngetattr\n(S'a'\nS'join'\ntR."),
    "vecnormalize: numpy load": beside("vecnormalize.pkl", lambda canary: b"cnumpy\nload\n(S'/etc/SECRET'\ntR."),
    "vecnormalize: numpy test": beside("vecnormalize.pkl", lambda canary: b"cnumpy.testing\nrunstring\n(S'1'\ntR."),
    "vecnormalize: outside": beside("vecnormalize.pkl", lambda canary: b"Pelsewhere\n."),
    "vecnormalize: extension": beside("vecnormalize.pkl", lambda canary: b"\x80\x02\x82\x01."),
    "vecnormalize: endless": beside("vecnormalize.pkl", lambda canary: b"]" * 100_000 + b"."),
    "config: apply": beside("config.yml", yml("a: !!python/object/apply:os.system ['touch CANARY']")),
    "config: new": beside("config.yml", yml("a: !!python/object/new:os.system ['touch CANARY']")),
    "config: name": beside("config.yml", yml("a: !!python/name:os.system")),
    "config: module": beside("config.yml", yml("a: !!python/module:os")),
    "config: in the pairs": beside("config.yml", yml(PAIRED)),
    "config: a counter": beside("config.yml", yml("!!python/object/apply:collections.Counter [[]]")),
    "config: text": beside("config.yml", yml("normalize: __import__('os').system('touch CANARY')")),
    "config: wrapper": beside("config.yml", yml("env_wrapper: os.system")),
    "config: wrapper's arguments": beside("config.yml", yml("env_wrapper: [{os.system: 'touch CANARY'}]")),
    "config: a bomb": beside("config.yml", yml(BOMB)),
    "config: a bomb that is shown": beside("config.yml", yml(BOMB + "\nvec_env_wrapper: *a8")),
    "config: a bomb of wrappers": beside("config.yml", yml(BOMB + "\nenv_wrapper: [[*a8]]")),
    "config: merged keys": beside("config.yml", yml(MERGED)),
    "config: too long": beside("config.yml", yml(f"a: [{'x, ' * 100_000}]")),
    "config: long history": beside("config.yml", yml("env_wrapper: [{u.HistoryWrapper: {horizon: 2000000000}}]")),
    "config: endless frames": beside("config.yml", yml("env_wrapper: [{utils.FrameSkip: {skip: 1000000000000}}]")),
    "args: a shown bomb": beside("args.yml", yml(BOMB + "\nenv: *a8")),
    "args: a file of the environment": beside("args.yml", yml("env_kwargs: {xml_file: /etc/SECRET}")),
    "vecnormalize: a huge memory": beside("vecnormalize.pkl", lambda canary: b"\x80\x04Nr\0\0\0\x10."),
    "vecnormalize: nested lists": beside("vecnormalize.pkl", nested_moments),
    "weights: one number for all": member("policy.pth", shared_storage),
    "zip: a lying size": packed(zipfile.ZIP_DEFLATED, 100),
    "zip: packed otherwise": packed(zipfile.ZIP_BZIP2, 100),
    "text: an endless name": text("policy_kwargs", {"activation_fn": "x\x1b[31m" * 200_000}),
    "text: two lines": text("policy_kwargs", {"features_extractor_class": "a\nerror: b"}),
    "keras: groups in groups": keras_weights(keras_names),
    "keras: endless padding": keras_padding(),
    "onnx: endless": onnx_file(onnx_endless),
    "onnx: exploding": onnx_file(onnx_exploding),
    "onnx: a function with tensors elsewhere": onnx_file(onnx_function),
    "args: apply": beside("args.yml", yml("env: !!python/object/apply:os.system ['touch CANARY']")),
    "args: env": beside("args.yml", yml("env: [os, system]")),
    "ours: factory": native(put("student", "os:system")),
    "ours: student": native(put("student", ["mlp"])),
    "ours: activation": native(put("config.activation", "os.system")),
    "ours: sizes": native(put("config.hidden", [10**9, 10**9])),
    "ours: more": native(put("config.factory", "os:system")),
    "ours: view": native(put("spec.view", [{"name": "os:system", "kwargs": {"command": "x"}}])),
    "ours: a wrapper that writes": native(put("spec.view", [{"name": "RecordVideo", "kwargs": {"video_folder": "x"}}])),
    "ours: dtype": native(put("spec.obs_dtype", "__class__")),
    "ours: a lying offset": native(header=lying({"output.weight": {**TENSOR, "data_offsets": [0, 1 << 40]}})),
    "ours: a lying shape": native(header=lying({"output.weight": {**TENSOR, "shape": [1 << 40, 4]}})),
    "ours: overlapping": native(header=lying({"a": TENSOR, "b": TENSOR})),
    "ours: a header longer than the file": native(header=struct.pack("<Q", 1 << 60) + b"{}"),
    "ours: a pickle for tensors": native(header=pickle.dumps(Payload(Path("x")))),
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
    "onnx: tensors elsewhere": onnx_outside("/etc/SECRET"),
    "onnx: tensors above": onnx_outside("../../../../etc/SECRET"),
    "onnx: an operator of one's own": onnx_file(onnx_domain),
    "onnx: a lying shape": onnx_file(onnx_huge),
    "onnx: a pickle": alone("policy.onnx", pickled),
    "a script": alone("policy.pt", script),
    "an exported program": alone("policy.pt2", script),
    "a state dict": alone("policy.pth", lambda canary: torch_bytes({"w": Payload(canary)})),
    "a pickle": alone("policy.pkl", pickled),
    "of no known kind": alone("policy.bin", pickled),
}  # fmt: skip


def test_there_are_as_many_as_is_promised() -> None:
    assert len(CASES) >= 60


@pytest.mark.filterwarnings("ignore:.* its outputs are read as logits")
@pytest.mark.parametrize("name", CASES)
def test_nothing_of_a_hostile_file_runs(name: str, tmp_path: Path) -> None:
    folder, canary = tmp_path / "file", tmp_path / "canary"
    folder.mkdir()
    path = CASES[name](folder, canary)
    before = sorted(tmp_path.rglob("*"))
    said = ""
    with watched() as seen:
        try:
            load_policy(path, spec=CARTPOLE)
        except RLDistillError as error:
            said = str(error)
    assert seen == []
    assert len(said) < 3_000
    assert "\x1b" not in said
    assert not said or str(folder) in said
    assert sorted(tmp_path.rglob("*")) == before


def test_the_watch_sees_what_it_should(tmp_path: Path) -> None:
    with watched() as seen:
        pickle.loads(pickle.dumps(Payload(tmp_path / "canary")))
    assert any(event.startswith("os.system") for event in seen)
    assert any(event.startswith("pickle.find_class") for event in seen)


def test_safetensors_of_ours_are_read_back(tmp_path: Path) -> None:
    """The tampering above is what is refused, not the format."""
    load_policy(native()(tmp_path, tmp_path))
    save_file({"a": torch.zeros(2)}, tmp_path / "policy.safetensors")
    with pytest.raises(RLDistillError, match="SHA-256"):
        load_policy(tmp_path)


def test_an_environment_that_a_file_names_is_never_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "planted.py").write_text("raise SystemExit('it ran')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    path = beside("args.yml", yml("env: 'planted:make'"))(tmp_path, tmp_path)
    policy, env = load_policy(path), EnvConfig("CartPole-v1")
    found = verify(env, SavedTeacher(str(path)).load(), VerifyConfig(1), name=str(path))
    assert "trained on planted:make" in found.suspicious[-1]
    for seed, name in enumerate("ab"):
        collect(env, policy, CollectConfig(steps=32, block_steps=4), tmp_path / name, seed=seed)
        manifest = tmp_path / name / "manifest.json"
        manifest.write_text(manifest.read_text().replace("CartPole-v1", "planted:make"))
        open_dataset(tmp_path / name)
    assert Manifest.read(tmp_path / "a").env.id == "planted:make"
    relabel(tmp_path / "a", policy, tmp_path / "relabelled")
    merge([tmp_path / "a", tmp_path / "b"], tmp_path / "merged")
    assert "planted" not in sys.modules
    with pytest.raises(SystemExit, match="it ran"):
        spec_from_env(EnvConfig("planted:make"))


@pytest.mark.parametrize("network", [None, "planted:make", {"type": "planted:make"}], ids=repr)
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("student", ["linear", "ridge", "tree", "mlp"])
def test_a_policy_file_cannot_name_code_for_its_features(
    student: str, nested: bool, network: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "planted.py").write_text("raise SystemExit('it ran')")
    monkeypatch.syspath_prepend(str(tmp_path))
    save_policy(Mlp((4,)).build(CARTPOLE), tmp_path, {})
    document = json.loads((tmp_path / "policy.json").read_text())
    head = document["spec"]["head"]
    reference: dict[str, Any] = {"type": "teacher", "policy": "planted:make", "network": network, "head": head}
    if nested:
        inner = {"type": "mlp", **document["config"], "features": reference}
        reference = {"type": "teacher", "policy": "", "network": inner, "head": head}
    defaults = json.loads(json.dumps(dataclasses.asdict(STUDENTS[student]())))
    document |= {"student": student, "config": {**defaults, "features": reference}}
    write_json(tmp_path / "policy.json", document)
    with pytest.raises(RLDistillError, match=r"features\.network: expected one of actor, mlp, cnn, impala"):
        load_policy(tmp_path)
    assert "planted" not in sys.modules
