"""Public HuBERT checkpoints against their reference implementation, transformers.

Makes small checkpoints with random weights in every layout that `sa-export` reads, and checks that the exported graphs compute what
transformers does: features, units, and the streaming window chunk by chunk. Then the inputs that must be refused.

    hubert.py --bin target/debug [--only NAME]
"""

import argparse
import json
import os
import pickle
import tempfile
import wave
from collections import OrderedDict
from pathlib import Path

import numpy as np
import reference  # prepares torch; must come before transformers
from reference import run
import torch
import joblib
import onnxruntime
from safetensors.numpy import save_file
from sklearn.cluster import MiniBatchKMeans
from transformers import HubertConfig, HubertForCTC, HubertModel

UNITS = 40
LAYER = 2
# The stem of every public HuBERT but mHuBERT-25Hz; transformers' defaults.
KERNELS = (10, 3, 3, 3, 3, 2, 2)
STRIDES = (5, 2, 2, 2, 2, 2, 2)
SIZES = dict(
    hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=128, conv_dim=(32,) * 7,
    num_conv_pos_embeddings=32, num_conv_pos_embedding_groups=4,
)
LARGE = dict(SIZES, feat_extract_norm="layer", conv_bias=True, do_stable_layer_norm=True)
MHUBERT = dict(
    SIZES, conv_dim=(32,) * 8, conv_kernel=(*KERNELS, 2), conv_stride=(*STRIDES, 2), conv_pos_batch_norm=True,
)


def make(sizes, cls=HubertModel):
    """A model whose every parameter and statistic matters."""
    torch.manual_seed(7)
    model = cls(HubertConfig(**sizes)).eval()
    with torch.no_grad():
        for name, value in list(model.named_parameters()) + list(model.named_buffers()):
            if value.dtype != torch.float32:
                continue
            if "running_var" in name:
                value.uniform_(0.5, 2.0)
            elif "norm" in name and name.endswith("weight"):
                value.uniform_(0.5, 1.5)
            elif value.ndim <= 1 or "running_mean" in name:
                value.uniform_(-0.3, 0.3)
            elif "masked_spec_embed" not in name and "weight_g" not in name:
                value.normal_(0.0, 1.2 / value[0].numel() ** 0.5)
    return model


def audio(seconds):
    """Sounds with pitch and pauses; another second is another sound."""
    rng = np.random.default_rng(3)
    t = np.arange(int(16000 * seconds)) / 16000
    pitch = 120 + 60 * np.sin(2 * np.pi * 0.7 * t)
    voice = sum(np.sin(2 * np.pi * h * np.cumsum(pitch) / 16000) / h for h in range(1, 10))
    return (0.2 * voice * (np.sin(2 * np.pi * 2.1 * t) > -0.4) + 0.02 * rng.standard_normal(len(t))).astype(np.float32)


def features(model, samples, layer, normalise=False):
    if normalise:
        samples = (samples - samples.mean()) / np.sqrt(samples.var() + 1e-7)
    hubert = getattr(model, "hubert", model)
    with torch.no_grad():
        states = hubert(torch.from_numpy(samples.astype(np.float32))[None], output_hidden_states=True).hidden_states
    return states[layer][0].numpy()


def fairseq_state(model, sizes):
    """The state under fairseq's names."""
    layer_norm = sizes.get("feat_extract_norm") == "layer"
    batch_norm = sizes.get("conv_pos_batch_norm", False)
    state = OrderedDict()
    for name, value in model.state_dict().items():
        parts = name.split(".")
        if name.startswith("feature_extractor"):
            norm = "2.1" if layer_norm else "2"
            name = ".".join(parts[:3] + [{"conv": "0", "layer_norm": norm}[parts[3]], parts[4]])
        elif name.startswith("encoder.pos_conv_embed.batch_norm"):
            name = f"encoder.pos_conv.0.{parts[-1]}"
        elif name.startswith("encoder.pos_conv_embed.conv"):
            name = f"encoder.pos_conv.{1 if batch_norm else 0}.{parts[-1]}"
        elif name.startswith("feature_projection.layer_norm"):
            name = f"layer_norm.{parts[-1]}"
        elif name.startswith("feature_projection.projection"):
            name = f"post_extract_proj.{parts[-1]}"
        elif name == "masked_spec_embed":
            name = "mask_emb"
        else:
            for ours, theirs in [
                (".attention.", ".self_attn."), (".feed_forward.intermediate_dense.", ".fc1."),
                (".feed_forward.output_dense.", ".fc2."),
            ]:
                name = name.replace(ours, theirs)
            if name.startswith("encoder.layers."):
                name = name.replace(".layer_norm.", ".self_attn_layer_norm.")
        state[name] = value
    state["label_embs_concat"] = torch.zeros(8, 16)
    return state


def fairseq_file(model, sizes, path, **options):
    kernels = sizes.get("conv_kernel", KERNELS)
    strides = sizes.get("conv_stride", STRIDES)
    layers = " + ".join(f"[({d},{k},{s})]" for d, k, s in zip(sizes["conv_dim"], kernels, strides))
    settings = dict(
        _name="hubert", encoder_layers=sizes["num_hidden_layers"], encoder_embed_dim=sizes["hidden_size"],
        encoder_ffn_embed_dim=sizes["intermediate_size"], encoder_attention_heads=sizes["num_attention_heads"],
        conv_feature_layers=layers, conv_pos=sizes["num_conv_pos_embeddings"],
        conv_pos_groups=sizes["num_conv_pos_embedding_groups"], conv_bias=sizes.get("conv_bias", False),
        extractor_mode="layer_norm" if sizes.get("feat_extract_norm") == "layer" else "default",
        layer_norm_first=sizes.get("do_stable_layer_norm", False), conv_pos_batch_norm=sizes.get("conv_pos_batch_norm", False),
    )
    checkpoint = {"cfg": {"model": settings, "task": {"normalize": False}}, "args": None, "model": fairseq_state(model, sizes)}
    torch.save(checkpoint, path, **options)


class Case:
    """A checkpoint on disk with the model it was made from."""

    def __init__(self, folder, name, sizes):
        self.name, self.sizes = name, sizes
        self.folder = folder / name
        self.folder.mkdir()
        self.path, self.normalise = self.folder, False
        self.model = make(sizes, HubertForCTC if name == "with-a-head" else HubertModel)
        if name == "near-sighted":
            # Attention hears everything; with little of it, a unit depends on what is near.
            with torch.no_grad():
                for layer in self.model.encoder.layers:
                    layer.attention.out_proj.weight *= 0.02
        if name.startswith("fairseq"):
            self.path = self.folder / "checkpoint.pt"
            fairseq_file(self.model, sizes, self.path, _use_new_zipfile_serialization="old" not in name)
        else:
            pickled = name == "large"
            self.model.save_pretrained(self.folder, safe_serialization=not pickled, max_shard_size="200KB" if "shards" in name else "1GB")
            self.normalise = name == "mhubert-25hz"
            (self.folder / "preprocessor_config.json").write_text(json.dumps({"do_normalize": self.normalise}))
        self.codebook()

    def codebook(self):
        found = features(self.model, audio(8), LAYER, self.normalise)
        rng = np.random.default_rng(1)
        centres = found[rng.choice(len(found), UNITS, replace=False)] + 0.05 * rng.standard_normal((UNITS, found.shape[1]))
        self.centres = centres.astype(np.float32)
        if self.name == "large":
            model = MiniBatchKMeans(UNITS, init=centres, n_init=1, max_iter=3, random_state=0).fit(found)
            self.centres = model.cluster_centers_.astype(np.float32)
            self.kmeans = self.folder / "kmeans.bin"
            joblib.dump(model, self.kmeans)
        elif self.name == "with-a-head":
            self.kmeans = self.folder / "kmeans.pkl"
            model = MiniBatchKMeans(UNITS, init=centres, n_init=1, max_iter=1, random_state=0).fit(found)
            self.centres = model.cluster_centers_.astype(np.float32)
            self.kmeans.write_bytes(pickle.dumps(model))
        elif self.name == "mhubert-25hz":
            self.kmeans = self.folder / "kmeans.safetensors"
            save_file({"centroids": self.centres}, self.kmeans)
        else:
            self.kmeans = self.folder / "kmeans.npy"
            np.save(self.kmeans, self.centres)

    def units(self, found):
        return ((found[:, None, :].astype(np.float64) - self.centres) ** 2).sum(-1).argmin(1)


# What a random network of this size may lose in a form: relative L2 of its features, and the least share of equal units. Its centroids lie
# nearer together than trained ones, so the share may fall below the budget of an export (98.5 %).
FORMS = {"fp16": (5e-3, 0.985), "int8-weights": (0.03, 0.95), "int8": (0.05, 0.93), "int4": (0.3, 0.6)}


def check_offline(case, binaries, engines):
    samples = audio(4)
    found = features(case.model, samples, LAYER, case.normalise)
    np.save(case.folder / "audio.npy", samples)
    np.save(case.folder / "features.npy", found)
    figures_of = lambda engine, form: json.loads(run(
        binaries / "parity", "hubert", "--hubert", case.path, "--kmeans", case.kmeans, "--layer", LAYER, "--audio", case.folder / "audio.npy",
        "--features", case.folder / "features.npy", "--form", form, *engine,
    ).stdout)
    for engine in engines:
        figures = figures_of(engine, "fp32")
        print(f"{case.name:<16} {engine[1]:<6} relative L2 {figures['error']:.1e}, {100 * figures['agreement']:.1f} % of {figures['units']} units")
        assert figures["error"] <= 1e-4 and figures["agreement"] >= 0.999, figures
        for form, (most, least) in FORMS.items() if case.name in ("base", "large") else ():
            figures = figures_of(engine, form)
            print(f"{case.name:<16} {engine[1]:<6} {form}: relative L2 {figures['error']:.1e}, {100 * figures['agreement']:.1f} % of units")
            assert 1e-5 < figures["error"] <= most and figures["agreement"] >= least, (form, figures)


def geometry(case):
    """Hop and receptive field in samples."""
    kernels, strides = case.sizes.get("conv_kernel", KERNELS), case.sizes.get("conv_stride", STRIDES)
    field = 1
    for kernel, stride in reversed(list(zip(kernels, strides))):
        field = (field - 1) * stride + kernel
    return int(np.prod(strides)), field


def windows(case, samples, back, chunk, ahead):
    """What transformers gives for each window that slides over the samples, from silence on: the chunk's units of each."""
    hop, field = geometry(case)
    kept = (back + chunk + ahead + -(-(field - hop) // hop)) * hop
    heard = np.zeros(kept, np.float32)
    for new in samples[: len(samples) // (chunk * hop) * chunk * hop].reshape(-1, chunk * hop):
        heard = np.concatenate([heard, new])[-kept:]
        window = heard[: (back + chunk + ahead - 1) * hop + field]
        yield case.units(features(case.model, window, LAYER, case.normalise))[back : back + chunk]


def check_streaming(case, binaries, engines):
    """Each chunk's units are those of transformers on the window that the graph heard: in plain onnxruntime and on the engines."""
    bundle = case.folder / "bundle"
    export = [
        binaries / "sa-export", "--hubert", case.path, "--kmeans", case.kmeans, "--layer", LAYER, "--look-back", 640, "--chunk", 160,
        "--look-ahead", 320, "--output",
    ]
    done = run(*export, bundle)
    assert "units as in the offline pass" in done.stdout and "320 ms ahead" in done.stdout, done.stdout
    assert "loads and runs" in run(binaries / "sa-export", "--verify", bundle).stdout
    assert "<polyline" in (bundle / "look_ahead.svg").read_text()
    hop, _ = geometry(case)
    back, chunk, ahead = (ms * 16 // hop for ms in (640, 160, 320))
    samples = audio(3)[: 12 * chunk * hop]
    expected = np.concatenate(list(windows(case, samples, back, chunk, ahead)))
    session = onnxruntime.InferenceSession(str(bundle / "tokenizer.onnx"), providers=["CPUExecutionProvider"])
    state = np.zeros(session.get_inputs()[1].shape, np.float32)
    assert session.get_inputs()[0].shape == [1, chunk * hop], session.get_inputs()[0].shape
    found = []
    for new in samples.reshape(12, -1):
        state, units = session.run(["state.audio.next", "units"], {"audio": new[None], "state.audio": state})
        found.append(units.reshape(-1))
    streams = {"onnxruntime": np.concatenate(found)}
    np.save(case.folder / "stream.npy", samples)
    for engine in engines:
        done = run(binaries / "parity", "stream", "--bundle", bundle, "--input", case.folder / "stream.npy", *engine)
        streams[engine[1]] = np.array(json.loads(done.stdout)["values"])
    for engine, found in streams.items():
        equal, total = (expected == found).sum(), len(expected)
        print(f"{case.name:<16} window on {engine}: {equal} of {total} units as transformers gives for the same window")
        assert len(found) == total and equal >= 0.995 * total
    bundles = [bundle]
    for form in FORMS if case.name == "base" else ():
        bundles.append(case.folder / f"bundle-{form}")
        run(*export, bundles[-1], "--precision", f"tokenizer={form}", "--force")
        figures = reference.measured(bundles[-1], "tokenizer")
        assert figures["fp32_bytes"] > (bundles[-1] / "tokenizer.onnx").stat().st_size and figures["agreement"] > 0.5, figures
        assert form == "fp16" or figures["worst_layers"], figures
    return bundles


def check_default(case, binaries):
    """Without --look-ahead: the curve is that of the bundle's own windows, and the shortest that reaches 95 % is taken."""
    samples, bundle = case.folder / "samples", case.folder / "default"
    samples.mkdir()
    sound = np.round(audio(4) * 32767).astype(np.int16)
    with wave.open(str(samples / "sound.wav"), "wb") as file:
        file.setparams((1, 2, 16000, len(sound), "NONE", ""))
        file.writeframes(sound.tobytes())
    said = run(
        binaries / "sa-export", "--hubert", case.path, "--kmeans", case.kmeans, "--layer", LAYER, "--look-back", 640, "--chunk", 160,
        "--samples", samples, "--output", bundle,
    ).stdout
    figures = reference.measured(bundle, "tokenizer")
    curve, chosen = figures["agreement_by_look_ahead_ms"], figures["look_ahead_ms"]
    milliseconds = [point[0] for point in curve]
    reach = [point[0] for point in curve if point[1] >= 0.95]
    assert milliseconds == sorted(milliseconds) and milliseconds[0] == 0 and milliseconds[-1] == 1000 and len(curve) >= 5, curve
    assert chosen == (reach[0] if reach else 1000), (chosen, curve)
    unit = geometry(case)[0] / 16
    assert bool(reach) == (case.name == "near-sighted"), curve
    assert not reach or 0 < chosen < 1000 and dict(curve)[chosen - unit] < 0.95, "the curve does not show that nothing shorter reaches it"
    assert ("within what was wanted" in said) == bool(reach), said
    hop, field = geometry(case)
    sound = sound.astype(np.float32) / 32768
    offline = case.units(features(case.model, sound, LAYER, case.normalise))
    back, chunk = 640 * 16 // hop, 160 * 16 // hop
    # Eight chunks, evenly over the only stretch.
    places = [(len(offline) - chunk) * (2 * i + 1) // 16 for i in range(8)]
    expected = np.concatenate([offline[place : place + chunk] for place in places])
    for ahead in {0.0, chosen}:
        units = round(ahead * 16 / hop)
        silence = np.zeros((back + units + 8) * hop, np.float32)
        heard = np.concatenate([silence[: back * hop], sound, silence])
        length = (back + chunk + units - 1) * hop + field
        found = [features(case.model, heard[place * hop :][:length], LAYER, case.normalise) for place in places]
        found = np.concatenate([case.units(window)[back : back + chunk] for window in found])
        # A point that cannot reach 95 % any more is left after three chunks, unless it is the longest and taken for want of a better one.
        seen = len(found) if ahead == chosen else next((n for n in range(3 * chunk, len(found), chunk) if 20 * (found[:n] != expected[:n]).sum() > len(found)), len(found))
        share, stored = (found == expected)[:seen].mean(), dict(curve)[ahead]
        print(f"{case.name:<16} {ahead:.0f} ms ahead: {100 * stored:.1f} % of the offline units, in transformers {100 * share:.1f} %")
        assert abs(share - stored) <= 0.01, (ahead, share, stored)
    assert figures["agreement_with_offline"] == dict(curve)[chosen], "the fp32 graph itself is a point of the curve"


class Runs:
    """What a pickle must not be able to do."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.system, (f"touch {self.path}",))


def check_refusals(case, binaries, folder):
    def refused(*arguments, says):
        output = folder / "refused"
        done = run(binaries / "sa-export", "--layer", LAYER, "--output", output, *arguments, fails=True)
        assert all(word in done.stderr for word in says), (says, done.stderr)
        assert not output.exists() and not list(folder.glob("refused*")), "something was left behind"

    ran = folder / "ran"
    (folder / "evil.pkl").write_bytes(pickle.dumps(Runs(ran)))
    refused("--hubert", case.path, "--kmeans", folder / "evil.pkl", says=["system", "nothing was run"])
    torch.save({"model": {}, "cfg": Runs(ran)}, folder / "evil.pt")
    refused("--hubert", folder / "evil.pt", "--kmeans", case.kmeans, says=["system", "nothing was run"])
    assert not ran.exists(), "a pickle was executed"

    whole = (case.path / "model.safetensors").read_bytes()
    broken = folder / "broken"
    broken.mkdir()
    for name in ["config.json", "preprocessor_config.json"]:
        (broken / name).write_bytes((case.path / name).read_bytes())
    (broken / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    refused("--hubert", broken, "--kmeans", case.kmeans, says=["truncated"])
    state = {name: value.numpy() for name, value in case.model.state_dict().items()}
    del state["encoder.layers.1.attention.k_proj.weight"]
    save_file(state, broken / "model.safetensors")
    refused("--hubert", broken, "--kmeans", case.kmeans, says=["encoder.layers.1.attention.k_proj.weight", "nearest"])
    config = json.loads((case.path / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(dict(config, intermediate_size=96)))
    (broken / "model.safetensors").write_bytes(whole)
    refused("--hubert", broken, "--kmeans", case.kmeans, says=["shape", "96"])
    (broken / "config.json").write_text(json.dumps(dict(config, model_type="wav2vec2")))
    refused("--hubert", broken, "--kmeans", case.kmeans, says=["wav2vec2"])
    np.save(folder / "narrow.npy", np.zeros((4, 3), np.float32))
    refused("--hubert", case.path, "--kmeans", folder / "narrow.npy", says=["3", "64"])
    refused("--hubert", folder / "nowhere", "--kmeans", case.kmeans, says=["nowhere"])
    print("refused: code in pickles, a truncated file, a missing tensor, wrong shapes, another architecture, no file")


def check_damage(cases, binaries, seconds, scratch):
    """Readers on damaged files; one file of each kind."""
    files = [cases[name].kmeans for name in ["base", "with-a-head", "large", "mhubert-25hz"]]
    files += [cases["base"].path / name for name in ["config.json", "preprocessor_config.json", "model.safetensors"]]
    files += [cases["base-in-shards"].path / "model.safetensors.index.json", cases["large"].path / "pytorch_model.bin"]
    files += [cases["fairseq"].path, cases["fairseq-old"].path]
    bundle = cases["base"].folder / "bundle"
    files += [bundle / "bundle.toml", bundle / "tokenizer.onnx"]
    reference.damage(binaries, seconds, scratch, *files)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--bin", type=Path, required=True)
    parser.add_argument("--only")
    parser.add_argument("--fuzz-seconds", type=int, default=30)
    options = parser.parse_args()
    engines = [["--engine", name] for name in reference.engines()]
    cases = {
        "base": SIZES, "near-sighted": LARGE, "base-in-shards": SIZES, "with-a-head": SIZES, "large": LARGE, "mhubert-25hz": MHUBERT, "fairseq": SIZES,
        "fairseq-large": LARGE, "fairseq-mhubert": MHUBERT, "fairseq-old": SIZES,
    }
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        made, bundles = {}, []
        for name, sizes in cases.items():
            if options.only not in (None, name):
                continue
            case = made[name] = Case(scratch, name, sizes)
            check_offline(case, options.bin, engines)
            if name in ("base", "large", "mhubert-25hz"):
                bundles += check_streaming(case, options.bin, engines)
            if name in ("base", "near-sighted"):
                check_default(case, options.bin)
            if name == "base":
                check_refusals(case, options.bin, scratch)
        if bundles:
            reference.check_onnx(*bundles)
        if options.only is None:
            check_damage(made, options.bin, options.fuzz_seconds, scratch)
    print("HuBERT: all layouts agree with transformers")


if __name__ == "__main__":
    main()
