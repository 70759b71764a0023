"""One ONNX file for each network of a team, and all of them as one policy."""

from collections.abc import Collection
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import torch
from numpy.typing import NDArray

from rldistill.core.errors import CorruptArtifactError
from rldistill.exporters.runtimes import ExportedPolicy, Interface, OnnxRuntime
from rldistill.policies.joint import IDENTITY, AgentView, JointPolicy, agent_views
from rldistill.teachers.onnx import open_session, read_model

PATTERN = "agents.*.onnx"


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

    def run(
        self, entries: dict[str, NDArray[Any]], state: NDArray[np.float32] | None
    ) -> tuple[NDArray[Any], NDArray[np.float32], NDArray[np.float32] | None]:
        """Run the network of each agent."""
        tensors = {name: torch.from_numpy(values) for name, values in entries.items()}
        output, after = self._joint(tensors, None if state is None else torch.from_numpy(state))
        return output.mode().numpy(), output.params.numpy(), None if after is None else after.numpy()
