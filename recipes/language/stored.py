"""Stored language models as transformers reads them; one in a GGUF file is turned into safetensors once.

    folder with config.json and *.safetensors     as it is
    NAME.gguf                                     $PALIMPSEST_HOME/models/<SHA-256 of the file, 32 digits>/
                                                  config.json, model.safetensors (bfloat16), source.json

A GGUF file is read in a minute, its safetensors in a second. The copy is a reading of the file and no result: it is
known by the file's digest, its weights by theirs, which is compared at every use; taking it away costs that minute.
Written beside its place and put there whole, so that two processes at once do the work twice and no harm. bfloat16
holds more than the four to eight bits that such a file has of a weight.

Nothing is downloaded: transformers is told that it is offline, and given local files alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from contracts.errors import ConfigError, IntegrityError
from sources.files import sha256
from sources.stored_models import StoredModel, locate, need_extra

_ABOUT = "source.json"


def model_folder(path: str, *, field: str) -> Path:
    """The folder from which transformers reads the model at ``path``.

    Args:
        path: as of ``sources.stored_models.locate``.
        field: that names it, for messages.

    Raises:
        ConfigError, UnsafeFile: nothing there, no safetensors, or a GGUF file that is no causal language model.
        NotReady: the extra ``hf`` is not installed.
        IntegrityError: what was made of a GGUF file has been changed since.
    """
    offline()
    there = locate(path, field=field)
    if there.gguf:
        return _converted(there, field=f"{field} = {path!r}")
    if not any(there.folder.glob("*.safetensors")) or not (there.folder / "config.json").exists():
        raise ConfigError(f"{field} = {path!r} is no folder with config.json and safetensors")
    return there.folder


def offline() -> None:
    """Tell the libraries of Hugging Face that there is no network, before they are imported."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """transformers draws none inside: a stage tells its own progress."""
    from transformers.utils import logging

    drawn = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if drawn:
            logging.enable_progress_bar()


def weights_digest(folder: Path) -> str:
    """SHA-256 over the names and bytes of the safetensors files in a folder, in the order of their names."""
    state = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        state.update(f"{file.name}\0{sha256(file)}\n".encode())
    return state.hexdigest()


def _converted(there: StoredModel, *, field: str) -> Path:
    """The safetensors of a GGUF file, made now where they are not there."""
    digest = sha256(there.file)
    home = Path(os.environ.get("PALIMPSEST_HOME") or ".palimpsest").expanduser().resolve() / "models"
    place = home / digest[:32]
    if not place.exists():
        home.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{digest[:8]}-", dir=home))
        try:
            _convert(there, made, digest, field)
            made.rename(place)
        except OSError:
            if not place.exists():  # else another process was quicker: its copy is as good
                raise
        finally:
            shutil.rmtree(made, ignore_errors=True)
    try:
        about = json.loads((place / _ABOUT).read_bytes())
    except (OSError, ValueError) as error:
        raise IntegrityError(f"{place} is no whole copy of {there.gguf} ({error}): remove the folder") from None
    if about.get("sha256") != digest or about.get("weights_sha256") != weights_digest(place):
        raise IntegrityError(f"{place} is not what was made of {there.gguf}: remove the folder, and it is made again")
    return place


def _convert(there: StoredModel, made: Path, digest: str, field: str) -> None:
    with need_extra("hf", f"reading {there.gguf}"):
        import gguf  # noqa: F401 - transformers asks for it only in the middle of its work
        import torch
        from transformers import AutoModelForCausalLM
    try:
        with no_progress_bars():
            read: Any = AutoModelForCausalLM.from_pretrained(there.folder, gguf_file=there.gguf, local_files_only=True)
    except Exception as error:  # a file that is none makes the reader raise whatever the place where it stumbles does
        raise ConfigError(f"{field}: {' '.join(str(error).split())[:300]}") from error
    config = read.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = type(read)(config).to(torch.bfloat16)  # the model as read still calls itself quantised, and is not saved
    plain.load_state_dict(read.state_dict())
    with no_progress_bars():
        plain.save_pretrained(made, safe_serialization=True)
    about = {"file": there.gguf, "sha256": digest, "weights_sha256": weights_digest(made)}
    (made / _ABOUT).write_text(json.dumps(about, indent=1, sort_keys=True) + "\n", encoding="utf-8")
