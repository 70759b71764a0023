"""Each command has three examples, whose options and arguments exist."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from rldistill.cli.main import app
from rldistill.cli.usage import EXAMPLES, examples_of


def commands(group: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", command


COMMANDS = dict(commands(typer.main.get_command(app)))


def test_all_commands_have_three_examples() -> None:
    assert {*EXAMPLES} == {*COMMANDS}
    assert all(len({*examples.splitlines()}) == 3 for examples in EXAMPLES.values())


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_are_valid(name: str) -> None:
    for example in EXAMPLES[name].splitlines():
        arguments = shlex.split(example.removeprefix(f"  rldistill {name.removesuffix(' policy')}").partition(">")[0])
        assert COMMANDS[name].make_context(name, arguments) is not None


def test_help_shows_the_examples_line_by_line() -> None:
    text = CliRunner().invoke(app, ["dataset", "extend", "--help"]).stdout
    assert "\n  Examples:\n    rldistill dataset extend cartpole.yaml --steps 10_000\n" in text
    assert examples_of("export policy").splitlines()[2] == "  rldistill export runs/pong --student linear"
    assert examples_of("none") == ""
