"""Losses of segmentation by name. A file of this folder that registers one is found by its place."""

from __future__ import annotations

import importlib
import pkgutil

from recipes.segmentation.losses.base import MaskLoss, known

for _found in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_found.name}")

LOSSES: dict[str, MaskLoss] = known()

__all__ = ["LOSSES", "MaskLoss"]
