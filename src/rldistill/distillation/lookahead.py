"""Weights of several teachers by a one-step look-ahead on held-out data."""

import dataclasses

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rldistill.core.heads import ActionHead
from rldistill.data.dataset import Dataset
from rldistill.distillation.config import DistillConfig
from rldistill.distillation.gradient import Trainer
from rldistill.distillation.mixture import expectation, with_weights
from rldistill.distillation.values import BATCH_SIZE, outputs, own_steps, small_network
from rldistill.policies.network import NetworkPolicy

EPOCHS = 10
LOG_WEIGHT_STEP = 0.5
"""Step of the logarithm of the weights, for a gain of one standard deviation."""
MAX_WEIGHT = 20.0
NUM_FOLDS = 2


def learned_weights(
    dataset: Dataset, labels: Tensor, values: NDArray[np.float64], seed: int = 0
) -> NDArray[np.float64]:
    """Return weights `[N, K]` of the teachers, one for each sample, that lower the loss on held-out data.

    A small network learns the weighted labels. After each epoch, a step of gradient descent on sample i with the label
    q_ik of teacher k would lower the held-out loss by

        <g_ik, g> = (q_ik - p_i)' G h_i + constant,  G = sum_j c_j (a_j - p_j) h_j' / sum_j c_j,

    with the last hidden layer h, the predicted probabilities p (or action), the recorded action a_j as one-hot vector,
    and c_j = min(exp(A_j / rms A), 20) of its advantage A_j, the return-to-go minus the mean value of the teachers. So
    g is the gradient of the advantage-weighted log-likelihood (Peng 2019, arXiv 1910.00177), all gradients are those of
    the last layer, and the logarithm of w_ik grows in proportion to <g_ik, g>. The episodes are in two halves, each of
    which is the held-out data of the other. Bilevel weights of each sample: AMAL, Sivasubramanian 2022, arXiv
    2202.03250.

    Args:
        dataset: The states.
        labels: The probabilities or actions of the teachers, `[N, K, E]`.
        values: The mean value of the teachers in each state, `[N]`.
        seed: Seed of the network and of the halves.
    """
    own, head = own_steps(dataset), dataset.spec.head.neutral
    advantage = dataset.columns["return_to_go"] - values
    scale = max(float(np.sqrt(np.square(advantage[own]).mean())), 1e-8)
    importance = torch.from_numpy(own * np.exp(np.minimum(advantage / scale, np.log(MAX_WEIGHT)))).float()
    target = expectation(head, head.certain(torch.from_numpy(dataset.columns["action"])))
    episodes = np.random.default_rng(seed).permutation(dataset.num_episodes) % NUM_FOLDS
    fold = episodes[dataset.columns["episode"]]
    weights = torch.full(labels.shape[:2], 1 / labels.shape[1])
    config = DistillConfig(epochs=EPOCHS, batch_size=BATCH_SIZE)
    for number in range(NUM_FOLDS):
        train, counted = fold == number, importance * torch.from_numpy(fold != number)
        log_weights = torch.zeros_like(weights)
        data = dataclasses.replace(with_weights(dataset, labels, weights), heldout=~train)
        trainer = Trainer(data, small_network(data.spec), config, seed)
        for epoch in range(EPOCHS):
            trainer.dataset = dataclasses.replace(with_weights(dataset, labels, weights), heldout=~train)
            trainer.train_epoch(epoch)
            hidden, prediction = _forward(trainer.policy.eval(), dataset, head)
            gains = look_ahead(labels, hidden, target - prediction, counted)
            gains -= gains.mean(1, keepdim=True)
            log_weights += LOG_WEIGHT_STEP * gains / gains[train].square().mean().sqrt().clamp_min(1e-12)
            weights[train] = log_weights[train].softmax(1)
    return weights.double().numpy()


def look_ahead(labels: Tensor, hidden: Tensor, residual: Tensor, importance: Tensor) -> Tensor:
    """Return q_ik' G h_i, `[N, K]`, with G = sum_j c_j r_j h_j' / sum_j c_j: of labels, hidden layers, r and c."""
    step = (importance[:, None] * residual).T @ hidden / importance.sum()
    return (labels * (hidden @ step.T)[:, None]).sum(-1)


def _forward(policy: NetworkPolicy, dataset: Dataset, head: ActionHead) -> tuple[Tensor, Tensor]:
    """Return the last hidden layer with a constant, `[N, H + 1]`, and the predictions `[N, E]` for all states."""
    hidden, predictions = [], []
    for output in outputs(policy, dataset):
        assert output.features is not None
        hidden.append(torch.nn.functional.pad(output.features, (0, 1), value=1.0).cpu())
        predictions.append(expectation(head, output.params).cpu())
    return torch.cat(hidden), torch.cat(predictions)
