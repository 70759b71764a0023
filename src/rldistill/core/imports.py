"""`module:Name`, as a person writes it in a run file or on the command line; never as a downloaded file has it."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from rldistill.core.errors import ConfigError, did_you_mean


def look_here() -> None:
    """Let modules be found in the working directory, as `python -m` does."""
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)


def import_name(name: str, where: str) -> Any:
    """Return the object at `module:Name`; raise ConfigError, which starts with `where`, if there is none."""
    module, _, attribute = name.partition(":")
    look_here()
    try:
        place = importlib.import_module(module)
    except Exception as error:  # the module of a user may raise any error
        raise ConfigError(f"{where}: {name}: cannot be imported ({error})") from error
    if not hasattr(place, attribute):
        raise ConfigError(f"{where}: there is no {attribute!r} in {module}.{did_you_mean(attribute, dir(place))}")
    return getattr(place, attribute)
