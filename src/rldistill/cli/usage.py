"""Examples of each command, which `--help` shows."""

from __future__ import annotations

EXAMPLES: dict[str, tuple[str, ...]] = {
    "demo": ("", "--quick", "--quick --quiet"),
    "init": ("", "--env CartPole-v1 --teacher zoo:cartpole-ppo", "lander.yaml --env LunarLander-v3 --teacher ppo.zip"),
    "examples": ("", "pong-dagger", "features/pong-basic"),
    "run": (
        "examples/pong.yaml",
        "examples/pong.yaml --resume",
        'cartpole.yaml distill.epochs=40 "students={tree: {type: tree, max_depth: 6}}" out=runs/tree',
    ),
    "train": (
        "examples/lunarlander.yaml",
        "examples/lunarlander.yaml --resume",
        "examples/lunarlander.yaml teacher.train.total_steps=2_000_000 --overwrite",
    ),
    "collect": ("cartpole.yaml", "cartpole.yaml --resume", "cartpole.yaml collect.steps=50_000 out=runs/more"),
    "distill": ("cartpole.yaml", "cartpole.yaml --resume", "cartpole.yaml seeds=[0,1,2,3,4] --resume"),
    "evaluate": (
        "cartpole.yaml --sequential --resume",
        "cartpole.yaml evaluate.episodes=200 --resume --json",
        "cartpole.yaml --shard 3/16",
    ),
    "report": ("cartpole.yaml", "cartpole.yaml out=runs/more", "runs/cartpole/config.yaml --quiet"),
    "search": (
        "cartpole.yaml",
        "cartpole.yaml --margin 2% --by latency",
        "examples/pong-objects.yaml --own --json smallest.json",
    ),
    "compare": (
        "runs/pong runs/pong-dagger",
        "runs/pong runs/pong-dagger --page compared.html",
        "runs/a runs/b runs/c --json",
    ),
    "explain": (
        "runs/cartpole/students/tree/seed-0",
        "runs/pong/students/linear/seed-0",
        "runs/pong/students/linear/seed-0 --out weights.png",
    ),
    "why": ("runs/cartpole", "runs/cartpole --student tree", "runs/cartpole --json"),
    "watch": ("runs/cartpole", "runs/pong runs/pong-dagger --port 8765 --no-browser", "runs/cartpole --text"),
    "schema": ("", "> run.schema.json", "--markdown > configuration.md"),
    "dataset info": ("runs/cartpole", "runs/cartpole/dataset", "runs/cartpole --json"),
    "dataset check": ("runs/cartpole", "runs/cartpole/dataset", "runs/cartpole --json"),
    "dataset seal": ("runs/pong", "runs/pong/dataset", "runs/pong --json"),
    "dataset relabel": (
        "runs/pong zoo:pong-dqn --out runs/relabeled",
        "runs/pong dqn.onnx,head=q_values --out runs/relabeled",
        "runs/pong zoo:pong-dqn --features --out runs/relabeled --overwrite",
    ),
    "dataset extend": (
        "cartpole.yaml --steps 10_000",
        "cartpole.yaml --steps 10_000 collect.epsilon=0.2",
        "cartpole.yaml --steps 10_000 --quiet",
    ),
    "dataset merge": (
        "runs/a runs/b --out runs/both/dataset",
        "runs/a runs/b runs/c --out all",
        "runs/a runs/b --out all --overwrite",
    ),
    "dataset condense": (
        "runs/cartpole --keep 64 --out small",
        "runs/cartpole --keep 64 --weighted --out small --overwrite",
        "runs/cartpole --keep 16 --gamma 0.9 --out small",
    ),
    "dataset import": (
        "minari:D4RL/pen/human-v2 --out pen",
        "minari:pong/dqn-v0 --out pong",
        "minari:pong/dqn-v0 --out pong --overwrite",
    ),
    "dataset export": (
        "runs/pong minari:pong/dqn-v0",
        "runs/pong lerobot:pong-lerobot",
        "runs/pong/dataset lerobot:pong-lerobot --quiet",
    ),
    "dataset distill": (
        "runs/cartpole --student mlp --out student",
        "pen --student '{type: mlp, hidden: [8]}' --out student epochs=40",
        "runs/cartpole --student tree --out tree --seed 1",
    ),
    "dataset imitate": (
        "pen --student mlp --out student",
        "pen --student '{type: mlp, hidden: [32, 32]}' --out student ppo.total_steps=300_000",
        "pen --student mlp --out student --resume",
    ),
    "teachers list": ("", "--json", "--json > teachers.json"),
    "teachers verify": (
        "zoo:pong-dqn --env ALE/Pong-v5",
        "ppo.zip --env LunarLander-v3 --claimed 242.1±31.8",
        "dqn.onnx,head=q_values,scale=0.004 --env ALE/Pong-v5 --episodes 20",
    ),
    "teachers compare": (
        "a.zip b.zip --env LunarLander-v3",
        "a.zip b.zip --env LunarLander-v3 --page teachers.html",
        "zoo:cartpole-ppo own:act --env CartPole-v1 --episodes 60 --json",
    ),
    "export policy": (
        "runs/pong --student linear",
        "runs/cartpole --to c,html --out files",
        "zoo:cartpole-ppo --to c --env CartPole-v1 --out files",
    ),
    "export verify": ("runs/pong/export/linear", "files --env CartPole-v1", "files --run-code --json"),
    "hub push": (
        "runs/cartpole --student tree --repo me/cartpole-tree",
        "runs/cartpole --student tree --repo me/cartpole-tree --private",
        "runs/cartpole --student tree --repo me/cartpole-tree --overwrite",
    ),
    "doctor env": ("CartPole-v1", "own:make --env-kwarg size=5 --steps 1_000", "'{id: CartPole-v1}' --json"),
}
"""Arguments of three examples of each command."""


def examples_of(command: str) -> str:
    """Return the examples of a command for the end of its help; empty if it has none."""
    prefix = f"rldistill {command.removesuffix(' policy')}"
    lines = [f"  {prefix} {arguments}".rstrip() for arguments in EXAMPLES.get(command, ())]
    # Paragraphs that begin with a backspace keep their lines.
    return "\b\n" + "\n".join(["Examples:", *lines]) if lines else ""
