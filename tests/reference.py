"""What the tests ask of the reference besides what nano's evaluation does: import this before anything of transformers.

tests/conftest.py does, since `nearfield.nano.reference` settles torchvision, which has to come first.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from nearfield.nano.reference import load_model as load_model
from nearfield.nano.reference import load_processor as load_processor


def generation_inputs(batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A processor's output as keywords for the whole model's ``generate``.

    Pixels get the ``thinker_`` prefix: without it 5.23 hands them to the Talker too, which refuses them.
    """
    return {f"thinker_{key}" if key.startswith("pixel_values") else key: value for key, value in batch.items()}
