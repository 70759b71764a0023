"""Students: configurations whose `build` returns a network."""

from rldistill.students.cnn import Cnn
from rldistill.students.gru import Gru
from rldistill.students.impala import Impala
from rldistill.students.keras import Keras
from rldistill.students.linear import Linear
from rldistill.students.mlp import Mlp
from rldistill.students.ridge import Ridge
from rldistill.students.student import Student
from rldistill.students.tree import Tree

AnyStudent = Linear | Mlp | Cnn | Gru | Impala | Ridge | Tree | Keras
STUDENTS: dict[str, type[AnyStudent]] = {
    "linear": Linear,
    "mlp": Mlp,
    "cnn": Cnn,
    "gru": Gru,
    "impala": Impala,
    "ridge": Ridge,
    "tree": Tree,
    "keras": Keras,
}

__all__ = ["STUDENTS", "AnyStudent", "Cnn", "Gru", "Impala", "Keras", "Linear", "Mlp", "Ridge", "Student", "Tree"]
