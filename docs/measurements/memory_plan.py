"""The memory plan beside the memory taken: every component alone in a process, at its context, and `ask` as a whole.

    python docs/measurements/memory_plan.py WORKDIR > docs/measurements/memory_plan.txt

Needs the extra `[test]`, 10 GB of disk, 3 GB of memory and Linux: the peak is VmHWM of /proc, which counts pages of
mapped files too. CPU, one thread. Measured are nano and a slice of 3B: published widths, few layers, a vocabulary of
32,768, random weights, in three kinds of bundle. A decoder's cache is filled, and a chunk of a prompt is run at every
quarter of its context: what the arena has outgrown it keeps, so that the last chunk alone would take less than all do.
"""

import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args

import numpy as np
import onnxruntime
from nearfield.apps.cli.common import DEMO_BUNDLE
from nearfield.apps.cli.main import main as nearfield
from nearfield.apps.cli.memory import gib
from nearfield.runtime.bundle import Bundle
from nearfield.runtime.decoder import Decoder
from nearfield.runtime.encoders import BLOCKS_PER_CALL, AudioEncoder, VisionEncoder
from nearfield.runtime.manifest import ComponentName
from nearfield.runtime.memory_plan import MemoryPlanner, Workload
from nearfield.runtime.parts import MAX_CODES
from nearfield.runtime.session import Array, Memory, SessionSettings, open_session
from nearfield.runtime.token2wav import PIECE_FRAMES
from nearfield.runtime.vision_layout import Grid

KINDS = {
    "slice-int4": ["--bits", "4"],
    "slice-int4-float32": ["--bits", "4", "--dtype", "float32"],
    "slice-int4-standard": ["--bits", "4", "--dialect", "standard"],
}
CONTEXTS = (4096, 32768)
CODES = 1024
SIDE_PATCHES = 64  # of the picture: 64 × 64 patches are 896 × 896 pixels
IMAGE_PIXELS = (SIDE_PATCHES * 14) ** 2


class Filled(Memory):
    """Memory whose tensors are written at once: pages of zeros are taken only when they are first used."""

    def zeros(self, shape: object, dtype: object) -> onnxruntime.OrtValue:
        """Allocate a tensor and fill it."""
        return self.place(np.full(shape, 0.01, dtype))


def peak_bytes() -> int:
    """Most memory this process has held so far."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) << 10


def run_component(bundle: Bundle, name: ComponentName, context: int) -> None:
    """Load one component and run it on the most it is ever given at once."""
    component, random = bundle.manifest.components[name], np.random.default_rng(0)
    level = None if component.quantization is None else component.quantization.accuracy_level
    session = open_session(bundle.graph_path(name), SessionSettings(threads=1), accuracy_level=level)
    if name in ("thinker", "talker"):
        session.memory = Filled("cpu")
        run_decoder(bundle, name, session, context)
    elif name == "audio_encoder":
        audio = bundle.manifest.audio
        encoder = AudioEncoder(session, audio, component.dtype)
        encoder.encode(random.standard_normal((audio.mel_bins, BLOCKS_PER_CALL * audio.block_frames), np.float32))
    elif name == "vision_encoder":
        side = min(SIDE_PATCHES, int(bundle.manifest.vision.image_max_pixels**0.5) // 28 * 2)
        patches = [random.standard_normal((side * side, 1176), np.float32)]
        VisionEncoder(session, bundle.manifest.vision, component.dtype).encode(patches, Grid(1, side, side))
    elif name == "dit":
        session.run(dit_inputs(bundle, random))
    else:
        frames = PIECE_FRAMES + 2 * bundle.manifest.token2wav.vocoder_context_frames
        session.run({"mel": random.standard_normal((1, 80, frames), np.float32).astype(component.dtype)})


def run_decoder(bundle: Bundle, name: ComponentName, session: object, context: int) -> None:
    """Run a chunk of the prompt at every quarter of the context, over a cache that is filled up to there."""
    settings = bundle.manifest.thinker if name == "thinker" else bundle.manifest.talker
    width = settings.hidden_size if name == "thinker" else settings.embedding_size
    component, cache = bundle.manifest.components[name], settings.kv_cache
    decoder = Decoder(session, component, cache, name=name, vocab_size=settings.vocab_size, context=context)
    chunk = 512
    rows = np.random.default_rng(0).standard_normal((chunk, width), np.float32)
    for quarter in range(1, 5):
        decoder._length = context * quarter // 4 - chunk  # as if that much had been read
        if component.dialect == "standard":
            shape = (1, cache.kv_heads, decoder.length, cache.head_dim)
            decoder._cache._past = [Filled("cpu").zeros(shape, component.dtype) for _ in decoder._cache._past_names]
        decoder.prefill(rows, np.tile(np.arange(chunk), (3, 1)))


def dit_inputs(bundle: Bundle, random: np.random.Generator) -> dict[str, Array]:
    """Inputs of one evaluation over `CODES` codes."""
    voice, f = bundle.voice(min(bundle.manifest.voices)), bundle.manifest.components["dit"].dtype
    return {
        "codes": np.zeros((1, CODES), np.int64),
        "speaker": voice.cond.astype(f),
        "encoding": voice.encoding.astype(f),
        "guidance": np.array(0.5, f),
        "mel": random.standard_normal((1, 2 * CODES, 80), np.float32).astype(f),
        "modulation": bundle.dit_modulation()[0].astype(f),
    }


def compare(bundle: Path, name: ComponentName, context: int) -> None:
    """Print plan and measurement of one component in a process of its own."""
    opened = Bundle.open(bundle)
    plan = MemoryPlanner.of(opened).plan(Workload(context=context, image_pixels=IMAGE_PIXELS, codes=CODES))
    (line,) = [line for line in plan.lines if line.name == name]
    (process,) = [line for line in plan.lines if line.name == "process"]
    # The Talker's context is the Thinker's and the codes of a reply.
    used = min(context + MAX_CODES, opened.manifest.talker.max_positions) if name == "talker" else context
    planned = process.total_bytes + line.weights_bytes + max(line.loading_bytes, line.cache_bytes + line.work_bytes)
    command = [sys.executable, __file__, "--one", str(bundle), name, str(used)]
    measured = int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    label = f"{bundle.name} {name}" + (f", {used} positions" if name in ("thinker", "talker") else "")
    print(f"{label:52} plan {gib(planned):>9}  measured {gib(measured):>9}  {planned / measured:.2f}", flush=True)


def compare_whole(bundle: Path, directory: Path, words: int) -> None:
    """Print plan and measurement of an answer to a long text, with speech."""
    context, seconds = 4096, 4
    workload = Workload(context=context, image_pixels=0, codes=50 * seconds)
    planned = MemoryPlanner.of(Bundle.open(bundle)).plan(workload).needed_bytes("host")
    command = [sys.executable, __file__, "--ask", str(bundle), "--text", "word " * words, "--context", str(context)]
    command += ["--max-tokens", "16", "--max-seconds", str(seconds), "--out", str(directory / "reply.wav")]
    answer = subprocess.run(command, check=True, capture_output=True, text=True)
    measured = int(answer.stdout.split()[-1])
    prompt = answer.stderr.split(" prompt tokens")[0].split()[-1]
    label = f"{bundle.name} whole, ask with {prompt} of {context} positions"
    print(f"{label:52} plan {gib(planned):>9}  measured {gib(measured):>9}  {planned / measured:.2f}", flush=True)


def write_slice(directory: Path) -> None:
    """Write the checkpoint of the slice; in a process of its own, for it needs torch."""
    sys.path.insert(0, str(Path(__file__).parent))
    import full_size_checkpoint as full
    import torch

    size = full.SIZES["3b"]
    full.SIZES["slice"] = {
        "text": size["text"] | {"num_hidden_layers": 2, "vocab_size": 32768},
        "talker": size["talker"] | {"num_hidden_layers": 2},
    }
    full.logging.set_verbosity_error()
    config = full.build_config("slice")
    config.thinker_config.audio_config.encoder_layers = 4
    config.thinker_config.vision_config.depth = 8
    talker = config.talker_config  # whose token ids must have rows in the small table
    talker.tts_text_start_token_id, talker.tts_text_end_token_id, talker.tts_text_pad_token_id = 1001, 1002, 1003
    dit = config.token2wav_config.dit_config
    dit.num_hidden_layers, dit.look_ahead_layers, dit.look_backward_layers = 4, [2], [0, 3]
    with torch.device("meta"):
        model = full.Qwen2_5OmniForConditionalGeneration(config)
    shapes = {full.published_name(name): tuple(tensor.shape) for name, tensor in model.named_parameters()}
    shapes.pop("thinker.lm_head.weight", None)
    directory.mkdir(parents=True)
    config.save_pretrained(directory)
    full.write_processor_files(directory)
    voice = {"cond": torch.randn(1, 192), "ref_mel": torch.randn(1, 400, 80) - 5, "bos_token": 1000}
    torch.save({"Chelsie": voice, "Ethan": voice}, directory / "spk_dict.pt")
    full.write_shards(directory, shapes)


def main() -> None:
    """Make the bundles, then measure; with --one, --ask or --checkpoint, be one of the processes."""
    if sys.argv[1] == "--one":
        bundle, name, context = sys.argv[2:]
        run_component(Bundle.open(Path(bundle)), name, int(context))
        print(peak_bytes())
        return
    if sys.argv[1] == "--ask":
        assert nearfield(["ask", *sys.argv[2:]]) == 0
        print(peak_bytes())
        return
    if sys.argv[1] == "--checkpoint":
        write_slice(Path(sys.argv[2]))
        return
    work = Path(sys.argv[1])
    checkpoint = work / "slice"
    if not checkpoint.exists():
        subprocess.run([sys.executable, __file__, "--checkpoint", str(checkpoint)], check=True)
    export = [sys.executable, "-m", "nearfield.apps.cli.main", "export", str(checkpoint), "-o"]
    for kind, options in KINDS.items():
        if not (work / kind).exists():
            subprocess.run([*export, str(work / kind), *options], check=True, stdout=sys.stderr)
    print(
        f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} CPUs, one thread, onnxruntime {onnxruntime.__version__}, numpy "
        f"{np.__version__}, Python {platform.python_version()}; last column: plan over measurement"
    )
    for bundle in (DEMO_BUNDLE, *(work / kind for kind in KINDS)):
        for name in get_args(ComponentName):
            for context in CONTEXTS if name in ("thinker", "talker") else CONTEXTS[:1]:
                compare(bundle, name, context)
        compare_whole(bundle, work, 1500)


if __name__ == "__main__":
    main()
