"""CleanRL checkpoints: the state dicts of its DQN and PPO, on vectors and on Atari."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import torch
from torch import Tensor

from rldistill.core.errors import ConfigError, RLDistillError, UntrustedFileError
from rldistill.core.heads import HeadKind
from rldistill.core.spec import PolicySpec
from rldistill.io.untrusted import read_state_dict
from rldistill.policies.actor_critic import Actor, ActorPolicy
from rldistill.policies.layers import activation as known_activation

Tensors = dict[str, Tensor]
CONVOLUTIONS, DENSE = (0, 2, 4), 7
SUPPORTED = "dqn, dqn_atari, ppo, ppo_atari, ppo_continuous_action"


def load_cleanrl(
    path: Path, spec: PolicySpec | None, activation: str | None = None, head: HeadKind | None = None
) -> ActorPolicy:
    """Read `agent.state_dict()` or `q_network.state_dict()` of CleanRL's single-file scripts.

    Args:
        path: what `torch.save` wrote, or safetensors.
        spec: of the environment, which these files say nothing of.
        activation: of its dense layers, in place of the one in its script.
        head: what its numbers mean, which its tensors tell, too.

    Raises:
        ConfigError: no `spec`, an `activation` that there is not or nowhere in it, a `head` that is not its own.
        UntrustedFileError: not the tensors of one of these scripts, or not of a network for `spec`.
    """
    tensors = read_state_dict(path)
    if spec is None:
        raise ConfigError(f"{path}: a state dict does not tell its environment; give the environment's spec")
    if activation is not None:
        known_activation(activation, f"teacher: {path}: activation")
    try:
        config, state, kind = _described(tensors)
        spec = dataclasses.replace(spec, head=spec.head.as_kind(kind, str(path)))
        if activation is not None:
            config = dataclasses.replace(config, activation=activation)
        with torch.device("meta"):
            wanted = dict(config.build(spec).named_parameters())
        for name in wanted.keys() | state.keys():
            ours, theirs = (tuple(side[name].shape) if name in side else "nothing" for side in (wanted, state))
            if ours != theirs:
                raise UntrustedFileError(f"{path}: {name} is {theirs} where the environment needs {ours}")
    except (KeyError, IndexError, ValueError, RuntimeError) as error:
        raise UntrustedFileError(
            f"{path}: not the tensors of CleanRL's {SUPPORTED} ({error}); name the function that makes its network: "
            f"module:factory@{path}"
        ) from None
    except RLDistillError as error:
        raise UntrustedFileError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from None
    if activation is not None and not config.hidden and not config.critic:
        raise ConfigError(f"teacher: {path}: activation: none of its dense layers takes another; leave it out")
    if head not in (None, kind):
        raise ConfigError(f"teacher: {path}: head: {head}, but its tensors are those of {kind}; leave it out")
    policy = config.build(spec)
    policy.load_state_dict(state, strict=False)
    return policy.eval()


def _described(tensors: Tensors) -> tuple[Actor, Tensors, HeadKind]:
    """The network, its weights by our names, and the kind of its head."""
    pictures = f"network.{DENSE}.weight" in tensors
    if pictures:
        actor = "actor" if "actor.weight" in tensors else "network.9"
        channels = tuple(len(tensors[f"network.{place}.weight"]) for place in CONVOLUTIONS)
        state = {f"extractors.image_.{p}.{n}": tensors[f"network.{p}.{n}"] for p in (*CONVOLUTIONS, DENSE) for n in WB}
        state |= {f"output.{name}": tensors[f"{actor}.{name}"] for name in WB}
        features = len(tensors[f"network.{DENSE}.weight"])
        critic: tuple[int, ...] | None = None
        if actor == "actor":
            state |= {f"critic.0.{name}": tensors[f"critic.{name}"] for name in WB}
            critic = ()
        config = Actor(("",), channels, features, hidden=(), critic=critic, activation="relu")
        return config, state, "q_values" if actor == "network.9" else "categorical"
    stem = next((stem for stem in ("network", "actor_mean", "actor") if f"{stem}.0.weight" in tensors), None)
    if stem is None:
        raise ValueError(f"found {', '.join([*tensors][:4])}")
    hidden, state = _dense(tensors, stem, "body", "output.mean" if stem == "actor_mean" else "output")
    if stem == "network":
        return Actor(hidden=hidden, activation="relu"), state, "q_values"
    critic, values = _dense(tensors, "critic", "critic", "critic.last")
    last = f"critic.{2 * len(critic)}"
    state |= {name.replace("critic.last", last): value for name, value in values.items()}
    if stem == "actor":
        return Actor(hidden=hidden, critic=critic, activation="tanh"), state, "categorical"
    state["output.log_std"] = tensors["actor_logstd"].flatten()
    return Actor(hidden=hidden, critic=critic, activation="tanh", noise="free"), state, "gaussian"


WB = ("weight", "bias")


def _dense(tensors: Tensors, stem: str, body: str, output: str) -> tuple[tuple[int, ...], Tensors]:
    """Widths of the hidden layers, and all layers by our names."""
    places = sorted(int(match[1]) for name in tensors if (match := re.fullmatch(rf"{stem}\.(\d+)\.weight", name)))
    *inner, last = places
    state = {f"{body}.{place}.{name}": tensors[f"{stem}.{place}.{name}"] for place in inner for name in WB}
    state |= {f"{output}.{name}": tensors[f"{stem}.{last}.{name}"] for name in WB}
    return tuple(len(tensors[f"{stem}.{place}.weight"]) for place in inner), state
