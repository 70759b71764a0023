"""Refusals of files that hold more than a state dict, each with its remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rldistill.core.errors import UntrustedFileError
from rldistill.io.state_dicts import read_state_dict


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"epoch": 3, "model": torch.nn.Linear(2, 2).state_dict()}, r"torch\.load\(FILE\)\['model'\]"),
        ({"epoch": 3}, r"torch\.save\(network\.state_dict\(\), FILE\)"),
        (torch.nn.Linear(2, 2), r"torch\.save\(network\.state_dict\(\), FILE\)"),
    ],
    ids=["a checkpoint", "numbers", "a whole network"],
)
def test_refusal_of_other_objects_names_the_remedy(content: Any, words: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "agent.pt")
    with pytest.raises(UntrustedFileError, match=rf"agent\.pt: the file holds more than tensors.*{words}"):
        read_state_dict(tmp_path / "agent.pt")
