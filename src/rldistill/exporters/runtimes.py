"""Exported files as policies, so that they are compared and play like any other policy."""

from __future__ import annotations

import ctypes
import dataclasses
import json
import shutil
import subprocess
import tempfile
import weakref
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rldistill.core.errors import CorruptArtifactError, error_text
from rldistill.core.policy import PolicyOutput
from rldistill.core.spec import Obs, PolicySpec
from rldistill.exporters.javascript import program_json, runtime
from rldistill.exporters.onnx import params_names
from rldistill.exporters.program import Program
from rldistill.exporters.vectors import raw_entries

C_FLAGS = ("-std=c99", "-Wall", "-Wextra", "-pedantic", "-Werror")
COMPILE_TIMEOUT_S = 300


@dataclass(frozen=True)
class ExportedOutput(PolicyOutput):
    """Output with the action that the exported file chose."""

    action: Tensor = dataclasses.field(default_factory=lambda: torch.empty(0))

    def mode(self) -> Tensor:
        """Return the action of the exported file."""
        return self.action


class ExportedPolicy(ABC):
    """Policy that runs in another runtime."""

    def __init__(self, program: Program) -> None:
        self.spec: PolicySpec = program.spec
        self.state_shape = None if program.state is None else program.state.shape
        self.action_shape = program.action.shape

    def initial_state(self, batch_size: int) -> Tensor | None:
        """Return zeros, or None for a feed-forward policy."""
        return None if self.state_shape is None else torch.zeros(batch_size, *self.state_shape)

    def __call__(self, obs: Obs, state: Tensor | None = None) -> tuple[PolicyOutput, Tensor | None]:
        """Return the output for observations `[B, ...]`, and the next state."""
        if self.state_shape is not None and state is None:
            state = self.initial_state(len(next(iter(obs.values())) if isinstance(obs, dict) else obs))
        before = None if state is None else state.numpy().astype(np.float32)
        action, params, after = self.run(raw_entries(obs, self.spec), before)
        output = ExportedOutput(self.spec.head, torch.from_numpy(params), action=torch.from_numpy(action))
        return output, None if after is None else torch.from_numpy(after)

    @abstractmethod
    def run(
        self, entries: dict[str, NDArray[Any]], state: NDArray[np.float32] | None
    ) -> tuple[NDArray[Any], NDArray[np.float32], NDArray[np.float32] | None]:
        """Return actions, parameters of the head, and next states for a batch of observations."""


class OnnxRuntime(ExportedPolicy):
    """Model in onnxruntime, on one thread."""

    def __init__(self, program: Program, content: bytes) -> None:
        import onnxruntime

        super().__init__(program)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            self.session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has no base class of errors
            raise CorruptArtifactError(f"onnxruntime refuses the model ({error_text(error)}). Export it again.") from None
        self._params = params_names(program)
        self._outputs = ["action", *self._params, *(["state_out"] if self.state_shape is not None else [])]

    def run(
        self, entries: dict[str, NDArray[Any]], state: NDArray[np.float32] | None
    ) -> tuple[NDArray[Any], NDArray[np.float32], NDArray[np.float32] | None]:
        """Run the model on a batch."""
        inputs = entries if state is None else {**entries, "state_in": state}
        action, *rest = self.session.run(self._outputs, inputs)
        after = rest.pop() if state is not None else None
        return action, np.concatenate(rest, 1), after


class CRuntime(ExportedPolicy):
    """Compiled C source, one observation after the other."""

    def __init__(self, program: Program, folder: Path, flags: tuple[str, ...] = ("-O2",)) -> None:
        super().__init__(program)
        self._build = Path(tempfile.mkdtemp(prefix="rldistill-"))
        weakref.finalize(self, shutil.rmtree, self._build, ignore_errors=True)
        library = self._build / "student.so"
        compile_c([folder / "student.c"], library, ("-shared", "-fPIC", *flags))
        self._library = ctypes.CDLL(str(library))
        self._num_params = program.params.size
        self._action = np.zeros(max(program.action.size, 1), program.action.dtype)
        state = 0 if self.state_shape is None else int(np.prod(self.state_shape))
        self._state_size = state
        # More than the struct needs: its size is known to the compiler only.
        self._struct = np.zeros(state + sum(node.size for node in program.nodes) + 4_096, np.float32)

    def run(
        self, entries: dict[str, NDArray[Any]], state: NDArray[np.float32] | None
    ) -> tuple[NDArray[Any], NDArray[np.float32], NDArray[np.float32] | None]:
        """Run the function on each observation of a batch."""
        size = len(next(iter(entries.values())))
        actions = np.zeros((size, *self._action.shape), self._action.dtype)
        params = np.zeros((size, self._num_params), np.float32)
        after = None if state is None else np.zeros_like(state)
        for row in range(size):
            if state is not None:
                self._struct[: self._state_size] = state[row].ravel()
            arrays = [np.ascontiguousarray(entry[row]) for entry in entries.values()]
            pointers = [ctypes.c_void_p(array.ctypes.data) for array in (self._struct, *arrays, actions[row], params[row])]
            self._library.policy_step(*pointers)
            if after is not None:
                after[row] = self._struct[: self._state_size].reshape(after.shape[1:])
        return actions.reshape(size, *self.action_shape), params, after


def compiler() -> str | None:
    """Return the path of a C compiler; None if there is none."""
    return next(filter(None, map(shutil.which, ("gcc", "cc", "clang"))), None)


def compile_c(sources: list[Path], output: Path, flags: tuple[str, ...]) -> None:
    """Compile C99 sources without any warning.

    Raises:
        CorruptArtifactError: The compiler refuses them.
    """
    command = [str(compiler()), *C_FLAGS, *flags, *map(str, sources), "-o", str(output), "-lm"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_TIMEOUT_S, check=False)
    if result.returncode:
        first = next((line for line in result.stderr.splitlines() if "error" in line), result.stderr[:200])
        raise CorruptArtifactError(f"{sources[0]}: the C compiler refuses it ({first}). Export it again.")


class NodeRuntime(ExportedPolicy):
    """The JavaScript of an exported page, in Node."""

    def __init__(self, program: Program) -> None:
        super().__init__(program)
        self._recurrent = self.state_shape is not None
        self._script = runtime() + NODE_SCRIPT
        self._program = program_json(program)
        self._action_dtype = program.action.dtype

    def run(
        self, entries: dict[str, NDArray[Any]], state: NDArray[np.float32] | None
    ) -> tuple[NDArray[Any], NDArray[np.float32], NDArray[np.float32] | None]:
        """Run the policy on each observation of a batch."""
        size = len(next(iter(entries.values())))
        steps = [{name: values[row].ravel().tolist() for name, values in entries.items()} for row in range(size)]
        states = None if state is None else state.reshape(size, -1).tolist()
        request = json.dumps({"program": self._program, "steps": steps, "states": states})
        with tempfile.TemporaryDirectory() as folder:
            script = Path(folder) / "run.js"
            script.write_text(self._script, encoding="utf-8")
            result = subprocess.run(
                ["node", str(script)], input=request, capture_output=True, text=True, check=False, timeout=600
            )
        if result.returncode:
            raise CorruptArtifactError(f"student.html: Node refuses it ({result.stderr.strip()[-200:]}). Export again.")
        results = json.loads(result.stdout)
        actions = np.array([step["action"] for step in results], self._action_dtype).reshape(size, *self.action_shape)
        params = np.array([step["params"] for step in results], np.float32)
        after = None if state is None else np.array([step["state"] for step in results], np.float32)
        return actions, params, None if after is None or state is None else after.reshape(state.shape)


NODE_SCRIPT = """
const { program, steps, states } = JSON.parse(require("fs").readFileSync(0, "utf8"));
const policy = new Policy(program);
const results = steps.map((step, i) => {
  policy.reset();
  if (states) policy.state = Float32Array.from(states[i]);
  const result = policy.step(step);
  return { ...result, state: [...policy.state] };
});
console.log(JSON.stringify(results));
"""
