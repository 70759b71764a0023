"""The folder that rl-baselines3-zoo leaves beside an agent: what was wrapped around its environment."""

from __future__ import annotations

import ast
import math
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rldistill.core.errors import CorruptArtifactError, UntrustedFileError, short_repr
from rldistill.core.spec import FramePipeline, Wrapper

NORMALISERS = ("vecnormalize.pkl", "vec_normalize.pkl")
SETTINGS = (*NORMALISERS, "args.yml")
"""Files that show a folder to be an agent's; `config.yml` is many another program's too."""
TRAINING_ONLY = ("Monitor", "DelayedRewardWrapper", "ActionNoiseWrapper", "DoneOnSuccessWrapper")
"""Wrappers that change what is trained on, never what the policy is shown or what its actions do."""
ATARI = ("AtariWrapper",)
MAX_YAML = 64 << 10
RENAMED = {
    "TimeFeatureWrapper": "TimeFeature",
    "HistoryWrapper": "History",
    "FrameSkip": "FrameSkip",
    "MaskVelocityWrapper": "MaskVelocity",
    "ActionSmoothingWrapper": "ActionSmoothing",
    "ResizeObservation": "ResizeObservation",
    "YAMLCompatResizeObservation": "ResizeObservation",
    "GrayScaleObservation": "GrayscaleObservation",
    "GrayscaleObservation": "GrayscaleObservation",
    "FlattenObservation": "FlattenObservation",
    "FilterObservation": "FilterObservation",
    "RescaleAction": "RescaleAction",
    "TimeAwareObservation": "TimeAwareObservation",
    "TimeLimit": "TimeLimit",
}
COUNT, FEW, SIZES = "an integer above 0", "an integer from 1 to 1,000", "one or two integers"
NUMBERS, NAMES, SWITCH, SHARE = "numbers", "names", "true or false", "a number from 0 to below 1"
LARGEST = sys.float_info.max
"""YAML has integers above it, which no environment can compute with."""
NEEDED: dict[str, dict[str, str]] = {
    "ResizeObservation": {"shape": SIZES},
    "FilterObservation": {"filter_keys": NAMES},
    "RescaleAction": {"min_action": NUMBERS, "max_action": NUMBERS},
    "TimeLimit": {"max_episode_steps": COUNT},
}
TAKEN: dict[str, dict[str, str]] = {
    "TimeFeature": {"max_steps": COUNT, "test_mode": SWITCH},
    "History": {"horizon": FEW},
    "FrameSkip": {"skip": FEW},
    "ActionSmoothing": {"smoothing_coef": SHARE},
    "GrayscaleObservation": {"keep_dim": SWITCH},
    "TimeAwareObservation": {"flatten": SWITCH, "normalize_time": SWITCH},
}
"""What a wrapper must be told, and what it may be told besides."""


@dataclass(frozen=True)
class ZooFolder:
    """What `config.yml`, `args.yml` and `vecnormalize.pkl` say of an agent.

    Attributes:
        env_id: the environment it was trained on, if `args.yml` is there.
        env_kwargs: of that environment.
        view: what was wrapped around it, the innermost first.
        frames: what SB3's Atari preprocessing made of the screen, where that was around it.
        normaliser: where the moments of its observations are; None where they were not normalised.
        told_in: the `config.yml` and `args.yml` that are there.
    """

    env_id: str | None = None
    env_kwargs: tuple[tuple[str, Any], ...] = ()
    view: tuple[Wrapper, ...] = ()
    frames: FramePipeline | None = None
    normaliser: Path | None = None
    told_in: tuple[Path, ...] = ()


def read_zoo_folder(model: Path) -> ZooFolder:
    """What lies beside the zip `model`: in its own folder, in one of its name, or in one of the environment's.

    Raises:
        UntrustedFileError: a wrapper or a setting that this cannot reproduce, or settings that may be another's.
        CorruptArtifactError: a file that is not what the zoo writes.
    """
    places = _places(model)
    config, args = _first(places, ("config.yml",)), _first(places, ("args.yml",))
    normaliser = _first([model.parent], _checkpoints_own(model)) or _first(places, NORMALISERS)
    settings, arguments = (_mapping(path) if path else {} for path in (config, args))
    wrappers = _wrappers(settings.get("env_wrapper"), config)
    view = [wrapper for name, kwargs in wrappers if (wrapper := _view(name, kwargs, config)) is not None]
    if settings.get("vec_env_wrapper"):
        raise UntrustedFileError(
            f"{config}: vec_env_wrapper: {short_repr(settings['vec_env_wrapper'])}: cannot be reproduced"
        )
    stack = settings.get("frame_stack")
    if stack is not None and (type(stack) is not int or not 1 <= stack <= 64):
        raise UntrustedFileError(f"{config}: frame_stack: expected an integer from 1 to 64, found {short_repr(stack)}")
    frames = _frames(dict(wrappers), stack or 1, config)
    if stack and frames is None:
        view.append(Wrapper("StackFrames", {"stack": stack}))
    if _normalises(settings.get("normalize"), config) and normaliser is None:
        raise UntrustedFileError(
            f"{config}: the agent saw normalised observations, but there is no {NORMALISERS[0]} beside {model}"
        )
    kwargs = (*_sticky(dict(wrappers), config), *_env_kwargs(arguments, settings, args or config))
    told_in = tuple(path for path in (config, args) if path is not None)
    return ZooFolder(_env_id(arguments, args), kwargs, tuple(view), frames, normaliser, told_in)


def _places(model: Path) -> list[Path]:
    """Where its settings may be; the zoo keeps them in `ENV_1/ENV`, beside `ENV.zip` and `best_model.zip` alike."""
    own, folder = model.with_suffix(""), model.parent
    if own.is_dir() or _first([folder], SETTINGS):
        return [own, folder]
    of_env = folder / re.sub(r"_\d+$", "", folder.resolve().name)
    if of_env.is_dir():
        return [of_env, folder]
    for other in sorted(folder.iterdir()):
        if other.is_dir() and (found := _first([other], SETTINGS)):
            raise UntrustedFileError(
                f"{model}: {found} tells what was wrapped around an agent's environment, and not whether it is this "
                f"one's: if it is, name the zip {other.name}.zip; if not, make an empty folder {own.name} beside it"
            )
    return [own, folder]


def _checkpoints_own(model: Path) -> tuple[str, ...]:
    """`rl_model_vecnormalize_5000_steps.pkl`, which SB3 writes beside the checkpoint `rl_model_5000_steps.zip`."""
    match = re.fullmatch(r"(.+)_(\d+_steps)", model.stem)
    return (f"{match[1]}_vecnormalize_{match[2]}.pkl",) if match else ()


def _first(places: list[Path], names: tuple[str, ...]) -> Path | None:
    return next((place / name for place in places for name in names if (place / name).is_file()), None)


class _Loader(yaml.SafeLoader):
    """YAML's safe loader and one tag, the zoo's ordered pairs, read as data; without `<<`, which multiplies."""

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


def _mapping(path: Path) -> dict[str, Any]:
    if (size := path.stat().st_size) > MAX_YAML:
        raise UntrustedFileError(f"{path}: {size:,} bytes; the zoo's are of a few hundred, refused above {MAX_YAML:,}")
    try:
        value = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # a subclass of SafeLoader
    except yaml.constructor.ConstructorError as error:
        raise UntrustedFileError(f"{path}: {error.problem}; read as data only, nothing was run") from None
    except (yaml.YAMLError, UnicodeDecodeError, TypeError, ValueError, RecursionError) as error:
        raise CorruptArtifactError(f"{path}: not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(value, dict):
        raise CorruptArtifactError(f"{path}: expected settings by name, found {type(value).__name__}")
    return value


def _wrappers(value: Any, path: Path | None) -> list[tuple[str, dict[str, Any]]]:
    """Names (without their modules) and keyword arguments; the zoo writes one, a list, or a list of mappings."""
    found = []
    for item in value if isinstance(value, list) else [] if value in (None, "None") else [value]:
        if isinstance(item, dict) and len(item) == 1:
            ((name, kwargs),) = item.items()
        else:
            name, kwargs = item, {}
        if not isinstance(name, str) or not isinstance(kwargs or {}, dict):
            raise CorruptArtifactError(f"{path}: env_wrapper: expected names, found {short_repr(item)}")
        found.append((name.rpartition(".")[2], kwargs or {}))
    return found


def _view(name: str, kwargs: dict[str, Any], path: Path | None) -> Wrapper | None:
    if name in TRAINING_ONLY or name in ATARI:
        return None
    if name not in RENAMED:
        raise UntrustedFileError(
            f"{path}: env_wrapper: {name} is not known, and will not be skipped in silence. "
            f"Known: {', '.join([*RENAMED, *ATARI, *TRAINING_ONLY])}"
        )
    ours = RENAMED[name]
    needed = NEEDED.get(ours, {})
    known = needed | TAKEN.get(ours, {})
    for key in {**needed, **kwargs}:
        if key not in known or key not in kwargs or not _is(known[key], kwargs[key]):
            expected = f"expected {key}: {known[key]}" if key in known else f"known: {', '.join(known) or 'nothing'}"
            raise UntrustedFileError(f"{path}: env_wrapper: {name} with {short_repr(kwargs)}; {expected}")
    if ours == "ResizeObservation":
        shape = kwargs["shape"]
        kwargs = {**kwargs, "shape": [shape, shape] if isinstance(shape, int) else list(shape)}
    wrapper = Wrapper(ours, kwargs)
    if not wrapper.has_small_kwargs:
        raise UntrustedFileError(
            f"{path}: env_wrapper: {name} with {short_repr(kwargs)}; numbers that large are refused"
        )
    return wrapper


def _is(kind: str, value: Any) -> bool:
    values = value if isinstance(value, list | tuple) else [value]
    if kind == SWITCH:
        return isinstance(value, bool)
    if kind == NAMES:
        return isinstance(value, list | tuple) and all(isinstance(item, str) for item in values)
    if kind == NUMBERS:
        return bool(values) and all(type(item) in (int, float) and abs(item) <= LARGEST for item in values)
    if kind == SHARE:
        return type(value) in (int, float) and 0 <= value < 1
    if len(values) not in ((1, 2) if kind == SIZES else (1,)) or (kind != SIZES and values is value):
        return False
    return all(type(item) is int and 1 <= item <= (1_000 if kind == FEW else math.inf) for item in values)


def _frames(wrappers: dict[str, dict[str, Any]], stack: int, path: Path | None) -> FramePipeline | None:
    """How SB3's `AtariWrapper`, if that is among them, and `VecFrameStack` make an observation of the screen."""
    found = [wrappers[name] for name in ATARI if name in wrappers]
    if not found:
        return None
    skip, size = found[0].get("frame_skip", 4), found[0].get("screen_size", 84)
    if not all(type(number) is int and 1 <= number <= 1_024 for number in (skip, size)):
        raise UntrustedFileError(
            f"{path}: env_wrapper: {ATARI[0]} with {short_repr(found[0])}; frame_skip and screen_size are "
            "from 1 to 1024"
        )
    return FramePipeline(size, size, stack, skip, max_pool=skip > 1)


def _sticky(wrappers: dict[str, dict[str, Any]], path: Path | None) -> tuple[tuple[str, Any], ...]:
    """What SB3's `AtariWrapper` was told of sticky actions, as ale-py's environments take it."""
    for name in ATARI:
        chance = wrappers.get(name, {}).get("action_repeat_probability", 0)
        if type(chance) not in (int, float) or not 0 <= chance <= 1:
            raise UntrustedFileError(
                f"{path}: env_wrapper: {name}: action_repeat_probability: expected 0 to 1, found {short_repr(chance)}"
            )
        if chance:
            return (("repeat_action_probability", chance),)
    return ()


def _normalises(value: Any, path: Path | None) -> bool:
    """Whether observations were normalised: `normalize` is a boolean or the text of a dict."""
    if isinstance(value, str):
        try:
            call = ast.parse(value.strip(), mode="eval").body
            value = ast.literal_eval(call) if not isinstance(call, ast.Call) else _keywords(call)
        except (SyntaxError, ValueError, MemoryError, RecursionError):
            raise CorruptArtifactError(f"{path}: normalize: cannot be understood: {short_repr(value)}") from None
    return bool(value.get("norm_obs", True)) if isinstance(value, dict) else bool(value)


def _keywords(call: ast.Call) -> dict[str, Any]:
    """`dict(norm_obs=True)`, read and not run."""
    if not isinstance(call.func, ast.Name) or call.func.id != "dict" or call.args:
        raise ValueError
    return {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}


def _env_kwargs(arguments: dict[str, Any], settings: dict[str, Any], path: Path | None) -> tuple[tuple[str, Any], ...]:
    """What the environment was made with, if it is plain numbers: a text might name a file."""
    found: dict[str, Any] = {}
    for value in (settings.get("env_kwargs"), arguments.get("env_kwargs")):
        if value in (None, "None"):
            continue
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            raise CorruptArtifactError(f"{path}: env_kwargs: expected values by name, found {short_repr(value)}")
        found |= value
    for key, value in found.items():
        if not isinstance(value, bool | int | float) or not abs(value) <= LARGEST:
            raise UntrustedFileError(
                f"{path}: env_kwargs: {short_repr(key)} is {short_repr(value)}, which is not taken from a file; give "
                "it yourself, in the kwargs of env, and delete it there"
            )
    return tuple(found.items())


def _env_id(arguments: dict[str, Any], path: Path | None) -> str | None:
    value = arguments.get("env")
    if value is not None and not isinstance(value, str):
        raise CorruptArtifactError(f"{path}: env: expected a name, found {short_repr(value)}")
    return value
