"""Hostile zips of Stable-Baselines3, and files beside them."""

from __future__ import annotations

import base64
import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import cloudpickle
import torch
from stable_baselines3 import DQN, PPO, SAC

from .pickles import PICKLES
from .watch import Case, Make, Payload


@lru_cache
def _model_bytes(algorithm: Any, env: str) -> bytes:
    settings = {} if algorithm is PPO else {"buffer_size": 100}
    buffer = io.BytesIO()
    algorithm("MlpPolicy", env, policy_kwargs={"net_arch": [4]}, **settings).save(buffer)
    return buffer.getvalue()


def _model(folder: Path, algorithm: Any = PPO, env: str = "CartPole-v1") -> Path:
    (folder / "agent.zip").write_bytes(_model_bytes(algorithm, env))
    return folder / "agent.zip"


@lru_cache
def fields(algorithm: Any, env: str) -> list[str]:
    """Return the names of all fields in an SB3 zip."""
    with zipfile.ZipFile(io.BytesIO(_model_bytes(algorithm, env))) as archive:
        return [*json.loads(archive.read("data"))]


def repack(path: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
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

        return repack(_model(folder, algorithm, env), change)

    return make


def member(name: str, content: Callable[[Path], bytes]) -> Make:
    """An SB3 zip with one member replaced or added."""

    def make(folder: Path, canary: Path) -> Path:
        return repack(_model(folder), lambda members: members.update({name: content(canary)}))

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

        return repack(_model(folder), change)

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
                for _ in range(65 if name == "data" else 200):
                    file.write(b"\0" * (1 << 20))
        return folder / "agent.zip"

    return make


def linked(folder: Path, canary: Path) -> Path:
    """A member that is a symbolic link, which must be read as bytes if at all."""
    info = zipfile.ZipInfo("policy.pth")
    info.external_attr = 0o120777 << 16
    path = repack(_model(folder), lambda members: members.pop("policy.pth"))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(info, "/etc/SECRET")
    return path


def pickled(canary: Path) -> bytes:
    return pickle.dumps(Payload(canary))


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
PAIRED = (
    "!!python/object/apply:collections.OrderedDict\n- - - a\n    - !!python/object/apply:os.system ['touch CANARY']"
)
BOMB = "\n".join(["a0: &a0 [x]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)])
MAKES: dict[str, Make] = {
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
    "args: apply": beside("args.yml", yml("env: !!python/object/apply:os.system ['touch CANARY']")),
    "args: env": beside("args.yml", yml("env: [os, system]")),
    "a script": alone("policy.pt", script),
    "an exported program": alone("policy.pt2", script),
    "a state dict": alone("policy.pth", lambda canary: torch_bytes({"w": Payload(canary)})),
    "a pickle": alone("policy.pkl", pickled),
    "of no known kind": alone("policy.bin", pickled),
}  # fmt: skip
ALGORITHMS: list[tuple[Any, str]] = [(PPO, "CartPole-v1"), (DQN, "CartPole-v1"), (SAC, "Pendulum-v1")]


def torch_pickle(content: bytes) -> bytes:
    """Return a file of `torch.save` with another pickle in it."""
    source, target = io.BytesIO(torch_bytes({"w": torch.zeros(2)})), io.BytesIO()
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, content if name.endswith("data.pkl") else old.read(name))
    return target.getvalue()


def inflated(size: int) -> bytes:
    """Return a state dict of zeros in an archive that is a thousand times smaller."""
    source, target = io.BytesIO(torch_bytes({"action_net.weight": torch.zeros(size)})), io.BytesIO()
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return target.getvalue()


def many_members(folder: Path, canary: Path) -> Path:
    with zipfile.ZipFile(_model(folder), "a") as archive:
        for number in range(60_000):
            archive.writestr(f"{number:040}", b"")
    return folder / "agent.zip"


def many_layers(canary: Path) -> bytes:
    layers = [
        (f"mlp_extractor.policy_net.{2 * n}.{kind}", torch.zeros(1))
        for n in range(3_000)
        for kind in ("weight", "bias")
    ]
    return torch_bytes(dict(layers))


def holes(folder: Path, canary: Path) -> Path:
    with (folder / "policy.pt").open("wb") as file:
        file.truncate(900 << 20)
    return folder / "policy.pt"


PLACES: dict[str, Callable[[Callable[[Path], bytes]], Make]] = {
    "weights": lambda content: member("policy.pth", lambda canary: torch_pickle(content(canary))),
    "a legacy file": lambda content: alone("policy.pt", content),
    "a state dict": lambda content: alone("policy.pth", lambda canary: torch_pickle(content(canary))),
    "vecnormalize": lambda content: beside("vecnormalize.pkl", content),
}
BOMBS: dict[str, Make] = {
    "weights: zeros": member("policy.pth", lambda canary: inflated(100 << 20)),
    "weights: thousands of layers": member("policy.pth", many_layers),
    "weights: a pickle of lists": member("policy.pth", lambda canary: torch_pickle(b"]" * (8 << 20) + b".")),
    "zip: thousands of members": many_members,
    "a file of holes": holes,
    "a state dict of zeros": alone("policy.pt", lambda canary: inflated(100 << 20)),
}


def sb3_cases() -> dict[str, Case]:
    """Return all cases: those above, and a payload in each field of each algorithm."""
    payloads = {
        f"{algorithm.__name__} {name}": field(name, algorithm, env)
        for algorithm, env in ALGORITHMS
        for name in fields(algorithm, env)
    }
    pickles = {f"{place}: {name}": make(content) for place, make in PLACES.items() for name, content in PICKLES.items()}
    return {name: Case(make) for name, make in (MAKES | payloads | pickles | BOMBS).items()}
