"""BipedalWalker policies of github.com/hardmaru/estool (MIT licence), found by evolution strategies.

`estool:walker@FILE.json` is a network of 24-40-40-4, with tanh after each layer. The file is a list of its 2,804
numbers, for each layer the weights `[inputs, outputs]`, then the bias, and of its score.
"""

import json
from itertools import pairwise
from pathlib import Path

import torch
from torch import nn

SIZES = (24, 40, 40, 4)


def walker(file: Path) -> nn.Sequential:
    """Return the network of a file."""
    numbers = torch.tensor(json.loads(file.read_text(encoding="utf-8"))[0])
    network = nn.Sequential()
    for inputs, outputs in pairwise(SIZES):
        layer = nn.Linear(inputs, outputs)
        weight, bias, numbers = numbers.split([inputs * outputs, outputs, len(numbers) - (inputs + 1) * outputs])
        layer.load_state_dict({"weight": weight.view(inputs, outputs).T, "bias": bias})
        network.extend([layer, nn.Tanh()])
    return network
