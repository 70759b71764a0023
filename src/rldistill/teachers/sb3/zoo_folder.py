"""Folder of rl-baselines3-zoo beside an agent: the wrappers and settings of its environment."""

import ast
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rldistill.core.arguments import are_small
from rldistill.core.errors import CorruptArtifactError, UntrustedFileError, error_text, short_repr
from rldistill.core.spec import FramePipeline, Wrapper
from rldistill.io.untrusted import load_yaml, read_regular

NORMALIZERS = ("vecnormalize.pkl", "vec_normalize.pkl")
SETTINGS = (*NORMALIZERS, "args.yml")
"""Files that only the folder of an agent has; many programs write a `config.yml`."""
TRAINING_ONLY = ("Monitor", "DelayedRewardWrapper", "ActionNoiseWrapper", "DoneOnSuccessWrapper")
"""Wrappers that change training only, not the observations or the effect of actions."""
ATARI = "AtariWrapper"
MAX_YAML_BYTES = 64 << 10
MAX_NUMBER = sys.float_info.max
"""YAML has larger integers, which no environment can compute with."""
Kind = tuple[str, Callable[[Any], bool]]
"""Description of an argument, and its test."""
COUNT: Kind = "an integer above 0", lambda value: type(value) is int and value >= 1
SMALL_COUNT: Kind = "an integer from 1 to 1,000", lambda value: type(value) is int and 1 <= value <= 1_000
SWITCH: Kind = "true or false", lambda value: isinstance(value, bool)
FRACTION: Kind = "a number from 0 to below 1", lambda value: type(value) in (int, float) and 0 <= value < 1
NAMES: Kind = "names", lambda value: isinstance(value, list) and all(isinstance(item, str) for item in value)
SIZES: Kind = (
    "one or two integers",
    lambda value: len(_items(value)) in (1, 2) and all(type(item) is int and item >= 1 for item in _items(value)),
)
NUMBERS: Kind = (
    "numbers",
    lambda value: all(type(item) in (int, float) and abs(item) <= MAX_NUMBER for item in _items(value) or [None]),
)
WRAPPERS: dict[str, tuple[str, dict[str, Kind]]] = {
    "TimeFeatureWrapper": ("TimeFeature", {"max_steps": COUNT, "test_mode": SWITCH}),
    "HistoryWrapper": ("History", {"horizon": SMALL_COUNT}),
    "FrameSkip": ("FrameSkip", {"skip": SMALL_COUNT}),
    "MaskVelocityWrapper": ("MaskVelocity", {}),
    "ActionSmoothingWrapper": ("ActionSmoothing", {"smoothing_coef": FRACTION}),
    "ResizeObservation": ("ResizeObservation", {"shape": SIZES}),
    "YAMLCompatResizeObservation": ("ResizeObservation", {"shape": SIZES}),
    "GrayScaleObservation": ("GrayscaleObservation", {"keep_dim": SWITCH}),
    "GrayscaleObservation": ("GrayscaleObservation", {"keep_dim": SWITCH}),
    "FlattenObservation": ("FlattenObservation", {}),
    "FilterObservation": ("FilterObservation", {"filter_keys": NAMES}),
    "RescaleAction": ("RescaleAction", {"min_action": NUMBERS, "max_action": NUMBERS}),
    "TimeAwareObservation": ("TimeAwareObservation", {"flatten": SWITCH, "normalize_time": SWITCH}),
    "TimeLimit": ("TimeLimit", {"max_episode_steps": COUNT}),
}
"""Our name of a wrapper, and its keyword arguments."""
REQUIRED = ("shape", "filter_keys", "min_action", "max_action", "max_episode_steps")


@dataclass(frozen=True)
class ZooFolder:
    """Settings of an agent in `config.yml`, `args.yml` and `vecnormalize.pkl`.

    Attributes:
        env_id: Training environment, if there is an `args.yml`.
        env_kwargs: Keyword arguments of that environment.
        view: Wrappers around it, innermost first.
        frames: Frame pipeline of SB3's Atari preprocessing, if that was used.
        normalizer: File with the moments of observations; None if they were not normalized.
        settings_files: The `config.yml` and `args.yml`, as far as they exist.
    """

    env_id: str | None = None
    env_kwargs: tuple[tuple[str, Any], ...] = ()
    view: tuple[Wrapper, ...] = ()
    frames: FramePipeline | None = None
    normalizer: Path | None = None
    settings_files: tuple[Path, ...] = ()


def read_zoo_folder(model: Path) -> ZooFolder:
    """Read the settings beside the zip `model`: in its folder, or a folder with its name or the environment's.

    Raise UntrustedFileError for a wrapper or setting that cannot be reproduced, or that may be of another agent.
    """
    folders = _settings_folders(model)
    config, args = (_first(folders, (name,)) for name in ("config.yml", "args.yml"))
    settings, arguments = (_mapping(path) if path else {} for path in (config, args))
    view, atari = _wrappers(settings.get("env_wrapper"), config)
    if settings.get("vec_env_wrapper"):
        raise UntrustedFileError(
            f"{config}: vec_env_wrapper: {short_repr(settings['vec_env_wrapper'])} is not supported. Use another agent."
        )
    stack = settings.get("frame_stack")
    if stack is not None and (type(stack) is not int or not 1 <= stack <= 64):
        raise UntrustedFileError(f"{config}: frame_stack: expected an integer from 1 to 64, found {short_repr(stack)}")
    kwargs = _env_kwargs(arguments, settings, args or config)
    frames = None
    if atari is not None:
        skip, size = atari.get("frame_skip", 4), atari.get("screen_size", 84)
        sticky = atari.get("action_repeat_probability", 0)
        sizes_are_valid = all(type(number) is int and 1 <= number <= 1_024 for number in (skip, size))
        if not sizes_are_valid or type(sticky) not in (int, float) or not 0 <= sticky <= 1:
            expected = "frame_skip and screen_size from 1 to 1024, action_repeat_probability from 0 to 1"
            raise UntrustedFileError(f"{config}: env_wrapper: {ATARI} with {short_repr(atari)}; expected {expected}.")
        frames = FramePipeline(size, size, stack or 1, skip, max_pool=skip > 1)
        kwargs = ({"repeat_action_probability": sticky} if sticky else {}) | kwargs  # ale-py's sticky actions
    elif stack:
        view.append(Wrapper("StackFrames", {"stack": stack}))
    # SB3 writes `rl_model_vecnormalize_5000_steps.pkl` beside `rl_model_5000_steps.zip`.
    match = re.fullmatch(r"(.+)_(\d+_steps)", model.stem)
    of_checkpoint = (f"{match[1]}_vecnormalize_{match[2]}.pkl",) if match else ()
    normalizer = _first([model.parent], of_checkpoint) or _first(folders, NORMALIZERS)
    if _is_normalized(settings.get("normalize"), config) and normalizer is None:
        raise UntrustedFileError(
            f"{config}: observations were normalized, but there is no {NORMALIZERS[0]} beside {model}. Add it."
        )
    env_id = arguments.get("env")
    if env_id is not None and not isinstance(env_id, str):
        raise CorruptArtifactError(f"{args}: env: expected a name, found {short_repr(env_id)}")
    settings_files = tuple(path for path in (config, args) if path is not None)
    return ZooFolder(env_id, tuple(kwargs.items()), tuple(view), frames, normalizer, settings_files)


def _settings_folders(model: Path) -> list[Path]:
    """Return the folders of its settings: the zoo has `ENV_1/ENV` beside both `ENV.zip` and `best_model.zip`."""
    own, folder = model.with_suffix(""), model.parent
    if own.is_dir() or _first([folder], SETTINGS):
        return [own, folder]
    of_env = folder / re.sub(r"_\d+$", "", folder.resolve().name)
    if of_env.is_dir():
        return [of_env, folder]
    for sibling in sorted(folder.iterdir()):
        if sibling.is_dir() and (file := _first([sibling], SETTINGS)):
            raise UntrustedFileError(
                f"{model}: {file} may belong to this agent or to another one. If it is this agent's, name the zip "
                f"{sibling.name}.zip; if not, make an empty folder {own.name} beside it."
            )
    return [own, folder]


def _first(folders: list[Path], names: tuple[str, ...]) -> Path | None:
    return next((folder / name for folder in folders for name in names if (folder / name).is_file()), None)


class _Inert:
    """Value of an unknown tag, which no setting accepts; most of them are keys that only training uses."""

    def __init__(self, tag: str) -> None:
        self.tag = tag

    def __repr__(self) -> str:
        return self.tag.replace("tag:yaml.org,2002:", "!!")


class _Loader(yaml.SafeLoader):
    """YAML's safe loader with the zoo's tag for ordered pairs, read as data, and without `<<`, which can expand."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(None, None, "keys that are merged (<<)", key.start_mark)


def _pairs(loader: _Loader, node: yaml.Node) -> dict[Any, Any]:
    value = loader.construct_sequence(node, deep=True)  # type: ignore[arg-type]
    if len(value) != 1 or not all(isinstance(pair, list) and len(pair) == 2 for pair in value[0]):
        raise yaml.constructor.ConstructorError(None, None, "not a list of pairs", node.start_mark)
    return dict(value[0])


_Loader.add_constructor("tag:yaml.org,2002:python/object/apply:collections.OrderedDict", _pairs)
_Loader.add_constructor("tag:yaml.org,2002:python/tuple", _Loader.construct_yaml_seq)  # type: ignore[type-var]
_Loader.add_constructor(None, lambda loader, node: _Inert(node.tag))


def _mapping(path: Path) -> dict[str, Any]:
    content = read_regular(path, MAX_YAML_BYTES)
    try:
        value = load_yaml(content.decode(), _Loader)
    except yaml.constructor.ConstructorError as error:
        raise UntrustedFileError(f"{path}: {error.problem}; read as data only, nothing was run") from None
    except (yaml.YAMLError, UnicodeDecodeError, TypeError, ValueError, RecursionError) as error:
        raise CorruptArtifactError(f"{path}: not YAML ({error_text(error)})") from None
    if not isinstance(value, dict):
        raise CorruptArtifactError(f"{path}: expected settings by name, found {type(value).__name__}")
    return value


def _items(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else [value]


def _wrappers(value: Any, path: Path | None) -> tuple[list[Wrapper], dict[str, Any] | None]:
    """Return the view, and the arguments of `AtariWrapper`; the zoo writes a name, or a list, also of mappings."""
    view: list[Wrapper] = []
    atari = None
    for item in [] if value in (None, "None") else value if isinstance(value, list) else [value]:
        name, kwargs = next(iter(item.items())) if isinstance(item, dict) and len(item) == 1 else (item, {})
        kwargs = kwargs or {}
        if not isinstance(name, str) or not isinstance(kwargs, dict):
            raise CorruptArtifactError(f"{path}: env_wrapper: expected names, found {short_repr(item)}")
        name = name.rpartition(".")[2]
        if name == ATARI:
            atari = kwargs
        if name in (ATARI, *TRAINING_ONLY):
            continue
        if name not in WRAPPERS:
            known = ", ".join([*WRAPPERS, ATARI, *TRAINING_ONLY])
            problem = f"{name} is unknown, and wrappers are not ignored"
            raise UntrustedFileError(f"{path}: env_wrapper: {problem}. Known: {known}.")
        ours, kinds = WRAPPERS[name]
        found = f"{path}: env_wrapper: {name} with {short_repr(kwargs)}"
        for key in [*(key for key in kinds if key in REQUIRED), *kwargs]:
            if key not in kinds:
                raise UntrustedFileError(f"{found}; known: {', '.join(kinds) or 'nothing'}")
            expected, is_valid = kinds[key]
            if key not in kwargs or not is_valid(kwargs[key]):
                raise UntrustedFileError(f"{found}; expected {key}: {expected}")
        if ours == "ResizeObservation":
            shape = kwargs["shape"]
            kwargs = {**kwargs, "shape": [shape, shape] if isinstance(shape, int) else list(shape)}
        if not are_small(kwargs):
            raise UntrustedFileError(f"{found}; expected smaller numbers.")
        view.append(Wrapper(ours, kwargs))
    return view, atari


def _is_normalized(value: Any, path: Path | None) -> bool:
    """Return True if observations were normalized: `normalize` is a boolean or the text of a dict."""
    if isinstance(value, str):
        try:
            call = ast.parse(value.strip(), mode="eval").body
            if isinstance(call, ast.Call):  # dict(norm_obs=True), which is not run
                if not isinstance(call.func, ast.Name) or call.func.id != "dict" or call.args:
                    raise ValueError
                value = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
            else:
                value = ast.literal_eval(call)
        except (SyntaxError, ValueError, MemoryError, RecursionError):
            raise CorruptArtifactError(
                f"{path}: normalize: expected a boolean or a dict, found {short_repr(value)}."
            ) from None
    if isinstance(value, _Inert):
        raise UntrustedFileError(f"{path}: normalize: expected a boolean or a dict, found {value}. Write it as data.")
    return bool(value.get("norm_obs", True)) if isinstance(value, dict) else bool(value)


def _env_kwargs(arguments: dict[str, Any], settings: dict[str, Any], path: Path | None) -> dict[str, Any]:
    """Return the keyword arguments of the environment, which must be numbers: a text might name a file."""
    kwargs: dict[str, Any] = {}
    for value in (settings.get("env_kwargs"), arguments.get("env_kwargs")):
        if value in (None, "None"):
            continue
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            raise CorruptArtifactError(f"{path}: env_kwargs: expected values by name, found {short_repr(value)}")
        kwargs |= value
    for key, value in kwargs.items():
        if not isinstance(value, bool | int | float) or not abs(value) <= MAX_NUMBER:
            raise UntrustedFileError(
                f"{path}: env_kwargs: {short_repr(key)} is {short_repr(value)}, which is not read from a file. "
                "Set it in the kwargs of env, and delete it there."
            )
    return kwargs
