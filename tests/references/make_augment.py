"""Makes augment.npz: what torchvision's functional operations give for fixed images and fixed numbers.

Run with torch and torchvision: python tests/references/make_augment.py
"""

import sys
from pathlib import Path

import numpy as np

HEIGHT, WIDTH = 24, 20
# (top, left, height, width) of a box in the image, (height, width) of the result
CROPS = [
    ((0, 0, HEIGHT, WIDTH), (HEIGHT, WIDTH)),
    ((0, 0, HEIGHT, WIDTH), (9, 7)),
    ((3, 5, 13, 11), (16, 16)),
    ((10, 1, 12, 19), (8, 28)),
    ((23, 19, 1, 1), (4, 3)),
]
BLURS = [(3, 0.1), (3, 1.0), (9, 2.0), (23, 1.3), (39, 8.0)]  # (taps, sigma)
FACTORS = (0.0, 0.4, 1.0, 1.7)
SHIFTS = (-0.5, -0.13, 0.0, 0.2, 0.5)
THRESHOLDS = (0.0, 0.5, 0.8)


def image(channels):
    """uint8 [height, width, channels]: noise, and a row in which two channels, or all, are equal, 0 or 255."""
    pixels = np.random.default_rng(channels).integers(0, 256, (HEIGHT, WIDTH, channels), dtype=np.uint8)
    if channels == 3:
        corners = np.stack(np.meshgrid(*[[0, 255]] * 3, indexing="ij"), axis=-1).reshape(8, 3)
        ties = [(90, 90, 30), (90, 30, 90), (30, 90, 90), (30, 30, 90), (30, 90, 30), (90, 30, 30), (70, 70, 70)]
        special = np.concatenate([corners, ties])
        pixels[0, : len(special)] = special
    return pixels


def main():
    import torch
    import torchvision

    print(f"python {sys.version.split()[0]}, torch {torch.__version__}, torchvision {torchvision.__version__}")
    functional = torchvision.transforms.functional
    # "operation/channels/numbers" -> float32 [height, width, channels] in 0..1; beyond that, where bicubic overshoots
    results = {}
    for channels in (1, 3):
        x = torch.from_numpy(image(channels)).permute(2, 0, 1) / 255

        def add(name, *numbers, operation, x=x, channels=channels, **options):
            key = "/".join([name, str(channels), *map(str, numbers)])
            results[key] = operation(x, **options).permute(1, 2, 0).contiguous().numpy()

        for interpolation in ("bilinear", "bicubic"):
            mode = torchvision.transforms.InterpolationMode(interpolation)
            for (top, left, height, width), size in CROPS:
                add(
                    interpolation, top, left, height, width, *size,
                    operation=functional.resized_crop, top=top, left=left, height=height, width=width, size=size,
                    interpolation=mode, antialias=True,
                )  # fmt: skip
        for taps, sigma in BLURS:
            add("blur", taps, sigma, operation=functional.gaussian_blur, kernel_size=taps, sigma=sigma)
        for threshold in THRESHOLDS:
            add("solarize", threshold, operation=functional.solarize, threshold=threshold)
        for factor in FACTORS:
            add("brightness", factor, operation=functional.adjust_brightness, brightness_factor=factor)
            add("contrast", factor, operation=functional.adjust_contrast, contrast_factor=factor)
        if channels == 3:
            for factor in FACTORS:
                add("saturation", factor, operation=functional.adjust_saturation, saturation_factor=factor)
            for shift in SHIFTS:
                add("hue", shift, operation=functional.adjust_hue, hue_factor=shift)
            add("grayscale", operation=functional.rgb_to_grayscale, num_output_channels=3)
    images = {f"image/{channels}": image(channels) for channels in (1, 3)}
    np.savez_compressed(Path(__file__).parent / "augment.npz", **images, **results)


if __name__ == "__main__":
    main()
