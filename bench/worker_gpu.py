"""What bench/gpu.py asks for, each in a process of its own: prints one line of JSON.

A failure is the last line of stderr. The model is read after the device: a machine without one says so at once.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from statistics import median
from typing import Any

GB = 10**9
# Of log-probabilities: quantized activations and a cache in f16 explain some hundredths, a wrong kernel gives nats.
LARGEST_DIFFERENCE = 0.25


def main() -> int:
    given = _arguments().parse_args()
    sys.stdout.write(json.dumps(_PARTS[given.part](given)) + "\n")
    return 0


def facts(given: argparse.Namespace) -> dict[str, Any]:
    """The device as Vulkan and, where it is there, NVIDIA's tool describe it, and the bandwidth of reading."""
    from brise import __version__, _native  # noqa: PLC0415 - each process imports what it measures

    device = _native.VulkanDevice(given.device.partition(":")[2])
    free, total = device.budget()
    seconds = device.read_seconds(min(given.bytes, free // 4), 12)
    size = min(given.bytes, free // 4, int(device.facts()["max_binding"])) // 16 * 16
    facts: dict[str, Any] = {"brise": __version__, **device.facts(), "free_bytes": free, "budget_bytes": total}
    if (tool := shutil.which("nvidia-smi")) is not None:
        run = subprocess.run([tool, "--query-gpu=name,driver_version,memory.total,clocks.max.mem,pcie.link.gen.max",
                              "--format=csv,noheader"], capture_output=True, text=True, timeout=20)
        facts["nvidia_smi"] = run.stdout.strip()
    return {**facts, "bandwidth_gb_s": round(size / median(seconds) / GB, 2)}


def _parity(given: argparse.Namespace) -> dict[str, Any]:
    """Log-probabilities and greedy tokens of the device beside the CPU's, of one model."""
    import brise  # noqa: PLC0415

    texts = ("A breeze is a light wind that moves leaves and small branches.", "def wind(speed):\n    return speed",
             "7, 14, 21, 28, 35", "Der Wind weht von Westen.")[:given.runs]
    scores: list[list[float]] = []
    answers = []
    for device in ("cpu", given.device):
        with brise.load(given.model, device=device, context=512) as model:
            scores.append([token.logprob for text in texts for token in model.score(text).tokens])
            answers.append([model.complete(text, max_tokens=given.decode, temperature=0).text for text in texts])
    largest = max(abs(a - b) for a, b in zip(*scores, strict=True))
    same = sum(a == b for a, b in zip(*answers, strict=True))
    return {"tokens": len(scores[0]), "largest_difference": round(largest, 5), "same_answers": same,
            "answers": len(texts), "passed": largest < LARGEST_DIFFERENCE}


def _speed(given: argparse.Namespace) -> dict[str, Any]:
    """brise: the engine's whole steps, with scheduling and sampling. Says after each depth what it has."""
    from brise.engine.model import load  # noqa: PLC0415
    from brise.evals.speed import BenchEngine  # noqa: PLC0415

    context = max(given.depths) + given.prompt + given.decode
    plan = subprocess.run([sys.executable, "-m", "brise", "plan", given.model, "--device", given.device, "--memory",
                           given.memory, "--context", str(context), "--parallel", "1", "--json"],
                          capture_output=True, text=True)
    if plan.returncode:
        raise SystemExit(" ".join(plan.stderr.split()) or f"brise plan: status {plan.returncode}")
    started = time.monotonic()
    on_device = json.loads(plan.stdout)["device"]
    layers, of_layers = on_device["layers"], on_device["of_layers"]
    model = load(given.model, device=given.device, gpu_layers=None if layers == of_layers else layers)
    out: dict[str, Any] = {"load_s": round(time.monotonic() - started, 2), "depths": []}
    if layers < of_layers:
        out["split"] = f", {layers} of {of_layers} layers on the GPU"
    BenchEngine(model, 1, 128).prefill(64)  # pipelines are made
    for depth in given.depths:
        engine = BenchEngine(model, 1, max(depth, given.prompt) + given.decode + 16)
        length, runs = max(depth, given.prompt), given.runs if depth <= given.prompt else 1
        prefills = [engine.prefill(length).tokens_per_s for _ in range(runs)]
        decodes = [engine.decode(1, depth, given.decode).tokens_per_s for _ in range(runs)]
        out["depths"].append({
            "depth": depth, "decode": round(median(decodes), 2), "prefill": round(median(prefills), 1),
            "decode_runs": [round(x, 2) for x in decodes], "prefill_runs": [round(x, 1) for x in prefills]})
        print(json.dumps(out), flush=True)
    return out


def _llama(given: argparse.Namespace) -> dict[str, Any]:
    """llama-bench with all layers on the GPU: prompts of each depth, and decode behind it."""
    command = [given.llama_bench, "-m", given.model, "-ngl", "99", "-fa", "1", "-r", str(given.runs), "-o", "json"]
    lengths = [max(depth, given.prompt) for depth in given.depths]
    rows: dict[int, dict[str, Any]] = {depth: {"depth": depth} for depth in given.depths}
    out: dict[str, Any] = {"depths": list(rows.values())}
    for words in (["-p", ",".join(map(str, sorted(set(lengths)))), "-n", "0"],
                  ["-p", "0", "-n", str(given.decode), "-d", ",".join(map(str, given.depths))]):
        run = subprocess.run([*command, *words], capture_output=True, text=True)
        if run.returncode:
            raise SystemExit(run.stderr.strip().rpartition("\n")[2] or f"llama-bench: status {run.returncode}")
        for test in json.loads(run.stdout):
            out["version"] = f"{test['build_commit']} {test['backends']}"
            for depth, length in zip(given.depths, lengths, strict=True):
                if test["n_gen"] and test["n_depth"] == depth:
                    rows[depth]["decode"] = round(test["avg_ts"], 2)
                elif not test["n_gen"] and test["n_prompt"] == length:
                    rows[depth]["prefill"] = round(test["avg_ts"], 1)
        print(json.dumps(out), flush=True)
    return out


def _transformers(given: argparse.Namespace) -> dict[str, Any]:
    """transformers on CUDA in BF16, with random weights of the same sizes."""
    import torch  # noqa: PLC0415
    import transformers  # noqa: PLC0415

    from synthesize import SHAPES  # noqa: PLC0415

    shape = SHAPES[given.model]
    kind = transformers.Qwen2Config if shape.biases else transformers.LlamaConfig
    config = kind(vocab_size=shape.vocab_size, hidden_size=shape.width, intermediate_size=shape.ffn_width,
                  num_hidden_layers=shape.num_layers, num_attention_heads=shape.num_heads,
                  num_key_value_heads=shape.num_kv_heads, max_position_embeddings=shape.context,
                  tie_word_embeddings=shape.tied)
    with torch.device("cuda"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()

    def timed(tokens: Any, cache: Any = None) -> tuple[float, Any]:
        torch.cuda.synchronize()
        started = time.monotonic()
        for token in tokens:
            cache = model(token, past_key_values=cache, use_cache=True, logits_to_keep=1).past_key_values
        torch.cuda.synchronize()
        return time.monotonic() - started, cache

    out: dict[str, Any] = {"version": transformers.__version__, "depths": []}
    with torch.inference_mode():
        for depth in given.depths:
            length = max(depth, given.prompt)
            prompt = torch.randint(shape.vocab_size, (1, length), device="cuda")
            timed([prompt])  # kernels are picked
            prefill, _ = timed([prompt])
            _, cache = timed([prompt[:, :depth]])
            decode, _ = timed([prompt[:, :1]] * given.decode, cache)
            out["depths"].append({"depth": depth, "decode": round(given.decode / decode, 2),
                                  "prefill": round(length / prefill, 1)})
            print(json.dumps(out), flush=True)
    return out


_PARTS = {"facts": facts, "parity": _parity, "speed": _speed, "llama": _llama, "transformers": _transformers}


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("part", choices=tuple(_PARTS))
    parser.add_argument("--device", help="vulkan, vulkan:1, vulkan:PART-OF-A-NAME")
    parser.add_argument("--memory", help="limit of the device's memory, or vram=SIZE,ram=SIZE")
    parser.add_argument("--model", help="a .gguf file, of transformers a shape of synthesize.py")
    parser.add_argument("--depths", type=_numbers, help="tokens that stand before what is timed")
    for name, what in (("bytes", "of the buffer that is read"), ("prompt", "tokens of a prefill"),
                       ("decode", "tokens of a decode"), ("runs", "of each measurement")):
        parser.add_argument(f"--{name}", type=int, help=what)
    parser.add_argument("--llama-bench", help="llama.cpp's program")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
