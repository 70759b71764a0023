"""Translation of policies into programs.

A new layer is one function under `translate.register`, which composes the operations of `program`, so that every format
supports it.
"""

from functools import singledispatch
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from rldistill.core.heads import ILLEGAL, MASK, NO_NOISE_LOG_STD, BernoulliHead, GaussianHead, SquashedGaussianHead
from rldistill.core.policy import Policy
from rldistill.core.spec import PolicySpec
from rldistill.exporters.program import (
    Entries,
    ExportError,
    Node,
    Program,
    add,
    array,
    clip,
    concat,
    constant,
    flat,
    gru_cell,
    linear,
    lstm_cells,
    multiply,
    reshape,
    scaled,
    standardize,
    take,
    transpose,
    unary,
)
from rldistill.policies.actor_critic import ActorPolicy, NoisyOutput
from rldistill.policies.joint import IDENTITY, OWN, JointPolicy
from rldistill.policies.layers import ACTIVATIONS, Flat, has_arguments
from rldistill.policies.network import LOG_STD_RANGE, NetworkPolicy
from rldistill.policies.wrappers import ActionMaskedPolicy, ChannelsLastPolicy
from rldistill.students.cnn import Residual
from rldistill.students.features import CLIP_STD, RandomFourierFeatures, Standardizer
from rldistill.students.features.objects import ObjectLayer
from rldistill.students.features.teacher import LastHidden
from rldistill.students.gru import GruPolicy
from rldistill.students.multi_input import ChannelsToFront, EntriesLayer
from rldistill.students.team import TeamPolicy
from rldistill.students.tree import TreePolicy


def lower_policy(policy: Policy) -> Program:
    """Return the program of a policy.

    Raises:
        ExportError: The policy has a layer without a translation, such as one of the user's own.
    """
    spec = policy.spec
    entries = {
        key: Node("input", part.shape, settings={"name": key or "obs"}, dtype=part.dtype)
        for key, part in spec.entries.items()
    }
    state = None
    if (initial := policy.initial_state(1)) is not None:
        state = Node("input", tuple(initial.shape[1:]), settings={"name": "state_in"})
    params, next_state = _lower_params(policy, entries, state)
    if MASK in entries:
        params = _masked(params, entries[MASK], spec)
    return Program(spec, entries, params, _mode(params, spec), state, next_state)


def _lower_params(policy: Policy, entries: Entries, state: Node | None) -> tuple[Node, Node | None]:
    """Return the head's parameters, and the next state, for the entries of an observation."""
    if isinstance(policy, ActionMaskedPolicy):
        inner = policy.policy.spec
        unmasked = {key: entries[key] for key in inner.entries} if inner.parts else {"": entries["obs"]}
        return _lower_params(policy.policy, unmasked, state)
    if isinstance(policy, ChannelsLastPolicy):
        first = {key: transpose(node, (2, 0, 1)) if key in policy.images else node for key, node in entries.items()}
        return _lower_params(policy.policy, first, state)
    if isinstance(policy, TeamPolicy | JointPolicy):
        return _lower_joint(policy.joint if isinstance(policy, TeamPolicy) else policy, entries, state)
    if type(policy) not in (NetworkPolicy, GruPolicy, TreePolicy, ActorPolicy):
        raise ExportError(f"export: a {type(policy).__name__} has no translation into operations")
    assert isinstance(policy, NetworkPolicy)
    x = entries if policy.normalizes_itself else standardized(policy, entries)
    if isinstance(policy, GruPolicy):
        assert state is not None
        state = gru_cell(policy.cell, lower(policy.body, x), state)
        return _network_params(policy, state), state
    if isinstance(policy, TreePolicy):
        return _tree(policy, lower(policy.body, x)), None
    if isinstance(policy, ActorPolicy):
        features = actor_features(policy, x)
        if policy.lstm is not None:
            assert state is not None
            features, state = lstm_cells(policy.lstm, features, state)
        return _network_params(policy, lower(policy.body, features)), state
    return _network_params(policy, lower(policy.body, x)), state


def _lower_joint(policy: JointPolicy, entries: Entries, state: Node | None) -> tuple[Node, Node | None]:
    """Return the joint parameters of all agents, and their states one after another."""
    params, states, start, head = list[Node](), list[Node](), 0, policy.spec.head
    for view, member in zip(policy.views, policy.members, strict=True):
        own = {alias: entries[key] for key, alias in view.keys.items()}
        if view.identity is not None:
            number, count = view.identity
            x = scaled(flat(next(iter(own.values()))), 1.0)  # a constant would have no batch
            own[IDENTITY] = linear(x, np.zeros((count, x.size), np.float32), np.eye(count, dtype=np.float32)[number])
        if MASK in entries:
            part = view.mask_part
            own[MASK] = take(scaled(flat(entries[MASK]), 1.0), part.start, part.stop)
        inputs = {key: own[key] for key in member.spec.entries} if member.spec.parts else {"": own[OWN]}
        own_state = None
        if (initial := member.initial_state(1)) is not None and state is not None:
            own_state = reshape(take(state, start, start := start + initial[0].numel()), tuple(initial.shape[1:]))
        own_params, after = _lower_params(member, inputs, own_state)
        params.append(own_params)
        states += [] if after is None else [flat(after)]
    if not head.discrete and head.num_params > len(head.low):  # means of all agents, then their deviations
        halves = [(take(node, 0, node.size // 2), take(node, node.size // 2, node.size)) for node in params]
        params = [half[part] for part in (0, 1) for half in halves]
    return concat(params), concat(states) if states else None


def standardized(policy: NetworkPolicy, entries: Entries) -> Entries:
    """Return the entries as a network's body takes them: encoded, standardized and clipped."""
    mean, std = policy.obs_mean.numpy(), policy.obs_std.numpy()
    offset, results = 0, {}
    for key, part in policy.spec.entries.items():
        node = entries[key]
        own_mean, own_std = mean, std
        if policy.spec.parts:
            own = slice(offset, offset := offset + part.width)
            own_mean, own_std = mean[own], std[own]
            if part.is_picture and np.ptp(own_mean) == 0 == np.ptp(own_std):  # as for a single picture
                own_mean, own_std = own_mean[:1], own_std[:1]
        if part.nvec and node.dtype != "float32":
            node = Node("one_hot", (part.width,), (node,), settings={"sizes": part.nvec})
        elif part.dtype == "uint8":
            own_mean, own_std = own_mean * 255, own_std * 255
        if node.dtype != "float32" or np.any(own_mean != 0) or np.any(own_std != 1):
            node = standardize(node, own_mean.reshape(node.shape if own_mean.size > 1 else ()), own_std)
        if key in policy.obs_clip:
            node = clip(node, -policy.obs_clip[key], policy.obs_clip[key])
        results[key] = node
    return results


def actor_features(policy: ActorPolicy, entries: Entries) -> Node:
    """Return the features of all entries, one after the other."""
    parts = []
    for key, entry in entries.items():
        name = f"image_{key}"
        parts.append(lower(policy.extractors[name], entry) if name in policy.extractors else flat(entry))
    return concat(parts)


def lower(layer: Any, x: Any) -> Node:
    """Return the operations of a layer; `x` is its input, or the entries of an observation.

    Raises:
        ExportError: The layer has no translation; a subclass of a known layer with a `forward` of its own has none.
    """
    kind: Any = next(kind for kind in type(layer).__mro__ if kind in translate.registry)
    if kind is not object and type(layer).forward is not kind.forward:
        raise ExportError(f"export: the layer {layer} has no translation into operations")
    return translate(layer, x)


@singledispatch
def translate(layer: Any, x: Any) -> Node:
    """Return the operations of a layer of a registered kind, or of an activation."""
    name = next((name for name, kind in ACTIVATIONS.items() if type(layer) is kind), None)
    if name is None or has_arguments(layer):
        raise ExportError(f"export: the layer {layer} has no translation into operations")
    return unary(_single(x), name)


@translate.register
def _(layer: nn.Sequential, x: Any) -> Node:
    for part in layer:
        x = lower(part, x)
    return _single(x)


@translate.register
def _(layer: nn.Flatten, x: Any) -> Node:
    return flat(_single(x))


@translate.register
def _(layer: Flat, x: Any) -> Node:
    return concat([flat(entry) for entry in x.values()]) if isinstance(x, dict) else flat(x)


@translate.register
def _(layer: ChannelsToFront, x: Any) -> Node:
    return transpose(_single(x), (2, 0, 1))


@translate.register
def _(layer: EntriesLayer, x: Any) -> Node:
    encoders = dict(zip(layer.keys, layer.encoders, strict=True))
    return concat([lower(encoders[key], node) if key in encoders else flat(node) for key, node in x.items()])


@translate.register
def _(layer: nn.Linear, x: Any) -> Node:
    bias = np.zeros(layer.out_features, np.float32) if layer.bias is None else array(layer.bias)
    return linear(_single(x), array(layer.weight), bias)


@translate.register
def _(layer: nn.Conv2d, x: Any) -> Node:
    x = _single(x)
    stride, padding = layer.stride[0], int(layer.padding[0])
    sizes = _output_sizes(x, layer.kernel_size[0], stride, padding)
    assert layer.bias is not None
    arrays = {"weight": array(layer.weight), "bias": array(layer.bias)}
    return Node("conv", (layer.out_channels, *sizes), (x,), arrays, {"stride": stride, "padding": padding})


@translate.register
def _(layer: nn.MaxPool2d, x: Any) -> Node:
    x = _single(x)
    kernel, stride, padding = (int(getattr(layer, name)) for name in ("kernel_size", "stride", "padding"))
    sizes = _output_sizes(x, kernel, stride, padding)
    return Node("max_pool", (x.shape[0], *sizes), (x,), {}, {"kernel": kernel, "stride": stride, "padding": padding})


@translate.register
def _(layer: Residual, x: Any) -> Node:
    x = _single(x)
    return add(x, lower(layer.second, unary(lower(layer.first, unary(x, "relu")), "relu")))


@translate.register
def _(layer: Standardizer, x: Any) -> Node:
    return clip(standardize(_single(x), array(layer.mean), array(layer.std)), -CLIP_STD, CLIP_STD)


@translate.register
def _(layer: RandomFourierFeatures, x: Any) -> Node:
    phase = linear(_single(x), array(layer.weight), array(layer.bias))  # type: ignore[arg-type]
    return scaled(unary(phase, "cos"), layer.scale)


@translate.register
def _(layer: ObjectLayer, x: Any) -> Node:
    x, regions = _single(x), [region for _, *region in layer.regions]
    count, frames = len(regions), layer.frames
    meetings = 4 * count * (count - 1) if frames > 1 else 0
    size = 2 * count * frames + count + count * (count - 1) + meetings
    return Node("objects", (size,), (x,), settings={"regions": regions, "threshold": layer.threshold})


@translate.register
def _(layer: LastHidden, x: Any) -> Node:
    network = layer.network
    entries = standardized(network, x if isinstance(x, dict) else {"": x})
    return lower(network.body, actor_features(network, entries) if isinstance(network, ActorPolicy) else entries)


@translate.register
def _(layer: NoisyOutput, x: Any) -> Node:
    x = _single(x)
    mean = lower(layer.mean, x)
    actions = mean.size
    if layer.noise == "learned":
        log_std = clip(lower(layer.log_std, x), *LOG_STD_RANGE)
    elif layer.noise == "state":
        if layer.clip_mean:
            mean = clip(mean, -layer.clip_mean, layer.clip_mean)
        variance = linear(multiply(x, x), array(layer.feature_std() ** 2).T.copy(), np.full(actions, 1e-6, np.float32))
        log_std = scaled(unary(variance, "log"), 0.5)
    else:
        log_std = constant(
            np.full(actions, NO_NOISE_LOG_STD, np.float32)
            if layer.noise == "none"
            else array(layer.log_std).reshape(actions)
        )
    return concat([mean, log_std])


def _output_sizes(x: Node, kernel: int, stride: int, padding: int) -> tuple[int, ...]:
    return tuple((size + 2 * padding - kernel) // stride + 1 for size in x.shape[1:])


def _network_params(policy: NetworkPolicy, hidden: Node) -> Node:
    params = lower(policy.output, hidden)
    if policy.log_std is not None:
        params = concat([params, constant(array(policy.log_std))])
    if isinstance(policy.spec.head, SquashedGaussianHead) and not isinstance(policy, ActorPolicy):
        half = params.size // 2
        params = concat([take(params, 0, half), clip(take(params, half, 2 * half), *LOG_STD_RANGE)])
    return params


def _tree(policy: TreePolicy, x: Node) -> Node:
    arrays: dict[str, NDArray[Any]] = {
        name: array(getattr(policy, name)).astype(np.int64) for name in ("feature", "left", "right")
    }
    arrays |= {"threshold": array(policy.threshold), "value": array(policy.value)}
    return Node("tree", (policy.spec.head.num_params,), (x,), arrays)


def _masked(params: Node, mask: Node, spec: PolicySpec) -> Node:
    if not isinstance(spec.head, BernoulliHead):
        return Node("mask", params.shape, (params, flat(mask)), settings={"value": ILLEGAL})
    pairs = reshape(flat(mask), (params.size, 2))
    on, off = (reshape(take(pairs, bit, bit + 1, axis=1), params.shape) for bit in (1, 0))
    legal_on = Node("mask", params.shape, (params, on), settings={"value": ILLEGAL})
    return Node("mask", params.shape, (legal_on, off), settings={"value": -ILLEGAL})


def _mode(params: Node, spec: PolicySpec) -> Node:
    """Return the most likely action, as `PolicyOutput.mode` does."""
    head = spec.head
    if isinstance(head, BernoulliHead):
        return Node("positive", params.shape, (params,), dtype="int64")
    if head.discrete:
        shape = () if head.single_choice else (len(head.nvec),)
        return Node("argmax", shape, (params,), settings={"sizes": head.nvec}, dtype="int64")
    low, high = np.array(head.low, np.float32), np.array(head.high, np.float32)
    action = take(params, 0, len(low)) if isinstance(head, GaussianHead) else params
    if not isinstance(head, SquashedGaussianHead):
        return clip(action, low, high)
    # low + (tanh(x) + 1) / 2 (high - low), as (tanh(x) - mean) / std
    half = (high - low) / 2
    return standardize(unary(action, "tanh"), -1 - low / half, 1 / half)


def _single(x: Any) -> Node:
    if isinstance(x, Node):
        return x
    (node,) = x.values()
    assert isinstance(node, Node)
    return node
