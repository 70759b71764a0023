"""Run file in the folder of a run, `config.yaml`, which a user may have edited or moved."""

import shlex
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from rldistill.core.entries import walk
from rldistill.core.errors import CorruptArtifactError, RLDistillError, error_text
from rldistill.io.storage import local_folder
from rldistill.io.untrusted import MAX_YAML_BYTES, load_yaml, read_own

NAME = "config.yaml"


def read_settings(run: Path) -> dict[str, Any]:
    """Return the settings in a run's `config.yaml` by dotted keys; none without that file."""
    file = run / NAME
    try:
        text = read_own(file, MAX_YAML_BYTES).decode() if file.exists() else ""
        return dict(walk(load_yaml(text, yaml.SafeLoader) or {}, (dict,)))
    except (yaml.YAMLError, ValueError, RecursionError, OSError) as error:
        raise CorruptArtifactError(f"{file}: not valid YAML ({error_text(error)}). Was it edited?") from None


def command_arguments(run: Path) -> str:
    """Return the run file of a folder as arguments of a command, with `out` if the file names another folder.

    The file names another one after the folder was moved or copied, or when the working folder is another one.
    """
    out: Any = None
    with suppress(RLDistillError):
        out = local_folder(read_settings(run).get("out"))
    arguments = [str(run / NAME)]
    if isinstance(out, str | Path) and Path(out).expanduser().resolve() != run.resolve():
        arguments.append(override("out", str(run)))
    return shlex.join(arguments)


def override(key: str, text: str) -> str:
    """Return an override `key=text`, in quotes of YAML where the text alone would be another value."""
    value = yaml.safe_dump(text, width=10_000, allow_unicode=True).removesuffix("...\n").rstrip("\n")
    return f"{key}={value}"
