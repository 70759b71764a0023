"""Stages on a Ray cluster of two nodes, of which one is killed; the results are printed as JSON."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import ray
import torch

from rldistill.collection.collect import collect
from rldistill.collection.config import CollectConfig
from rldistill.core.errors import RLDistillError
from rldistill.core.policy import Policy
from rldistill.core.spec import EnvConfig
from rldistill.distillation.config import DistillConfig
from rldistill.envs.spaces import spec_from_env
from rldistill.evaluation.config import EvaluateConfig
from rldistill.io.execution import Execution
from rldistill.recipes.job import Run
from rldistill.run.evaluation import run_evaluate
from rldistill.run.stages import run_collect, run_distill, run_search
from rldistill.search.config import SearchConfig
from rldistill.students import Mlp
from rldistill.teachers.load import load_policy

CARTPOLE = EnvConfig("CartPole-v1")
CONFIG = CollectConfig(1_500, num_streams=4, envs_per_stream=2, block_steps=25, epsilon=0.2)


class Teacher:
    """Teacher that notes the node of each process, and that kills its process, or fails, once a file is there."""

    def __init__(self, policy: Policy, folder: Path) -> None:
        self.policy, self.folder, self.spec, self.calls = policy, folder, policy.spec, 0

    def initial_state(self, batch_size: int) -> None:
        return None

    def __call__(self, obs: Any, state: Any = None) -> Any:
        self.calls += 1
        if self.calls % 30 == 0:
            for name, act in (("kill", lambda: os.kill(os.getpid(), signal.SIGKILL)), ("fail", self.fail)):
                try:
                    (self.folder / name).unlink()
                except FileNotFoundError:
                    continue
                act()
        if (self.folder / "slow").exists():
            time.sleep(0.005)
        if self.calls % 10 == 0 and ray.is_initialized():
            (self.folder / f"node-{ray.get_runtime_context().get_node_id()}").touch()
        return self.policy(obs, state)

    def fail(self) -> None:
        raise RLDistillError("teacher: out of order. Repair it.")


def stages(teacher: Any, out: Path, execution: Execution) -> list[Any]:
    """Collect, fit two seeds, and evaluate; return the weights, the returns, and the result of a search."""
    run = Run(
        env=CARTPOLE, teacher=teacher, out=out, collect=CONFIG, students={"small": Mlp((4,)), "large": Mlp((16,))},
        seeds=(0, 1), distill=DistillConfig(epochs=10, batch_size=64, learning_rate=0.01), verify=False,
        evaluate=EvaluateConfig(15, videos=False), execution=execution,
    )  # fmt: skip
    run_collect(run, quiet=True)
    run_distill(run, quiet=True)
    evaluation = run_evaluate(run, quiet=True)
    found = run_search(run, SearchConfig(0.2, episodes=4, own=True), quiet=True)
    weights = [path.read_bytes().hex() for path in sorted((out / "students").rglob("policy.safetensors"))]
    assert len(weights) == 4
    returns = {name: [list(own.returns) for own in entry.runs] for name, entry in evaluation.policies.items()}
    return [weights, returns, found.winner, [[trial["rungs"], trial["test"]] for trial in found.to_dict()["tried"]]]


def main() -> None:
    from ray.cluster_utils import Cluster

    folder = Path(sys.argv[1])
    torch.manual_seed(0)
    teacher: Any = Teacher(Mlp((8,)).build(spec_from_env(CARTPOLE)).eval(), folder)
    result: dict[str, Any] = {}
    started = time.monotonic()

    def run(name: str, execution: Execution) -> None:
        try:
            collect(CARTPOLE, teacher, CONFIG, folder / name, progress=False, execution=execution)
            result[name] = (folder / name / "manifest.json").read_bytes() == expected()
        except RLDistillError as error:
            result[name] = str(error)
        print(name, result[name], round(time.monotonic() - started), "s", file=sys.stderr)

    def expected() -> bytes:
        return (folder / "serial" / "manifest.json").read_bytes()

    run("serial", Execution())
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    second = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    on_ray = Execution("ray", 4, cluster.address)
    for path in folder.glob("node-*"):
        path.unlink()
    run("ray", on_ray)
    for tasks in (1, 2):
        run(f"ray {tasks}", Execution("ray", tasks, cluster.address))
    result["nodes"] = len([*folder.glob("node-*")])
    expert: Any = Teacher(load_policy("zoo:cartpole-ppo"), folder)
    alone = stages(expert, folder / "alone", Execution())
    (folder / "kill").touch()
    result["stages, killed worker"] = stages(expert, folder / "stages", Execution("ray", 2, cluster.address)) == alone
    assert not (folder / "kill").exists()
    (folder / "kill").touch()
    run("killed worker", on_ray)
    (folder / "fail").touch()
    run("failing", on_ray)
    (folder / "slow").touch()

    def kill_node() -> None:
        while "killed node" not in result and len([*(folder / "killed node").rglob("*.parquet")]) < 4:
            time.sleep(0.05)
        cluster.remove_node(second, allow_graceful=False)

    thread = threading.Thread(target=kill_node)
    thread.start()
    run("killed node", on_ray)
    thread.join()
    ray.shutdown()
    cluster.shutdown()
    print(json.dumps(result))


if __name__ == "__main__":
    main()
