"""Speed of an imported HuBERT of the base shape, against PyTorch in the same run; ratios, because machines differ.

    speed.py --bin target/debug [--seconds 10]

One thread each. Random weights: times do not depend on them. Also how long the export to int8 takes and how much memory it needs.
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
import reference  # prepares torch; must come before transformers
import torch
from hubert import audio, make, features


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
            for form in [[], ["--int8"]]:
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
            [options.bin / "sa-export", "--hubert", scratch / "base", "--kmeans", scratch / "kmeans.npy", "--int8", "--output", scratch / "bundle"],
            check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
        print(f"export to int8, with the curve over the look-ahead: {time.perf_counter() - began:.0f} s; peak memory of all that ran {peak:.2f} GB")


if __name__ == "__main__":
    main()
