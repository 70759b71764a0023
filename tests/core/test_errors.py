"""Errors and their messages."""

from __future__ import annotations

import copy
import pickle

import pyarrow as pa
import pytest

from rldistill.core import errors
from rldistill.core.errors import (
    ConfigError,
    MissingExtraError,
    RLDistillError,
    did_you_mean,
    error_text,
    short_repr,
    user_code,
)


def subclasses(kind: type[RLDistillError]) -> list[type[RLDistillError]]:
    return [kind, *(leaf for sub in kind.__subclasses__() for leaf in subclasses(sub))]


ERRORS = [kind for kind in subclasses(RLDistillError) if kind.__module__.startswith("rldistill.")]
MESSAGES = ["", "short", "line\nline", "\x1b[2J" * 400, "a" * 5_000]


@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize("message", MESSAGES, ids=["empty", "short", "lines", "control", "long"])
def test_errors_survive_other_processes(kind: type[RLDistillError], message: str) -> None:
    error = kind(message, "extra") if issubclass(kind, MissingExtraError) else kind(message)  # type: ignore[call-arg]
    for other in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(other) is kind
        assert str(other) == str(error)
        assert vars(other) == vars(error)


def test_errors_of_the_package_are_in_the_list() -> None:
    assert {kind.__name__ for kind in ERRORS} >= {name for name in vars(errors) if name.endswith("Error")}


def test_messages_are_short_and_printable() -> None:
    message = str(ConfigError("\x1b" * 2_000 + "end\nof it"))
    assert len(message) <= errors.MAX_MESSAGE_CHARS
    assert message.startswith("\\x1b\\x1b")
    assert message.endswith("end\nof it")
    assert " ... " in message
    assert str(ConfigError("x" * errors.MAX_MESSAGE_CHARS)) == "x" * errors.MAX_MESSAGE_CHARS


def test_missing_extra_names_the_installation() -> None:
    assert str(MissingExtraError("Reading ONNX", "export")) == (
        "Reading ONNX needs an optional dependency. Install it: pip install 'rldistill[export]'"
    )


def test_untrusted_values_are_shortened() -> None:
    endless: list[object] = []
    endless.append(endless)
    for value in ("x" * 10_000, [[[[1]]]] * 1_000, endless, dict.fromkeys(range(1_000)), 10**5_000, [10**5_000]):
        assert len(short_repr(value)) < 300
    assert short_repr([1, "a"]) == "[1, 'a']"


def test_compiled_libraries_are_no_code_of_the_user() -> None:
    with pytest.raises(pa.ArrowInvalid) as error:
        pa.scalar("a").cast(pa.int64())
    frames = [entry.frame.code.raw.co_filename for entry in error.traceback]
    assert frames[-1].endswith(".pxi")  # of Cython
    assert user_code(error.value) == "test_compiled_libraries_are_no_code_of_the_user"


def test_errors_of_other_libraries_become_one_line() -> None:
    assert error_text(ValueError("two\n  lines")) == "two lines"
    assert error_text(KeyError()) == "KeyError"
    assert len(error_text(ValueError("x" * 1_000))) == 300


def test_nearest_name_is_suggested_in_any_case() -> None:
    assert did_you_mean("Forward_KI", ["forward_kl", "entropy"]) == " Did you mean 'forward_kl'?"
    assert did_you_mean("xyz", ["forward_kl", "entropy"]) == ""
