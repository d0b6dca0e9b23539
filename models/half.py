#!/usr/bin/env python3
"""Stores the f32 tensors of a safetensors file as f16: models/half.py IN OUT. Standard library only.

Shipped checkpoints are kept so; every reader of this repository takes both.
"""

import json
import os
import struct
import sys


def main(source, target):
    with open(source, "rb") as file:
        data = file.read()
    size = struct.unpack("<Q", data[:8])[0]
    header, body = json.loads(data[8 : 8 + size]), memoryview(data)[8 + size :]
    chunks, offset, out = [], 0, {}
    for name, entry in header.items():
        if name == "__metadata__":
            out[name] = entry
            continue
        start, end = entry["data_offsets"]
        chunk = bytes(body[start:end])
        if entry["dtype"] == "F32":
            count = len(chunk) // 4
            chunk = struct.pack(f"<{count}e", *struct.unpack(f"<{count}f", chunk))
            entry = {**entry, "dtype": "F16"}
        out[name] = {**entry, "data_offsets": [offset, offset + len(chunk)]}
        chunks.append(chunk)
        offset += len(chunk)
    text = json.dumps(out, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(target + ".partial", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + b"".join(chunks))
    os.replace(target + ".partial", target)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
