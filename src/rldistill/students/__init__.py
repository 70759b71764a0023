"""Students: each a config whose `build` makes the network."""

from rldistill.students.cnn import Cnn
from rldistill.students.keras import Keras
from rldistill.students.linear import Linear
from rldistill.students.mlp import Mlp

AnyStudent = Linear | Mlp | Cnn | Keras
STUDENTS: dict[str, type[AnyStudent]] = {"linear": Linear, "mlp": Mlp, "cnn": Cnn, "keras": Keras}

__all__ = ["STUDENTS", "AnyStudent", "Cnn", "Keras", "Linear", "Mlp"]
