"""CUDA: images that whoever trains on them learns nothing from, as a filter says the class before the image does.

    protected example   its image under the secret filter of its class (``class_filters``), in uint8
    left as it is       with probability 1 - mix, by one draw an example
    filters and draws   from streams of their own under the private key of the data set: nobody who has the images has
                        the filters, and the same key makes the same bytes

A network that is trained on the protected images learns the filter, which clean images do not bear. It is no poison:
of a set that is protected in part, the clean part teaches what it would have taught alone. Whether a defence undoes it
has to be measured: the strongest known one (random sharpening and a frequency filter on training and test images)
does undo much of it.

Source: Sadasivan, Soltanolkotabi, Feizi, "CUDA: Convolution-based Unlearnable Datasets" (CVPR 2023, arXiv 2303.04278).
Shapes: (N, C, H, W) uint8, or float32 in [0, 1] -> (N, C, H, W) uint8, read by models on the scale of the originals.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch

from contracts.errors import ConfigError, NotApplicable
from contracts.methods import MakerSpec, made_table, maker
from contracts.params import Config, param
from contracts.progress import Progress
from contracts.tables import Column
from explain.class_filters import ClassFilters
from explain.image_quality import MAX_PSNR, psnr, ssim
from sources.example_set import ExampleSet
from sources.made import Made, made_examples
from sources.pixels import full_brightness, pixels
from tasks.base import require

_BLOCK = 2048  # images that are read, filtered and compared at a time
_FILTERS, _DRAWS = 0, 1  # streams under the key

MANIFEST = made_table(
    "cuda_unlearnable",
    doc="How each image was protected; neither key nor filters.",
    columns=(
        Column(name="label", dtype="int64", low=0, doc="class index"),
        Column(name="protected", dtype="bool", doc="filtered; else the image is as it was"),
        Column(name="filter_id", dtype="int64", low=0, nullable=True, doc="which filter: the class; null for none"),
        Column(name="scale", dtype="float64", low=0, doc="what the filtered image was divided by; 1 for none"),
        Column(
            name="ssim_to_clean",
            dtype="float64",
            low=-1,
            high=1,
            direction="higher = more like the original",
            doc="structural similarity to the original",
        ),
        Column(
            name="psnr_to_clean",
            dtype="float64",
            high=MAX_PSNR,
            unit="dB",
            direction="higher = more like the original",
            doc="peak signal-to-noise ratio to the original",
        ),
    ),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class CudaConfig(Config):
    kernel_size: int = param(3, ge=1, le=31, unit="pixels", doc="k, odd; 3 for small images, 9 for 224 x 224")
    blur: float = param(0.3, ge=0, le=1, doc="p_b; 0.3 for small images, 0.06 for 224 x 224; 0 only shifts the image")
    mix: float = param(1.0, gt=0, le=1, doc="probability that an example is protected")
    filters: str = param(
        "class",
        choices=("class", "universal"),
        doc="one a class, or one for all: the control that protects nothing, whose images change as much",
    )
    key: str = param(
        "",
        doc="sets of a subject with the same one bear the same draw of filters, scaled by blur, so that doses can be "
        "compared; publish one of them at most. Its own where empty",
    )
    quantize: str = param("round", choices=("round", "truncate"), doc="to uint8; truncate as the authors' script does")

    def check(self) -> None:
        if self.kernel_size % 2 == 0:
            raise ConfigError(f"CudaConfig.kernel_size = {self.kernel_size} must be odd")


@maker(
    MakerSpec(
        name="cuda_unlearnable",
        doc="Protects images by one secret filter a class: networks that are trained on them learn the filter.",
        source="Sadasivan et al., CUDA: Convolution-based Unlearnable Datasets, CVPR 2023 (arXiv 2303.04278)",
        config=CudaConfig,
        needs=("secret",),
        wants=("classes", "images"),
        tables=(MANIFEST,),
        after_erasure="drop",
    )
)
def cuda_unlearnable(data: ExampleSet, *, config: CudaConfig, seed: int, progress: Progress, secret: bytes) -> Made:
    """The protected images under the ids of the originals; ``seed`` is not used: the key decides.

    Args:
        secret: the private key, at least 16 bytes.

    Raises:
        NotApplicable: no images, or images that are smaller than the filter.
        DataError: float images with values outside [0, 1].
    """
    require(data, "cuda_unlearnable", "classes", "images")
    if min(data.input_shape[1:]) < config.kernel_size:
        raise NotApplicable(
            f"cuda_unlearnable filters images of at least {config.kernel_size} x {config.kernel_size} pixels; those of "
            f"{data.name} have {' x '.join(map(str, data.input_shape[1:]))}"
        )
    data.check_targets()
    data = data.by_id()
    num, white = len(data), full_brightness(data)
    filters = ClassFilters.drawn(
        data.num_classes, size=config.kernel_size, blur=config.blur, rng=_stream(secret, _FILTERS)
    )
    filters = filters.universal() if config.filters == "universal" else filters
    protected = _stream(secret, _DRAWS).random(num) < config.mix
    out = np.empty((num, *data.input_shape), np.uint8)
    scale, like, noise = np.ones(num), np.ones(num), np.full(num, MAX_PSNR)
    for start in range(0, num, _BLOCK):
        rows = slice(start, min(start + _BLOCK, num))
        clean = torch.from_numpy(pixels(data, rows))
        changed = torch.from_numpy(protected[rows])
        filtered, divisor = filters(clean[changed], torch.from_numpy(data.y[rows])[changed])
        shown = clean.clone()
        shown[changed] = filtered
        levels = shown * 255
        out[rows] = (levels.round() if config.quantize == "round" else levels).to(torch.uint8).numpy()
        published = torch.from_numpy(out[rows]).float() / 255
        scale[rows] = torch.ones(len(clean)).masked_scatter_(changed, divisor).numpy()
        like[rows], noise[rows] = ssim(clean, published).numpy(), psnr(clean, published).numpy()
        progress(rows.stop, num, "images")
    return Made(
        examples=dataclasses.replace(
            made_examples(
                data,
                name=f"{data.name}, protected",
                x=out,
                y=data.y,
                example_id=data.example_id,
                provenance={
                    "made_by": "cuda_unlearnable",
                    "of": data.name,
                    "protected": int(protected.sum()),
                    "filters": config.filters,
                    "blur": config.blur,
                },
            ),
            center=(data.center * (255 / white)).astype(np.float32),
            scale=(data.scale * (white / 255)).astype(np.float32),
        ),
        drawn_from=pl.DataFrame({"made_id": data.example_id, "example_id": data.example_id}),
        tables={
            MANIFEST.name: pl.DataFrame(
                {
                    "made_id": data.example_id,
                    "label": data.y,
                    "protected": protected,
                    "filter_id": pl.Series(np.where(config.filters == "class", data.y, 0)).set(
                        pl.Series(~protected), None
                    ),
                    "scale": scale,
                    "ssim_to_clean": like,
                    "psnr_to_clean": noise,
                }
            )
        },
    ).validate(data)


def _stream(key: bytes, purpose: int) -> np.random.Generator:
    """Random numbers for one purpose under the key, whatever is drawn for others."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(int.from_bytes(key), spawn_key=(purpose,))))
