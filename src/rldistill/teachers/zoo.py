"""Teachers that ship with the package."""

from importlib import resources
from typing import Any

from rldistill.core.errors import ConfigError, did_you_mean
from rldistill.core.policy import Policy
from rldistill.io.atomic import unseal
from rldistill.students.storage import DOCUMENT, TENSORS, load_native

ZOO = "zoo:"


def zoo_names() -> list[str]:
    """Return the names of the teachers."""
    zoo = resources.files("rldistill") / "zoo"
    return sorted(entry.name for entry in zoo.iterdir() if (entry / DOCUMENT).is_file())


def zoo_documents(file: str = DOCUMENT) -> dict[str, Any]:
    """Return the content of `policy.json`, or of another file beside it, for each teacher."""
    zoo = resources.files("rldistill") / "zoo"
    return {name: unseal((zoo / name / file).read_bytes()) for name in zoo_names()}


def zoo_kilobytes(name: str) -> int:
    """Return the size of the weights of a teacher in kB."""
    return round(len((resources.files("rldistill") / "zoo" / name / TENSORS).read_bytes()) / 1000)


def load_zoo(path: str) -> Policy:
    """Load the teacher `zoo:NAME`; raise ConfigError, with the nearest name, if there is none."""
    name = path.removeprefix(ZOO)
    if name not in zoo_names():
        known = zoo_names()
        raise ConfigError(f"teacher: the zoo has no {name!r}.{did_you_mean(name, known)} Known: {', '.join(known)}.")
    with resources.as_file(resources.files("rldistill") / "zoo" / name) as folder:
        return load_native(folder)
