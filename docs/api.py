"""Write one API page for each module of rldistill: `python docs/api.py FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path

import pdoc

import rldistill


def module_names() -> list[str]:
    """Return the dotted names of all modules, the package first."""
    package = Path(rldistill.__file__).parent
    files = sorted(file for file in package.rglob("*.py") if file.name != "__main__.py")
    return [
        ".".join(file.relative_to(package.parent).with_suffix("").parts).removesuffix(".__init__") for file in files
    ]


if __name__ == "__main__":
    # Names are passed one by one, because pdoc skips submodules of a package that defines `__all__`.
    pdoc.pdoc(*module_names(), output_directory=Path(sys.argv[1]))
