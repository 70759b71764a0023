"""Files that hold more than a state dict are refused with what to do instead."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rldistill.core.errors import UntrustedFileError
from rldistill.io.untrusted import read_state_dict


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({"epoch": 3, "model": torch.nn.Linear(2, 2).state_dict()}, r"torch\.load\(FILE\)\['model'\]"),
        ({"epoch": 3}, r"torch\.save\(network\.state_dict\(\), FILE\)"),
        (torch.nn.Linear(2, 2), r"torch\.save\(network\.state_dict\(\), FILE\)"),
    ],
    ids=["a checkpoint", "numbers", "a whole network"],
)
def test_what_to_save_instead_is_said(found: Any, words: str, tmp_path: Path) -> None:
    torch.save(found, tmp_path / "agent.pt")
    with pytest.raises(UntrustedFileError, match=rf"agent\.pt: the file holds more than tensors; .*{words}"):
        read_state_dict(tmp_path / "agent.pt")
