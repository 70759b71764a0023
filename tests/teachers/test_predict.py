"""Actions of a user's `predict` in every form, and networks with gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from rldistill.core.errors import SpecMismatchError
from rldistill.envs.spaces import spec_from_spaces
from rldistill.teachers.load import load_policy

SPEC = spec_from_spaces("it", spaces.Box(-1, 1, (3,)), spaces.Discrete(2))
PUSH = spec_from_spaces("it", spaces.Box(-1, 1, (3,)), spaces.Box(-9, 9, (2,)))
OBS = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
FORMS: dict[str, Any] = {
    "array": lambda chosen: chosen,
    "list": lambda chosen: chosen.tolist(),
    "column": lambda chosen: chosen[:, None],
    "tensor": torch.from_numpy,
    "tensor with gradient": lambda chosen: torch.from_numpy(chosen).float().requires_grad_() * 1,
    "list of tensors": lambda chosen: [*torch.from_numpy(chosen)],
    "list of numpy scalars": lambda chosen: [np.int32(value) for value in chosen],
    "with a state": lambda chosen: (chosen, None),
    "tuple of tensor and list": lambda chosen: (torch.from_numpy(chosen), [1]),
}
ONE: dict[str, Any] = {
    "int": int,
    "numpy scalar": np.int64,
    "array": lambda chosen: np.array([chosen]),
    "tensor": torch.tensor,
    "tensor with gradient": lambda chosen: torch.tensor([float(chosen)], requires_grad=True),
    "list": lambda chosen: [chosen],
    "pair": lambda chosen: (chosen, None),
}


class Predicts:
    """Object with `predict`; the last form was chosen by a test."""

    form: Any = None
    single = False

    def predict(self, obs: Any) -> Any:
        if self.single:
            assert obs.shape == (3,)
            return self.form(int(obs[0] > 0))
        assert obs.shape[1:] == (3,)
        return self.form((obs[:, 0] > 0).astype(np.int64))


def made() -> Predicts:
    return Predicts()


@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("form", sorted({*FORMS, *ONE}))
def test_actions_of_predict_in_every_form(form: str, single: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    forms = ONE if single else FORMS
    if form not in forms:
        pytest.skip("another kind of predict")
    monkeypatch.setattr(Predicts, "form", staticmethod(forms[form]))
    monkeypatch.setattr(Predicts, "single", single)
    policy = load_policy(f"{__name__}:made", spec=SPEC)
    for _ in range(2):
        assert torch.equal(policy(OBS)[0].mode(), (OBS[:, 0] > 0).long())


@pytest.mark.parametrize(
    "form",
    [lambda chosen: "left", lambda chosen: None, lambda chosen: [1], lambda chosen: {"action": 1}, lambda _: 0.5],
)
def test_actions_of_another_form_are_one_line(form: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Predicts, "form", staticmethod(form))
    policy = load_policy(f"{__name__}:made", spec=SPEC)
    with pytest.raises(SpecMismatchError, match=r"^teacher: .*:made returns .*expected an integer from 0 to 1.*\.$"):
        policy(OBS)


def pushes() -> Any:
    return lambda obs: torch.tensor([1.0, obs[0]], requires_grad=True)


def test_function_may_return_tensors() -> None:
    policy = load_policy(f"{__name__}:pushes", spec=PUSH)
    torch.testing.assert_close(policy(OBS)[0].mode(), torch.stack([torch.ones(7), OBS[:, 0]], 1))


def network() -> nn.Module:
    return nn.Linear(3, 2).cuda()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_network_on_a_gpu_is_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = load_policy(f"{__name__}:network", spec=SPEC, head="q_values")
    assert policy(OBS)[0].params.device.type == "cpu"
    monkeypatch.setattr(Predicts, "form", staticmethod(lambda chosen: torch.from_numpy(chosen).cuda()))
    assert torch.equal(load_policy(f"{__name__}:made", spec=SPEC)(OBS)[0].mode(), (OBS[:, 0] > 0).long())
