"""Policy outputs, and specs that fit each other or do not."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated, Any

import pytest
import torch
from pydantic import TypeAdapter

from rldistill.core.arguments import are_small
from rldistill.core.errors import SpecMismatchError
from rldistill.core.fields import Stored, read
from rldistill.core.heads import CategoricalHead, DeterministicHead, GaussianHead, MultiCategoricalHead, QValuesHead
from rldistill.core.policy import PolicyOutput
from rldistill.core.spec import AgentSpec, EnvConfig, FramePipeline, ObsPart, PolicySpec, Views, Wrapper

HEAD = CategoricalHead((2,))
BOX = DeterministicHead(low=(-1.0, 0.0), high=(1.0, 9.0))
SPEC = PolicySpec((3,), "float32", HEAD, FramePipeline())


def vector_spec(dtype: str) -> PolicySpec:
    return PolicySpec((3,), dtype, HEAD)


def dict_spec(dtype: str) -> PolicySpec:
    return PolicySpec.from_parts((("a", ObsPart((3,), dtype)),), HEAD)


@pytest.mark.parametrize("spec", [vector_spec, dict_spec])
def test_float_dtypes_fit_each_other_only(spec: Any) -> None:
    spec("float32").require_same_input(spec("float64"), "the teacher", "the environment")
    spec("float64").require_same_input(spec("float32"), "the teacher", "the environment")
    for dtype in ("uint8", "int64"):
        with pytest.raises(SpecMismatchError, match=f"{dtype}.* for the teacher"):
            spec(dtype).require_same_input(spec("float32"), "the teacher", "the environment")


@pytest.mark.parametrize(
    ("spec", "changes", "message"),
    [
        (SPEC, {"obs_shape": (4,)}, r"observation shape is \(3,\) for A, \(4,\) for B"),
        (SPEC, {"nvec": (2, 2, 2)}, r"number of values is \(\) for A"),
        (SPEC, {"head": BOX}, "kind of action is 'categorical' for A, 'deterministic' for B"),
        (SPEC, {"head": MultiCategoricalHead((2,))}, "kind of action"),
        (SPEC, {"head": CategoricalHead((3,))}, r"number of actions is \(2,\) for A, \(3,\) for B"),
        (SPEC, {"frames": FramePipeline(skip=3)}, "skip of the frame pipeline is 4 for A, 3 for B"),
        (
            dataclasses.replace(SPEC, head=BOX),
            {"head": DeterministicHead(low=(-1.0,), high=(1.0,))},
            "number of actions is 2 for A, 1 for B",
        ),
        (
            dataclasses.replace(SPEC, head=BOX),
            {"head": DeterministicHead(low=(-1.0, 0.0), high=(1.0, 8.0))},
            "action 1 is bounded by 9 for A, by 8 for B",
        ),
    ],
)
def test_differences_of_specs_are_named(spec: PolicySpec, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecMismatchError, match=rf"^A and B do not fit: .*{message}.*\. (Use|Make) [^.]*[.\w, ()]*\.$"):
        spec.require_same_input(dataclasses.replace(spec, **changes), "A", "B")


def test_values_unknown_frames_and_rounded_bounds_fit() -> None:
    SPEC.require_same_input(dataclasses.replace(SPEC, head=QValuesHead((2,)), frames=None), "A", "B")
    rounded = GaussianHead(low=(-1.000001, 0.0), high=(1.0, 9.00001))
    dataclasses.replace(SPEC, head=BOX).require_same_input(dataclasses.replace(SPEC, head=rounded), "A", "B")


@pytest.mark.parametrize(
    "spec",
    [
        SPEC,
        dataclasses.replace(SPEC, head=BOX, frames=None, nvec=(2, 3), env_kwargs=(("a", 1),)),
        dataclasses.replace(dict_spec("uint8"), view=(Wrapper("MaskVelocity", {"a": [1]}),)),
        dataclasses.replace(SPEC, agents=(AgentSpec("red_0", "red", 1),)),
        dataclasses.replace(SPEC, members=(("a", "q_values"), ("b", "categorical"))),
    ],
)
def test_specs_are_read_as_they_were_written(spec: PolicySpec) -> None:
    document = json.dumps(spec.to_json())
    empty = {name for name in ("agents", "members") if not getattr(spec, name)}  # which are left out
    assert [*json.loads(document)] == [name for name in PolicySpec.__dataclass_fields__ if name not in empty]
    adapter: TypeAdapter[PolicySpec] = TypeAdapter(Annotated[PolicySpec, Stored()])
    assert adapter.validate_json(document) == spec


def test_a_name_stands_for_a_wrapper_without_arguments() -> None:
    env = read(EnvConfig, {"id": "A-v0", "wrappers": ["TimeAwareObservation"]})
    assert env == EnvConfig("A-v0", wrappers=(Wrapper("TimeAwareObservation"),))
    views = read(Views, {"student": ["TimeAwareObservation"]})
    assert views == Views(student=(Wrapper("TimeAwareObservation"),))


@pytest.mark.parametrize(
    ("kwargs", "small"),
    [
        ({}, True),
        ({"a": 1e5, "b": "x" * 64, "c": [4_096] * 4_096, "d": None, "e": True}, True),
        ({"a": 1.1e5}, False),
        ({"a": "x" * 65}, False),
        ({"a": [0] * 4_097}, False),
        ({"a": [4_097]}, False),
        ({"a": {}}, False),
        (dict.fromkeys("abcdefghi"), False),
    ],
)
def test_arguments_of_wrappers_are_small_or_not(kwargs: dict[str, Any], small: bool) -> None:
    assert are_small(kwargs) == small


def test_rows_of_an_output_have_no_features() -> None:
    output = PolicyOutput(HEAD, torch.arange(6.0).view(3, 2), torch.arange(3.0), torch.ones(3, 5))
    rows = output.masked(torch.tensor([[1, 1], [1, 0], [0, 1]])).rows(torch.tensor([2, 1]))
    assert rows.params[:, 1].tolist() == [5.0, -1e8]
    assert rows.value is not None
    assert rows.value.tolist() == [2.0, 1.0]
    assert rows.features is None
    assert rows.mode().tolist() == [1, 0]
