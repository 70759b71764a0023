"""Measurements of a certificate, for which all formats share observations and episodes, and the cost of a decision."""

import dataclasses
import math
import platform
import shutil
import subprocess
import tempfile
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from rldistill.core.policy import Policy
from rldistill.core.spec import EnvConfig, PolicySpec
from rldistill.data.dataset import Dataset
from rldistill.evaluation.episodes import Episodes, PlayConfig, play
from rldistill.evaluation.non_inferiority import non_inferior
from rldistill.evaluation.statistics import estimate, mean
from rldistill.exporters.c_source import TYPES, input_names
from rldistill.exporters.certificate import ClosedLoop
from rldistill.exporters.comparison import (
    CONSECUTIVE_STEPS,
    States,
    batch_difference,
    compare,
    consecutive_difference,
    consecutive_states,
    equal_actions,
    extreme_states,
    own_states,
    rounding,
    states_of,
)
from rldistill.exporters.config import ExportConfig, Format
from rldistill.exporters.runtimes import CRuntime, ExportedPolicy, Interface, OnnxRuntime, compile_c, compiler
from rldistill.exporters.texts import render
from rldistill.exporters.vectors import NUM_STEPS
from rldistill.io.progress import Progress
from rldistill.policies.cost import WARM_UP_CALLS, Cost, measure_cost, measure_latency, percentiles

MAX_NODE_STATES = 256
"""States that are compared in JavaScript, where a picture takes a second."""
CALLS = 2_000
MAX_SECONDS = 1.0


@dataclasses.dataclass
class Measures:
    """Comparisons of exported files with the original policy.

    Attributes:
        policy: The original.
        env: Environment as the policy observes it.
        interface: Observations, head and state of the policy.
        config: Numbers of states and episodes.
        seed: Seed of the episodes.
        dataset: Dataset with held-out observations, if there is one.
        progress: Receiver of the number of finished episodes.
    """

    policy: Policy
    env: EnvConfig
    interface: Interface
    config: ExportConfig
    seed: int
    dataset: Dataset | None
    progress: Progress

    def fields(self, name: Format, runtime: ExportedPolicy, folder: Path) -> dict[str, Any]:
        """Return the fields of a format's record in the certificate."""
        limit = MAX_NODE_STATES if name == "html" else self.config.states
        sources = {"own": self.own.first(limit)}
        if self.heldout is not None:
            sources["dataset"] = self.heldout.first(limit)
        sources |= extreme_states(self.env, self.policy, self.consecutive)
        found: dict[str, Any] = {
            "differences": {source: compare(self.policy, runtime, states) for source, states in sources.items()},
            "batches": batch_difference(self.policy, runtime, self.own.first(64)),
        }
        if runtime.state_shape is not None:
            found["consecutive"] = consecutive_difference(self.policy, runtime, self.consecutive)
        if name == "html":
            found["remark"] = f"compared on at most {MAX_NODE_STATES} states, and not played"
        else:
            found["closed_loop"] = self.closed_loop(runtime)
        if isinstance(runtime, OnnxRuntime):
            found["latency_us"] = onnx_latency(runtime)
        if isinstance(runtime, CRuntime):
            found["latency_us"] = c_latency(folder, self.interface.spec, ("-O2",), self.cost.macs or 0)
            found["flash"] = flash_bytes(folder)
        return found

    def closed_loop(self, runtime: ExportedPolicy) -> ClosedLoop:
        """Play the same episodes with an exported file as with the original."""
        episodes = self.play(runtime)
        test = non_inferior(episodes.returns[None], self.original.returns[None], self.random.returns[None])
        identical = np.array_equal(episodes.returns, self.original.returns)
        return ClosedLoop(
            episodes=len(episodes.returns),
            mean=float(episodes.returns.mean()),
            ci95=estimate(mean, episodes.returns[None]).ci95,
            original_mean=float(self.original.returns.mean()),
            equal_actions=equal_actions(self.original, episodes),
            keeps_95="identical" if identical else test.decision,
        )

    @cached_property
    def cost(self) -> Cost:
        """Parameters, multiply-adds and latency of the original."""
        return measure_cost(self.policy)

    @cached_property
    def own(self) -> States:
        """States of the original's play."""
        return own_states(self.env, self.policy, self.config.states, self.seed)

    @cached_property
    def rounding(self) -> float:
        """Largest relative difference of the original to itself in float64."""
        sources = [self.own] if self.heldout is None else [self.own, self.heldout]
        return max(rounding(self.policy, states) for states in sources)

    @cached_property
    def consecutive(self) -> States:
        """Consecutive steps of the original: as many as the test vectors need, more for a recurrent policy."""
        count = NUM_STEPS if self.interface.state_shape is None else CONSECUTIVE_STEPS
        return consecutive_states(self.env, self.policy, count, self.seed)

    @cached_property
    def heldout(self) -> States | None:
        """Held-out observations of the dataset, which are those of the teacher's play."""
        dataset = self.dataset
        if dataset is None or dataset.spec.obs_shape != self.policy.spec.obs_shape or not dataset.heldout.any():
            return None
        rows = np.flatnonzero(dataset.heldout)[: self.config.states]
        return states_of(self.policy, dataset.observations(rows))

    @cached_property
    def original(self) -> Episodes:
        """Episodes of the original."""
        return self.play(self.policy)

    @cached_property
    def random(self) -> Episodes:
        """Episodes of random play."""
        return self.play(None)

    def play(self, policy: Policy | None) -> Episodes:
        """Play the episodes of the certificate."""
        return play(self.env, policy, self.config.episodes, PlayConfig(self.seed), progress=self.progress)


def onnx_latency(runtime: OnnxRuntime) -> dict[str, float]:
    """Return p50 and p99 of one decision in onnxruntime, in microseconds."""
    parts = runtime.spec.entries.items()
    feed = {key or "obs": np.zeros((1, *part.shape), part.dtype) for key, part in parts}
    if runtime.state_shape is not None:
        feed["state_in"] = np.zeros((1, *runtime.state_shape), np.float32)
    return measure_latency(lambda: runtime.session.run(None, feed), WARM_UP_CALLS, CALLS, MAX_SECONDS)


def c_latency(folder: Path, spec: PolicySpec, flags: tuple[str, ...], macs: int) -> dict[str, float]:
    """Return p50 and p99 of one decision of the compiled source in `folder`, in microseconds."""
    repeat = max(1, 20_000 // max(macs, 1))  # a clock is read once for some microseconds of work
    calls = max(20, min(CALLS, 400_000_000 // max(macs * repeat, 1)))
    names, action_type = input_names(spec.entries), "int64_t" if spec.head.discrete else "float"
    inputs = {names[key]: (TYPES[part.dtype], max(math.prod(part.shape), 1)) for key, part in spec.entries.items()}
    text = render("benchmark.c", inputs=inputs, action_type=action_type, calls=calls, repeat=repeat)
    with tempfile.TemporaryDirectory() as temporary:
        source, binary = Path(temporary) / "benchmark.c", Path(temporary) / "benchmark"
        source.write_text(text, encoding="utf-8")
        for name in ("student.c", "student.h"):  # copied, since other files of the folder may hide the system's headers
            shutil.copy(folder / name, temporary)
        compile_c([Path(temporary) / "student.c", source], binary, flags)
        result = subprocess.run([str(binary)], capture_output=True, text=True, timeout=120, check=True)
    return percentiles([float(line) / 1e3 for line in result.stdout.split()])


def flash_bytes(folder: Path) -> dict[str, int]:
    """Return the size of code and constants by processor, compiled for size: of a Cortex-M4, or of this machine."""
    arm = shutil.which("arm-none-eabi-gcc") is not None and shutil.which("arm-none-eabi-size") is not None
    processor = "cortex-m4" if arm else platform.machine()
    command = ["arm-none-eabi-gcc", "-mcpu=cortex-m4", "-mthumb"] if arm else [str(compiler())]
    measure = "arm-none-eabi-size" if arm else "size"
    if shutil.which(measure) is None:
        return {}
    with tempfile.TemporaryDirectory() as temporary:
        output = Path(temporary) / "student.o"
        command += ["-std=c99", "-Os", "-c", str(folder / "student.c"), "-o", str(output)]
        if subprocess.run(command, check=False, capture_output=True, timeout=300).returncode:
            return {}  # a compiler without the C library
        result = subprocess.run([measure, str(output)], capture_output=True, text=True, check=True, timeout=60)
    text, data = map(int, result.stdout.splitlines()[1].split()[:2])
    return {processor: text + data}
