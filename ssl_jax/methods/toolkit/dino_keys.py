"""Annotations of the keys that DINOv3 and its distillation share."""

from typing import Annotated

from ssl_jax.keys import COUNT, NOT_NEGATIVE, POSITIVE

LocalViews = Annotated[int, NOT_NEGATIVE, "Small crops of each image, beside the two large ones."]
Hidden = Annotated[tuple[int, ...], COUNT, "Widths of the hidden layers of the class tokens' head."]
Bottleneck = Annotated[int, COUNT, "Width of the head's output, which is compared with the prototypes."]
PatchHidden = Annotated[tuple[int, ...], COUNT, "Widths of the hidden layers of the patches' head."]
PatchBottleneck = Annotated[int, COUNT, "Width of the output of the patches' head."]
PatchWeight = Annotated[float, POSITIVE, "Weight of the patches' loss."]
MostMasked = Annotated[
    int,
    NOT_NEGATIVE,
    "Limit of masked patches in a view; this many pass the head. 0: no limit, and all patches pass.",
]
KoleoWeight = Annotated[float, NOT_NEGATIVE, "Weight of KoLeo."]
KoleoImages = Annotated[
    int,
    NOT_NEGATIVE,
    "Number of images, on any devices, among which a class token's nearest neighbor is sought; 0: the global batch.",
]
StudentTemperature = Annotated[float, POSITIVE, "Softmax temperature of the student's scores."]
TeacherTemperature = Annotated[float, POSITIVE, "Softmax temperature of the teacher's scores after the warm-up."]
FirstTemperature = Annotated[float, POSITIVE, "The teacher's temperature at the start."]
TemperatureEpochs = Annotated[
    int, NOT_NEGATIVE, "Epochs in which the teacher's temperature goes from its first value to its last."
]
