"""Environments as people really have them: each works, or ends in one line that names the remedy."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from rldistill.collection.collect import collect
from rldistill.collection.config import CollectConfig
from rldistill.core.errors import ConfigError, MissingExtraError, RLDistillError
from rldistill.core.spec import EnvConfig, Wrapper
from rldistill.data.dataset import Dataset
from rldistill.envs.make import make_env
from rldistill.envs.spaces import spec_from_env
from rldistill.envs.vector import keeps_state_across_reset
from rldistill.evaluation.config import EvaluateConfig
from rldistill.evaluation.evaluate import evaluate
from rldistill.evaluation.verify import VerifyConfig, verify
from rldistill.teachers.load import load_policy

from . import user_envs

HERE = user_envs.__name__
SMALL = CollectConfig(steps=96, envs_per_stream=3, block_steps=8, epsilon=0.3)


def env_of(kind: str, **kwargs: Any) -> EnvConfig:
    return EnvConfig(user_envs.ID, {"kind": kind, **kwargs})


def teacher_of(env: EnvConfig) -> Any:
    spec = spec_from_env(env)
    two_actions = spec.head.single_choice and spec.head.nvec == (2,)
    return load_policy(f"{HERE}:{'teacher' if two_actions else 'zeros'}", spec=spec)


def play(env: EnvConfig, folder: Path, episodes: int = 3, max_steps: int = 1_000) -> tuple[Dataset, Any, Any]:
    """Collect, evaluate and verify."""
    teacher = teacher_of(env)
    dataset = collect(env, teacher, SMALL, folder / "dataset")
    config = EvaluateConfig(episodes=episodes, max_steps=max_steps, videos=True)
    result = evaluate(env, {"teacher": teacher}, config, folder)
    return dataset, result, verify(env, teacher, VerifyConfig(episodes, max_steps=max_steps))


@pytest.mark.parametrize(
    "kind",
    [
        "Unbounded", "HalfBounded", "Float64Bounds", "IntegerBox", "Shifted", "ShiftedMulti", "ArrayReward",
        "NestedReward", "Bits", "BitsInDict", "Words", "Halves", "OddInfo", "ArrayEnds", "SameArray", "Doubles",
        "NoInfo", "Pieces", "Place", "BitActions", "HugeBounds", "OtherByteOrder", "LongDoubles", "ChangesAction",
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:no videos")
def test_kind_works_in_all_stages(kind: str, tmp_path: Path) -> None:
    dataset, result, verification = play(env_of(kind), tmp_path)
    assert dataset.num_steps == 96
    assert Dataset.read([tmp_path / "dataset"], 0.99).num_steps == 96
    returns = result.policies["teacher"].runs[0].returns
    assert len(returns) == 3
    assert verification.mean.value == pytest.approx(np.mean(returns))
    if "Reward" in kind:
        assert returns == [20 * (0.5 if kind == "ArrayReward" else 2.0)] * 3
    if kind == "OddInfo":
        assert result.policies["teacher"].success_rate == 1


def test_arguments_of_a_run_file_may_stand_for_tuples() -> None:
    env = env_of("Screen", view={"size": [4, 6]})
    assert spec_from_env(env).obs_shape == (2, 4, 6)
    assert env.kwargs["view"] == {"size": [4, 6]}


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("TwoRewards", r"a reward is an array of shape \(2,\)\. Return a finite number"),
        ("NoReward", "a reward is a NoneType"),
        ("NaNReward", "a reward is NaN or infinite"),
        ("WrongShape", r"observation does not fit: found float32 of shape \(4,\), .* shape \(3,\)"),
        ("NoObservation", "found a NoneType"),
        ("FloatsForBytes", "found float32 of shape .* has uint8"),
        ("FailingStep", r"env step failed: RuntimeError: no power \(.*user_envs.py, line \d+\)\.$"),
        ("FailingReset", r"env reset failed: MyError: cannot reach the simulator \(.*user_envs.py, line \d+\)\.$"),
        ("FailingConstructor", r"cannot be made: MyError \(.*user_envs.py, line \d+\)\.$"),
        ("OldReset", "old Gym interface. Gymnasium expects reset"),
        ("OldResult", r"reset returned an array of shape \(3,\)\. Gymnasium expects reset"),
        ("OldStep", "step returned a tuple of 4. Gymnasium expects reset.* and step"),
        ("TupleActions", "has actions Tuple.*Use Box"),
        ("DictActions", "has actions Dict.*Use Box"),
        ("RandomSpaces", "two copies of it have different spaces"),
        ("FailingSpace", r"its observation_space failed: MyError: not connected \(.*user_envs.py, line \d+\)"),
        ("HugeNumbers", "the observation is NaN, infinite, or beyond float32. Return finite numbers"),
        ("NoNumbers", r"has observations Box\(\[\], \[\], \(0,\), float32\). Use"),
        ("NoEntries", "has no entries in its observations. Add one"),
        ("NoAction", "has actions of no numbers"),
        ("GradientReward", "a reward is a Tensor. Return a finite number"),
    ],
)
def test_kind_is_refused_in_one_line(kind: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(RLDistillError, match=words) as error:
        play(env_of(kind), tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pose": ...}, r"has no entry 'pose\.x', only goals\.0, goals\.1, gears"),
        ({"pose": np.zeros(3)}, r"has no entry 'pose\.x', only pose, goals"),
        ({"pose": {"x": np.zeros(2, np.float32)}}, r"the entry 'pose\.x' does not fit: found float32 of shape \(2,\)"),
        ({"pose": {"x": "left"}}, r"the entry 'pose\.x' does not fit: found <U4"),
        ({"pose": {"x": None}}, r"the entry 'pose\.x' does not fit: found a NoneType"),
        ({"pose": {"x": np.full(3, np.inf)}}, r"the entry 'pose\.x' is NaN, infinite"),
        ({"goals": (1,)}, r"has no entry 'goals\.1', only"),
        ({"goals": (4, np.ones(2))}, r"the entry 'goals\.0' does not fit: found 4, its space is Discrete\(4\)"),
        ({"goals": (0.5, np.ones(2))}, r"the entry 'goals\.0' does not fit: found float64"),
        ({"gears": np.array([1, -1])}, r"the entry 'gears' does not fit: found \[1, -1\], its space is MultiDiscrete"),
    ],
    ids=str,
)
def test_entry_that_does_not_fit_its_space_is_named(
    changes: Any, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(user_envs.Pieces, "changes", changes)
    with pytest.raises(RLDistillError, match=rf"env: .*make: .*{words}"):
        play(env_of("Pieces"), tmp_path)


@pytest.mark.filterwarnings("ignore:no videos")
def test_list_in_the_place_of_a_tuple_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user_envs.Pieces, "changes", {"goals": [np.array([2]), [0.5, 0.25]]})
    assert play(env_of("Pieces"), tmp_path)[0].num_steps == 96


@pytest.mark.parametrize("place", [5, -1, np.int64(9), np.array(5)], ids=repr)
def test_number_beyond_a_discrete_space_is_refused(place: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user_envs.Place, "place", place)
    with pytest.raises(RLDistillError, match=r"the observation does not fit: found -?\d, its space is Discrete\(5\)"):
        play(env_of("Place"), tmp_path)


def test_recorded_actions_are_those_before_the_environment_changed_them(tmp_path: Path) -> None:
    dataset = collect(env_of("ChangesAction"), teacher_of(env_of("ChangesAction")), SMALL, tmp_path / "dataset")
    assert 0 < np.abs(dataset.columns["action"]).max() <= 1


@pytest.mark.parametrize(
    "error", [SystemExit(1), GeneratorExit(), StopIteration(), AssertionError(), KeyError("x"), OSError("pipe")]
)
def test_every_class_of_error_is_one_line(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(user_envs.FailingStep, "error", error)
    monkeypatch.setattr(user_envs.FailingStep, "fails_at", 3)
    with pytest.raises(RLDistillError, match=rf"env step failed: {type(error).__name__}.*user_envs.py, line"):
        play(env_of("FailingStep"), tmp_path)


def test_steps_before_an_error_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    env = env_of("FailingStep")
    monkeypatch.setattr(user_envs.FailingStep, "fails_at", 1_000)
    keeps_state_across_reset(env)  # or its steps would already fail
    monkeypatch.setattr(user_envs.FailingStep, "fails_at", 10)
    with pytest.raises(
        RLDistillError, match=r"no power .*line \d+\)\. 48 steps are kept; --resume goes on\.$"
    ) as error:
        collect(env, teacher_of(env), SMALL, tmp_path / "dataset")
    assert isinstance(error.value.__cause__, RuntimeError)
    monkeypatch.setattr(user_envs.FailingStep, "fails_at", 1_000)
    collect(env, teacher_of(env), SMALL, tmp_path / "dataset", mode="resume")
    collect(env, teacher_of(env), SMALL, tmp_path / "whole")
    first, second = (sorted((tmp_path / name / "blocks").iterdir()) for name in ("dataset", "whole"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


@pytest.mark.parametrize("kind", ["FailingRenderer", "BlindRenderer"])
def test_failing_renderer_costs_the_videos_only(kind: str, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="no videos: ") as warned:
        play(env_of(kind), tmp_path)
    assert len(warned) == 1
    assert (tmp_path / "evaluation.json").exists()


@pytest.mark.parametrize(
    ("picture", "words"),
    [
        (SystemExit(3), "3"),
        ([np.zeros((10, 12, 3), np.uint8)], r"render returned uint8 of shape \(1, 10, 12, 3\), expected uint8"),
        (np.zeros((10, 12, 3)), "render returned float64 of shape"),
        (np.zeros((3, 10, 12), np.uint8), r"render returned uint8 of shape \(3, 10, 12\)"),
        (np.zeros((0, 0, 3), np.uint8), "render returned uint8 of shape"),
        ("o..x", "render returned a str"),
        (None, "render returned a NoneType"),
    ],
    ids=str,
)
def test_other_pictures_cost_the_videos_only(
    picture: Any, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(user_envs.Renderer, "picture", picture)
    env = env_of("Renderer")
    with pytest.warns(UserWarning, match=f"^no videos: {words}"):
        evaluate(env, {"teacher": teacher_of(env)}, EvaluateConfig(episodes=2, videos=True), tmp_path)
    assert (tmp_path / "evaluation.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(11, 13, 3), (10, 12), (9, 12, 4)])
def test_pictures_of_every_size_are_recorded_without_a_word(
    shape: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(user_envs.Renderer, "picture", np.zeros(shape, np.uint8))
    env = env_of("Renderer")
    evaluate(env, {"teacher": teacher_of(env)}, EvaluateConfig(episodes=2, videos=True), tmp_path)
    assert [*tmp_path.rglob("*.mp4")]
    assert "WARNING" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (f"{HERE}:no_wrapper", "no_wrapper returns a NoneType, expected a gymnasium.Env. Return one"),
        ("NumpyToTorch", r"NumpyToTorch needs a package that is missing \(.*array_api_compat.*\)\. Install it"),
    ],
)
def test_wrapper_that_cannot_be_used_is_named(name: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "array_api_compat", None)  # as if it were not installed
    for module in ("numpy_to_torch", "array_conversion"):
        monkeypatch.delitem(sys.modules, f"gymnasium.wrappers.{module}", raising=False)
    with pytest.raises(ConfigError, match=rf"^env\.wrappers: .*{words}"):
        make_env(EnvConfig(user_envs.ID, {"kind": "Base"}, (Wrapper(name),)))


@pytest.mark.parametrize("wrapper", [Wrapper("AtariPreprocessing"), Wrapper("ResizeObservation", {"shape": [84, 84]})])
def test_wrapper_without_opencv_names_its_extra(wrapper: Wrapper, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    env = EnvConfig("PongNoFrameskip-v4", wrappers=(wrapper,))
    with pytest.raises(
        MissingExtraError, match=r"(Observation|Preprocessing) needs .*pip install 'rldistill\[opencv\]'"
    ):
        make_env(env)


def test_failing_close_is_a_warning(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"env close failed: MyError: still busy \(.*user_envs.py"):
        collect(env_of("FailingClose"), teacher_of(env_of("FailingClose")), SMALL, tmp_path / "dataset")


@pytest.mark.parametrize("stage", ["evaluate", "verify"])
def test_endless_episode_ends_at_a_bound(stage: str, tmp_path: Path) -> None:
    env = env_of("Endless")
    teacher = teacher_of(env)
    collect(env, teacher, SMALL, tmp_path / "dataset")
    stages: dict[str, Any] = {
        "verify": lambda: verify(env, teacher, VerifyConfig(2, max_steps=70)),
        "evaluate": lambda: evaluate(env, {"teacher": teacher}, EvaluateConfig(episodes=2, max_steps=70), tmp_path),
    }
    with pytest.raises(ConfigError, match=r"evaluate.max_steps: .* not ended after 70 steps.*TimeLimit"):
        stages[stage]()
    limited = env_of("Endless", max_episode_steps=60)
    assert verify(limited, teacher, VerifyConfig(2, max_steps=70)).ok


@pytest.mark.parametrize(
    "wrapper",
    [
        Wrapper("NormalizeReward"),
        Wrapper("ClipReward", {"max_reward": 0.25}),
        Wrapper(f"{HERE}:CleverReward"),
    ],
)
def test_returns_are_those_of_the_environment(wrapper: Wrapper, tmp_path: Path) -> None:
    returns = []
    for wrappers in ((), (wrapper,), (Wrapper("FrameSkip", {"skip": 2}), wrapper)):
        env = EnvConfig(user_envs.ID, {"kind": "Base"}, wrappers)
        config = EvaluateConfig(episodes=3, videos=False)
        result = evaluate(env, {"teacher": teacher_of(env)}, config, tmp_path / str(len(wrappers)))
        returns.append(result.policies["random" if len(wrappers) > 1 else "teacher"].runs[0].returns)
    assert returns[0] == returns[1] == [20.0] * 3
    assert all(0 < own < 20 and own == round(own) for own in returns[2])


def test_dataset_holds_the_rewards_of_the_environment(tmp_path: Path) -> None:
    env = EnvConfig(user_envs.ID, {"kind": "Base"}, (Wrapper(f"{HERE}:CleverReward"),))
    dataset = collect(env, teacher_of(env), SMALL, tmp_path / "dataset")
    assert set(dataset.columns["reward"].tolist()) == {0.0, 1.0}


@pytest.mark.parametrize(
    "env",
    [
        EnvConfig(user_envs.ID, {"kind": "Base"}, (Wrapper("NormalizeObservation"),)),
        EnvConfig(f"{HERE}:normalized", {"fixed": False}),
    ],
)
def test_running_statistics_are_refused(env: EnvConfig) -> None:
    with pytest.raises(ConfigError, match=r"NormalizeObservation collects.*update_running_mean = False"):
        spec_from_env(env)
    assert spec_from_env(EnvConfig(f"{HERE}:normalized", {"fixed": True})).obs_shape == (3,)


def test_error_of_a_wrapper_names_its_line(tmp_path: Path) -> None:
    env = EnvConfig(user_envs.ID, {"kind": "Base"}, (Wrapper(f"{HERE}:FailingWrapper"),))
    with pytest.raises(RLDistillError, match=r"env step failed: MyError: of a wrapper \(.*user_envs.py, line \d+\)\.$"):
        play(env, tmp_path)


@pytest.mark.parametrize(
    ("kind", "sent", "received"),
    [
        ("Shifted", 0, -1),
        ("ShiftedMulti", [2, 1], [3, -4]),
        ("IntegerBox", [2.6, 9.0], [3, 7]),
        ("Float64Bounds", np.array([0.1], np.float32), [0.1]),
        ("BitActions", [0.3, 0.9], [False, True]),
    ],
)
def test_actions_arrive_in_the_space(kind: str, sent: Any, received: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(user_envs.Base, "reward", lambda env, action: seen.append(action) or 0.0)
    env = make_env(env_of(kind))
    env.reset(seed=0)
    env.step(np.asarray(sent))
    assert np.array_equal(seen[0], received)
    assert not re.search("start", str(env.action_space))


@pytest.mark.parametrize("name", ["observation_space", "action_space"])
@pytest.mark.parametrize("space", ["missing", None, (4,)], ids=repr)
def test_environment_without_a_space_is_refused(name: str, space: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Bare(gymnasium.Env[Any, Any]):
        observation_space, action_space = gymnasium.spaces.Box(0, 1, (2,)), gymnasium.spaces.Discrete(2)

    monkeypatch.delattr(Bare, name) if space == "missing" else monkeypatch.setattr(Bare, name, space)
    gymnasium.register("Bare-v0", Bare)
    try:
        with pytest.raises(ConfigError, match=f"its {name} is .*Set it to a space"):
            make_env(EnvConfig("Bare-v0"))
    finally:
        del gymnasium.registry["Bare-v0"]
