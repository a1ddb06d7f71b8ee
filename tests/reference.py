"""Load the reference implementation and its processor from ``transformers``, on machines without a GPU as well.

Inputs: a checkpoint directory → outputs: the model in evaluation mode (float32, SDPA attention) or its processor.
Import this module before anything of ``transformers``: tests/conftest.py does.

The reference's image and video processing need torchvision. The wheel on PyPI is built for CUDA, and on a torch
without CUDA its compiled operators are absent: only detection models use them, but ``import torchvision`` then stops
in ``torchvision._meta_registrations``, which describes those operators to the compiler. An empty module in its place
is all that is needed; it is put there only where the import fails for that reason. Since such a torchvision stops
``import transformers`` for everybody else, ``nearfield verify`` among them, it is installed in a folder of its own.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Mapping
from pathlib import Path

import torch


def _import_torchvision() -> None:
    sys.path.append(str(Path(sys.prefix) / "torchvision"))  # where the Makefile puts it
    try:
        import torchvision  # imported to find out whether it can be
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        sys.modules["torchvision._meta_registrations"] = types.ModuleType("torchvision._meta_registrations")
        import torchvision  # noqa: F401  # the second try, without the missing operators


_import_torchvision()

from transformers import Qwen2_5OmniForConditionalGeneration, Qwen2_5OmniProcessor  # noqa: E402  # after torchvision


def load_model(path: Path) -> Qwen2_5OmniForConditionalGeneration:
    """The reference model at ``path`` in evaluation mode, float32, nothing fetched from the network."""
    model = Qwen2_5OmniForConditionalGeneration.from_pretrained(
        path, dtype="float32", attn_implementation="sdpa", local_files_only=True
    )
    return model.eval()


def load_processor(path: Path) -> Qwen2_5OmniProcessor:
    """The reference processor at ``path``: tokenizer, chat template, mel, image and video front ends."""
    return Qwen2_5OmniProcessor.from_pretrained(path, local_files_only=True)


def generation_inputs(batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A processor's output as keywords for the whole model's ``generate``.

    Pixels get the ``thinker_`` prefix: without it 5.23 hands them to the Talker too, which refuses them.
    """
    return {f"thinker_{key}" if key.startswith("pixel_values") else key: value for key, value in batch.items()}
