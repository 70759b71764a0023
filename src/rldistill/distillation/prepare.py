"""Preparation of a network before its fit: standardization, features from the data, values of frozen layers."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rldistill.core.entries import split_parts
from rldistill.core.spec import BYTES, PolicySpec
from rldistill.data.dataset import Dataset, spread
from rldistill.distillation.config import DistillConfig
from rldistill.losses import BellmanTarget
from rldistill.policies.encoding import encode, encoded_moments, moments_shape
from rldistill.policies.layers import DataDependentLayer
from rldistill.policies.network import NetworkPolicy
from rldistill.students import AnyStudent
from rldistill.students.student import capability

SAMPLE_SIZE = 5_000
"""Observations from which features are computed and by which pixels are standardized."""
IMAGES_PER_BATCH = 512
MAX_PICTURES = 1_024
"""Pictures of a dict from which the moments of pixels are computed."""
ROWS_PER_BATCH = 1 << 14


def reader_of_every_label(student: AnyStudent, config: DistillConfig) -> str | None:
    """Return the part of a fit that takes the steps of an episode in order, if there is one."""
    if capability(student, "recurrent"):
        return "a recurrent student"
    return "bellman_target" if any(isinstance(term.loss, BellmanTarget) for term in config.losses) else None


def prepare(policy: NetworkPolicy, dataset: Dataset) -> None:
    """Standardize the observations of a policy, and fit its features to a sample of them."""
    if not policy.normalizes_itself:
        policy.standardize(*observation_moments(dataset))
    if any(isinstance(layer, DataDependentLayer) for layer in policy.body.children()):
        policy.fit_features(dataset.observations(dataset.spread(SAMPLE_SIZE)))


def observation_moments(dataset: Dataset) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of encoded observations: over all pixels, or for each entry."""
    spec = dataset.spec
    if spec.obs_dtype == "uint8" and not spec.parts:
        # Without this a dark, constant background drives every ReLU of a convolution the same way, and kills it.
        counts, brightness = np.zeros(256), np.arange(256) / 255
        rows = spread(np.arange(len(dataset.obs)), SAMPLE_SIZE)
        for part in np.array_split(rows, max(1, len(rows) // IMAGES_PER_BATCH)):
            counts += np.bincount(dataset.obs[part].ravel(), minlength=256)
        mean = np.average(brightness, weights=counts)
        std = np.sqrt(np.average((brightness - mean) ** 2, weights=counts))
    elif any(part.is_picture and part.dtype in BYTES for part in spec.entries.values()):
        return picture_moments(torch.from_numpy(dataset.obs[spread(np.arange(len(dataset.obs)), SAMPLE_SIZE)]), spec)
    else:
        # Part by part, since the array may lie on disk.
        parts = np.array_split(dataset.obs, -(-len(dataset.obs) // ROWS_PER_BATCH))
        mean = sum(part.sum(0, dtype=np.float64) for part in parts) / len(dataset.obs)
        std = np.sqrt(sum(((part - mean) ** 2).sum(0) for part in parts) / len(dataset.obs))
    std = np.where(std < 1e-6, 1.0, std)
    return encoded_moments(torch.as_tensor(mean).float(), torch.as_tensor(std).float(), spec)


def picture_moments(obs: Tensor, spec: PolicySpec, vectors: bool = True) -> tuple[Tensor, Tensor]:
    """Return the moments of encoded observations with pictures: the same for all values of a picture of bytes or bits.

    Other entries have those of each value, or 0 and 1 without `vectors`.
    """
    entries = split_parts(obs, spec) if spec.parts else {"": obs}
    means, stds = [], []
    for key, part in spec.entries.items():
        if part.is_picture and part.dtype in BYTES:
            sample = entries[key][:: 1 + len(obs) // MAX_PICTURES]
            values = encode(sample, part).double().reshape(-1, 1)
        elif vectors and not part.nvec:
            values = encode(entries[key], part).double().reshape(len(obs), -1)
        else:
            values = torch.tensor([[-1.0], [1.0]])
        means.append(values.mean(0).expand(part.width))
        stds.append(values.std(0, correction=0).expand(part.width))
    mean, std = (torch.cat([value.double() for value in own]).reshape(moments_shape(spec)) for own in (means, stds))
    return mean.float(), torch.where(std < 1e-6, 1.0, std).float()


def frozen_features(
    policy: NetworkPolicy, observations: Callable[[NDArray[np.int64]], Tensor], count: int, device: torch.device
) -> NDArray[np.float32]:
    """Return the values of a policy's frozen layers for the observations 0 to `count`, `[count, F]`."""
    features = np.empty((count, policy.num_features), np.float32)
    with torch.no_grad():
        for part in np.array_split(np.arange(count), max(1, count // IMAGES_PER_BATCH)):
            features[part] = policy.frozen_features(observations(part).to(device)).cpu().numpy()
    return features
