"""Students of `examples/grid.yaml` and `examples/jobshop.yaml` beside their teachers, and the dispatching rules.

    rldistill run examples/grid.yaml
    python benchmarks/resources.py grid runs/grid --student mlp --episodes 20
    python benchmarks/resources.py times runs/grid --student mlp
    rldistill run examples/jobshop.yaml
    python benchmarks/resources.py jobshop runs/jobshop

Run it in the folder of the repository. The teacher of the grid is asked for its own episodes only.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rldistill import Agent, Policy, load_policy
from rldistill.core.spec import EnvConfig
from rldistill.envs.make import make_env
from rldistill.envs.spaces import spec_from_env
from rldistill.evaluation.episodes import PlayConfig, play
from rldistill.evaluation.statistics import Values, estimate, mean
from rldistill.exporters.config import ExportConfig
from rldistill.exporters.export import export_policy
from rldistill.policies.agent import inference_threads
from rldistill.run.config import load_run
from rldistill.teachers.onnx import session

GRID = EnvConfig("gym_anm:ANM6Easy-v0", {"max_episode_steps": 96})
HELD_OUT = range(11, 21)


def grid(students: list[Policy], episodes: int) -> None:
    """Print returns, the ratio of costs, and decisions a second."""
    teacher = load_policy("examples.teachers.grid_mpc:controller", spec=spec_from_env(GRID))
    played = []
    for policy in (teacher, *students):
        played.append(play(GRID, policy, episodes, PlayConfig(gamma=0.995)))
        print(f"mean return {played[-1].returns.mean():.4f}, discounted {played[-1].discounted.mean():.4f}", flush=True)
    for name in ("returns", "discounted"):
        values = np.stack([getattr(part, name) for part in played])
        found = estimate(ratio_of_means, values[1:], values[:1])
        print(f"{name}: controller {values[0].mean():.3f}, students {values[1:].mean(1).round(3).tolist()}")
        print(f"{name}: cost of the students / cost of the controller {found.value:.4f}, 95% interval {found.ci95}")


def times(students: list[Policy]) -> None:
    """Print the processor time of one decision, which other processes do not lengthen, and decisions a second."""
    teacher = load_policy("examples.teachers.grid_mpc:controller", spec=spec_from_env(GRID))
    env, observations = make_env(GRID), list[Any]()
    obs, _ = env.reset(seed=0)
    for _ in range(40):
        observations.append(torch.as_tensor(obs[None]))
        obs, *_ = env.step(Agent(students[0]).act(obs))
    with tempfile.TemporaryDirectory() as folder:
        export_policy(students[0], GRID, Path(folder) / "onnx", ExportConfig(("onnx",), states=50, episodes=1))
        runtime = session((Path(folder) / "onnx" / "student.onnx").read_bytes())
        calls = {
            "controller": (teacher, 1),
            "student in PyTorch": (students[0], 50),
            "student in onnxruntime": (lambda obs: runtime.run(None, {"obs": obs.numpy()}), 50),
        }
        with inference_threads(1), torch.no_grad():
            found = {name: processor_time(call, observations, repeats) for name, (call, repeats) in calls.items()}
    for name, microseconds in found.items():
        ratio = found["controller"] / microseconds
        print(f"{name:24}{microseconds:12.2f} µs{1e6 / microseconds:14,.0f} decisions/s{ratio:12,.0f} times")


def processor_time(call: Any, observations: list[Any], repeats: int) -> float:
    """Return the mean time of one call in microseconds."""
    call(observations[0])
    started = time.process_time()
    for _ in range(repeats):
        for obs in observations:
            call(obs)
    return 1e6 * (time.process_time() - started) / (repeats * len(observations))


def jobshop(students: list[Policy]) -> None:
    """Print makespans on the held-out instances, and by how much the students beat each rule."""
    from examples.jobshop import RULES, JobShop, Shop, makespans

    def makespan(instance: int, act: Any) -> float:
        env, total = JobShop([instance]), 0.0
        obs, _ = env.reset()
        done = False
        while not done:
            obs, reward, done, _, _ = env.step(act(env, obs))
            total -= reward
        return total

    def rollout(env: JobShop, _: Any) -> int:
        return int(np.argmin(makespans(env.instance, tuple(env.history))))

    def with_student(policy: Policy) -> Any:
        agent = Agent(policy)
        return lambda _, obs: agent.act({key: value for key, value in obs.items() if key != "history"})

    def row(act: Any) -> NDArray[np.float64]:
        return np.array([[makespan(instance, act) for instance in HELD_OUT]])

    def share_of_work(instance: int) -> int:
        """Return the makespan of a rule that JSSEnv does not have: the least share of the remaining work."""
        shop = Shop(instance)
        while not shop.done:
            shop.step(min(shop.queue(), key=lambda job: (shop.duration(job) / shop.work(job), job)))
        return shop.current_time_step

    trees = np.concatenate([row(with_student(policy)) for policy in students])
    print(f"{'students':10}{trees.mean():8.1f}", trees.mean(1).tolist(), trees.mean(0).round(1).tolist())
    others = {name: row(lambda env, obs, number=number: number) for number, name in enumerate(RULES)}
    others |= {"SPT/MWR": np.array([[share_of_work(instance) for instance in HELD_OUT]]), "rollout": row(rollout)}
    for name, own in others.items():
        found = estimate(lambda a, b: mean(a) - mean(b), trees, own)
        relative = estimate(ratio_of_means, trees, own)
        print(f"{name:10}{own.mean():8.1f} students - {name} {found.value:8.1f} {found.ci95}, ratio {relative}")


def ratio_of_means(ours: Any, theirs: Any) -> Values:
    """Return the ratio of two means."""
    return np.asarray(mean(ours) / mean(theirs))


def main() -> None:
    """Measure the students of one run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=("grid", "times", "jobshop"))
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("--student", default=None, help="its name, by default the only one")
    parser.add_argument("--episodes", type=int, default=20)
    options = parser.parse_args()
    sys.path.insert(0, str(Path.cwd()))
    load_run(Path("examples/grid.yaml"))  # the features of its student are the user's own, and become trusted
    name = options.student or next((options.run / "students").iterdir()).name
    students = [load_policy(str(folder)) for folder in sorted((options.run / "students" / name).glob("seed-*"))]
    if options.task == "grid":
        grid(students, options.episodes)
    else:
        (times if options.task == "times" else jobshop)(students)


if __name__ == "__main__":
    main()
