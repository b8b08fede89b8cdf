"""Views by kind of image: what published self-supervised learning does to photos, satellite images, ..., as overlays.

`get_config("simclr:folder:satellite")` is simclr:folder with the views of satellite images. A kind says how views are
turned and how their values change. Their size and crop, KEPT, stay the method's. docs/views.md says how to choose.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from ssl_jax.config.errors import nearest, require

# Keys of a view that say what part of the image it is, and how fine.
KEPT = ("size", "crop_area", "crop_aspect", "shift", "shorter_side", "padding", "interpolation")
JITTERED = ("brightness", "contrast", "saturation", "hue", "gamma", "channel_mix", "channel_gain", "channel_shift")
ORIENTATION = ("flip", "flip_vertical", "quarter_turns", "rotate")
OTHERS = ("policy", "photometric", "grayscale", "blur", "solarize", "noise", "channel_drop")

# Without an upright, all eight orientations are as likely.
_NO_UPRIGHT = dict(flip=0.5, flip_vertical=0.5, quarter_turns=0.75)
_BLUR = dict(blur=0.5, blur_sigma=(0.1, 2.0))

KINDS: Mapping[str, Mapping[str, Any]] = {
    # MoCo v2, Chen et al. 2020, arXiv:2003.04297: SimCLR's operations, with jitter of half its strength.
    "photos": dict(flip=0.5, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, jitter=0.8, grayscale=0.2, **_BLUR),
    # The code of SSL4EO-S12, Wang et al. 2022, arXiv:2211.07044, for MoCo v2 on 13 bands. There half of the views lose
    # 1 to 6 bands: 0.13 of the bands on average. Theirs flip left and right only; the other orientations are ours.
    "satellite": dict(
        **_NO_UPRIGHT, brightness=0.4, contrast=0.4, jitter=0.8, grayscale=0.2, **_BLUR, channel_drop=0.13
    ),
    # Vertical flips: Kang et al. 2022, arXiv:2212.04690. SimCLR's jitter on tissue: Ciga et al. 2020, arXiv:2011.13971.
    # Its strength here, that of photos, is ours; so are the quarter turns, and that no view is gray: stains are colors.
    "histology": dict(**_NO_UPRIGHT, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, jitter=0.8, **_BLUR),
    # Flips and turns up to 10 degrees: MoCo-CXR, Sowrirajan et al. 2020, arXiv:2010.05352, which leaves out blur,
    # because it may hide findings. Jitter on X-rays: Azizi et al. 2021, arXiv:2101.05224; its strength here and gamma,
    # for exposure, are ours.
    "xray": dict(flip=0.5, rotate=10.0, brightness=0.4, contrast=0.4, gamma=0.2, jitter=0.8),
    # Dropped channels: ChannelViT, Bao et al. 2023, arXiv:2309.16108, on Cell Painting. All numbers are ours: stains
    # differ in strength from plate to plate (gain), planes in focus (blur), cameras in noise.
    "microscopy": dict(
        **_NO_UPRIGHT,
        brightness=0.2,
        contrast=0.2,
        gamma=0.2,
        channel_gain=0.3,
        jitter=0.8,
        blur=0.3,
        blur_sigma=(0.1, 2.0),
        noise=0.02,
        channel_drop=0.1,
    ),
}
# Below so many pixels a view gets no blur, as in SimCLR on CIFAR-10 (arXiv:2002.05709, appendix B.9): it would remove
# what is to be learnt.
LEAST_BLURRED = 64


def overlay(config: ConfigDict, kind: str) -> None:
    """Gives every section of config.augment the views of a kind of images.

    All keys but KEPT become the kind's, or their default where the kind says nothing. A view whose values the method
    does not change (MAE's, or the teacher's in ReSSL) takes the orientations only. Views that are not square get no
    quarter turns, and small ones no blur.

    Raises: ConfigError for an unknown kind, and for a config without views.
    """
    require(kind in KINDS, f"no kind of views {kind!r}, in NAME:SCALE:KIND; {nearest(kind, list(KINDS))}")
    require(config.get("augment"), f"a config without views (config.augment) has no kind, got {kind!r}; leave it out")
    with config.unlocked():
        for view in config.augment.values():
            values = dict(KINDS[kind])
            if not _changes_values(view):
                values = {name: value for name, value in values.items() if name in ORIENTATION}
            height, width = view.size
            if height != width:
                values.pop("quarter_turns", None)
            if min(height, width) < LEAST_BLURRED:
                values = {name: value for name, value in values.items() if not name.startswith("blur")}
            for name in [name for name in view if name not in KEPT]:
                del view[name]
            view.update(flip=0.0)  # whose default is not off
            view.update(values)


def _changes_values(view: ConfigDict) -> bool:
    jittered = view.get("jitter", 1.0) and any(view.get(name) for name in JITTERED)
    return bool(jittered) or any(view.get(name) for name in OTHERS)
