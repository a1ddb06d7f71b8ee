"""What is read of a graph file by hand is what the onnx package reads."""

from __future__ import annotations

import math
from pathlib import Path
from typing import get_args

import onnx
import pytest
from nearfield.apps.cli.common import DEMO_BUNDLE
from nearfield.errors import BundleError
from nearfield.runtime.graph_file import read_graph_facts
from nearfield.runtime.manifest import ComponentName


@pytest.mark.parametrize("component", get_args(ComponentName))
def test_weights_of_each_type_and_attention_heads_are_those_of_the_file(component: str) -> None:
    path = DEMO_BUNDLE / f"{component}.onnx"
    facts, graph = read_graph_facts(path), onnx.load(path, load_external_data=False).graph
    elements = {"FLOAT": 0, "FLOAT16": 0}
    largest = 0
    for tensor in graph.initializer:
        kind = onnx.TensorProto.DataType.Name(tensor.data_type)
        if kind in elements:
            elements[kind] += math.prod(tensor.dims)
            largest = max(largest, math.prod(tensor.dims))
    assert facts.float32_bytes == 4 * elements["FLOAT"]
    assert facts.float16_bytes == 2 * elements["FLOAT16"]
    assert facts.largest_float_elements == largest
    heads = [a.i for node in graph.node for a in node.attribute if a.name in ("num_heads", "q_num_heads")]
    assert facts.heads == max(heads, default=0)
    # All weights together are the file they lie in, but for its alignment and for what the graph itself holds.
    stored = (DEMO_BUNDLE / f"{component}.data").stat().st_size
    assert facts.float32_bytes + facts.float16_bytes + facts.packed_bytes == pytest.approx(stored, rel=0.06)


def test_widths_are_those_of_the_products() -> None:
    assert max(read_graph_facts(DEMO_BUNDLE / "thinker.onnx").widths) == 512  # nano's feed-forward
    assert read_graph_facts(DEMO_BUNDLE / "dit.onnx").widths >= {128, 80}  # its width, and the mel
    vocoder = read_graph_facts(DEMO_BUNDLE / "vocoder.onnx")
    assert vocoder.last_channels == 2  # 128 channels, halved six times
    assert not vocoder.widths


@pytest.mark.parametrize("content", [b"", b"graph of dit", b"\x3a\xff\xff\xff\xff", b"\xff" * 100])
def test_what_is_no_graph_is_a_bundle_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "dit.onnx"
    path.write_bytes(content)
    with pytest.raises(BundleError, match=r"dit\.onnx is not an ONNX graph .*; export the bundle again"):
        read_graph_facts(path)


def test_a_graph_cut_short_is_a_bundle_error(tmp_path: Path) -> None:
    path = tmp_path / "dit.onnx"
    path.write_bytes((DEMO_BUNDLE / "dit.onnx").read_bytes()[:-100])
    with pytest.raises(BundleError, match="not an ONNX graph"):
        read_graph_facts(path)
