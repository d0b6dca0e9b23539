"""What the reference scripts need before transformers is imported: Debian's PyTorch (1.13, on the CPU; PyPI has it only with gigabytes
of CUDA) cannot import its training on many machines under Python 3.11, which transformers asks for only to say that it is not used."""

import glob
import os
import subprocess
import sys
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
os.environ.setdefault("ORT_DYLIB_PATH", next(iter(libraries), ""))


def engines():
    """Engines that graphs are run on."""
    return ["tract", "ort"] if os.environ["ORT_DYLIB_PATH"] else ["tract"]


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
