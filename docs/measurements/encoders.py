"""Time and memory of the audio and vision encoders at the published size: float32, CPU, two threads, random weights.

    python docs/measurements/encoders.py > docs/measurements/encoders.txt

Needs the extra `[export]`, 3 GB of disk and 8 GB of memory; Linux (peak memory is read with `resource`). Each encoder
is measured in a process of its own, graph dialect `ort`. CPU time stands beside the clock's, because other work on the
machine stretches the clock's alone; waiting threads do not spin, so that it counts work.

Every tensor has noise of its own: with the same noise in all layers the audio encoder's peak was 0.25 GiB in place of
2.5, so ONNX Runtime appears to keep packed weights of equal content once.
"""

import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median

import numpy as np
import onnxruntime
from nearfield.export.audio_encoder import AudioEncoderConfig, audio_encoder_graph
from nearfield.export.bind import Reader, write_component
from nearfield.export.graph import Array, ComponentGraph, Style
from nearfield.export.vision_encoder import VisionEncoderConfig, vision_encoder_graph
from nearfield.runtime.manifest import Vision
from nearfield.runtime.vision_layout import vision_layout

THREADS = 2
STYLE = Style("ort", "float32")
AUDIO = AudioEncoderConfig(
    mel_bins=128, width=1280, layers=32, heads=20, ffn=5120, block_frames=200, output_width=3584
)  # fmt: skip
VISION = VisionEncoderConfig(
    channels=3, patch_pixels=14, temporal_patch_frames=2, merge_patches=2, window_pixels=112, width=1280, layers=32,
    heads=16, ffn=3420, full_attention_layers=(7, 15, 23, 31), rope_theta=10_000.0, output_width=3584,
)  # fmt: skip
FRONT_END = Vision(
    patch_pixels=14, temporal_patch_frames=2, merge_patches=2, window_pixels=112, hidden_size=3584,
    image_min_pixels=3136, image_max_pixels=12845056, video_min_pixels=3136, video_max_pixels=12845056,
    mean=[0.5, 0.5, 0.5], std=[0.25, 0.25, 0.25],
)  # fmt: skip


class Noise(Reader):
    """A checkpoint of whatever shapes are asked for, filled with small noise."""

    def __init__(self) -> None:
        self.random = np.random.default_rng(0)
        self.component, self.counts = "", Counter[str]()

    def read(self, name: str, shape: Sequence[int]) -> Array:  # noqa: ARG002  # noise needs no name
        """Return noise that no other tensor has, about ±1/√fan-in."""
        self.counts[self.component] += int(np.prod(shape))
        return (self.random.random(shape, np.float32) - np.float32(0.5)) * np.float32(0.07)

    def rows(self, name: str, shape: Sequence[int], rows_at_once: int) -> Iterator[tuple[int, Array]]:
        """Yield blocks of noise, for INT4 layers."""
        for start in range(0, shape[0], rows_at_once):
            yield start, self.read(name, (min(rows_at_once, shape[0] - start), *shape[1:]))


def peak_gib() -> float:
    """Most memory this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)  # Linux counts in KiB


def open_graph(component: ComponentGraph, directory: Path, profile: Path | None) -> onnxruntime.InferenceSession:
    """Write the graph with noise for weights and load it, with ONNX Runtime's profiler if `profile` is given."""
    reader = Noise()
    write_component(component, reader, directory)
    print(f"{component.name}: {reader.counts.total() / 1e6:.0f} million weights; written, peak {peak_gib():.2f} GiB")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    start = time.perf_counter()
    path = str(directory / f"{component.name}.onnx")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    print(f"{component.name}: loaded in {time.perf_counter() - start:.1f} s, peak {peak_gib():.2f} GiB")
    return session


def timed(label: str, runs: int, call: Callable[[], object]) -> None:
    """Run a few times and print what it took."""
    clock, processor = [], []
    for _ in range(runs):
        start, start_processor = time.perf_counter(), time.process_time()
        call()
        clock.append(time.perf_counter() - start)
        processor.append(time.process_time() - start_processor)
    listed = ", ".join(f"{seconds:.2f}" for seconds in clock)
    print(
        f"{label}: {median(clock):.2f} s (median of {listed}), CPU time {median(processor):.2f} s; "
        f"peak {peak_gib():.2f} GiB; load of the machine {os.getloadavg()[0]:.1f}"
    )


def measure_audio(directory: Path) -> None:
    """One block, as a stream gives it, and four at once."""
    session = open_graph(audio_encoder_graph(AUDIO, STYLE), directory, None)
    mel = np.random.default_rng(1).standard_normal((4, 128, 200)).astype(np.float32)
    frames = np.full(4, 200, np.int64)
    session.run(None, {"mel": mel[:1], "frames": frames[:1]})
    timed("audio, one block of 2 s", 3, lambda: session.run(None, {"mel": mel[:1], "frames": frames[:1]}))
    timed("audio, four blocks of 2 s at once", 2, lambda: session.run(None, {"mel": mel, "frames": frames}))


def picture(h: int, w: int) -> dict[str, Array]:
    """Inputs of the vision encoder for one image of `h × w` patches."""
    layout = vision_layout(h, w, FRONT_END)
    pixels = np.random.default_rng(2).standard_normal((1, h * w, 1176)).astype(np.float32)
    places = {"positions": layout.positions, "window_slots": layout.window_slots, "patch_slots": layout.patch_slots}
    return {"pixels": pixels, **places}


def measure_vision(directory: Path) -> None:
    """One image, and how its time divides between window layers, full layers and the rest."""
    session = open_graph(vision_encoder_graph(VISION, STYLE), directory, directory / "profile")
    session.run(None, picture(8, 8))
    timed("vision, one image of 448 × 448 (1024 patches)", 2, lambda: session.run(None, picture(32, 32)))
    events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    nodes = [event for event in events if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")]
    parts: dict[str, float] = defaultdict(float)
    operators: dict[str, float] = defaultdict(float)
    for event in nodes:
        scope = event["name"].split("/")[0]
        full = scope.startswith("blocks.") and int(scope.split(".")[1]) in VISION.full_attention_layers
        part = ("full" if full else "window") if scope.startswith("blocks.") else "the rest"
        parts[part] += event["dur"]
        operators[f"{part}: {event['args']['op_name']}"] += event["dur"]
    total = sum(parts.values())
    counts = {"full": len(VISION.full_attention_layers), "the rest": 1}
    counts["window"] = VISION.layers - counts["full"]
    print("share of the time in operators (all runs):")
    for part, micros in sorted(parts.items(), key=lambda item: -item[1]):
        layers = counts[part]
        print(f"  {part}: {micros / total:.1%}, in {layers} layers: {micros / total / layers:.2%} each")
    for name, micros in sorted(operators.items(), key=lambda item: -item[1])[:12]:
        print(f"    {name} {micros / total:.1%}")


def main() -> None:
    """Measure each encoder in a process of its own; with arguments, be that process."""
    if len(sys.argv) == 3:
        with tempfile.TemporaryDirectory(dir=sys.argv[2]) as directory:
            {"audio": measure_audio, "vision": measure_vision}[sys.argv[1]](Path(directory))
        return
    versions = f"onnxruntime {onnxruntime.__version__}, numpy {np.__version__}, Python {platform.python_version()}"
    print(f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} CPUs, {THREADS} threads, float32, {versions}", flush=True)
    for encoder in ("audio", "vision"):
        subprocess.run([sys.executable, __file__, encoder, tempfile.gettempdir()], check=True)


if __name__ == "__main__":
    main()
