"""Files of each export format, and how they run; the networks of a team have one ONNX file each."""

import shutil
from collections.abc import Collection, Sequence
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

import torch

from rldistill.core.errors import CorruptArtifactError, MissingExtraError
from rldistill.exporters.config import Format
from rldistill.exporters.runtimes import (
    Answer,
    Arrays,
    CRuntime,
    ExportedPolicy,
    Interface,
    NodeRuntime,
    OnnxRuntime,
    StateArray,
    compiler,
)
from rldistill.exporters.sb3 import Sb3Runtime
from rldistill.policies.joint import IDENTITY, AgentView, JointPolicy, agent_views
from rldistill.teachers.onnx import open_session, read_model

FILES: dict[Format, tuple[str, ...]] = {
    "onnx": ("student.onnx",),
    "int8": ("student.int8.onnx",),
    "c": ("student.c", "student.h", "student_test.c"),
    "html": ("student.html",),
    "sb3": ("student.zip",),
    "agents": (),
}
"""Files by format; those of `agents` have the names of the networks."""
PATTERN = "agents.*.onnx"


def require_packages(formats: Sequence[Format]) -> None:
    """Raise MissingExtraError unless the packages of all formats are installed."""
    needed = dict.fromkeys(("onnx", "int8", "agents"), ("onnx", "onnxruntime"))
    for name in formats:
        if any(find_spec(package) is None for package in needed.get(name, ())):
            raise MissingExtraError(f"The export format {name}", "export")


def missing_tool(name: Format) -> str | None:
    """Return the reason why a format cannot run on this machine; None if it can."""
    if name == "c" and compiler() is None:
        return "not compiled: there is no C compiler. Install gcc or clang."
    if name == "html" and shutil.which("node") is None:
        return "not run: there is no Node. Open the page and check its test vectors."
    return None


def open_runtime(
    name: Format, folder: Path, interface: Interface, files: Collection[str], ram: int = 0, trusted: bool = True
) -> ExportedPolicy:
    """Return the exported policy of a format, of these files; `ram` is the size of the struct of the C source.

    The C source is always run; of an SB3 zip that is not `trusted`, no code is.

    Raises:
        CorruptArtifactError: The file does not load or compile.
    """
    if name == "agents":
        return AgentsRuntime(interface, folder, files)
    path = folder / FILES[name][0]
    if name == "c":
        return CRuntime(interface, folder, ram)
    if name == "html":
        return NodeRuntime(interface, path)
    return Sb3Runtime(interface, path, trusted) if name == "sb3" else OnnxRuntime(interface, path)


def file_of(network: str) -> str:
    """Return the name of the file of a network, which is called by its agent, by the type of its agents, or `all`."""
    return f"agents.{quote(network, safe='')}.onnx"


class AgentsRuntime(ExportedPolicy):
    """Files of the networks of a team, each of which acts for its agents on their own observations."""

    def __init__(self, interface: Interface, folder: Path, files: Collection[str]) -> None:
        super().__init__(interface)
        groups: dict[str, list[str]] = {}
        for agent in interface.spec.agents:
            file = next((path for path in map(file_of, agent.keys) if path in files), None)
            if file is None:
                raise CorruptArtifactError(f"{folder}: there is no file for {agent.name}. Export again.")
            groups.setdefault(file, []).append(agent.name)
        plain, numbered = (
            {view.agent.name: view for view in agent_views(interface.spec, [*groups.values()], identity)}
            for identity in (False, True)
        )
        views, members = dict[str, AgentView](), dict[str, ExportedPolicy]()
        for file, agents in groups.items():
            content, _ = read_model(folder / file, numbered[agents[0]].spec)
            shapes = {entry.name: entry.shape for entry in open_session(folder / file, content).get_inputs()}
            own = numbered if IDENTITY in shapes else plain
            state = tuple(shapes["state_in"][1:]) if "state_in" in shapes else None
            runtime = OnnxRuntime(Interface(own[agents[0]].spec, state), folder / file)
            views |= {agent: own[agent] for agent in agents}
            members |= dict.fromkeys(agents, runtime)
        names = [agent.name for agent in interface.spec.agents]
        self._joint = JointPolicy(tuple(views[name] for name in names), tuple(members[name] for name in names))

    def run(self, entries: Arrays, state: StateArray) -> Answer:
        """Run the network of each agent."""
        tensors = {name: torch.from_numpy(values) for name, values in entries.items()}
        output, after = self._joint(tensors, None if state is None else torch.from_numpy(state))
        return output.mode().numpy(), output.params.numpy(), None if after is None else after.numpy()
