"""Students: configurations whose `build` returns a network."""

from typing import Annotated

from rldistill.core.fields import OneOf
from rldistill.students.cnn import Cnn, Impala
from rldistill.students.gru import Gru
from rldistill.students.keras import Keras
from rldistill.students.linear import Linear, Ridge
from rldistill.students.mlp import Mlp
from rldistill.students.multi_input import MultiInput
from rldistill.students.multi_task import MultiTask
from rldistill.students.student import Student
from rldistill.students.team import MEMBERS, Team
from rldistill.students.tree import Tree

STUDENTS: dict[str, type] = {
    "linear": Linear,
    "mlp": Mlp,
    "cnn": Cnn,
    "gru": Gru,
    "impala": Impala,
    "multi_input": MultiInput,
    "ridge": Ridge,
    "tree": Tree,
    "keras": Keras,
}
MEMBERS.update({name: kind for name, kind in STUDENTS.items() if kind is not Keras})
STUDENTS |= {"team": Team, "multi_task": MultiTask}
AnyStudent = Annotated[
    Linear | Mlp | Cnn | Gru | Impala | MultiInput | Ridge | Tree | Keras | Team | MultiTask,
    OneOf("type", STUDENTS, methods=("build",)),
]

__all__ = [
    "STUDENTS", "AnyStudent", "Cnn", "Gru", "Impala", "Keras", "Linear", "Mlp", "MultiInput", "MultiTask", "Ridge",
    "Student", "Team", "Tree",
]  # fmt: skip
