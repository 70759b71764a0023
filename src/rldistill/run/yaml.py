"""Reading of run files in YAML."""

import re
from pathlib import Path
from typing import Any

import yaml

from rldistill.core.errors import ConfigError, did_you_mean, error_text, short_repr
from rldistill.io.untrusted import MAX_YAML_BYTES, load_yaml, read_regular


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, in which `2e-4` is a number, as in YAML 1.2, and a repeated key is an error."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.checked: set[int] = set()

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        # Once only: afterwards the node also holds the keys of a merged mapping (`<<: *base`), which it may repeat.
        if id(node) not in self.checked:
            self.checked.add(id(node))
            keys = [key.value for key, _ in node.value]
            repeated = next((key for key in keys if keys.count(key) > 1), None)
            if repeated is not None:
                problem = f"the key {repeated!r} is there twice"
                raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        super().flatten_mapping(node)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def parse_value(text: str, where: str) -> Any:
    """Return a value that is written in YAML; a ConfigError begins with `where`."""
    try:
        return load_yaml(text, _Loader)
    except yaml.MarkedYAMLError as error:
        line = f" line {error.problem_mark.line + 1}:" if error.problem_mark else ""
        raise ConfigError(f"{where}:{line} not valid YAML: {error.problem}") from None
    except RecursionError:
        raise ConfigError(f"{where}: nested too deeply. Use fewer levels.") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # an impossible date, a number of 5,000 digits
        raise ConfigError(f"{where}: not valid YAML: {error_text(error)}") from None


def read_yaml(file: Path) -> dict[str, Any]:
    """Return the content of a run file."""
    try:
        text = read_regular(file, MAX_YAML_BYTES).decode()
    except FileNotFoundError:
        neighbors = [str(path) for path in file.parent.glob("*.y*ml")] if file.parent.is_dir() else []
        raise ConfigError(f"{file}: there is no such file.{did_you_mean(str(file), neighbors)}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{file}: not text; expected a run file in YAML") from None
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read ({error.strerror})") from None
    document = _without_aliases(parse_value(text, str(file)))
    if not isinstance(document, dict):
        raise ConfigError(f"{file}: found {short_repr(document)}, expected keys such as env, teacher and students")
    return document


def _without_aliases(value: Any) -> Any:
    """Return a copy in which every alias is an object of its own, so that an override changes one place only."""
    if isinstance(value, dict):
        return {key: _without_aliases(entry) for key, entry in value.items()}
    return [_without_aliases(entry) for entry in value] if isinstance(value, list) else value
