"""What the reference scripts need before transformers is imported: Debian's PyTorch (1.13, on the CPU; PyPI has it only with gigabytes
of CUDA) cannot import its training on many machines under Python 3.11, which transformers asks for only to say that it is not used."""

import glob
import os
import subprocess
import sys
import tomllib
import types
import warnings

import onnxruntime
import torch

warnings.filterwarnings("ignore")
torch.set_num_threads(1)
unused = types.ModuleType("torch.distributed.fsdp")
unused.FullyShardedDataParallel = type("FullyShardedDataParallel", (), {})
sys.modules["torch.distributed.fsdp"] = torch.distributed.fsdp = unused

# The second engine is the library inside of the wheel.
libraries = glob.glob(os.path.join(os.path.dirname(onnxruntime.__file__), "capi", "libonnxruntime.so.1.*"))
if libraries:
    os.environ.setdefault("ORT_DYLIB_PATH", libraries[0])

# Where all must run (CI), what is left out is a failure.
ALL = os.environ.get("SA_TEST_ALL") == "1"


def left_out(what):
    if ALL:
        sys.exit(f"left out, where SA_TEST_ALL asks for all: {what}")
    print(f"left out: {what}")


def engines():
    """Engines that graphs are run on."""
    return ["tract", "ort"] if os.environ.get("ORT_DYLIB_PATH") else ["tract"]


if len(engines()) < 2:
    left_out("the second engine, for there is no libonnxruntime.so in the wheel of onnxruntime, and ORT_DYLIB_PATH names none")


def check_onnx(*bundles):
    """The graphs of bundles in onnx.checker and in plain onnxruntime; both live in an environment of their own (tests/setup.sh test)."""
    python = os.environ.get("SA_ONNX_PYTHON")
    if not python:
        return left_out("onnx.checker on what was exported; SA_ONNX_PYTHON names a Python that has it")
    checker = os.path.join(os.path.dirname(__file__), "..", "onnx_bundle.py")
    done = subprocess.run([python, checker, *map(str, bundles)], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{done.stdout}{done.stderr}")
    graphs = [line for line in done.stdout.splitlines() if "good ONNX" in line]
    assert len(graphs) >= len(bundles), done.stdout
    print(f"onnx.checker and plain onnxruntime: {len(graphs)} graphs of {len(bundles)} bundles are good")


def measured(bundle, stage):
    """The figures of a bundle's stage; those of the second engine must be there where it is."""
    figures = tomllib.loads((bundle / "bundle.toml").read_text())["measured"][stage]
    other = "tract" if figures["engine"] == "ort" else "ort"
    wanted = ["step_ms", "fp32_step_ms"] + ([f"{other}_step_ms"] if other in engines() else [])
    assert all(isinstance(figures.get(key), float) and figures[key] > 0 for key in wanted), (wanted, figures)
    return figures


def run(*command, fails=False):
    """Runs one of our programs, which must (or, with `fails`, must not) succeed, and never panic."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if (done.returncode != 0) != fails:
        sys.exit(f"{' '.join(map(str, command))}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    assert "panicked" not in done.stderr, done.stderr
    return done


def damage(binaries, seconds, scratch, *files):
    """Our readers on damaged files, with no more memory than they need: none may panic, hang, or take it all."""
    limited = ["bash", "-c", 'ulimit -v 6000000; exec "$@"', "fuzz"]
    print(run(*limited, binaries / "fuzz", "--seconds", seconds, *files).stdout.replace(f"{scratch}/", ""), end="")
