"""CleanRL checkpoints: state dicts of its DQN and PPO, for vectors and for Atari."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from rldistill.core.errors import ConfigError, RLDistillError, UntrustedFileError
from rldistill.core.heads import HeadKind
from rldistill.core.spec import PolicySpec
from rldistill.io.untrusted import read_state_dict
from rldistill.policies.actor_critic import Actor, ActorPolicy
from rldistill.policies.layers import import_activation
from rldistill.teachers.weights import (
    CONVOLUTION_INDICES,
    InconsistentFileError,
    RebuildError,
    Tensors,
    build_actor,
    find_layer,
    find_layers,
    name_layer,
    name_layers,
    num_rows,
    widths,
)

SUPPORTED = "dqn, dqn_atari, ppo, ppo_atari, ppo_continuous_action"


def load_cleanrl(
    path: str, spec: PolicySpec, activation: str | None = None, head: HeadKind | None = None
) -> ActorPolicy:
    """Load `agent.state_dict()` or `q_network.state_dict()` of CleanRL's single-file scripts.

    Args:
        path: A file of `torch.save`, or safetensors.
        spec: Spec of the environment.
        activation: Activation of the dense layers, if it is not that of the original script.
        head: Kind of the head, which the tensors determine as well.

    Raises:
        ConfigError: An unknown or unused activation, or another head than that of the tensors.
        UntrustedFileError: Not the tensors of one of these scripts, or not of a network for `spec`.
    """
    tensors = read_state_dict(Path(path))
    if activation is not None:
        import_activation(activation, "teacher.activation")
    try:
        config, state, kind = _actor(tensors)
        if (kind == "gaussian") == spec.head.discrete:
            raise UntrustedFileError(
                f"{path}: a network for {kind} actions, but the environment has {spec.head.kind} actions. Use another "
                "environment."
            )
        config = dataclasses.replace(config, activation=activation or config.activation)
        policy = build_actor(config, dataclasses.replace(spec, head=spec.head.as_kind(kind)), state)
    except UntrustedFileError:
        raise
    except InconsistentFileError as error:
        raise UntrustedFileError(f"{path}: does not fit the environment: {error}. Use another environment.") from None
    except (RLDistillError, RebuildError, KeyError, IndexError, ValueError, RuntimeError) as error:
        raise UntrustedFileError(
            f"{path}: not the tensors of CleanRL's {SUPPORTED} ({error}). Load it with a function that builds its "
            f"network: module:factory@{path}."
        ) from None
    if activation is not None and not config.hidden and not config.critic:
        raise ConfigError(f"teacher.activation: {path} has no dense layer with another activation. Remove the option.")
    if head not in (None, kind):
        raise ConfigError(f"teacher.head: {path} has a {kind} head, found {head}. Remove the option.")
    return policy


def _actor(tensors: Tensors) -> tuple[Actor, Tensors, HeadKind]:
    """Return the network, its parameters by the names of `Actor`, and the kind of its head."""
    if "network.7.weight" in tensors:
        return _atari_actor(tensors)
    prefix = next((name for name in ("network", "actor_mean", "actor") if f"{name}.0.weight" in tensors), None)
    if prefix is None:
        raise ValueError(f"found {', '.join([*tensors][:4])}")
    *hidden, output = find_layers(tensors, rf"{prefix}\.(\d+)")
    state = name_layers("body", hidden) | name_layer("output.mean" if prefix == "actor_mean" else "output", output)
    if prefix == "network":
        return Actor(hidden=widths(hidden), activation="relu"), state, "q_values"
    critic = find_layers(tensors, r"critic\.(\d+)")
    config = Actor(hidden=widths(hidden), critic=widths(critic[:-1]), activation="tanh")
    state |= name_layers("critic", critic)
    if prefix == "actor":
        return config, state, "categorical"
    state["output.log_std"] = tensors["actor_logstd"].flatten()
    return dataclasses.replace(config, noise="free"), state, "gaussian"


def _atari_actor(tensors: Tensors) -> tuple[Actor, Tensors, HeadKind]:
    layers = find_layers(tensors, r"network\.([0247])")
    is_ppo = "actor.weight" in tensors
    state = name_layers("extractors.image_", layers, CONVOLUTION_INDICES)
    state |= name_layer("output", find_layer(tensors, "actor" if is_ppo else "network.9"))
    if is_ppo:
        state |= name_layer("critic.0", find_layer(tensors, "critic"))
    config = Actor(
        images=("",),
        channels=widths(layers[:-1]),
        features=num_rows(layers[-1]),
        hidden=(),
        critic=() if is_ppo else None,
        activation="relu",
    )
    return config, state, "categorical" if is_ppo else "q_values"
