"""What the reference scripts need before transformers is imported: Debian's PyTorch (1.13, on the CPU; PyPI has it only with gigabytes
of CUDA) cannot import its training on many machines under Python 3.11, which transformers asks for only to say that it is not used."""

import sys
import types
import warnings

import torch

warnings.filterwarnings("ignore")
torch.set_num_threads(1)
unused = types.ModuleType("torch.distributed.fsdp")
unused.FullyShardedDataParallel = type("FullyShardedDataParallel", (), {})
sys.modules["torch.distributed.fsdp"] = torch.distributed.fsdp = unused
