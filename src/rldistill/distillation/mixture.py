"""One label of several teachers: the weighted mean of their distributions or actions."""

import dataclasses
from functools import partial

import torch
from torch import Tensor

from rldistill.core.heads import ILLEGAL, ActionHead, BernoulliHead
from rldistill.core.policy import PolicyOutput
from rldistill.core.spec import PolicySpec
from rldistill.data.blocks import MEMBER, MEMBERS
from rldistill.data.dataset import Dataset, action_gap
from rldistill.losses.objective import default_temperature
from rldistill.policies.ensemble import MIN_PROBABILITY, member_outputs


def softened_outputs(dataset: Dataset) -> list[PolicyOutput]:
    """Return the outputs of all members for each state; Q values become logits, divided by half their mean gap."""
    outputs = []
    for output in member_outputs(torch.from_numpy(dataset.columns[MEMBERS]), dataset.spec.member_heads):
        if output.head.action_values:
            values = output.params
            scaled = values / default_temperature(output.head, partial(action_gap, values.numpy()))
            logits = torch.where(values > ILLEGAL / 2, scaled, ILLEGAL)
            output = PolicyOutput(output.head.as_kind("categorical"), logits)
        outputs.append(output)
    return outputs


def expectation(head: ActionHead, params: Tensor) -> Tensor:
    """Return the probabilities of all choices, one part of an action after another, or the continuous action."""
    if isinstance(head, BernoulliHead):
        return params.sigmoid()
    if not head.discrete:
        return PolicyOutput(head, params).mode()
    return torch.cat([part.softmax(-1) for part in params.split_with_sizes(head.nvec, -1)], -1)


def params_of(head: ActionHead, mean: Tensor) -> Tensor:
    """Return the params of a neutral head with the `expectation` `mean`; choices of probability 0 are illegal ones."""
    if not head.discrete:
        return mean
    logs = mean.clamp_min(MIN_PROBABILITY).log()
    if isinstance(head, BernoulliHead):
        return logs - (1 - mean).clamp_min(MIN_PROBABILITY).log()
    return torch.where(mean > 0, logs, ILLEGAL)


def label_spec(spec: PolicySpec) -> PolicySpec:
    """Return the spec of labels that are one for each state; that of a single teacher is unchanged."""
    return dataclasses.replace(spec, members=())


def with_weights(dataset: Dataset, labels: Tensor, weights: Tensor) -> Dataset:
    """Return the dataset with the mean over teachers of `labels` `[N, K, E]`, weighted with `weights` `[N, K]`."""
    params = params_of(dataset.spec.head, (labels * weights[..., None]).sum(1))
    columns = {name: column for name, column in dataset.columns.items() if name not in (MEMBERS, MEMBER)}
    return dataclasses.replace(dataset, spec=label_spec(dataset.spec), columns=columns | {"teacher": params.numpy()})
