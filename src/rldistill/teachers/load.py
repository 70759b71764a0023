"""Loading of teachers in any format, which the path determines."""

import dataclasses
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import gymnasium
from annotated_types import MinLen
from pydantic import AfterValidator, FiniteFloat, model_validator

from rldistill.core.errors import ConfigError, SpecMismatchError, UntrustedFileError, did_you_mean
from rldistill.core.fields import NonNegative, validated_dataclass
from rldistill.core.heads import HeadKind
from rldistill.core.policy import Policy
from rldistill.core.spec import EnvConfig, PolicySpec
from rldistill.policies.ensemble import Ensemble, Vote
from rldistill.policies.joint import JointPolicy, agent_views
from rldistill.policies.wrappers import with_action_mask
from rldistill.students.storage import DOCUMENT, load_native
from rldistill.teachers.actions import SubsetPolicy, squashed, with_actions
from rldistill.teachers.checkpoint import load_checkpoint
from rldistill.teachers.file_policy import load_keras
from rldistill.teachers.hub import is_hub, local_path
from rldistill.teachers.onnx import load_onnx
from rldistill.teachers.python import load_module
from rldistill.teachers.sb3.load import load_sb3, observed_normalized
from rldistill.teachers.sb3.zoo_folder import NORMALIZERS, ZooFolder, read_zoo_folder
from rldistill.teachers.zoo import ZOO, load_zoo

EXECUTABLE_SUFFIXES = (".pt2", ".pkl", ".pickle", ".joblib", ".npy", ".h5", ".hdf5")
STATE_DICT_SUFFIXES = (".cleanrl_model", ".pt", ".pth", ".safetensors")
FORMAT_NAMES = "a folder with policy.json, a Stable-Baselines3 zip, ONNX, Keras, a state dict, or module:factory"
REASONS = {
    "activation": "already holds its activations",
    "extractor": "has no features extractor of your own",
    "head": "already holds the kind of its head",
    "scale": "scales its input itself",
    "output": "has one output",
    "obs_mean": "holds the statistics of its observations itself",
    "obs_variance": "holds the statistics of its observations itself",
}
"""Reasons why an option does not apply to a format."""


def _is_factory(path: str) -> bool:
    return not Path(path).exists() and re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*(@.+)?", path) is not None


class Format(NamedTuple):
    """Format of a teacher; `load` is called with the path, the spec of the environment, and `options` by name.

    Without `holds_spec` the file does not determine observations and actions, so that a spec is needed.
    """

    noun: str
    matches: Callable[[str], bool]
    load: Callable[..., Policy]
    options: tuple[str, ...] = ()
    holds_spec: bool = True


FORMATS = (
    Format("a teacher of the zoo", lambda path: path.startswith(ZOO), lambda path, _: load_zoo(path)),
    Format("a Python factory", _is_factory, load_module, ("head",)),
    Format("a folder of rldistill", lambda path: Path(path).is_dir(), lambda path, _: load_native(Path(path))),
    Format(
        "a Stable-Baselines3 zip", lambda path: path.endswith(".zip"),
        lambda path, _, **options: load_sb3(Path(path), **options), ("activation", "extractor"),
    ),
    Format("an ONNX file", lambda path: path.endswith(".onnx"), load_onnx, ("head", "scale", "output"), False),
    Format("a Keras file", lambda path: path.endswith(".keras"), load_keras, ("head", "scale"), False),
    Format(
        "a state dict", lambda path: path.endswith(STATE_DICT_SUFFIXES), load_checkpoint,
        ("activation", "head", "obs_mean", "obs_variance"), False,
    ),
)  # fmt: skip
"""Formats in the order of their tests; a new format is one entry."""


@validated_dataclass
class SavedTeacher:
    """Teacher in a file, with the options of its format.

    Attributes:
        path: `zoo:NAME`; `hub:OWNER/NAME[/FILE][@REVISION]` of the Hugging Face Hub; a folder of rldistill; a
            Stable-Baselines3 zip or its folder; a state dict or checkpoint of CleanRL, skrl, rsl_rl or rl_games
            (`.cleanrl_model .pt .pth .safetensors`); an ONNX or Keras 3 file; or `module:factory`, or
            `module:factory@FILE` with weights, which run your own code.
        activation: Activation of the dense layers, by its name in `torch.nn` or as `module:Class`: for an SB3 zip with
            an activation or a policy class of your own, and for state dicts.
        extractor: Features extractor of your own in an SB3 zip, as `module:Class`.
        head: Kind of the head of ONNX, Keras and Python networks: `q_values`, or the neutral head of the action space,
            which is the default, with a warning.
        scale: Factor of the input of ONNX and Keras; 1/255 for pixels from 0 to 1.
        output: Name of the ONNX output with the parameters of the head, if several outputs fit.
        obs_mean, obs_variance: Statistics with which a state dict normalizes observations, if its file has none.
        squash: `tanh` for continuous actions that the teacher's library passes through tanh and scales to their bounds
            after the network.
        actions: Numbers of the teacher's actions in the environment, if it has only some of these.
    """

    path: Annotated[str, AfterValidator(os.path.expanduser)]
    activation: str | None = None
    extractor: str | None = None
    head: HeadKind | None = None
    scale: float = 1.0
    output: str | None = None
    obs_mean: tuple[FiniteFloat, ...] = ()
    obs_variance: tuple[FiniteFloat, ...] = ()
    squash: Literal["tanh"] | None = None
    actions: tuple[NonNegative, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _from_path(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value

    def load(self, spec: PolicySpec | None = None) -> Policy:
        """Load the teacher; see `load_policy`."""
        path = self.path
        if not path.startswith(ZOO) and (is_hub(path) or not _is_factory(path)):
            if not is_hub(path) and not Path(path).exists():
                raise ConfigError(f"teacher: {path}: there is no such file or folder. Check the path.")
            path = _agent_in(path)
        file_format = next((file_format for file_format in FORMATS if file_format.matches(path)), None)
        if file_format is None:
            if path.endswith(EXECUTABLE_SUFFIXES):
                remedy = "such files can run code when read. Use a state dict, safetensors or a zip."
                raise UntrustedFileError(f"{path}: {remedy}")
            raise UntrustedFileError(f"{path}: unknown format. Use {FORMAT_NAMES}.")
        after_loading = "squash", "actions", "view"
        defaults = {field.name: field.default for field in dataclasses.fields(self)[1:]}
        options = {name: value for name, default in defaults.items() if (value := getattr(self, name)) != default}
        own_spec = with_actions(spec, self.actions) if self.actions else spec
        for name in options.keys() - after_loading:
            if name not in file_format.options:
                raise ConfigError(
                    f"teacher.{name}: {path} is {file_format.noun}, which {REASONS[name]}. Remove the option."
                )
        if not file_format.holds_spec and spec is None:
            raise ConfigError(
                f"teacher: {path}: {file_format.noun} does not hold the observations and actions of its environment. "
                "Pass the spec of the environment."
            )
        own = {name: value for name, value in options.items() if name not in after_loading}
        policy = file_format.load(path, own_spec, **own)
        if self.actions:
            assert spec is not None
            return SubsetPolicy(policy, spec.head.nvec[0], self.actions)
        return policy if self.squash is None else squashed(policy, path)


@validated_dataclass
class TeacherEnsemble:
    """Several teachers that act as one; see `rldistill.policies.ensemble`."""

    ensemble: Annotated[tuple[SavedTeacher, ...], MinLen(1)]
    vote: Vote = "mean"

    def load(self, spec: PolicySpec | None) -> Policy:
        """Load all members."""
        members = tuple(member.load(spec) for member in self.ensemble)
        try:
            return Ensemble(members, self.vote)
        except SpecMismatchError as error:
            paths = ", ".join(f"member {number} is {member.path}" for number, member in enumerate(self.ensemble))
            raise SpecMismatchError(f"{error} ({paths})") from None


@validated_dataclass
class TeamTeacher:
    """Teacher of many agents: a policy for each agent, for each type of agent, or one for `all`.

    Attributes:
        agents: Policies by the name or the type of their agents, or `all`.
    """

    agents: Annotated[dict[str, SavedTeacher], MinLen(1)]

    def load(self, spec: PolicySpec | None) -> Policy:
        """Load the policies of all agents; raise ConfigError for an agent without one."""
        if spec is None or not spec.agents:
            raise ConfigError("teacher.agents: the environment has one agent. Give the path of one policy.")
        views, loaded, members = agent_views(spec), dict[str, Policy](), []
        known = {key for agent in spec.agents for key in agent.keys}
        if unknown := [name for name in self.agents if name not in known]:
            raise ConfigError(f"teacher.agents: there is no agent {unknown[0]!r}.{did_you_mean(unknown[0], known)}")
        for view in views:
            keys = [key for key in view.agent.keys if key in self.agents]
            if not keys:
                raise ConfigError(f"teacher.agents: {view.agent.name} has no policy. Add one by its name or type.")
            if keys[0] not in loaded:
                loaded[keys[0]] = self.agents[keys[0]].load(view.spec)
            try:
                members.append(with_action_mask(loaded[keys[0]], view.spec))
                JointPolicy((view,), (members[-1],))
            except SpecMismatchError as error:
                raise SpecMismatchError(f"teacher.agents.{keys[0]}: {error}") from None
        return JointPolicy(tuple(views), tuple(members))


def load_policy(path: str | Path, *, spec: PolicySpec | None = None, **options: Any) -> Policy:
    """Load a policy in any format.

    Args:
        path: Path of the policy; see `SavedTeacher`.
        spec: Spec of the environment, for formats that do not hold the observations and actions of the policy.
        options: Options of the format: the fields of `SavedTeacher`.

    Raises:
        ConfigError: No such file, an option that does not apply, or code of the user that fails.
        MissingExtraError: The package that reads the format is not installed.
        UntrustedFileError: A file that would run code, of an unknown format, or with a network that is not supported.
        SpecMismatchError: A network for other observations or actions than those of the environment.
        CorruptArtifactError: A truncated or altered file, or NaN among its weights.
    """
    return SavedTeacher(str(path), **options).load(spec)


def training_remarks(path: str, env: EnvConfig) -> list[str]:
    """Return remarks on another environment, or lost statistics, in the files of a teacher."""
    folder, remarks = _zoo_folder(path), []
    if folder.env_id is not None and not _same_game(folder.env_id, dict(folder.env_kwargs), env):
        remarks.append(f"the args.yml beside it says that it was trained on {folder.env_id}")
    if (file := _zip_of(path)) is not None and folder.normalizer is None:
        others = [other.name for other in sorted(file.parent.glob("*.pkl")) if "normalize" in other.name.lower()]
        if others:
            remarks.append(
                f"{others[0]} beside it was not read. If it is this agent's, name it {NORMALIZERS[0]}; else move it"
            )
        elif observed_normalized(file):
            remarks.append(
                "it was trained on normalized observations (VecNormalize), whose statistics are lost. Add its "
                f"{NORMALIZERS[0]}"
            )
    return remarks


def _same_game(trained: str, trained_kwargs: Mapping[str, Any], env: EnvConfig) -> bool:
    """Return True for versions of one environment, and for ids that differ in their registered arguments only."""
    # Without the version and, for Atari, without the suffix of its preprocessing.
    names = [re.sub(r"-v\d+$", "", name).rpartition("/")[2] for name in (trained, env.id)]
    names = [re.sub(r"(NoFrameskip|Deterministic)$", "", name) for name in names]
    if names[0] == names[1]:
        return True
    newest = {spec.name: spec for spec in sorted(gymnasium.registry.values(), key=lambda spec: spec.version or 0)}
    one, other = (newest.get(name) for name in names)
    if one is None or other is None or one.entry_point != other.entry_point:
        return False
    before, now = {**one.kwargs, **trained_kwargs}, {**other.kwargs, **env.kwargs}
    return all(before.get(key) == now.get(key) for key in {*before, *other.kwargs})


def settings_source(path: str) -> str:
    """Return the files that describe a teacher's environment: those beside a zip, or else its own."""
    return " and ".join(map(str, _zoo_folder(path).settings_files)) or path


def _zoo_folder(path: str) -> ZooFolder:
    """Return the settings beside a zip; those of other teachers are empty."""
    file = _zip_of(path)
    return ZooFolder() if file is None else read_zoo_folder(file)


def _zip_of(path: str) -> Path | None:
    try:
        file = Path(_agent_in(path))
    except ConfigError:  # the name of a teacher that is also that of a folder
        return None
    return file if file.suffix == ".zip" and file.exists() else None


def _agent_in(path: str) -> str:
    """Return the agent in a folder of rl-baselines3-zoo: the zip with a folder of its name, or else the only zip.

    That of a repository of the Hub is fetched first.
    """
    path = local_path(path)
    folder = Path(path)
    if not folder.is_dir() or (folder / DOCUMENT).exists():
        return path
    zips = sorted(folder.glob("*.zip"))
    named = [path for path in zips if path.with_suffix("").is_dir()]
    candidates = named if len(named) == 1 else zips
    if len(candidates) != 1:
        found = ", ".join(path.name for path in zips) or "no zip"
        raise ConfigError(
            f"teacher: {folder}: expected {DOCUMENT} or one Stable-Baselines3 zip, found {found}. Name the file."
        )
    return str(candidates[0])
