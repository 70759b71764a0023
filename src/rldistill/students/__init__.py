"""Students: each a config whose `build` makes the network."""

from rldistill.students.cnn import Cnn
from rldistill.students.linear import Linear
from rldistill.students.mlp import Mlp

AnyStudent = Linear | Mlp | Cnn
STUDENTS: dict[str, type[AnyStudent]] = {"linear": Linear, "mlp": Mlp, "cnn": Cnn}

__all__ = ["STUDENTS", "AnyStudent", "Cnn", "Linear", "Mlp"]
