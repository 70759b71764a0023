"""CleanRL checkpoints: state dicts of its DQN and PPO, for vectors and for Atari, whose networks are those of SB3."""

from __future__ import annotations

import re
from pathlib import Path

from rldistill.core.errors import ConfigError, RLDistillError, UntrustedFileError
from rldistill.core.heads import HeadKind
from rldistill.core.spec import PolicySpec
from rldistill.io.untrusted import read_state_dict
from rldistill.policies.actor_critic import ActorPolicy
from rldistill.policies.layers import import_activation
from rldistill.teachers.sb3.tensors import InconsistentFileError, RebuildError, Settings, Tensors, rebuild, require_kind

SUPPORTED = "dqn, dqn_atari, ppo, ppo_atari, ppo_continuous_action"
KINDS: dict[str, HeadKind] = {"network": "q_values", "actor_mean": "gaussian", "actor": "categorical"}
"""Kind of the head by the name of the dense network that acts."""


def load_cleanrl(
    path: str, spec: PolicySpec, activation: str | None = None, head: HeadKind | None = None
) -> ActorPolicy:
    """Load `agent.state_dict()` or `q_network.state_dict()` of CleanRL's single-file scripts.

    An `activation` replaces that of the original script; the tensors determine the `head` as well. Raise the errors of
    `load_policy`.
    """
    tensors = read_state_dict(Path(path))
    if activation is not None:
        import_activation(activation, "teacher.activation")
    try:
        renamed, kind = _to_sb3(tensors)
        require_kind(spec.head, kind)
        settings = Settings(activation or ("relu" if kind == "q_values" else "tanh"))
        policy = rebuild(renamed, spec, settings, [*spec.entries])
    except InconsistentFileError as error:
        raise UntrustedFileError(f"{path}: does not fit the environment: {error}. Use another environment.") from None
    except (RLDistillError, RebuildError, KeyError, IndexError, ValueError, RuntimeError) as error:
        raise UntrustedFileError(
            f"{path}: not the tensors of CleanRL's {SUPPORTED} ({error}). Load it with a function that builds its "
            f"network: module:factory@{path}."
        ) from None
    if activation is not None and not policy.config.hidden and not policy.config.critic:
        raise ConfigError(f"teacher.activation: {path} has no dense layer with another activation. Remove the option.")
    if head not in (None, kind):
        raise ConfigError(f"teacher.head: {path} has a {kind} head, found {head}. Remove the option.")
    return policy


def _to_sb3(tensors: Tensors) -> tuple[Tensors, HeadKind]:
    """Return the tensors by the names of SB3, and the kind of the head."""
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
    split = ((*name.rpartition("."), tensor) for name, tensor in tensors.items())
    renamed = {f"{names[layer]}.{parameter}": tensor for layer, _, parameter, tensor in split if layer in names}
    return renamed | ({"log_std": tensors["actor_logstd"].flatten()} if kind == "gaussian" else {}), kind


def _layers(tensors: Tensors, network: str) -> list[str]:
    indices = [int(match[1]) for name in tensors if (match := re.fullmatch(rf"{network}\.(\d+)\.weight", name))]
    return [f"{network}.{index}" for index in sorted(indices)]
