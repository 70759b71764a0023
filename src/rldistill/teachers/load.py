"""One door for teachers from elsewhere: what a path is decides how it is read."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from annotated_types import MinLen
from pydantic import model_validator

from rldistill.core.errors import ConfigError, SpecMismatchError, UntrustedFileError, did_you_mean
from rldistill.core.fields import validated_dataclass
from rldistill.core.heads import HeadKind
from rldistill.core.policy import Policy
from rldistill.core.spec import PolicySpec
from rldistill.policies.ensemble import Ensemble, Vote
from rldistill.students.storage import DOCUMENT, load_native
from rldistill.teachers.cleanrl import load_cleanrl
from rldistill.teachers.keras import load_keras
from rldistill.teachers.onnx import load_onnx
from rldistill.teachers.python import load_module
from rldistill.teachers.sb3.load import load_sb3
from rldistill.teachers.sb3.zoo_folder import ZooFolder, read_zoo_folder

ZOO = "zoo:"
STATE_DICTS = (".cleanrl_model", ".pt", ".pth", ".safetensors")
RUN_CODE = (".pt2", ".pkl", ".pickle", ".joblib", ".npy", ".h5", ".hdf5")
UNUSED = {
    "activation": "tells its activation",
    "head": "tells what its numbers mean",
    "scale": "scales its input itself",
    "output": "has one output",
}
"""Why a teacher of some format is not told a thing."""
KNOWN = "a folder with policy.json, a Stable-Baselines3 zip, ONNX, Keras, a state dict, or module:factory"


@validated_dataclass
class SavedTeacher:
    """A teacher from elsewhere, and what its file does not tell; the fields are those of `load_policy`."""

    path: str
    activation: str | None = None
    head: HeadKind | None = None
    scale: float = 1.0
    output: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_path(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value

    def load(self, spec: PolicySpec | None) -> Policy:
        """Read it."""
        told = {key: value for key, value in vars(self).items() if key != "path"}
        return load_policy(self.path, spec=spec, **told)


@validated_dataclass
class TeacherEnsemble:
    """Several teachers that teach as one, each with what its file does not tell; see `rldistill.policies.ensemble`."""

    ensemble: Annotated[tuple[SavedTeacher, ...], MinLen(1)]
    vote: Vote = "mean"

    def load(self, spec: PolicySpec | None) -> Policy:
        """Read them all."""
        members = tuple(member.load(spec) for member in self.ensemble)
        try:
            return Ensemble(members, self.vote)
        except SpecMismatchError as error:
            who = ", ".join(f"member {number} is {member.path}" for number, member in enumerate(self.ensemble))
            raise SpecMismatchError(f"{error}; {who}") from None


def zoo_names() -> list[str]:
    """Names of the teachers that ship."""
    zoo = resources.files("rldistill") / "zoo"
    return sorted(entry.name for entry in zoo.iterdir() if (entry / "policy.json").is_file())


def zoo_documents(file: str = DOCUMENT) -> dict[str, Any]:
    """What `policy.json`, or another file beside it, says of each teacher that ships."""
    zoo = resources.files("rldistill") / "zoo"
    return {name: json.loads((zoo / name / file).read_text()) for name in zoo_names()}


def load_policy(
    path: str | Path,
    *,
    spec: PolicySpec | None = None,
    activation: str | None = None,
    head: HeadKind | None = None,
    scale: float = 1.0,
    output: str | None = None,
) -> Policy:
    """A policy from elsewhere, by what its path is.

    `zoo:NAME`; a folder of ours (`policy.json` in it); a Stable-Baselines3 zip or its folder; a state dict of CleanRL
    (`.cleanrl_model .pt .pth .safetensors`); an ONNX or a Keras 3 file; `module:factory`, or `module:factory@FILE` for
    one with weights, which run your own code.

    Args:
        path: where it is.
        spec: of the environment, for formats that do not tell what the policy takes and gives.
        activation: of its dense layers, where a zip does not tell, or other than in CleanRL's own script.
        head: what the numbers of ONNX, Keras and a network of `module:factory` mean: `q_values`, or the neutral head
            of the action space, which is also what is taken where none is given, with a warning.
        scale: what the input of ONNX and Keras is multiplied with, 1/255 where it expects pixels from 0 to 1.
        output: of an ONNX graph, the one that holds the head's numbers, where several could.

    Raises:
        ConfigError: there is nothing of that name, or what is told of it cannot count.
        UntrustedFileError: a file that would run code, or of an unknown format.
        CorruptArtifactError: truncated or altered.
    """
    told = {"activation": activation, "head": head, "scale": scale, "output": output}
    if str(path).startswith(ZOO):
        _require_used(path, "a teacher of the zoo", told)
        name = str(path).removeprefix(ZOO)
        if name not in zoo_names():
            raise ConfigError(f"teacher: the zoo has no {name!r}.{did_you_mean(name, zoo_names())}")
        with resources.as_file(resources.files("rldistill") / "zoo" / name) as folder:
            return load_native(folder)
    if not Path(path).exists() and re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*(@.+)?", str(path)):
        _require_used(path, "what a factory makes", told, "head")
        return load_module(str(path), spec, head)
    return _load_file(Path(path), None if spec is None else spec.unmasked, told)


def _require_used(path: str | Path, what: str, told: Mapping[str, Any], *used: str) -> None:
    """Raise ConfigError for what is told of a teacher and makes no difference to its kind."""
    for key, value in told.items():
        if key not in used and value not in (None, 1):  # 1 is a scale that is not given
            raise ConfigError(f"teacher: {path}: {key}: {what} {UNUSED[key]}; leave it out")


def trained_elsewhere(path: str, env_id: str) -> str | None:
    """What the folder of rl-baselines3-zoo around a zip says of another environment, None if it says nothing of one."""
    told = _zoo_folder(path).env_id
    if told is None or _bare(told) == _bare(env_id):
        return None
    return f"the args.yml beside it says that it was trained on {told}"


def told_in(path: str) -> str:
    """The files that tell what was around a teacher's environment: those beside a zip, else its own."""
    return " and ".join(map(str, _zoo_folder(path).told_in)) or path


def _zoo_folder(path: str) -> ZooFolder:
    """What lies beside a teacher; of what is no zip, nothing does."""
    place = Path(path)
    if place.is_dir() and not (place / DOCUMENT).exists():
        place = _zip_in(place)
    return read_zoo_folder(place) if place.suffix == ".zip" and place.exists() else ZooFolder()


def _bare(env_id: str) -> str:
    """Without the version, and for Atari without what tells how the screen is shown."""
    name = re.sub(r"-v\d+$", "", env_id).rpartition("/")[2]
    return re.sub(r"(NoFrameskip|Deterministic)$", "", name)


def _load_file(path: Path, spec: PolicySpec | None, told: Mapping[str, Any]) -> Policy:
    if not path.exists():
        raise ConfigError(f"teacher: {path}: there is no such file or folder")
    if path.is_dir():
        if (path / DOCUMENT).exists():
            _require_used(path, f"a folder with {DOCUMENT}", told)
            return load_native(path)
        path = _zip_in(path)
    if path.suffix == ".zip":
        _require_used(path, "a Stable-Baselines3 zip", told, "activation")
        return load_sb3(path, told["activation"])
    if path.suffix == ".onnx":
        _require_used(path, "an ONNX file", told, "head", "scale", "output")
        return load_onnx(path, spec, told["head"], told["scale"], told["output"])
    if path.suffix == ".keras":
        _require_used(path, "a Keras file", told, "head", "scale")
        return load_keras(path, spec, told["head"], told["scale"])
    if path.suffix in STATE_DICTS:
        _require_used(path, "a network of CleanRL", told, "activation", "head")
        return load_cleanrl(path, spec, told["activation"], told["head"])
    if path.suffix in RUN_CODE:
        raise UntrustedFileError(
            f"{path}: files of this kind can run code when they are read; give a state dict, safetensors or a zip"
        )
    raise UntrustedFileError(f"{path}: of no known format; give {KNOWN}")


def _zip_in(folder: Path) -> Path:
    """The agent in a folder of rl-baselines3-zoo: the one with a folder of its name, else the only one."""
    zips = sorted(folder.glob("*.zip"))
    named = [path for path in zips if path.with_suffix("").is_dir()]
    chosen = named if len(named) == 1 else zips
    if len(chosen) != 1:
        found = ", ".join(path.name for path in zips) or "nothing of the kind"
        raise ConfigError(f"teacher: {folder}: expected {DOCUMENT} or one Stable-Baselines3 zip in it, found {found}")
    return chosen[0]
