"""Public unit HiFi-GANs against PyTorch.

Makes generators with random weights in the layout of speech-resynthesis (config.json beside `g_…`), and checks that the exported graphs
compute what PyTorch does: the whole utterance, and the stream chunk by chunk in plain onnxruntime. The generator is transformers' own
(SpeechT5HifiGan, which was written after the same paper), its weights under the names of speech-resynthesis.

    hifigan.py --bin target/debug
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import reference  # prepares torch; must come before transformers
from reference import run
import torch
import onnxruntime
from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

K, DIM = 30, 24
SHAPES = {
    "public-ratios": dict(rates=[5, 4, 4, 2, 2], kernels=[11, 8, 8, 4, 4], channels=64, blocks=[3, 7, 11], dilations=[[1, 3, 5]] * 3),
    "25-hz": dict(rates=[8, 5, 4, 4], kernels=[16, 11, 8, 8], channels=32, blocks=[3, 5], dilations=[[1, 2], [1, 3]]),
}


def make(shape):
    torch.manual_seed(5)
    model = SpeechT5HifiGan(SpeechT5HifiGanConfig(
        model_in_dim=DIM, upsample_initial_channel=shape["channels"], upsample_rates=shape["rates"], upsample_kernel_sizes=shape["kernels"],
        resblock_kernel_sizes=shape["blocks"], resblock_dilation_sizes=shape["dilations"], leaky_relu_slope=0.1, normalize_before=False,
    )).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            fan = value[0].numel() if value.ndim > 1 else 1
            if "upsampler" in name and value.ndim > 1:
                fan = value.shape[0] * 2
            value.normal_(0.0, 1.0 / fan**0.5) if value.ndim > 1 else value.uniform_(-0.1, 0.1)
    embeddings = torch.randn(K, DIM)
    return model, embeddings


def save(folder, shape, model, embeddings):
    """Under speech-resynthesis's names, weight norm taken apart."""
    state = {"dict.weight": embeddings, "dur_predictor.proj.weight": torch.zeros(1, 8)}
    for key, value in model.state_dict().items():
        if key in ("mean", "scale"):
            continue
        key = key.replace("upsampler.", "ups.")
        if key.endswith(".weight"):
            norm = value.flatten(1).norm(dim=1).view(-1, *[1] * (value.ndim - 1))
            # Another length of the direction and the gain that makes up for it: only their product may matter.
            state[key + "_v"], state[key + "_g"] = value * 3.0, norm
        else:
            state[key] = value
    torch.save({"generator": state}, folder / "g_00400000")
    torch.save({"generator": {}}, folder / "g_00001000")
    config = dict(
        resblock="1", upsample_rates=shape["rates"], upsample_kernel_sizes=shape["kernels"], upsample_initial_channel=shape["channels"],
        resblock_kernel_sizes=shape["blocks"], resblock_dilation_sizes=shape["dilations"], num_embeddings=K, embedding_dim=DIM,
        model_in_dim=DIM, sampling_rate=16000, code_hop_size=int(np.prod(shape["rates"])), f0=None, multispkr=None,
    )
    (folder / "config.json").write_text(json.dumps(config))


def speak(model, embeddings, units):
    with torch.no_grad():
        x = torch.cat([embeddings, torch.zeros(1, DIM)])[torch.from_numpy(units)]
        return model(x[None])[0].numpy()


def distance(a, b):
    return float(np.linalg.norm(a - b) / np.linalg.norm(a))


def check(folder, name, shape, binaries):
    model, embeddings = make(shape)
    save(folder, shape, model, embeddings)
    hop = int(np.prod(shape["rates"]))
    rng = np.random.default_rng(2)
    units = np.repeat(rng.integers(0, K, 60), rng.integers(1, 4, 60))[:96].astype(np.int64)
    expected = speak(model, embeddings, units)
    assert np.abs(expected).std() > 1e-3, "the generator is silent"
    np.save(folder / "units.npy", units.astype(np.float32))
    np.save(folder / "audio.npy", expected)
    for engine in reference.engines():
        done = run(
            binaries / "parity", "hifigan", "--engine", engine, "--hifigan", folder, "--units", folder / "units.npy", "--audio",
            folder / "audio.npy",
        )
        error = json.loads(done.stdout)["error"]
        print(f"{name:<16} whole utterance on {engine}: relative L2 {error:.1e}")
        assert error <= 1e-4, error

    # With the whole reach ahead the stream is exact; the units before and after are padding, whose embedding is zeros.
    bundle = folder / "bundle"
    unit_ms = 1000 * hop / 16000
    done = run(binaries / "sa-export", "--hifigan", folder, "--output", bundle, "--chunk", 4 * unit_ms, "--look-ahead", 24 * unit_ms)
    assert "dB from the whole utterance" in done.stdout
    assert "loads and runs" in run(binaries / "sa-export", "--verify", bundle).stdout
    session = onnxruntime.InferenceSession(str(bundle / "decoder.onnx"), providers=["CPUExecutionProvider"])
    state = np.zeros(next(i.shape for i in session.get_inputs() if i.name == "state.units"), np.float32)
    audio = []
    for chunk in np.concatenate([units, np.full(24, K)]).reshape(-1, 4):
        out, state = session.run(["audio", "state.units.next"], {"units": chunk[None], "state.units": state})
        audio.append(out.reshape(-1))
    np.save(folder / "stream.npy", np.concatenate([units, np.full(24, K)]).astype(np.float32))
    streams = {"onnxruntime": np.concatenate(audio)}
    for engine in reference.engines():
        done = run(binaries / "parity", "stream", "--engine", engine, "--bundle", bundle, "--input", folder / "stream.npy")
        streams[engine] = np.array(json.loads(done.stdout)["values"])
    reach = 24
    padded = speak(model, embeddings, np.concatenate([np.full(reach, K), units, np.full(reach, K)]))[reach * hop : -reach * hop]
    for engine, audio in streams.items():
        error = distance(padded, audio[24 * hop :])
        print(f"{name:<16} stream of chunks on {engine}: relative L2 {error:.1e}")
        assert error <= 1e-4, error
    figures = reference.measured(bundle, "decoder")
    assert figures["distance_db_from_offline"] < 0.01 and figures["distance_db_by_look_ahead_ms"][-1][1] < 0.01, figures

    short = run(binaries / "sa-export", "--hifigan", folder / "g_00400000", "--output", folder / "short", "--int8")
    assert "ahead" in short.stdout and "fp16" in short.stdout, short.stdout
    bundles = [bundle, folder / "short"]
    # A generator has no linear layer: 8 and 4 bits are half precision on disk, like all convolutions.
    for form in ["int8", "int4"] if name == "25-hz" else []:
        bundles.append(folder / form)
        run(binaries / "sa-export", "--hifigan", folder, "--output", bundles[-1], "--precision", f"decoder={form}", "--force")
    for made in bundles[1:]:
        figures = reference.measured(made, "decoder")
        assert 0 < figures["error"] < 0.01 and 0 < figures["mel_distance_db"] < 0.5, figures
        assert (made / "decoder.onnx").stat().st_size < 0.7 * figures["fp32_bytes"], figures
    return bundles


def check_refusals(folder, binaries):
    config = json.loads((folder / "config.json").read_text())
    def refused(says, **changes):
        (folder / "config.json").write_text(json.dumps(dict(config, **changes)))
        done = run(binaries / "sa-export", "--hifigan", folder, "--output", folder / "refused", fails=True)
        assert all(word in done.stderr for word in says), (says, done.stderr)
        assert not list(folder.glob("refused*")), "something was left behind"
        (folder / "config.json").write_text(json.dumps(config))
    refused(["pitch"], f0=True)
    refused(["speaker"], multispkr="from_input_file")
    refused(["dict.weight", "shape"], num_embeddings=K + 1)
    refused(["shape"], upsample_initial_channel=128)
    print("refused: pitch, speakers, wrong sizes")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--bin", type=Path, required=True)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        bundles = []
        for name, shape in SHAPES.items():
            folder = Path(scratch) / name
            folder.mkdir()
            bundles += check(folder, name, shape, options.bin)
        reference.check_onnx(*bundles)
        files = [folder / "config.json", folder / "g_00400000", folder / "bundle/bundle.toml", folder / "bundle/decoder.onnx"]
        reference.damage(options.bin, 12, scratch, *files)
        check_refusals(folder, options.bin)
    print("HiFi-GAN: all shapes agree with PyTorch")


if __name__ == "__main__":
    main()
