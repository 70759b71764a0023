"""What several tests share: small policies and a dataset that is quick to collect."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

# One thread for each process, also for those that tests start: the test files are spread over the cores already, and
# threads that wait for each other on busy cores take several times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import pytest
import torch

from rldistill.collection.collect import collect
from rldistill.collection.config import CollectConfig
from rldistill.core.spec import EnvConfig, PolicySpec
from rldistill.data.dataset import Dataset
from rldistill.envs.spaces import spec_from_env
from rldistill.policies.network import NetworkPolicy
from rldistill.students import Mlp

hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")  # a busy machine is no fault

CARTPOLE = EnvConfig("CartPole-v1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the files with slow tests first, so that no worker is left alone with a long one at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


class Reports:
    """Progress that passes each report to a function, which may raise to stop the stage."""

    def __init__(self, function: Callable[[int, int], object]) -> None:
        self.function = function

    def update(self, done: int, total: int, score: float | None = None) -> None:
        self.function(done, total)


def q_spec(env: EnvConfig) -> PolicySpec:
    spec = spec_from_env(env)
    return dataclasses.replace(spec, head=spec.head.as_kind("q_values"))


@pytest.fixture(scope="session")
def teacher() -> NetworkPolicy:
    """A Q network that balances a little: its weights push the cart under the pole."""
    torch.manual_seed(0)
    policy = Mlp((16,)).build(q_spec(CARTPOLE)).eval()
    with torch.no_grad():
        for layer in (policy.body[1], policy.output):
            layer.bias.zero_()
        policy.body[1].weight.zero_()
        policy.body[1].weight[0] = torch.tensor([0.1, 0.5, 1.0, 1.0])
        policy.body[1].weight[1] = -policy.body[1].weight[0]
        policy.output.weight.zero_()
        policy.output.weight[1, 0] = policy.output.weight[0, 1] = 1.0
    return policy


@pytest.fixture(scope="session")
def dataset(teacher: NetworkPolicy, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("cartpole") / "dataset"
    return collect(CARTPOLE, teacher, CollectConfig(steps=4_000, epsilon=0.3, block_steps=64), folder)


def manifest_bytes(folder: Path) -> bytes:
    return (folder / "manifest.json").read_bytes()
