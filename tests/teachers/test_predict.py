"""Actions of a user's `predict` in every form, and networks with gradients."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from rldistill.core.errors import RLDistillError, SpecMismatchError
from rldistill.core.policy import PolicyOutput
from rldistill.envs.spaces import spec_from_spaces
from rldistill.policies.agent import StatefulPolicy
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
    "tensor of bfloat16": lambda chosen: torch.from_numpy(chosen).bfloat16(),
    "sparse tensor": lambda chosen: torch.from_numpy(chosen).to_sparse(),
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


class Changed(nn.Linear):
    """Network whose output was changed by a test."""

    change: Any = None

    def forward(self, obs: Tensor) -> Any:
        return type(self).change(super().forward(obs))


def changed() -> nn.Module:
    torch.manual_seed(0)
    return Changed(3, 2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int64])
def test_outputs_of_a_network_are_float32(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Changed, "change", lambda output: output.to(dtype))
    params = load_policy(f"{__name__}:changed", spec=SPEC, head="categorical")(OBS)[0].params
    assert params.dtype == torch.float32
    torch.testing.assert_close(params, nn.Linear.forward(changed(), OBS).to(dtype).float())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change", [lambda out: out.to(torch.complex64), lambda out: {"logits": out}, lambda out: (out,)]
)
def test_outputs_of_another_form_are_one_line(change: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Changed, "change", change)
    policy = load_policy(f"{__name__}:changed", spec=SPEC, head="categorical")
    with pytest.raises(SpecMismatchError, match=r"^teacher: the network of .*:changed returns .*expected \(7, 2\)"):
        policy(OBS)


class Own:
    """Policy of the user's own; `change` was set by a test."""

    change: Any = None

    def __init__(self, spec: Any) -> None:
        self.spec = spec

    def initial_state(self, batch_size: int) -> Any:
        return None

    def __call__(self, obs: Any, state: Any = None) -> Any:
        return type(self).change(PolicyOutput(self.spec.head, torch.eye(2)[(obs[:, 0] > 0).long()]))


class OwnModule(Own, nn.Module):
    def __init__(self, spec: Any) -> None:
        nn.Module.__init__(self)
        self.spec = spec


class WithoutSpec:
    initial_state = Own.initial_state


class OddState(Own):
    def initial_state(self, batch_size: int) -> Any:
        return np.zeros(batch_size)


@pytest.mark.parametrize("cls", [Own, OwnModule])
def test_own_policy_computes_in_float32(cls: type[Own], monkeypatch: pytest.MonkeyPatch) -> None:
    convert = torch.Tensor.double if cls is Own else torch.Tensor.float
    monkeypatch.setattr(cls, "change", lambda output: (output.map(convert), None))
    output, state = load_policy(f"{__name__}:{cls.__name__}", spec=SPEC)(OBS)
    assert (state, output.params.dtype) == (None, torch.float32)
    assert torch.equal(output.mode(), (OBS[:, 0] > 0).long())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda output: output, "its __call__ is a PolicyOutput, expected a pair of PolicyOutput and state"),
        (lambda output: (output.params, None), "its __call__ is a tuple, expected a pair"),
        (lambda output: None, "its __call__ is a NoneType"),
        (lambda output: (output.map(lambda part: part[:, :1]), None), r"its params is a Tensor of \[., 1\], expected"),
        (lambda output: (output.map(lambda part: part[1:]), None), r"its params is a Tensor of"),
        (lambda output: (dataclasses.replace(output, params=np.zeros((7, 2))), None), "its params is a ndarray"),
        (lambda output: (output, np.zeros(7)), "its next state is a ndarray, expected a tensor or None"),
        (lambda output: 1 / 0, r"failed: ZeroDivisionError: division by zero \(.*test_predict\.py, line \d+\)"),
    ],
)
@pytest.mark.parametrize("cls", [Own, OwnModule])
def test_own_policy_of_another_form_is_one_line(
    cls: type[Own], change: Any, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cls, "change", staticmethod(change))
    with pytest.raises(RLDistillError, match=rf"^teacher: .*:{cls.__name__}:? {words}") as error:
        load_policy(f"{__name__}:{cls.__name__}", spec=SPEC)(OBS)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "words"), [("WithoutSpec", "its spec is a NoneType"), ("OddState", "its initial_state is")]
)
def test_own_policy_without_its_parts_is_one_line(name: str, words: str) -> None:
    with pytest.raises(RLDistillError, match=rf"^teacher: .*:{name}: {words}"):
        StatefulPolicy(load_policy(f"{__name__}:{name}", spec=SPEC), 7)


def erases() -> Any:
    def act(obs: Any) -> int:
        action = int(obs[0] > 0)
        obs[:] = 0
        return action

    return act


def erases_batches() -> nn.Module:
    class Erases(nn.Linear):
        def forward(self, obs: Tensor) -> Tensor:
            output = super().forward(obs)
            obs.zero_()
            return output

    return Erases(3, 2)


@pytest.mark.parametrize("name", ["erases", "erases_batches"])
def test_teacher_that_changes_its_observation_changes_no_other(name: str) -> None:
    policy = StatefulPolicy(
        load_policy(f"{__name__}:{name}", spec=SPEC, **({} if name == "erases" else {"head": "q_values"})), 7
    )
    obs = OBS.numpy().copy()
    policy.step(obs)
    assert np.array_equal(obs, OBS)


def network() -> nn.Module:
    return nn.Linear(3, 2).cuda()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_network_on_a_gpu_is_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = load_policy(f"{__name__}:network", spec=SPEC, head="q_values")
    assert policy(OBS)[0].params.device.type == "cpu"
    monkeypatch.setattr(Predicts, "form", staticmethod(lambda chosen: torch.from_numpy(chosen).cuda()))
    assert torch.equal(load_policy(f"{__name__}:made", spec=SPEC)(OBS)[0].mode(), (OBS[:, 0] > 0).long())
