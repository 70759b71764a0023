from __future__ import annotations

import pytest
import torch
from torch import nn

from rldistill.core.errors import ConfigError
from rldistill.core.heads import CategoricalHead, QValuesHead
from rldistill.core.policy import CPU, Batch, ObsTransformPolicy, PolicyOutput, on_device, resolve_device, to_device
from rldistill.core.spec import PolicySpec
from rldistill.policies.ensemble import Ensemble
from rldistill.policies.wrappers import ActionMaskedPolicy
from rldistill.students import Mlp

SPEC = PolicySpec((3,), "float32", CategoricalHead((2,)))


def test_auto_is_the_gpu_if_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for found, device in ((False, "cpu"), (True, "cuda")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda found=found: found)
        assert resolve_device("auto").type == device
        assert resolve_device("cpu").type == "cpu"


def test_missing_gpu_and_unknown_device_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"^collect.device: PyTorch finds no GPU. Use auto or cpu.$"):
        resolve_device("cuda", "collect.device")
    with pytest.raises(ConfigError, match=r"^evaluate.device: expected auto, cpu, cuda, found 'gpu'"):
        resolve_device("gpu", "evaluate.device")


def test_networks_inside_wrappers_are_moved_and_moved_back() -> None:
    networks = [Mlp(hidden=(4,)).build(SPEC) for _ in range(3)]
    first = ObsTransformPolicy(ActionMaskedPolicy(networks[0], SPEC), lambda obs: obs)
    ensemble = Ensemble((networks[1], ObsTransformPolicy(networks[2], lambda obs: obs)))

    def devices() -> set[str]:
        return {tensor.device.type for network in networks for tensor in nn.Module.state_dict(network).values()}

    with on_device(CPU, first, ensemble, None):
        assert devices() == {"cpu"}
    before = networks[0].state_dict()
    with pytest.raises(NotImplementedError), on_device(torch.device("meta"), first, ensemble, None):
        assert devices() == {"meta"}  # from which nothing comes back
    assert before.keys() == networks[0].state_dict().keys()


def test_tensors_and_outputs_of_a_batch_are_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)  # which needs a GPU
    zeros, head = torch.zeros(3), QValuesHead((2,))
    teacher = PolicyOutput(head, torch.zeros(3, 2), value=zeros)
    batch = Batch(teacher, teacher, zeros.long(), zeros, zeros, zeros.bool(), zeros, zeros)
    assert to_device(batch, CPU) is batch
    moved = to_device(batch, torch.device("meta"))
    tensors = [moved.teacher.params, moved.teacher.value, moved.next_teacher.params, moved.reward, moved.obs]
    assert {tensor.device.type for tensor in tensors if isinstance(tensor, torch.Tensor)} == {"meta"}
    assert (moved.teacher.head, moved.teacher.features) == (head, None)
