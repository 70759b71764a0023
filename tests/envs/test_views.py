"""Two views of one state: computed side by side, labelled from one, stored and learned from the other."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.wrappers import FrameStackObservation, GrayscaleObservation, ResizeObservation

from rldistill.collection.collect import collect
from rldistill.collection.config import CollectConfig
from rldistill.core.errors import ConfigError, SpecMismatchError
from rldistill.core.spec import EnvConfig, Views, Wrapper
from rldistill.distillation.config import DistillConfig
from rldistill.distillation.distill import distill
from rldistill.envs.make import make_env
from rldistill.envs.spaces import adapt_env, observation_views, spec_from_env
from rldistill.envs.vector import make_vector_env
from rldistill.envs.wrappers import MaskVelocity, TimeFeature
from rldistill.evaluation.config import EvaluateConfig
from rldistill.evaluation.episodes import play
from rldistill.evaluation.evaluate import evaluate
from rldistill.io.atomic import write_json
from rldistill.io.execution import Execution
from rldistill.policies.actor_critic import Actor
from rldistill.policies.network import NetworkPolicy
from rldistill.run.config import load_run
from rldistill.run.stages import run_all
from rldistill.students import Mlp
from rldistill.teachers.load import load_policy

from ..conftest import CARTPOLE, manifest_bytes

pytestmark = pytest.mark.slow

BLIND = EnvConfig("CartPole-v1", views=Views(student=(Wrapper("MaskVelocity"),)))
SIDES = Views(teacher=(Wrapper("TimeFeature"),), student=(Wrapper("MaskVelocity"), Wrapper("TimeFeature")))
BOTH = EnvConfig("CartPole-v1", views=SIDES)
PICTURES = (
    Wrapper("GrayscaleObservation"),
    Wrapper("ResizeObservation", {"shape": [84, 84]}),
    Wrapper("FrameStackObservation", {"stack_size": 4}),
)
PONG = EnvConfig("Pong-v4", views=Views(teacher=(Wrapper("GrayscaleObservation"),), student=PICTURES))


def test_each_view_equals_its_wrappers_alone() -> None:
    vector, sight = make_vector_env(BOTH, 2, lambda slot, nth: 7 * slot + nth), observation_views(BOTH)
    alone = [
        (TimeFeature(gymnasium.make("CartPole-v1")), TimeFeature(MaskVelocity(gymnasium.make("CartPole-v1"))))
        for _ in range(2)
    ]
    obs = vector.reset()
    expected = [[env.reset(seed=7 * slot)[0] for env in pair] for slot, pair in enumerate(alone)]
    for step in range(8):
        for slot, (teacher, student) in enumerate(expected):
            np.testing.assert_array_equal(sight.select("teacher", obs)[slot], teacher)
            np.testing.assert_array_equal(sight.select("student", obs)[slot], student)
        obs = vector.step(np.array([step % 2, 1 - step % 2])).obs
        expected = [[env.step((step + slot) % 2)[0] for env in pair] for slot, pair in enumerate(alone)]


def test_images_and_frame_stacks_come_from_one_emulator() -> None:
    vector, sight = make_vector_env(PONG, 1, lambda slot, nth: 3), observation_views(PONG)
    frames = sight.student.frames
    assert frames is not None
    assert (frames.stack, frames.skip, frames.padding) == (4, (2, 5), "repeat")
    env = make_env(EnvConfig("Pong-v4"))
    alone = FrameStackObservation(ResizeObservation(GrayscaleObservation(env), (84, 84)), 4)
    np.testing.assert_array_equal(sight.select("student", vector.reset())[0], alone.reset(seed=3)[0])
    for _ in range(5):
        obs, expected = vector.step(np.array([2])).obs, alone.step(2)[0]
        np.testing.assert_array_equal(sight.select("student", obs)[0], expected)
        assert sight.select("teacher", obs).shape == (1, 210, 160)


def test_labels_use_the_teacher_view_and_observations_the_student_view(teacher: NetworkPolicy, tmp_path: Path) -> None:
    config = CollectConfig(steps=600, epsilon=0.3, block_steps=64, teacher_obs=True)
    data = collect(BLIND, teacher, config, tmp_path)
    seen = torch.from_numpy(data.columns["teacher_obs"])
    assert (seen[:, 1] != 0).any()
    np.testing.assert_array_equal(data.observations(np.arange(len(data)))[:, [1, 3]], 0)
    np.testing.assert_array_equal(data.observations(np.arange(len(data)))[:, [0, 2]], seen[:, [0, 2]])
    with torch.no_grad():
        np.testing.assert_allclose(teacher(seen)[0].params, data.columns["teacher"], atol=1e-6)
    assert data.spec.head.kind == "q_values"


def test_teacher_view_is_stored_on_request_only(teacher: NetworkPolicy, tmp_path: Path) -> None:
    assert "teacher_obs" not in collect(BLIND, teacher, CollectConfig(steps=200, epsilon=0.3), tmp_path).columns


def test_episodes_do_not_depend_on_the_views(teacher: NetworkPolicy, tmp_path: Path) -> None:
    config = CollectConfig(steps=400, epsilon=0.3)
    one = collect(CARTPOLE, teacher, config, tmp_path / "one")
    two = collect(BLIND, teacher, config, tmp_path / "two")
    for name in ("action", "reward", "teacher", "next_teacher", "step"):
        np.testing.assert_array_equal(one.columns[name], two.columns[name])


def test_frames_are_stored_once_behind_a_frame_stack(tmp_path: Path) -> None:
    torch.manual_seed(0)
    env = EnvConfig("Pong-v4", {"max_episode_steps": 25}, views=PONG.views)
    teacher = Mlp((4,)).build(spec_from_env(env.view_of("teacher"))).eval()
    config = CollectConfig(steps=240, num_streams=1, envs_per_stream=4, block_steps=30, epsilon=0.3, sample=True)
    data = collect(env, teacher, config, tmp_path)
    # three lead-in frames and the last observation for each of 4 slots in 2 blocks, and those of the episodes between
    ended = (data.columns["terminated"] | data.columns["truncated"]).sum()
    assert ended > 0
    assert data.obs.shape == (240 + 2 * 4 * 3 + 2 * 4 + ended, 84, 84)
    stream = make_vector_env(env, 4, lambda slot, nth: 0).reset()
    assert observation_views(env).select("student", stream).shape == (4, 4, 84, 84)
    alone = make_env(env.view_of("student"))
    first = np.flatnonzero(data.columns["step"] == 0)
    for row in first[:3]:  # the first observation of an episode repeats one frame
        stack = data.observations(np.array([row]))[0]
        assert all(torch.equal(stack[0], frame) for frame in stack)
    alone.close()


def test_the_same_bytes_for_two_workers_and_after_a_loss(tmp_path: Path) -> None:
    torch.manual_seed(3)
    teacher = Actor(lstm=(6, 1), hidden=(5,)).build(spec_from_env(BOTH.view_of("teacher"))).eval()
    config = CollectConfig(steps=320, num_streams=2, envs_per_stream=2, block_steps=20, epsilon=0.3)
    collect(BOTH, teacher, config, tmp_path / "one")
    before = manifest_bytes(tmp_path / "one")
    collect(BOTH, teacher, config, tmp_path / "two", execution=Execution(workers=2))
    assert manifest_bytes(tmp_path / "two") == before
    document = json.loads(before)
    for block in document["blocks"]:
        if block["block"] >= 2:
            (tmp_path / "one" / block["file"]).unlink()
    write_json(tmp_path / "one" / "manifest.json", document | {"blocks": []})
    collect(BOTH, teacher, config, tmp_path / "one", mode="resume")
    assert manifest_bytes(tmp_path / "one") == before


def test_teacher_and_student_are_evaluated_on_their_own_views(teacher: NetworkPolicy, tmp_path: Path) -> None:
    data = collect(BLIND, teacher, CollectConfig(steps=2_000, epsilon=0.3), tmp_path / "dataset")
    student = distill(data, Mlp((16,)), DistillConfig(epochs=3), tmp_path / "student")
    found = evaluate(BLIND, {"teacher": teacher, "mlp": student}, EvaluateConfig(episodes=4), tmp_path).to_dict()[
        "policies"
    ]
    np.testing.assert_array_equal(found["teacher"]["runs"][0]["returns"], play(CARTPOLE, teacher, 4).returns)
    blind = EnvConfig("CartPole-v1", wrappers=(Wrapper("MaskVelocity"),))
    np.testing.assert_array_equal(found["mlp"]["runs"][0]["returns"], play(blind, student, 4).returns)
    assert 0 < found["mlp"]["agreement"] <= 1
    assert (tmp_path / "videos" / "mlp-best.mp4").stat().st_size > 0


def test_wrappers_of_a_teacher_are_added_to_its_view_only() -> None:
    view = (Wrapper("TimeFeature"),)
    spec = dataclasses.replace(spec_from_env(EnvConfig("CartPole-v1", wrappers=view)), view=view)
    sight = observation_views(adapt_env(BLIND, Mlp((4,)).build(spec)))
    assert (sight.teacher.obs_shape, sight.student.obs_shape) == ((5,), (4,))


class Twice(gymnasium.Wrapper[Any, Any, Any, Any]):
    def step(self, action: Any) -> Any:
        self.env.step(action)
        return self.env.step(action)


class Other(gymnasium.Wrapper[Any, Any, Any, Any]):
    def step(self, action: Any) -> Any:
        return self.env.step(1 - action)


@pytest.mark.parametrize(
    ("wrapper", "message"),
    [
        (f"{__name__}:Twice", "more than one step"),
        (f"{__name__}:Other", "changes actions"),
        ("gymnasium.wrappers:TimeLimit", "ends episodes"),
    ],
)
def test_a_view_that_changes_more_than_the_observation_is_refused(wrapper: str, message: str) -> None:
    kwargs = {"max_episode_steps": 2} if "TimeLimit" in wrapper else {}
    env = make_env(EnvConfig("CartPole-v1", views=Views(teacher=(Wrapper(wrapper, kwargs),))))
    env.reset(seed=0)

    def play_on() -> None:
        for _ in range(3):
            env.step(1)

    with pytest.raises(ConfigError, match=message):
        play_on()


def test_a_view_that_changes_the_action_space_is_refused() -> None:
    views = Views(teacher=(Wrapper("RescaleAction", {"min_action": -1, "max_action": 1}),))
    with pytest.raises(ConfigError, match="action space"):
        make_env(EnvConfig("Pendulum-v1", views=views))


def test_a_student_for_the_teachers_view_is_refused(teacher: NetworkPolicy, tmp_path: Path) -> None:
    student = Mlp((4,)).build(spec_from_env(BOTH.view_of("student")))
    with pytest.raises(SpecMismatchError, match="the student"):
        collect(BLIND, teacher, CollectConfig(steps=100, beta=0.5), tmp_path, student=student)


def test_views_of_an_ale_game_are_refused_with_the_alternative() -> None:
    with pytest.raises(ConfigError, match=r"no views.*PongNoFrameskip-v4"):
        observation_views(EnvConfig("ALE/Pong-v5", views=Views(student=PICTURES)))


A3C = Path(__file__).parents[2] / ".." / "shared" / "teachers" / "baby-a3c" / "pong-v4.tar"


@pytest.mark.skipif(not A3C.exists(), reason="the weights of github.com/greydanus/baby-a3c are not there")
def test_a_recurrent_pong_teacher_with_another_view_teaches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    few = ["collect.steps=480", "collect.block_steps=30", "env.kwargs={max_episode_steps: 40}", "evaluate.episodes=2"]
    few += [
        "recipe.rounds=1",
        "recipe.steps_per_round=160",
        "distill.epochs=1",
        "evaluate.videos=false",
        f"out={tmp_path}",
    ]
    path = f"teacher=examples.baby_a3c:BabyA3C@{A3C}"
    run = load_run(Path("examples/pong-a3c.yaml"), [path, *few], environment={})
    assert load_policy(run.teacher.path).initial_state(3).shape == (3, 256)  # type: ignore[union-attr]
    report = run_all(run, quiet=True)
    assert report.stat().st_size > 0
    assert set(json.loads((tmp_path / "evaluation.json").read_text())["policies"]) == {"teacher", "cnn", "random"}


def test_a_run_file_declares_both_views(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    head = "env: {id: CartPole-v1, views: {student: [{name: MaskVelocity}]}}\nteacher: zoo:pong-dqn\n"
    file.write_text(head)
    assert load_run(file, environment={}).env == BLIND
    file.write_text(head.replace("MaskVelocity", "MaskVelocty"))
    with pytest.raises(ConfigError, match=r"MaskVelocty.*MaskVelocity"):
        load_run(file, environment={})
    file.write_text(head.replace("student", "pupil"))
    with pytest.raises(ConfigError, match="unknown key"):
        load_run(file, environment={})
