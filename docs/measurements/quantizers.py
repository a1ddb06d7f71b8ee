"""Nearfield's quantizers beside gptqmodel, llmcompressor and nvidia-modelopt: same layers, same data, one run.

    python docs/measurements/quantizers.py ENVIRONMENTS > docs/measurements/quantizers.txt

ENVIRONMENTS is a folder with a virtual environment for each library, in which it runs as a process of its own
(`quantizers_run.py`); one that is missing or fails is reported and left out:

    gptqmodel        pip install torch==2.13.0 && pip install gptqmodel==7.6.0 transformers==5.20.2 numpy==2.2.6
    llmcompressor    pip install torch==2.13.0 && pip install llmcompressor==0.14.0.1 transformers==5.17.0
    modelopt         pip install torch==2.13.0 && pip install nvidia-modelopt==0.47.0 requests huggingface_hub

Layers: `synthetic`, 1024 × 1024, weights and activations with heavy tails, correlated, one input in a hundred twenty
times the others; and all linears of nano's Thinker, those that share an input stacked, with the activations that typed
conversations of the training split give them. 4096 tokens each to calibrate with. 4 bits, groups of 128.

Errors are shares of the output's energy, `‖X (W − Q)ᵀ‖² / ‖X Wᵀ‖²`, on 4096 tokens that the quantizer did not see (of
nano, conversations of the held-out split). Ours is with float16 scales; the libraries' are as they are in memory,
float32. CPU time is of one thread; memory is the rise of the process's peak while the layer is quantized. Needs the
extra `[train]`; Linux.
"""

import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from statistics import geometric_mean

import numpy as np
import numpy.typing as npt

TOKENS = 4096
RUNNER = Path(__file__).with_name("quantizers_run.py")
LIBRARIES = ("nearfield", "gptqmodel", "llmcompressor", "modelopt")
RIVALS = {
    "nearfield gptq": ("gptqmodel", "llmcompressor"),
    "nearfield awq-gptq": ("gptqmodel", "llmcompressor"),
    "nearfield awq": ("modelopt",),
}
Array = npt.NDArray[np.float32]


def synthetic(columns: int = 1024, rows: int = 1024) -> dict[str, Array]:
    """A layer with what makes language models hard to quantize, in one place and from a fixed seed."""
    rng = np.random.default_rng(0)
    weight = 0.02 * rng.standard_t(5, (rows, columns))
    rank = columns // 8
    mixing = rng.standard_normal((rank, columns)) / np.sqrt(rank)
    sizes = np.exp(0.8 * rng.standard_normal(columns))
    sizes[rng.choice(columns, columns // 100, replace=False)] *= 20

    def tokens() -> Array:
        mixed = rng.standard_t(4, (TOKENS, rank)) @ mixing + 0.3 * rng.standard_normal((TOKENS, columns))
        x: Array = (mixed * sizes).astype(np.float32)
        return x

    return {"weight": weight.astype(np.float32), "seen": tokens(), "held_out": tokens()}


def nano() -> dict[str, dict[str, Array]]:
    """The linears of nano's Thinker with their inputs, in the reference implementation."""
    from nearfield.nano.reference import load_model  # isort: skip  # first of all that imports transformers

    import torch
    from nearfield.nano.chat import IGNORED, collate, hidden_states
    from nearfield.nano.read import typed_conversation
    from nearfield.nano.training import CHECKPOINT

    torch.set_num_threads(1)
    model = load_model(CHECKPOINT).thinker.model.language_model
    groups: dict[str, list[torch.nn.Linear]] = {}
    for number, layer in enumerate(model.layers):
        attention, mlp = layer.self_attn, layer.mlp
        groups[f"{number} q,k,v"] = [attention.q_proj, attention.k_proj, attention.v_proj]
        groups[f"{number} o"] = [attention.o_proj]
        groups[f"{number} gate,up"] = [mlp.gate_proj, mlp.up_proj]
        groups[f"{number} down"] = [mlp.down_proj]
    caught: dict[str, Array] = {}
    for name, linears in groups.items():
        linears[0].register_forward_pre_hook(
            lambda _, inputs, name=name: caught.__setitem__(name, inputs[0].detach().numpy())
        )
    layers: dict[str, dict[str, Array]] = {
        name: {"weight": np.concatenate([linear.weight.detach().numpy() for linear in linears])}
        for name, linears in groups.items()
    }
    for key, split in (("seen", "train"), ("held_out", "heldout")):
        rng = random.Random(split)
        parts: dict[str, list[Array]] = defaultdict(list)
        while not parts or sum(map(len, parts["0 o"])) < TOKENS:
            batch = collate([typed_conversation(rng, split) for _ in range(16)])
            with torch.no_grad():
                hidden_states(model, model.embed_tokens(batch.tokens), batch.positions)
            written = (batch.labels != IGNORED).flip(1).cumsum(1).flip(1) > 0  # (B, S): all but the padding
            for name, x in caught.items():
                parts[name].append(x[written.numpy()])
        for name, rows in parts.items():
            layers[name][key] = np.concatenate(rows)[:TOKENS]
    return layers


def run(library: str, python: Path, layers: Path, folder: Path) -> tuple[dict[str, npt.NDArray[np.float32]], str]:
    """Let a library quantize all layers; return its weights by `layer|method`, and what it says of itself."""
    result = folder / f"{library}.npz"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [python, RUNNER, library, layers, result], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError("\n".join(done.stderr.splitlines()[-12:]))
    with np.load(result) as stored:
        return dict(stored), done.stdout.strip().splitlines()[-1]


def error(layer: dict[str, Array], quantized: Array) -> float:
    """Share of the output's energy that quantization changes, on the tokens not seen."""
    x = layer["held_out"]
    change = np.square(x @ (layer["weight"] - quantized).T).sum(dtype=np.float64)
    return float(change / np.square(x @ layer["weight"].T).sum(dtype=np.float64))


def main() -> None:
    """Run every library on every layer and print the tables."""
    environments = Path(sys.argv[1])
    print(
        f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, one thread, Python {platform.python_version()}", flush=True
    )
    layers = {"synthetic": synthetic(), **{f"nano {name}": layer for name, layer in nano().items()}}
    errors: dict[str, dict[str, float]] = defaultdict(dict)
    costs: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        arrays = {f"{name}|{key}": layer[key] for name, layer in layers.items() for key in ("weight", "seen")}
        np.savez(folder / "layers.npz", **arrays)  # type: ignore[arg-type]  # a parameter of savez itself is a bool
        for library in LIBRARIES:
            python = Path(sys.executable) if library == "nearfield" else environments / library / "bin" / "python"
            try:
                weights, said = run(library, python, folder / "layers.npz", folder)
            except (OSError, RuntimeError) as failure:
                print(f"{library}: did not run: {failure}", flush=True)
                continue
            about = json.loads(said)
            print(f"{library}: {about['versions']}", flush=True)
            costs |= about["costs"]
            for name, weight in weights.items():
                layer, method = name.split("|")
                errors[method][layer] = error(layers[layer], weight)
    methods_table(errors, costs)
    ratios_table(errors)
    layers_table(errors)


def methods_table(errors: dict[str, dict[str, float]], costs: dict[str, list[float]]) -> None:
    """A line a method: its errors, and what the synthetic layer cost it."""
    print("\nHeld-out error, and what the synthetic layer cost")
    print(f"{'':58}{'synthetic':>10}{'nano*':>10}{'CPU s':>8}{'MiB':>6}")
    for method in sorted(errors, key=lambda name: (name.split()[-1], name)):
        of_nano = geometric_mean([value for name, value in errors[method].items() if name != "synthetic"])
        seconds, mebibytes = costs[method]
        print(f"{method:58}{errors[method]['synthetic']:10.5f}{of_nano:10.5f}{seconds:8.1f}{mebibytes:6.0f}")
    print("* geometric mean of the layers")


def ratios_table(errors: dict[str, dict[str, float]]) -> None:
    """Ours divided by theirs: on the synthetic layer, on nano's on average, and where it is largest."""
    print("\nOur error divided by theirs")
    print(f"{'':84}{'synthetic':>10}{'nano*':>8}{'largest':>9}")
    for ours, theirs, ratios in comparisons(errors):
        of_nano = [value for name, value in ratios.items() if name != "synthetic"]
        largest = max(ratios, key=lambda name: ratios[name])
        print(
            f"{ours + ' / ' + theirs:84}{ratios['synthetic']:10.3f}{geometric_mean(of_nano):8.3f}"
            f"{ratios[largest]:9.3f}  {largest}"
        )
    worst = max(max(ratios.values()) for ours, _, ratios in comparisons(errors) if "gptq" not in ours.split()[1])
    print(f"largest of AWQ: {worst:.3f}")
    worst = max(max(ratios.values()) for ours, _, ratios in comparisons(errors) if "gptq" in ours.split()[1])
    print(f"largest of GPTQ: {worst:.3f}")


def comparisons(errors: dict[str, dict[str, float]]) -> list[tuple[str, str, dict[str, float]]]:
    """Every method of ours with every rival on the same kind of grid."""
    found = []
    for ours in sorted(errors):
        name, kind = ours.rsplit(" ", 1)
        rivals = [other for other in sorted(errors) if name in RIVALS and other.startswith(RIVALS[name])]
        for theirs in rivals:
            if theirs.endswith(" " + kind):
                ratios = {layer: value / errors[theirs][layer] for layer, value in errors[ours].items()}
                found.append((ours, theirs, ratios))
    return found


def layers_table(errors: dict[str, dict[str, float]]) -> None:
    """Every error, in millionths."""
    methods = sorted(errors, key=lambda name: (name.split()[-1], name))
    print("\nHeld-out error of every layer, in millionths")
    for number, method in enumerate(methods):
        print(f"  {chr(ord('a') + number)} {method}")
    print(f"{'':16}" + "".join(f"{chr(ord('a') + number):>7}" for number in range(len(methods))))
    for layer in errors[methods[0]]:
        print(f"{layer:16}" + "".join(f"{errors[method][layer] * 1e6:7.0f}" for method in methods))


if __name__ == "__main__":
    main()
