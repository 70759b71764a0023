"""Operations in C99, as the text of static functions."""

import re
from functools import cache

from rldistill.exporters.texts import read_text

LONG_SUM = 128
"""Number of inputs of a dense layer above which its sums are split, because rounding errors grow with the length."""

ACTIVATIONS = {
    "relu": "x > 0.0f ? x : 0.0f",
    "tanh": "tanhf(x)",
    "elu": "x > 0.0f ? x : expm1f(x)",
    "celu": "x > 0.0f ? x : expm1f(x)",
    "selu": "1.05070098f * (x > 0.0f ? x : 1.67326324f * expm1f(x))",
    "gelu": "0.5f * x * (1.0f + erff(x * 0.707106781f))",
    "silu": "x / (1.0f + expf(-x))",
    "mish": "x * tanhf(x > 20.0f ? x : log1pf(expf(x)))",
    "leakyrelu": "x > 0.0f ? x : 0.01f * x",
    "relu6": "fminf(fmaxf(x, 0.0f), 6.0f)",
    "sigmoid": "1.0f / (1.0f + expf(-x))",
    "softplus": "x > 20.0f ? x : log1pf(expf(x))",
    "softsign": "x / (1.0f + fabsf(x))",
    "hardtanh": "fminf(fmaxf(x, -1.0f), 1.0f)",
    "hardswish": "x * fminf(fmaxf(x + 3.0f, 0.0f), 6.0f) / 6.0f",
    "hardsigmoid": "fminf(fmaxf(x / 6.0f + 0.5f, 0.0f), 1.0f)",
    "logsigmoid": "x < 0.0f ? x - log1pf(expf(x)) : -log1pf(expf(-x))",
    "tanhshrink": "x - tanhf(x)",
    "softshrink": "x > 0.5f ? x - 0.5f : (x < -0.5f ? x + 0.5f : 0.0f)",
    "hardshrink": "fabsf(x) > 0.5f ? x : 0.0f",
    "cos": "cosf(x)",
    "log": "logf(x)",
    "negate": "-x",
}
"""Functions of one float `x`."""


@cache
def operations() -> dict[str, str]:
    """Return the text of each operation; `T` stands for the type of its input."""
    text = read_text("operations.c").replace("LENGTH", str(LONG_SUM))
    _, *parts = re.split(r"^//// (\w+)$", text, flags=re.MULTILINE)
    return {name: f"{part.rstrip()}\n" for name, part in zip(parts[::2], parts[1::2], strict=True)}
