"""Students: each a config whose `build` makes the network."""

from rldistill.students.cnn import Cnn
from rldistill.students.impala import Impala
from rldistill.students.keras import Keras
from rldistill.students.linear import Linear
from rldistill.students.mlp import Mlp

AnyStudent = Linear | Mlp | Cnn | Impala | Keras
STUDENTS: dict[str, type[AnyStudent]] = {"linear": Linear, "mlp": Mlp, "cnn": Cnn, "impala": Impala, "keras": Keras}

__all__ = ["STUDENTS", "AnyStudent", "Cnn", "Impala", "Keras", "Linear", "Mlp"]
