"""Examples of each command, which `--help` shows."""

from importlib import resources

TEXT = (resources.files("rldistill.cli") / "examples.txt").read_text("utf-8").rstrip()
EXAMPLES = dict(block.split(":\n", 1) for block in TEXT.split("\n\n"))
"""Three lines for each command."""


def examples_of(command: str) -> str:
    """Return the examples of a command for the end of its help; empty if it has none."""
    # Paragraphs that begin with a backspace keep their lines.
    return f"\b\nExamples:\n{EXAMPLES[command]}" if command in EXAMPLES else ""
