"""One library at work on the layers of `quantizers.py`; runs in that library's own environment.

    python quantizers_run.py LIBRARY layers.npz result.npz

Inputs: `LAYER|weight (N, K)` and `LAYER|seen (T, K)`, float32 → outputs: `LAYER|METHOD (N, K)`, the weight that takes
the place of the layer's: with the scales of AWQ taken back, so that it has the same inputs. The last line printed is
JSON: versions, and of each method CPU seconds and MiB on the layer called `synthetic`.
"""

import copy
import importlib.metadata
import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
Method = Callable[[Array, Array], Array]
BATCH = 512
KINDS = {"asymmetric": False, "symmetric": True}


def batches(x: Array) -> Iterator[Array]:
    """The activations as calibration brings them."""
    for start in range(0, len(x), BATCH):
        yield x[start : start + BATCH]


def nearfield_methods() -> Iterator[tuple[str, Method]]:
    """Ours: round-to-nearest, GPTQ, AWQ, and GPTQ with scales."""
    from nearfield.quantize.awq import clip_and_round, scales_for_gptq, scales_for_rounding
    from nearfield.quantize.gptq import gptq
    from nearfield.quantize.grid import Grid
    from nearfield.quantize.hessian import Factor, Hessian
    from nearfield.quantize.rtn import round_to_nearest

    def factor_of(x: Array) -> Factor:
        hessian = Hessian(x.shape[1])
        for batch in batches(x):
            hessian.add(batch)
        return Factor(hessian, overwrite=True)

    for kind, symmetric in KINDS.items():
        grid = Grid(4, 128, symmetric, np.float16)

        def scaled_gptq(w: Array, x: Array, grid: Grid = grid) -> Array:
            factor = factor_of(x)
            scales = scales_for_gptq(w, factor, grid)
            factor.divide(scales)
            return gptq(w * scales, factor, grid).dequantize() / scales

        def awq(w: Array, x: Array, grid: Grid = grid) -> Array:
            scales = scales_for_rounding(w, x, grid)
            return clip_and_round(w * scales, x / scales, grid).dequantize() / scales

        yield f"nearfield rtn {kind}", lambda w, _, grid=grid: round_to_nearest(w, grid).dequantize()
        yield f"nearfield gptq {kind}", lambda w, x, grid=grid: gptq(w, factor_of(x), grid).dequantize()
        yield f"nearfield awq-gptq {kind}", scaled_gptq
        yield f"nearfield awq {kind}", awq


def gptqmodel_methods() -> Iterator[tuple[str, Method]]:
    """gptqmodel: as it comes (activation-aware groups), with act-order and static groups, and with its own clipping."""
    import torch
    from gptqmodel.quantization import QuantizeConfig
    from gptqmodel.quantization.gptq import GPTQ

    torch.set_num_threads(1)
    static: dict[str, object] = {"desc_act": True, "act_group_aware": False, "static_groups": True}
    settings: dict[str, dict[str, object]] = {
        "as it comes": {},
        "act-order, static groups": static,
        "act-order, static groups, mse 2": static | {"mse": 2.0},
    }
    for kind, symmetric in KINDS.items():
        for name, changes in settings.items():

            def method(w: Array, x: Array, symmetric: bool = symmetric, changes: dict[str, object] = changes) -> Array:
                linear = _linear(w)
                engine = GPTQ(linear, QuantizeConfig(bits=4, group_size=128, sym=symmetric, **changes))
                engine.quantizer.configure(perchannel=True)
                for batch in batches(x):
                    engine.add_batch(torch.from_numpy(batch)[None], None)
                quantized: Array = engine.quantize()[0].numpy()
                return quantized

            yield f"gptqmodel gptq, {name} {kind}", method


def llmcompressor_methods() -> Iterator[tuple[str, Method]]:
    """llmcompressor: its GPTQModifier as it comes (static act-order), and with its clipping observer."""
    import torch
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization.calibration import observe
    from loguru import logger

    logger.remove()
    torch.set_num_threads(1)
    for kind, symmetric in KINDS.items():
        for name, observer in {"as it comes": None, "mse observer": "memoryless_mse"}.items():

            def method(w: Array, x: Array, symmetric: bool = symmetric, observer: str | None = observer) -> Array:
                model = torch.nn.Sequential(_linear(w))
                arguments = QuantizationArgs(
                    num_bits=4, type="int", symmetric=symmetric, strategy="group", group_size=128, observer=observer
                )
                scheme = QuantizationScheme(targets=["Linear"], weights=arguments)
                modifier = GPTQModifier(config_groups={"group_0": scheme})
                modifier.initialize_quantization(model)
                modifier._module_names = {model[0]: "0"}
                modifier.start_calibration(model)
                for batch in batches(x):
                    modifier.calibrate_module(model[0], (torch.from_numpy(batch)[None],), None)
                observe([model[0]], base_name="weight")
                modifier.compress_modules()
                quantized: Array = model[0].weight.detach().numpy().copy()
                return quantized

            yield f"llmcompressor gptq, {name} {kind}", method


def modelopt_methods() -> Iterator[tuple[str, Method]]:
    """nvidia-modelopt: scale search, clipping, and both; its INT4 is symmetric."""
    import modelopt.torch.quantization as mtq
    import torch

    torch.set_num_threads(1)
    for algorithm in ("awq_lite", "awq_clip", "awq_full"):

        def method(w: Array, x: Array, algorithm: str = algorithm) -> Array:
            model = torch.nn.Sequential(_linear(w))
            config = copy.deepcopy(mtq.INT4_AWQ_CFG)
            config["algorithm"] = {"method": algorithm}

            def calibrate(model: torch.nn.Module) -> None:
                for batch in batches(x):
                    model(torch.from_numpy(batch))

            with torch.no_grad():
                quantized = mtq.quantize(model, config, calibrate)
                effective: Array = quantized(torch.eye(w.shape[1])).numpy().T
            return effective

        yield f"modelopt {algorithm} symmetric", method


def _linear(w: Array) -> "torch.nn.Linear":  # noqa: F821  # only the libraries' environments have it
    import torch

    linear = torch.nn.Linear(w.shape[1], w.shape[0], bias=False)
    linear.weight.data = torch.from_numpy(w.copy())
    return linear.requires_grad_(False)


def _memory_mib(field: str) -> float:
    """A line of /proc/self/status: `VmRSS`, held now, or `VmHWM`, held at most."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def main() -> None:
    """Quantize every layer by every method of the library."""
    library, layers, result = sys.argv[1:]
    methods = globals()[f"{library}_methods"]
    with np.load(layers) as stored:
        arrays = dict(stored)
    weights: dict[str, Array] = {}
    costs: dict[str, list[float]] = {}
    for name, method in methods():
        method(arrays["nano 0 o|weight"], arrays["nano 0 o|seen"])  # what is loaded on first use is no cost of a layer
        for layer in dict.fromkeys(key.split("|")[0] for key in arrays):
            Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # VmHWM from here on
            start, before = resource.getrusage(resource.RUSAGE_SELF), _memory_mib("VmRSS")
            began = time.perf_counter()
            weights[f"{layer}|{name}"] = method(arrays[f"{layer}|weight"], arrays[f"{layer}|seen"])
            end = resource.getrusage(resource.RUSAGE_SELF)
            if layer == "synthetic":
                seconds = end.ru_utime + end.ru_stime - start.ru_utime - start.ru_stime
                costs[name] = [seconds, _memory_mib("VmHWM") - before]
                print(f"{name}: {seconds:.1f} s CPU, {time.perf_counter() - began:.1f} s", file=sys.stderr, flush=True)
    np.savez(result, **weights)  # type: ignore[arg-type]
    packages = {"nearfield": ["numpy"], "modelopt": ["nvidia-modelopt", "torch", "numpy"]}
    listed = packages.get(library, [library, "transformers", "torch", "numpy"])
    versions = ", ".join(f"{package} {importlib.metadata.version(package)}" for package in listed)
    print(json.dumps({"versions": versions, "costs": costs}))


if __name__ == "__main__":
    main()
