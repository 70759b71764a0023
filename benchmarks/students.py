"""Measure the time of students and losses relative to plain PyTorch.

A gradient step: forward, loss, backward, clipping and AdamW, over the network's layers, the loss in one line and AdamW.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from rldistill import (
    Cnn,
    CollectConfig,
    DistillConfig,
    EnvConfig,
    Gru,
    Impala,
    Linear,
    Mlp,
    Ridge,
    Term,
    collect,
    load_policy,
)
from rldistill.core.policy import Batch
from rldistill.data.dataset import Dataset
from rldistill.data.sequences import windows
from rldistill.distillation.gradient import Trainer
from rldistill.distillation.prepare import prepare
from rldistill.distillation.ridge import labels_of, moments
from rldistill.envs.spaces import spec_from_env
from rldistill.losses import LOSSES
from rldistill.policies.network import NetworkPolicy
from rldistill.students import AnyStudent
from rldistill.students.features import Fourier, Objects, RandomConv

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "features"))
from screen_bits import Basic, Bprost  # type: ignore[import-not-found]

PONG = EnvConfig("ALE/Pong-v5")
REGIONS = (("opponent", 14, 77, 0, 11), ("ball", 14, 77, 11, 73), ("player", 14, 77, 73, 84))

# Of logits or Q values `x` of the student, labels `t` of the teacher, in the words of a person who writes one script.
BARE: dict[str, Callable[[Tensor, Tensor, Any, Any], Tensor]] = {
    "forward_kl": lambda x, t, b, o: F.cross_entropy(x, t.softmax(-1)),
    "reverse_kl": lambda x, t, b, o: F.kl_div(
        t.log_softmax(-1), x.log_softmax(-1), reduction="batchmean", log_target=True
    ),
    "jeffreys": lambda x, t, b, o: (
        ((x.softmax(-1) - t.softmax(-1)) * (x.log_softmax(-1) - t.log_softmax(-1))).sum(-1).mean()
    ),
    "action_nll": lambda x, t, b, o: F.cross_entropy(x, t.argmax(-1)),
    "gap_weighted_nll": lambda x, t, b, o: (
        (t.amax(-1) - t.amin(-1)) * F.cross_entropy(x, t.argmax(-1), reduction="none")
    ).mean(),
    "advantage_weighted_nll": lambda x, t, b, o: (
        (t.gather(1, b.action[:, None])[:, 0] - t.amax(-1)).exp() * F.cross_entropy(x, b.action, reduction="none")
    ).mean(),
    "entropy": lambda x, t, b, o: (x.softmax(-1) * x.log_softmax(-1)).sum(-1).mean(),
    "q_mse": lambda x, t, b, o: F.mse_loss(x, t),
    "q_huber": lambda x, t, b, o: F.huber_loss(x, t),
    "advantage_mse": lambda x, t, b, o: F.mse_loss(
        (x - x.amax(-1, keepdim=True)).tanh(), (t - t.amax(-1, keepdim=True)).tanh()
    ),
    "bellman_target": lambda x, t, b, o: F.mse_loss(
        x.gather(1, b.action[:, None])[:, 0], b.reward + 0.99 * b.next_teacher.params.amax(-1) * ~b.terminated
    ),
    "large_margin": lambda x, t, b, o: F.multi_margin_loss(x, t.argmax(-1), margin=0.8),
    "value_mse": lambda x, t, b, o: F.cross_entropy(x, t.softmax(-1)) + F.mse_loss(o.value, t.amax(-1)),
    "feature_mse": lambda x, t, b, o: F.cross_entropy(x, t.softmax(-1)) + F.mse_loss(o.features, b.teacher.features),
}
BESIDE = ("value_mse", "feature_mse")
"""Losses that need a second loss, because they do not train the policy."""


def seconds_each(steps: list[Callable[[], Any]], turns: int, repeats: int) -> list[float]:
    """Return the median time of each function, measured in turns to spread other load evenly."""
    times: list[list[float]] = [[] for _ in steps]
    for _ in range(turns):
        for step, taken in zip(steps, times, strict=True):
            step()
            started = time.perf_counter()
            for _ in range(repeats):
                step()
            taken.append((time.perf_counter() - started) / repeats)
    return [float(np.median(taken)) for taken in times]


def gradient_step(dataset: Dataset, student: AnyStudent, loss: str, turns: int, repeats: int) -> tuple[float, float]:
    """Return the seconds of a bare step and of ours on the same batch of 256."""
    names = ("forward_kl", loss) if loss in BESIDE else (loss,)
    config = DistillConfig(losses=tuple(Term(LOSSES[name]()) for name in names))
    trainer = Trainer(dataset, student, config)
    bare = student.build(trainer.policy.spec)
    prepare(bare, dataset)
    if loss == "value_mse":
        bare.add_value()
    if loss == "feature_mse":
        bare.add_features(dataset.columns["features"].shape[1])
    optimizer = torch.optim.AdamW(bare.parameters(), 1e-3, fused=True)
    rng = np.random.default_rng(0)
    policy: Any = trainer.policy
    if policy.recurrent:
        window = next(iter(windows(dataset, trainer.train_rows, student.window, 256 // student.window, rng)))
        batch, starts, state = window.batch, window.starts, policy.initial_state(window.starts.shape[1])
        fields = {field.name: getattr(batch, field.name) for field in dataclasses.fields(Batch)}
        flat = Batch(**{k: value.flatten(0, 1) if isinstance(value, Tensor) else value for k, value in fields.items()})
    else:
        batch = flat = dataset.batch(rng.permutation(trainer.train_rows)[:256])
    labels = batch.teacher.params.flatten(0, -2)

    def our_step() -> None:
        output = policy.unroll(batch.obs, starts, state)[0] if policy.recurrent else policy(batch.obs)[0]
        trainer.step(batch, output, 0.0)

    def bare_step() -> None:
        hidden = bare_unroll(bare, batch, starts, state) if policy.recurrent else bare_forward(bare, batch)
        output = bare.outputs(hidden) if loss in BESIDE else None
        value = BARE[loss](bare.output(hidden), labels, flat, output)
        optimizer.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(bare.parameters(), 10.0)
        optimizer.step()

    bare_seconds, our_seconds = seconds_each([bare_step, our_step], turns, repeats)
    return bare_seconds, our_seconds


def bare_forward(policy: NetworkPolicy, batch: Batch) -> Tensor:
    """Return the last hidden layer as a script would compute it."""
    obs = batch.obs
    assert isinstance(obs, Tensor)
    scaled = (obs / 255 - policy.obs_mean) / policy.obs_std if obs.dtype == torch.uint8 else obs
    hidden: Tensor = policy.body(scaled)
    return hidden


def bare_unroll(policy: Any, batch: Batch, starts: Tensor, state: Tensor) -> Tensor:
    """Return the states of a GRU over a window, step by step."""
    assert isinstance(batch.obs, Tensor)
    x = policy.body(batch.obs.flatten(0, 1)).view(*starts.shape, -1)
    states = []
    for t in range(len(starts)):
        state = policy.cell(x[t], state * ~starts[t, :, None])
        states.append(state)
    return torch.cat(states)


def ridge(dataset: Dataset, features: Any, turns: int) -> tuple[float, float]:
    """Return the seconds of the features and their Gram matrix by `torch.mm`, and of the pass of ridge."""
    student = Ridge(features=features)
    policy = student.build(dataset.spec).eval()
    prepare(policy, dataset)
    labels, _ = labels_of(dataset, (LOSSES["q_mse"](),))
    rows = np.flatnonzero(~dataset.heldout)
    obs = dataset.observations(rows)

    def bare() -> None:
        with torch.no_grad():
            phi = torch.cat([policy.body(policy.standardized(part)) for part in torch.split(obs, 2_048)])
            torch.mm(phi.T, phi)

    bare_seconds, our_seconds = seconds_each([bare, lambda: moments(dataset, policy, rows, labels)], turns, 1)
    return bare_seconds, our_seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--only", choices=["steps", "ridge", "features"])
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    cartpole = EnvConfig("CartPole-v1")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        pong = collect(
            PONG, load_policy("zoo:pong-dqn"), CollectConfig(steps=4_000, epsilon=0.3), Path(folder) / "pong"
        )
        teacher = _values(cartpole)
        vectors = collect(
            cartpole, teacher, CollectConfig(steps=20_000, epsilon=0.5, features=True), Path(folder) / "cartpole"
        )
        if asked.only in (None, "steps"):
            cases = [(vectors, Mlp((64, 64)), loss, 200) for loss in BARE]
            cases += [(vectors, Linear(), "forward_kl", 200), (vectors, Gru(), "forward_kl", 30)]
            cases += [(pong, student, "forward_kl", 2) for student in (Linear(), Mlp((512,)), Cnn(), Impala((4, 8)))]
            for data, student, loss, repeats in cases:
                bare, ours = gradient_step(data, student, loss, asked.turns, repeats)
                where = "CartPole" if data is vectors else "Pong"
                what = f"{where}, {type(student).__name__.lower()}, {loss}"
                rows.append({"what": what, "bare_ms": 1e3 * bare, "ours_ms": 1e3 * ours, "ratio": ours / bare})
        if asked.only in (None, "ridge"):
            for data, features, what in (
                (vectors, Fourier(1024), "CartPole, ridge on 1,024 Fourier features"),
                (pong, RandomConv((16, 32)), "Pong, ridge on 2,592 random convolutions"),
                (pong, Bprost(), "Pong, ridge on 4,096 B-PROST bits"),
            ):
                bare, ours = ridge(data, features, asked.turns)
                rows.append({"what": what, "bare_ms": 1e3 * bare, "ours_ms": 1e3 * ours, "ratio": ours / bare})
    console = Console(width=110)
    if rows:
        table = Table("one core", "bare, ms", "ours, ms", "ratio")
        for row in rows:
            table.add_row(row["what"], f"{row['bare_ms']:.3f}", f"{row['ours_ms']:.3f}", f"{row['ratio']:.2f}")
        console.print(table)
    if asked.only in (None, "features"):
        for features in (Basic(), Bprost(), Objects(REGIONS)):
            policy = Linear(features).build(pong.spec)
            policy.fit_features(pong.observations(pong.spread(2_000)))
            obs = pong.observations(pong.spread(512))
            with torch.no_grad():
                (seconds,) = seconds_each([lambda: policy(obs)], asked.turns, 1)  # noqa: B023
            name = type(features).__name__.lower()
            rows.append({"what": f"Pong, {name}", "frames_per_second": len(obs) / seconds})
            console.print(f"Pong, {name}: {len(obs) / seconds:,.0f} frames a second on one core")
    if asked.json is not None:
        asked.json.write_text(json.dumps(rows, indent=2), encoding="utf-8")


def _values(env: EnvConfig) -> NetworkPolicy:
    spec = spec_from_env(env)
    head = spec.head.as_kind("q_values")
    return Mlp((64, 64)).build(dataclasses.replace(spec, head=head)).eval()


if __name__ == "__main__":
    main()
