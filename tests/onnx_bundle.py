#!/usr/bin/env python3
"""Are the graphs of a bundle good ONNX, and do they run outside this project?

    onnx_bundle.py BUNDLE...

Every graph that a bundle has must pass onnx.checker with shape inference and make one step in plain Python onnxruntime, with inputs and
outputs as bundle.toml declares them. Needs onnx and onnxruntime (tests/setup.sh test installs both).
"""

import os
import sys
import tomllib

import numpy
import onnx
import onnxruntime

TYPES = {"f32": numpy.float32, "i64": numpy.int64}


def graph_runs(folder, stage):
    """Raises whatever is wrong; returns what there is to say."""
    path = os.path.join(folder, stage["file"])
    onnx.checker.check_model(path, full_check=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    random = numpy.random.default_rng(1)
    inputs = {}
    for tensor in stage["inputs"]:
        small = random.uniform(-0.1, 0.1, tensor["shape"]) if tensor["dtype"] == "f32" else numpy.zeros(tensor["shape"])
        inputs[tensor["name"]] = small.astype(TYPES[tensor["dtype"]])
    graph_inputs = {node.name for node in session.get_inputs()}
    if graph_inputs != inputs.keys():
        raise ValueError(f"inputs {sorted(graph_inputs ^ inputs.keys())} are in the graph or in bundle.toml only")
    names = [tensor["name"] for tensor in stage["outputs"]]
    for tensor, values in zip(stage["outputs"], session.run(names, inputs)):
        if (list(values.shape), values.dtype) != (tensor["shape"], TYPES[tensor["dtype"]]):
            raise ValueError(f"output {tensor['name']} is {values.dtype} {list(values.shape)}, declared {tensor['dtype']} {tensor['shape']}")
        if not numpy.isfinite(values).all():
            raise ValueError(f"output {tensor['name']} is not finite")
    return f"{len(inputs)} inputs, {len(names)} outputs"


def main():
    failed = False
    for folder in sys.argv[1:] or sys.exit(__doc__):
        with open(os.path.join(folder, "bundle.toml"), "rb") as file:
            stages = tomllib.load(file)["stage"]
        if not stages:
            failed = True
            print(f"{folder}: no stage at all")
        for name in stages:
            try:
                print(f"{folder} {name}: good ONNX, one step in onnxruntime {onnxruntime.__version__}: {graph_runs(folder, stages[name])}")
            except Exception as error:  # whatever it is, the other graphs are looked at as well
                failed = True
                print(f"{folder} {name}: {type(error).__name__}: {error}")
    sys.exit(failed)


if __name__ == "__main__":
    main()
