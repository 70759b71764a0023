"""State dicts of CleanRL, skrl, rsl_rl and rl_games, with the statistics of their observations, as SB3's networks."""

import math
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from rldistill.core.errors import ConfigError, RLDistillError, UntrustedFileError
from rldistill.core.heads import HeadKind
from rldistill.core.spec import PolicySpec
from rldistill.io.state_dicts import read_checkpoint
from rldistill.policies.actor_critic import ActorPolicy
from rldistill.policies.encoding import flat_width, moments_shape
from rldistill.policies.layers import import_activation
from rldistill.teachers.sb3.extractor import InconsistentFileError, RebuildError
from rldistill.teachers.sb3.tensors import Settings, Tensors, rebuild, require_kind

SUPPORTED = (
    "CleanRL's dqn, dqn_atari, ppo, ppo_atari, ppo_continuous_action, ddpg and td3, or of skrl, rsl_rl and rl_games "
    "with dense layers"
)
KINDS: dict[str, HeadKind] = {"network": "q_values", "actor_mean": "gaussian", "actor": "categorical"}
"""Kind of the head by the name of the dense network that acts in CleanRL."""
FOR_TRAINING = re.compile(r"critic|value|optim|target|privileg|discrim|\b(qf?\d|vf|rnd|amp|ret|return|reward)", re.I)
"""Parts of a checkpoint that do not act."""
ACTS = re.compile(r"policy|actor|action|mu\b|mean")
MEANS = {"running_mean": ("running_variance", "running_var"), "_mean": ("_var",), "mean": ("var", "variance")}
"""Names of a mean and of its variance."""
LOG_STDS = r"(.*\.)?(log_?std(_param(eter)?)?|std(_param)?|actor_logstd|sigma)"
STATISTICS_HINT = "Set obs_mean and obs_variance"


class Library(NamedTuple):
    """Library of a checkpoint; its normalization of observations is clip((obs - mean) / std(var), -clip, clip)."""

    name: str
    std: Callable[[Tensor], Tensor]
    clip: float
    activation: str = "elu"


CLEANRL = Library("CleanRL", lambda var: (var + 1e-8).sqrt(), 10.0, "tanh")
SKRL = Library("skrl", lambda var: var.sqrt() + 1e-8, 5.0)
RSL_RL = Library("rsl_rl", lambda var: var.sqrt() + 1e-2, math.inf)
RL_GAMES = Library("rl_games", lambda var: (var + 1e-5).sqrt(), 5.0)


def load_checkpoint(
    path: str,
    spec: PolicySpec,
    activation: str | None = None,
    head: HeadKind | None = None,
    obs_mean: Sequence[float] = (),
    obs_variance: Sequence[float] = (),
) -> ActorPolicy:
    """Load a state dict, alone or in a checkpoint with the statistics that normalize observations.

    An `activation` replaces that of the library; the tensors determine the `head` as well. `obs_mean` and
    `obs_variance` replace the statistics of the file. Raise the errors of `load_policy`.
    """
    parts, spec = read_checkpoint(Path(path)), spec.unmasked
    if activation is not None:
        import_activation(activation, "teacher.activation")
    name, tensors = _network(path, parts)
    library = SKRL if name == "policy" else _library(parts, tensors)
    try:
        renamed, kind = _to_sb3(tensors) if library is CLEANRL else _chain(tensors, spec)
        require_kind(spec.head, kind)
        plain = "tanh" if kind in ("gaussian", "categorical") else "relu"
        settings = Settings(activation or (plain if library is CLEANRL else library.activation))
        policy = rebuild(renamed, spec, settings, [*spec.entries])
    except InconsistentFileError as error:
        raise UntrustedFileError(f"{path}: does not fit the environment: {error}. Use another environment.") from None
    except (RLDistillError, RebuildError, KeyError, IndexError, ValueError, RuntimeError) as error:
        raise UntrustedFileError(
            f"{path}: not the tensors of {SUPPORTED} ({error}). Load it with a function that builds its "
            f"network: module:factory@{path}."
        ) from None
    if activation is not None and not policy.config.hidden and not policy.config.critic:
        raise ConfigError(f"teacher.activation: {path} has no dense layer with another activation. Remove the option.")
    if head not in (None, kind):
        raise ConfigError(f"teacher.head: {path} has a {kind} head, found {head}. Remove the option.")
    if library is not CLEANRL and activation is None and policy.config.hidden:
        warnings.warn(f"{path}: its activation is read as {library.activation}. Set activation.", stacklevel=2)
    moments = _moments(path, parts, flat_width(spec)) if not len(obs_mean) else None
    if len(obs_mean) or len(obs_variance):
        moments = torch.tensor(obs_mean, dtype=torch.float64), torch.tensor(obs_variance, dtype=torch.float64)
    if moments is not None:
        _normalize(path, policy, library, *moments)
    elif kind == "gaussian" and library is CLEANRL:
        warnings.warn(
            f"{path}: ppo_continuous_action observes normalized observations, whose statistics this file does not "
            f"hold. {STATISTICS_HINT}, or save them as obs_rms beside the weights.",
            stacklevel=2,
        )
    return policy


def _network(path: str, parts: dict[str, Tensors]) -> tuple[str, Tensors]:
    """Return the name and the state dict that acts; raise UntrustedFileError if there is not exactly one."""
    networks = {
        name: part
        for name, part in parts.items()
        if any(key.endswith("weight") and tensor.ndim > 1 for key, tensor in part.items())
    }
    acting = {name: part for name, part in networks.items() if not FOR_TRAINING.search(name)}
    if len(acting) > 1:
        acting = {name: part for name, part in acting.items() if ACTS.search(" ".join([name, *part]))}
    if not networks and "" in parts:
        return "", parts[""]
    if len(acting) != 1:
        found = ", ".join(acting or networks or parts) or "no tensors"
        raise UntrustedFileError(f"{path}: found {found}, expected one network that acts. Save its state dict alone.")
    return next(iter(acting.items()))


def _library(parts: dict[str, Tensors], tensors: Tensors) -> Library:
    names = " ".join([*parts, *tensors])
    if "a2c_network." in names:
        return RL_GAMES
    if re.search(r"(^| )(model|actor)_state_dict|obs_normalizer|std_param|(^| )(std|log_std)( |$)", names):
        return RSL_RL
    if "log_std_parameter" in names or "preprocessor" in names or "policy_layer" in names:
        return SKRL
    return CLEANRL


def _to_sb3(tensors: Tensors) -> tuple[Tensors, HeadKind]:
    """Return the tensors of CleanRL by the names of SB3, and the kind of the head."""
    if "fc_mu.weight" in tensors:
        layers = [name.removesuffix(".weight") for name in tensors if name.endswith(".weight")]
        names = {layer: f"actor.mu.{2 * index}" for index, layer in enumerate(layers)}
        return _renamed(tensors, names), "squashed_gaussian"
    actor = next((name for name in KINDS if f"{name}.0.weight" in tensors), None)
    if actor is None:
        raise ValueError(f"found {', '.join([*tensors][:4])}")
    kind = KINDS[actor]
    if "network.7.weight" in tensors:
        kind = "categorical" if "actor.weight" in tensors else "q_values"
        extractor = "features_extractor" if kind == "categorical" else "q_net.features_extractor"
        names = {f"network.{index}": f"{extractor}.cnn.{index}" for index in (0, 2, 4)}
        names |= {"network.7": f"{extractor}.linear.0", "network.9": "q_net.q_net.0"}
        names |= {"actor": "action_net", "critic": "value_net"}
    elif kind == "q_values":
        names = {layer: layer.replace("network", "q_net.q_net") for layer in _layers(tensors, actor)}
    else:
        names = {}
        for network, hidden, output in ((actor, "policy_net", "action_net"), ("critic", "value_net", "value_net")):
            *inner, last = _layers(tensors, network)
            names |= {layer: layer.replace(network, f"mlp_extractor.{hidden}") for layer in inner} | {last: output}
    noise = {"log_std": tensors["actor_logstd"].flatten()} if kind == "gaussian" else {}
    return _renamed(tensors, names) | noise, kind


def _chain(tensors: Tensors, spec: PolicySpec) -> tuple[Tensors, HeadKind]:
    """Return tensors of one chain of dense layers, with an LSTM before it or not, by the names of SB3.

    Every layer must be part of the chain, or of a critic by its name, since one that is left out changes the actions.
    """
    noise = next((name for name in tensors if re.fullmatch(LOG_STDS, name)), None)
    acting = {name: tensor for name, tensor in tensors.items() if not FOR_TRAINING.search(name) and name != noise}
    acting = {name: tensor for name, tensor in acting.items() if not re.search(r"normalizer|running_mean_std", name)}
    state = {name: tensor for name, tensor in acting.items() if ".weight_ih" in name or ".weight_hh" in name}
    state |= {name: tensor for name, tensor in acting.items() if ".bias_ih" in name or ".bias_hh" in name}
    width = flat_width(spec)
    if state:
        size = next(tensor.shape[1] for name, tensor in state.items() if ".weight_hh" in name)
        if any(len(tensor) != 4 * size for tensor in state.values()):
            raise ValueError("a recurrent layer that is no LSTM")
        width = size
    layers = [name.removesuffix(".weight") for name in acting if name.endswith(".weight")]
    layers.sort(
        key=lambda layer: re.search(r"(^|[._])(mu|mean(_layer)?|action(_layer)?|policy_layer)$", layer) is not None
    )
    known = {*state, *(f"{layer}.{parameter}" for layer in layers for parameter in ("weight", "bias"))}
    if unknown := [name for name in acting if name not in known]:
        raise ValueError(f"found {', '.join(unknown[:4])}")
    for layer in layers:
        if acting[f"{layer}.weight"].ndim != 2:
            raise ValueError(f"{layer} is no dense layer")
        if acting[f"{layer}.weight"].shape[1] != width:
            found = acting[f"{layer}.weight"].shape[1]
            raise InconsistentFileError(f"{layer} takes {found} numbers, and before it are {width}")
        width = len(acting[f"{layer}.weight"])
    if noise is None and not spec.head.discrete:
        raise ValueError("no log_std: a deterministic network, whose last function the file does not hold")
    *inner, last = layers
    names = {layer: f"mlp_extractor.policy_net.{2 * index}" for index, layer in enumerate(inner)} | {last: "action_net"}
    renamed = _renamed(acting, names)
    renamed |= {re.sub(r"^.*\.(?=(weight|bias)_)", "lstm_actor.", name): tensor for name, tensor in state.items()}
    if noise is None:
        return renamed, spec.head.neutral_kind
    log_std = tensors[noise].flatten()
    return renamed | {"log_std": log_std if "log" in noise or "sigma" in noise else log_std.log()}, "gaussian"


def _renamed(tensors: Tensors, names: dict[str, str]) -> Tensors:
    split = ((*name.rpartition("."), tensor) for name, tensor in tensors.items())
    return {f"{names[layer]}.{parameter}": tensor for layer, _, parameter, tensor in split if layer in names}


def _layers(tensors: Tensors, network: str) -> list[str]:
    indices = [int(match[1]) for name in tensors if (match := re.fullmatch(rf"{network}\.(\d+)\.weight", name))]
    return [f"{network}.{index}" for index in sorted(indices)]


def _moments(path: str, parts: dict[str, Tensors], width: int) -> tuple[Tensor, Tensor] | None:
    """Return mean and variance of observations; raise UntrustedFileError for several, or for an unknown form."""
    flat = {f"{part}.{name}".lstrip("."): tensor for part, tensors in parts.items() for name, tensor in tensors.items()}
    flat = {name: tensor for name, tensor in flat.items() if not FOR_TRAINING.search(name)}
    found = {}
    for name, mean in flat.items():
        prefix, _, last = name.rpartition(".")
        prefix += "." if prefix else ""
        variance = next((flat[f"{prefix}{var}"] for var in MEANS.get(last, ()) if f"{prefix}{var}" in flat), None)
        if variance is not None:
            found[prefix] = mean, variance
    if len(found) > 1:
        found = {prefix: pair for prefix, pair in found.items() if pair[0].numel() == width}
    if len(found) > 1:
        raise UntrustedFileError(f"{path}: holds the statistics of {', '.join(found)}. {STATISTICS_HINT} to choose.")
    if found:
        return next(iter(found.values()))
    for part, tensors in parts.items():
        named = re.search(r"norm|rms|preprocess|scal|statist|stats", part) and not FOR_TRAINING.search(part)
        for name, tensor in tensors.items():
            if named and tensor.numel() == width:
                unknown = f"{part}.{name}, which may be a statistic of observations in an unknown form"
                raise UntrustedFileError(f"{path}: holds {unknown}. {STATISTICS_HINT}.")
    return None


def _normalize(path: str, policy: ActorPolicy, library: Library, mean: Tensor, variance: Tensor) -> None:
    """Let the policy normalize its observations; raise UntrustedFileError for statistics of others."""
    width = flat_width(policy.spec)
    valid = mean.numel() == variance.numel() == width and bool((variance >= 0).all())
    if not valid or policy.spec.obs_dtype == "uint8":
        raise UntrustedFileError(
            f"{path}: the statistics of observations are {mean.numel()} means and {variance.numel()} variances, "
            f"expected {width} and no bytes. Use those of this agent: obs_mean and obs_variance."
        )
    shape = moments_shape(policy.spec)
    policy.standardize(mean.double().reshape(shape).float(), library.std(variance.double()).reshape(shape).float())
    if math.isfinite(library.clip):
        policy.obs_clip = dict.fromkeys(policy.spec.entries, library.clip)
