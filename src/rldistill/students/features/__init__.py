"""Features that linear students, ridges, mlps and trees take as input."""

from typing import Annotated

from rldistill.core.fields import OneOf
from rldistill.students.features.features import (
    CLIP_STD,
    Features,
    Fourier,
    RandomConv,
    RandomFourierFeatures,
    Raw,
    Standardized,
    Standardizer,
)  # fmt: skip
from rldistill.students.features.objects import Objects
from rldistill.students.features.teacher import TeacherFeatures

FEATURES: dict[str, type] = {
    "raw": Raw,
    "standardized": Standardized,
    "fourier": Fourier,
    "random_conv": RandomConv,
    "teacher": TeacherFeatures,
    "objects": Objects,
}
AnyFeatures = Annotated[
    Raw | Standardized | Fourier | RandomConv | TeacherFeatures | Objects,
    OneOf("type", FEATURES, methods=("build", "normalizes_itself", "standardized_for_weights")),
]

__all__ = [
    "CLIP_STD", "FEATURES", "AnyFeatures", "Features", "Fourier", "Objects", "RandomConv", "RandomFourierFeatures",
    "Raw", "Standardized", "Standardizer", "TeacherFeatures",
]  # fmt: skip
