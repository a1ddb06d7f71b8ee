"""Fixtures shared by every test: the two tiny checkpoints and nano's, the reference model and its processor for each.

Everything is built once a session, on one thread and from fixed seeds, so that a failure repeats.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: a test never reaches for the network
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
import reference  # first of all that imports transformers: it settles torchvision
import torch
import transformers
from checkpoints import SMALL_3B, SMALL_7B, write_checkpoint
from hypothesis import settings
from nearfield.export.export import ExportOptions, export_bundle
from nearfield.nano.training import CHECKPOINT
from transformers import Qwen2_5OmniForConditionalGeneration, Qwen2_5OmniProcessor

# A shell starts what runs in the background with Ctrl+C ignored, and children inherit that: those of the tests as well.
signal.signal(signal.SIGINT, signal.default_int_handler)
settings.register_profile("nearfield", derandomize=True, deadline=None, max_examples=25)
settings.load_profile("nearfield")
torch.set_num_threads(1)
# The reference checks the Talker's text ids against its codec vocabulary, and would say so at every load.
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


@pytest.fixture(scope="session")
def checkpoint_3b(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a 3B-shaped checkpoint: tied head, five query heads to a key head."""
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / SMALL_3B.name, SMALL_3B)


@pytest.fixture(scope="session")
def checkpoint_7b(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a 7B-shaped checkpoint: separate head, three query heads to a key head, several shards."""
    path = tmp_path_factory.mktemp("checkpoint") / SMALL_7B.name
    return write_checkpoint(path, SMALL_7B, max_shard_bytes=4_000_000)


@pytest.fixture(scope="session")
def bundle_3b(checkpoint_3b: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of ``checkpoint_3b`` as a float32 bundle."""
    path = tmp_path_factory.mktemp("bundle") / "3b"
    export_bundle(checkpoint_3b, path, ExportOptions(bits=32))
    return path


@pytest.fixture(scope="session")
def checkpoint_nano() -> Path:
    """Directory of nano's checkpoint: small, and trained."""
    return CHECKPOINT


@pytest.fixture(scope="session")
def reference_3b(checkpoint_3b: Path) -> Qwen2_5OmniForConditionalGeneration:
    """The reference model of ``checkpoint_3b``: evaluation mode, float32."""
    return reference.load_model(checkpoint_3b)


@pytest.fixture(scope="session")
def reference_7b(checkpoint_7b: Path) -> Qwen2_5OmniForConditionalGeneration:
    """The reference model of ``checkpoint_7b``: evaluation mode, float32."""
    return reference.load_model(checkpoint_7b)


@pytest.fixture(scope="session")
def reference_nano(checkpoint_nano: Path) -> Qwen2_5OmniForConditionalGeneration:
    """The reference model of ``checkpoint_nano``: evaluation mode, float32."""
    return reference.load_model(checkpoint_nano)


@pytest.fixture(scope="session")
def processor_3b(checkpoint_3b: Path) -> Qwen2_5OmniProcessor:
    """The reference processor of ``checkpoint_3b``."""
    return reference.load_processor(checkpoint_3b)


@pytest.fixture(scope="session")
def processor_7b(checkpoint_7b: Path) -> Qwen2_5OmniProcessor:
    """The reference processor of ``checkpoint_7b``."""
    return reference.load_processor(checkpoint_7b)


@pytest.fixture(scope="session")
def processor_nano(checkpoint_nano: Path) -> Qwen2_5OmniProcessor:
    """The reference processor of ``checkpoint_nano``."""
    return reference.load_processor(checkpoint_nano)
