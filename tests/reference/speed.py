"""Speed of an imported HuBERT of the base shape, against PyTorch in the same run; ratios, because machines differ.

    speed.py --bin target/debug [--seconds 10]

One thread each. Random weights: times do not depend on them. Also how long the export to int8 takes and how much memory it needs, and
a step of a language model of Qwen2.5-0.5B's shape in int8 on both engines, with the share of this machine's memory bandwidth that it uses.

Debian's PyTorch has no fast kernels. With PyPI's (2 GB and more) it is a fair rival:

    python3 -m venv /tmp/torch && /tmp/torch/bin/pip install torch==2.3.1 numpy==1.26.4 transformers==4.48.3 scikit-learn==1.5.2 onnxruntime==1.20.1
    SA_TORCH_PYTHON=/tmp/torch/bin/python make bench
"""

import argparse
import json
import resource
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import qwen
import reference  # prepares torch; must come before transformers
import torch
from hubert import audio, make, features


def bandwidth():
    """GB/s that one thread reads, at the least: NumPy's sum of half a gigabyte, the best of five."""
    values = np.ones(1 << 27, np.float32)
    times = []
    for _ in range(5):
        began = time.perf_counter()
        values.sum()
        times.append(time.perf_counter() - began)
    return values.nbytes / min(times) / 1e9


def language_model(folder, binaries):
    """A step at the shape of Qwen2.5-0.5B, int8."""
    d, wide, layers, heads, pairs, vocabulary, steps = 896, 4864, 24, 14, 2, 151936, 24
    model = qwen.make(dict(
        vocab_size=vocabulary, hidden_size=d, intermediate_size=wide, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=pairs, max_position_embeddings=32768, tie_word_embeddings=True,
    ))
    model.to(torch.bfloat16).save_pretrained(folder)
    np.save(folder / "tokens.npy", np.arange(steps, dtype=np.float32) * 37)
    np.save(folder / "logits.npy", np.ones((steps, vocabulary), np.float32))
    # Of the embedding only a row is read, of the logits' product all.
    read = sum(value.numel() for value in model.parameters() if value.ndim == 2) / 1e9
    del model
    most = bandwidth()
    print(f"\nQwen2.5-0.5B's shape, int8, one thread; a thread reads {most:.1f} GB/s here at the least (a sum by NumPy)\n\n| engine | ms a step | share of the bandwidth |\n|---|---|---|")
    times = {}
    for engine in reference.engines():
        done = subprocess.run(
            [binaries / "parity", "qwen", "--engine", engine, "--qwen", folder, "--tokens", folder / "tokens.npy", "--logits", folder / "logits.npy",
             "--prompt", "4", "--form", "int8"],
            capture_output=True, text=True, check=True,
        )
        times[engine] = json.loads(done.stdout)["ms"]
        print(f"| {engine} | {times[engine]:.1f} | {100 * read / times[engine] * 1000 / most:.0f} % |", flush=True)
    if "ort" in times:
        print(f"\ntract is {times['ort'] / times['tract']:.2f} times as fast as ort")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--bin", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    layer = 12
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        model = make({})
        model.save_pretrained(scratch / "base")
        samples = audio(options.seconds)
        found = features(model, samples, layer)
        np.save(scratch / "audio.npy", samples)
        np.save(scratch / "features.npy", found)
        np.save(scratch / "kmeans.npy", found[np.linspace(0, len(found) - 1, 100).astype(int)])
        times = []
        for _ in range(options.repeat):
            began = time.perf_counter()
            features(model, samples, layer)
            times.append(1000 * (time.perf_counter() - began))
        torch_ms = statistics.median(times)
        print("| engine | form | ms for 10 s | times PyTorch fp32 | relative L2 |\n|---|---|---|---|---|")
        print(f"| PyTorch {torch.__version__} | fp32 | {torch_ms:.0f} | 1.00 | |")
        for engine in reference.engines():
            for form in [[], ["--form", "int8"]]:
                done = subprocess.run(
                    [options.bin / "parity", "hubert", "--engine", engine, "--hubert", scratch / "base", "--kmeans", scratch / "kmeans.npy",
                     "--layer", str(layer), "--audio", scratch / "audio.npy", "--features", scratch / "features.npy",
                     "--repeat", str(options.repeat), *form],
                    capture_output=True, text=True, check=True,
                )
                figures = json.loads(done.stdout)
                print(f"| {engine} | {'int8' if form else 'fp32'} | {figures['ms']:.0f} | {torch_ms / figures['ms']:.2f} | {figures['error']:.1e} |", flush=True)
        began = time.perf_counter()
        subprocess.run(
            [options.bin / "sa-export", "--hubert", scratch / "base", "--kmeans", scratch / "kmeans.npy", "--precision", "tokenizer=int8", "--force", "--output", scratch / "bundle"],
            check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
        print(f"export to int8, with the curve over the look-ahead: {time.perf_counter() - began:.0f} s; peak memory of all that ran {peak:.2f} GB")
        language_model(scratch / "qwen", options.bin)


if __name__ == "__main__":
    main()
