"""Moments in `vecnormalize.pkl`, read by an unpickler that builds numbers, arrays and inert records only."""

import io
import math
import pickle
import re
import struct
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from rldistill.core.errors import DOWNLOAD_HINT, CorruptArtifactError, UntrustedFileError, error_text
from rldistill.core.spec import Wrapper
from rldistill.io.state_dicts import PICKLED_NUMBERS, PickledArray, RefusedPickleError
from rldistill.io.untrusted import read_regular
from rldistill.policies.actor_critic import ActorPolicy
from rldistill.policies.encoding import moments_shape

MAX_BYTES = 64 << 20
_RECORDS = re.compile(
    r"stable_baselines3\.common\.(vec_env\.vec_normalize\.VecNormalize|running_mean_std\.RunningMeanStd)"
    r"|(gym|gymnasium)\.spaces\.\w+\.(Box|Dict|Discrete|MultiDiscrete|MultiBinary|Tuple)"
    r"|numpy\.random\.[\w.]+"
)


ALLOWED: dict[str, Any] = {**PICKLED_NUMBERS, "collections.OrderedDict": OrderedDict}


class Normalizer(NamedTuple):
    """Normalization of SB3's VecNormalize: clip((obs - mean) / sqrt(var + epsilon), -clip, clip) for each entry.

    `moments` are mean and variance of each entry, empty if only rewards were normalized; `reward_scale` is the divisor
    of rewards, sqrt(var + epsilon) with the variance of returns, 1 if it was not used.
    """

    moments: dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]
    epsilon: float
    clip: float
    reward_scale: float = 1.0


def normalize(policy: ActorPolicy, normalizer: Normalizer, where: object) -> None:
    """Give the policy the moments of a normalizer, and scale its critic to the units of rewards.

    Raises:
        UntrustedFileError: The moments are those of other observations; `where` is the file in its message.
    """
    spec = policy.spec
    if policy.critic is not None:
        with torch.no_grad():
            for parameter in policy.critic[-1].parameters():
                parameter.mul_(normalizer.reward_scale)
    if not (moments := normalizer.moments):
        return
    if spec.view and spec.view[-1].name == "StackFrames" and [*moments] == [""]:
        (mean, var), stack = moments[""], spec.view[-1].kwargs["stack"]
        if (*mean.shape[:-1], mean.shape[-1] * stack) == spec.obs_shape:
            # A stack of normalized observations begins with copies of the mean.
            padded = Wrapper("StackFrames", {"stack": stack, "padding": mean.ravel().tolist()})
            spec = replace(spec, view=(*spec.view[:-1], padded))
            moments = {"": (np.concatenate([mean] * stack, -1), np.concatenate([var] * stack, -1))}
    means, stds = [], []
    for key, part in spec.entries.items():
        if key not in moments:
            means.append(np.zeros(part.width))
            stds.append(np.ones(part.width))
            continue
        mean, var = moments[key]
        if mean.shape != part.shape or (not spec.parts and part.dtype == "uint8"):
            raise UntrustedFileError(
                f"{where}: it normalizes observations of shape {mean.shape}, expected {part.shape} and no bytes. Use "
                "the normalizer that was saved beside this agent."
            )
        means.append(mean.ravel())
        stds.append(np.sqrt(var + normalizer.epsilon).ravel())
    shape = moments_shape(spec)
    loc, std = (torch.from_numpy(np.concatenate(arrays)).float().reshape(shape) for arrays in (means, stds))
    policy.spec = spec
    policy.standardize(loc, std * policy.obs_std)
    policy.obs_clip = dict.fromkeys(moments, normalizer.clip)


def read_normalizer(path: Path) -> Normalizer:
    """Read the normalization of observations and rewards; refuse anything but numpy's arrays and SB3's records."""
    content = read_regular(path, MAX_BYTES)
    try:
        state = _fields(_Unpickler(io.BytesIO(content)).load())
        epsilon, scale, statistics = float(state["epsilon"]), 1.0, {}
        if state.get("norm_obs", True):
            rms = state["obs_rms"]
            keys = state.get("norm_obs_keys")
            statistics = {"": rms} if isinstance(rms, _Record) else {k: rms[k] for k in keys or rms}
        if state.get("norm_reward", False):
            _, var = _moments(state["ret_rms"])
            scale = math.sqrt(var.item() + epsilon)
        moments = {key: _moments(item) for key, item in statistics.items()}
        clip = float(state["clip_obs"])
        if not (0 <= epsilon < math.inf and clip > 0):  # NaN is neither
            raise ValueError(f"epsilon {epsilon} and clip_obs {clip} are not above 0")
        return Normalizer(moments, epsilon, clip, scale)
    except RefusedPickleError as error:
        raise UntrustedFileError(f"{path}: {error}; nothing was run. Use the file of VecNormalize.save().") from None
    except Exception as error:  # pickle and numpy raise many kinds of errors for damaged bytes
        raise CorruptArtifactError(
            f"{path}: not a whole VecNormalize file ({error_text(error)}); {DOWNLOAD_HINT}"
        ) from None


def read_arrays(content: bytes) -> list[NDArray[Any]]:
    """Return the array in a pickle, or those in a dict; none for anything else."""
    try:
        value = _Unpickler(io.BytesIO(content)).load()
    except Exception:  # pickle and numpy raise many kinds of errors for damaged bytes
        return []
    return [
        part.array
        for part in (value.values() if isinstance(value, dict) else [value])
        if isinstance(part, PickledArray)
    ]


class _Record:
    """Placeholder for an object whose class is not imported; keeps its state as plain data."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.state: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        self.state = state if isinstance(state, dict) else {}


class _Unpickler(pickle._Unpickler):
    # Python's unpickler has a dict as memo; the one in C allocates an array up to the largest index in the file.
    dispatch: ClassVar[dict[int, Any]] = {
        code: method
        for code, method in pickle._Unpickler.dispatch.items()
        if code not in (*pickle.NEXT_BUFFER, *pickle.READONLY_BUFFER)
    }

    def _load_bytearray8(self) -> None:
        # Python's own allocates as many bytes as the file names.
        (size,) = struct.unpack("<Q", self.read(8))  # type: ignore[attr-defined]
        self.append(bytearray(self.read(size)))  # type: ignore[attr-defined]

    dispatch[pickle.BYTEARRAY8[0]] = _load_bytearray8

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}".replace("numpy._core.", "numpy.core.")
        if full in ALLOWED:
            return ALLOWED[full]
        if _RECORDS.fullmatch(full):
            return _Record
        raise RefusedPickleError(f"it names {full}")

    def persistent_load(self, pid: Any) -> Any:
        raise RefusedPickleError("it refers to something outside itself")


def _fields(record: Any) -> dict[str, Any]:
    if not isinstance(record, _Record) or not record.state:
        raise ValueError("no VecNormalize in it")
    return record.state


def _moments(record: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    fields = _fields(record)
    if not all(isinstance(fields[name], PickledArray | float | int) for name in ("mean", "var")):
        raise ValueError("its moments are no arrays")  # nested lists may contain each other many times
    mean, var = (np.asarray(getattr(fields[name], "array", fields[name]), np.float64) for name in ("mean", "var"))
    if mean.shape != var.shape or not np.isfinite(mean).all() or not np.isfinite(var).all() or (var < 0).any():
        raise ValueError("its moments are not finite numbers of one shape")
    return mean, var
