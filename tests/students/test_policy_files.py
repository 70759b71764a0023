"""Invalid policy files: each is refused with the file and the field."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rldistill.core.errors import ConfigError, CorruptArtifactError
from rldistill.core.heads import CategoricalHead, QValuesHead
from rldistill.core.spec import FramePipeline, PolicySpec
from rldistill.io.atomic import write_json
from rldistill.io.tensors import content_hash
from rldistill.students import Cnn, Mlp
from rldistill.students.storage import load_native, save_policy

SPEC = PolicySpec((3,), "float32", CategoricalHead((2,)))
PIXELS = PolicySpec((4, 12, 12), "uint8", QValuesHead((2,)), FramePipeline(12, 12))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_policy(Mlp((4,)).build(SPEC), tmp_path, {"seed": 0})
    return tmp_path


def change(folder: Path, path: str, value: Any) -> None:
    document = json.loads((folder / "policy.json").read_text())
    *parents, last = path.split(".")
    node = document
    for parent in parents:
        node = node[parent]
    if value is KeyError:
        del node[last]
    else:
        node[last] = value
    write_json(folder / "policy.json", document)


def replace_tensors(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, folder / "policy.safetensors")
    if all(value.dtype in (torch.float32, torch.float16) for value in tensors.values()):
        change(folder, "weights_sha256", content_hash(tensors))


FIELDS = ["schema", "student", "config", "config.hidden", "config.activation", "spec", "spec.obs_shape"]
FIELDS += ["spec.obs_dtype", "spec.head", "spec.head.kind", "spec.head.nvec", "spec.head.low", "spec.frames"]


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("value", [KeyError, {}, [None], [-1], 1.5, True, "x\n"], ids=repr)
def test_a_missing_or_senseless_field_is_named(folder: Path, field: str, value: Any) -> None:
    change(folder, field, value)
    if (value is KeyError and field.startswith("config.")) or (value == {} and field == "config"):
        # The default of the field is read, which does not fit the weights here unless it is the stored value.
        if field == "config.activation":
            assert load_native(folder).config.activation == "relu"
            return
        with pytest.raises(CorruptArtifactError, match=r"not the weights of .*policy\.json"):
            load_native(folder)
        return
    with pytest.raises(CorruptArtifactError, match=rf"policy\.json: .*{field.split('.')[-1]}"):
        load_native(folder)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("spec.head.nvec", [1, 1], "do not make a categorical head"),
        ("spec.head.nvec", [], "do not make a categorical head"),
        ("spec.head.low", [0.0], "do not make a categorical head"),
        ("spec.head.kind", "gaussian", "do not make a gaussian head"),
        ("spec.obs_dtype", "floau32", "spec.obs_dtype: expected a dtype"),
        ("spec.obs_shape", [2**40, 2**40], "obs_shape: more than"),
        ("config.hidden", [10**30], r"config\.hidden\.0: found 10+"),
        ("weights_sha256", KeyError, "weights_sha256: is missing"),
        ("weights_sha256", None, "weights_sha256: found None, expected text"),
        ("config.features", "raw", "config.features: expected one of raw, .*found 'raw'"),
        ("config.more", 1, "config.more is no field of Mlp"),
        ("student", "cnn", "config.features is no field of Cnn"),
        ("config.hidden", [5], "not the weights"),
    ],
)
def test_fields_that_do_not_fit_together_are_refused(folder: Path, field: str, value: Any, message: str) -> None:
    change(folder, field, value)
    with pytest.raises(CorruptArtifactError, match=message) as caught:
        load_native(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("field", "value"), [("height", "12"), ("skip", 0.5), ("max_pool", 1), ("padding", "ones")])
def test_frame_pipelines_are_checked(tmp_path: Path, field: str, value: Any) -> None:
    save_policy(Cnn((2,), (4,), (2,), (4,)).build(PIXELS), tmp_path, {})
    assert load_native(tmp_path).spec == PIXELS
    change(tmp_path, f"spec.frames.{field}", value)
    with pytest.raises(CorruptArtifactError, match=rf"spec\.frames\.{field}"):
        load_native(tmp_path)


def test_claimed_sizes_take_no_memory(folder: Path) -> None:
    change(folder, "config.hidden", [10**9, 10**9])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CorruptArtifactError, match="not the weights"):
        load_native(folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


def test_every_changed_byte_of_the_tensors_is_detected(folder: Path) -> None:
    path = folder / "policy.safetensors"
    whole = path.read_bytes()
    for position in range(0, len(whole), 4):
        content = bytearray(whole)
        content[position] ^= 1 << position // 4 % 8
        for damaged in (bytes(content), whole[:position]):
            path.write_bytes(damaged)
            with pytest.raises(CorruptArtifactError, match=r"policy\.safetensors"):
                load_native(folder)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.complex64, torch.int64, torch.float64])
def test_tensors_of_other_kinds_are_refused(folder: Path, dtype: torch.dtype) -> None:
    tensors = {name: value.to(dtype) for name, value in load_file(folder / "policy.safetensors").items()}
    replace_tensors(folder, tensors)
    with pytest.raises(CorruptArtifactError, match="float32 or float16"):
        load_native(folder)


def test_consistent_files_with_other_tensors_are_refused(folder: Path) -> None:
    tensors = load_file(folder / "policy.safetensors")
    for name, value, message in [
        ("output.weight", tensors["output.weight"] * torch.nan, "NaN or infinite"),
        ("output.weight", tensors["output.weight"].T.contiguous(), "not the weights"),
        ("surplus", torch.zeros(1), "not the weights"),
    ]:
        replace_tensors(folder, {**tensors, name: value})
        with pytest.raises(CorruptArtifactError, match=message):
            load_native(folder)


def test_half_precision_keeps_the_standardization(tmp_path: Path) -> None:
    policy = Mlp((4,)).build(SPEC)
    mean, std = torch.tensor([1e6, 0.0, 1.0]), torch.tensor([1e-8, 1.0, 1e6])
    policy.standardize(mean, std)
    save_policy(policy, tmp_path, {}, half=True)
    again = load_native(tmp_path)
    assert torch.equal(again.obs_mean, mean)
    assert torch.equal(again.obs_std, std)


@pytest.mark.parametrize(("value", "half"), [(float("nan"), False), (float("inf"), True), (1e5, True)])
def test_weights_that_are_not_finite_are_not_saved(folder: Path, value: float, half: bool) -> None:
    kept = (folder / "policy.safetensors").read_bytes()
    policy = load_native(folder)
    with torch.no_grad():
        policy.output.bias[0] = value
    with pytest.raises(ConfigError, match=r"output\.bias"):
        save_policy(policy, folder, {}, half)
    assert (folder / "policy.safetensors").read_bytes() == kept


def test_loading_draws_no_random_number(folder: Path) -> None:
    before = torch.get_rng_state()
    load_native(folder)
    assert torch.equal(torch.get_rng_state(), before)


FRAMES = [f"spec.frames.{name}" for name in ("height", "width", "stack", "skip", "max_pool", "grayscale", "padding")]
REQUIRED = ["obs_clip", "value", "provenance", "spec.nvec", "spec.parts", "spec.view", "spec.env_kwargs", *FRAMES]


@pytest.mark.parametrize("field", REQUIRED)
def test_every_key_is_required_and_no_other_is_allowed(tmp_path: Path, field: str) -> None:
    save_policy(Cnn((2,), (4,), (2,), (4,)).build(PIXELS), tmp_path, {})
    change(tmp_path, f"{field}_more", 1)
    with pytest.raises(CorruptArtifactError, match=rf"policy\.json: {field}_more: is an unknown field\. "):
        load_native(tmp_path)
    change(tmp_path, f"{field}_more", KeyError)
    assert load_native(tmp_path).spec == PIXELS
    change(tmp_path, field, KeyError)
    with pytest.raises(CorruptArtifactError, match=rf"policy\.json: {field}: is missing\. "):
        load_native(tmp_path)


def test_file_from_before_a_field_with_a_default_was_added_is_read(folder: Path) -> None:
    before = load_native(folder)
    change(folder, "config.activation", KeyError)
    assert load_native(folder).config == before.config
    change(folder, "config.activatioo", "relu")
    with pytest.raises(CorruptArtifactError, match=r"config\.activatioo is no field of Mlp"):
        load_native(folder)
