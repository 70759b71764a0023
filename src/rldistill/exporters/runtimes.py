"""Exported files as policies, so that they are compared and play like any other policy."""

import ctypes
import dataclasses
import json
import math
import shutil
import subprocess
import tempfile
import threading
import weakref
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rldistill.core.entries import first_entry
from rldistill.core.errors import CorruptArtifactError, error_text
from rldistill.core.policy import Policy, PolicyOutput
from rldistill.core.spec import Obs, PolicySpec
from rldistill.exporters.javascript import read_program
from rldistill.exporters.onnx import params_names
from rldistill.exporters.texts import read_text
from rldistill.exporters.vectors import raw_entries
from rldistill.teachers.onnx import open_session, read_model

C_FLAGS = ("-std=c99", "-Wall", "-Wextra", "-pedantic", "-Werror")
COMPILE_TIMEOUT_S, ANSWER_TIMEOUT_S = 300, 60
Arrays = dict[str, NDArray[Any]]
StateArray = NDArray[np.float32] | None
Answer = tuple[NDArray[Any], NDArray[np.float32], StateArray]
"""Actions, parameters of the head, and next states."""


@dataclass(frozen=True)
class ExportedOutput(PolicyOutput):
    """Output with the action that the exported file chose."""

    action: Tensor = dataclasses.field(default_factory=lambda: torch.empty(0))

    def mode(self) -> Tensor:
        """Return the action of the exported file."""
        return self.action


@dataclass(frozen=True)
class Interface:
    """Observations, head and shape of the state of an exported policy; no state if it is feed-forward."""

    spec: PolicySpec
    state_shape: tuple[int, ...] | None = None

    @classmethod
    def of(cls, policy: Policy) -> "Interface":
        """Return the interface of a policy."""
        initial = policy.initial_state(1)
        return cls(policy.spec, None if initial is None else tuple(initial.shape[1:]))

    @property
    def action_dtype(self) -> str:
        """Type of the numbers of an action."""
        return "int64" if self.spec.head.discrete else "float32"

    @property
    def state_size(self) -> int:
        """Number of the numbers of the state."""
        return 0 if self.state_shape is None else math.prod(self.state_shape)


class ExportedPolicy(ABC):
    """Policy that runs in another runtime."""

    def __init__(self, interface: Interface) -> None:
        self.interface, self.spec, self.state_shape = interface, interface.spec, interface.state_shape

    def initial_state(self, batch_size: int) -> Tensor | None:
        """Return zeros, or None for a feed-forward policy."""
        return None if self.state_shape is None else torch.zeros(batch_size, *self.state_shape)

    def __call__(self, obs: Obs, state: Tensor | None = None) -> tuple[PolicyOutput, Tensor | None]:
        """Return the output for observations `[B, ...]`, and the next state."""
        if self.state_shape is not None and state is None:
            state = self.initial_state(len(first_entry(obs)))
        before = None if state is None else state.numpy().astype(np.float32)
        action, params, after = self.run(raw_entries(obs, self.spec), before)
        output = ExportedOutput(self.spec.head, torch.from_numpy(params), action=torch.from_numpy(action))
        return output, None if after is None else torch.from_numpy(after)

    @abstractmethod
    def run(self, entries: Arrays, state: StateArray) -> Answer:
        """Return actions, parameters of the head, and next states for a batch of observations."""


class OnnxRuntime(ExportedPolicy):
    """Model in onnxruntime, on one thread."""

    def __init__(self, interface: Interface, path: Path) -> None:
        super().__init__(interface)
        self._path = path
        content, _ = read_model(path, interface.spec)
        self.session = open_session(path, content)
        self._params = params_names(interface.spec.head)
        self._outputs = ["action", *self._params, *(["state_out"] if self.state_shape is not None else [])]

    def run(self, entries: Arrays, state: StateArray) -> Answer:
        """Run the model on a batch."""
        inputs = entries if state is None else {**entries, "state_in": state}
        try:
            action, *rest = self.session.run(self._outputs, inputs)
            after = rest.pop() if state is not None else None
            params = np.concatenate(rest, 1)
            size = len(next(iter(entries.values())))
            if action.shape != (size, *self.spec.head.action_shape) or params.shape != (
                size,
                self.spec.head.num_params,
            ):
                raise ValueError(f"actions of shape {action.shape} and parameters of shape {params.shape}")
        except Exception as error:  # onnxruntime has no base class of errors
            problem = f"not the model of this certificate ({error_text(error)})"
            raise CorruptArtifactError(f"{self._path}: {problem}. Export it again.") from None
        return action, params, after


class CRuntime(ExportedPolicy):
    """Compiled C source, one observation after the other."""

    def __init__(self, interface: Interface, folder: Path, ram: int, flags: tuple[str, ...] = ("-O2",)) -> None:
        super().__init__(interface)
        build = Path(tempfile.mkdtemp(prefix="rldistill-"))
        weakref.finalize(self, shutil.rmtree, build, ignore_errors=True)
        compile_c([folder / "student.c"], build / "student.so", ("-shared", "-fPIC", *flags))
        self._library = ctypes.CDLL(str(build / "student.so"))
        self._struct = np.zeros(ram // 4, np.float32)

    def run(self, entries: Arrays, state: StateArray) -> Answer:
        """Run the function on each observation of a batch."""
        size = len(next(iter(entries.values())))
        actions = np.zeros((size, max(1, math.prod(self.spec.head.action_shape))), self.interface.action_dtype)
        params = np.zeros((size, self.spec.head.num_params), np.float32)
        states = self.interface.state_size
        after = None if state is None else np.zeros_like(state)
        for row in range(size):
            if state is not None:
                self._struct[:states] = state[row].ravel()
            arrays = [np.ascontiguousarray(entries[key or "obs"][row]) for key in self.spec.entries]
            pointers = [
                ctypes.c_void_p(array.ctypes.data) for array in (self._struct, *arrays, actions[row], params[row])
            ]
            self._library.policy_step(*pointers)
            if after is not None:
                after[row] = self._struct[:states].reshape(after.shape[1:])
        return actions.reshape(size, *self.spec.head.action_shape), params, after


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
    """The JavaScript of an exported page, in a process of Node that answers line by line."""

    def __init__(self, interface: Interface, path: Path) -> None:
        super().__init__(interface)
        folder = Path(tempfile.mkdtemp(prefix="rldistill-"))
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        (folder / "run.js").write_text(read_text("policy.js") + read_text("run.js"), encoding="utf-8")
        self._errors = folder / "errors.txt"
        with self._errors.open("w", encoding="utf-8") as errors:
            self._process = subprocess.Popen(
                ["node", str(folder / "run.js")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        weakref.finalize(self, _stop, self._process)
        self._path = path
        if read_text("policy.js") not in path.read_text("ascii", "replace"):
            raise CorruptArtifactError(f"{path}: its script is not the one of this version. Export again.")
        self._ask(read_program(path))

    def run(self, entries: Arrays, state: StateArray) -> Answer:
        """Run the policy on each observation of a batch."""
        size = len(next(iter(entries.values())))
        results = []
        for row in range(size):
            observation = {name: values[row].ravel().tolist() for name, values in entries.items()}
            before = None if state is None else state[row].ravel().tolist()
            results.append(self._ask({"observation": observation, "state": before}))
        actions = np.array([result["action"] for result in results], self.interface.action_dtype)
        params = np.array([result["params"] for result in results], np.float32)
        after = None if state is None else np.array([result["state"] for result in results], np.float32)
        shaped = actions.reshape(size, *self.spec.head.action_shape)
        return shaped, params, None if after is None or state is None else after.reshape(state.shape)

    def _ask(self, request: dict[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        limit = threading.Timer(ANSWER_TIMEOUT_S, self._process.kill)  # a tree in a foreign page may have no end
        limit.start()
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            return json.loads(self._process.stdout.readline())
        except (OSError, ValueError):
            reason = self._errors.read_text("utf-8").strip()[-200:]
            reason = reason or "no answer"
            raise CorruptArtifactError(f"{self._path}: Node refuses it ({reason}). Export again.") from None
        finally:
            limit.cancel()


def _stop(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()
