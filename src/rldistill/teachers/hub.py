"""Teachers in repositories of the Hugging Face Hub: `hub:OWNER/NAME`.

Only files that a reader of this package needs are fetched, and those readers treat them like any other file from
elsewhere: nothing in them is executed.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import PurePosixPath
from typing import Any

from rldistill.core.errors import ConfigError, UntrustedFileError
from rldistill.core.fields import add_working_directory
from rldistill.io.hub import Listing, download, list_repository
from rldistill.students.keras import FILE as KERAS
from rldistill.students.storage import DOCUMENT, TENSORS

HUB = "hub:"
PATH = re.compile(
    r"hub:(?P<repository>[\w.-]+/[\w.-]+)(?P<file>(?:/[\w.+=-]+)*)(?:@(?P<revision>[\w.-]+(?:/[\w.-]+)*))?"
)
AGENT = re.compile(r"[\w.+=-]+\.(zip|onnx|keras|cleanrl_model|pt|pth|safetensors)")
SETTINGS = re.compile(r"(config|args)\.yml|[\w.-]*normalize[\w.-]*\.pkl", re.IGNORECASE)
"""Files beside an agent that describe its environment; the moments are read without executing the pickle."""
NO_AGENTS = re.compile(r"train_eval_metrics\.zip|.*optimizer.*|.*replay_buffer.*")
"""Files of rl-baselines3-zoo and others with the suffix of an agent."""
MAX_NAMES = 8
REVISIONS: dict[str, str] = {}
"""Commits by path, resolved once in this process or recorded by a run."""
_fetched: dict[tuple[str, str | None], str] = {}


def is_hub(path: str) -> bool:
    """Return True for the path of a repository of the Hub; `hub:agent` may be that of a module `hub`."""
    if not path.startswith(HUB) or re.fullmatch(r"\w+(@.+)?", path.removeprefix(HUB)) is None:
        return path.startswith(HUB)
    add_working_directory()
    return find_spec("hub") is None


def local_path(path: str) -> str:
    """Return the path of a teacher on this machine; one of the Hub is fetched first.

    Raises:
        ConfigError: No such repository, revision or file, several agents, or no connection.
        UntrustedFileError: No agent that can be read, or one that is too large.
    """
    if not is_hub(path):
        return path
    key = path, REVISIONS.get(path)
    if key not in _fetched:
        found, commit = _fetch(*key)
        REVISIONS[path] = commit
        key = path, commit
        _fetched[key] = found
    return _fetched[key]


def commit_of(path: str) -> str:
    """Return the commit that a path of the Hub names, which is that of now without a commit in it."""
    local_path(path)
    return REVISIONS[path]


def hub_paths(value: Any) -> Iterator[str]:
    """Yield all paths of the Hub in a run, or a part of it."""
    if isinstance(value, str):
        yield from [value] if is_hub(value) else []
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from hub_paths(vars(value))
    elif isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from hub_paths(item)


def _fetch(path: str, commit: str | None) -> tuple[str, str]:
    """Return the path of the agent of a repository on this machine, and the commit."""
    match, where = PATH.fullmatch(path), f"teacher: {path}"
    if match is None or ".." in path:
        raise ConfigError(f"{where}: expected hub:OWNER/NAME[/FILE][@REVISION], as in hub:sb3/ppo-LunarLander-v2.")
    repository, wanted = match["repository"], match["file"].lstrip("/")
    listing = list_repository(repository, commit or match["revision"] or "main", where)
    agent, names = _select(listing, wanted, repository.partition("/")[2], where)
    return str(download(repository, listing, names, where) / agent), listing.commit


def _select(listing: Listing, wanted: str, name: str, where: str) -> tuple[str, list[str]]:
    """Return the path of the agent in a repository, and all files to fetch."""
    folder = str(PurePosixPath(wanted).parent if wanted in listing.files else PurePosixPath(wanted))
    here = {file.name: str(file) for file in map(PurePosixPath, listing.files) if str(file.parent) == folder}
    if not here:
        raise ConfigError(
            f"{where}: the repository has no {wanted or 'files'}. Its files: {_shortened(listing.files)}."
        )
    if wanted not in listing.files and DOCUMENT in here:
        return folder, [here[name] for name in (DOCUMENT, TENSORS, KERAS) if name in here]
    agents = [own for own in sorted(here) if AGENT.fullmatch(own) and not NO_AGENTS.fullmatch(own)]
    if wanted in listing.files:
        agents = [own for own in here if here[own] == wanted and AGENT.fullmatch(own)]
    elif f"{name}.zip" in agents:  # rl-baselines3-zoo gives it the name of the repository
        agents = [f"{name}.zip"]
    if not agents:
        formats = f"{DOCUMENT}, a Stable-Baselines3 zip, ONNX, Keras or a state dict"
        raise UntrustedFileError(f"{where}: no teacher that can be read. Found {_shortened(here)}; expected {formats}.")
    if len(agents) > 1:
        raise ConfigError(
            f"{where}: several files may be the teacher. Name one of {_shortened(agents)}, as in "
            f"{where.removeprefix('teacher: ').partition('@')[0]}/{agents[0]}."
        )
    return here[agents[0]], [here[agents[0]], *(here[own] for own in here if SETTINGS.fullmatch(own))]


def _shortened(names: Any) -> str:
    names = sorted(names)
    return ", ".join(names[:MAX_NAMES]) + (", ..." if len(names) > MAX_NAMES else "")
