"""Public Qwen2 checkpoints against their reference implementation, transformers.

Makes small checkpoints with random weights in every layout that `sa-export` reads, and checks that the exported graph, which reads one
token at a time with the runtime's cache, computes what transformers does over the whole text: logits, and the text that is written
greedily. Then bundles with and without speech weights, the quantised forms, and the inputs that must be refused.

    qwen.py --bin target/debug
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import reference  # prepares torch; must come before transformers
import torch
from reference import run
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Qwen2Config, Qwen2ForCausalLM

VOCABULARY = 300
PROMPT, WRITTEN = 9, 64
SIZES = dict(
    vocab_size=VOCABULARY, hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=512, rope_theta=1e6, bos_token_id=None, eos_token_id=None,
)
CASES = {
    "tied": dict(tie_word_embeddings=True),
    "own-lm-head": dict(tie_word_embeddings=False),
    "in-shards": dict(tie_word_embeddings=True),
    "no-grouped-queries": dict(tie_word_embeddings=False, num_key_value_heads=4, rope_theta=1e4, rms_norm_eps=1e-5),
    "half-precision": dict(tie_word_embeddings=True),
}


def make(changes):
    """A model whose every parameter matters, and which does not write one token for ever."""
    torch.manual_seed(11)
    model = Qwen2ForCausalLM(Qwen2Config(**{**SIZES, **changes})).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "norm" in name:
                value.uniform_(0.5, 1.5)
            elif value.ndim == 1:
                value.uniform_(-0.5, 0.5)
            else:
                value.normal_(0.0, 1.5 / value.shape[-1] ** 0.5)
    return model


def save(folder, name, model):
    model.save_pretrained(folder, max_shard_size="100KB" if name == "in-shards" else "1GB")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 4, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["<|endoftext|>"], show_progress=False
    )
    tokenizer.train_from_iterator(["turn the light on in the kitchen", "what time is it in the kitchen"], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))


def write(model, prompt):
    """Greedy text after a prompt, and the logits at every position."""
    tokens = torch.from_numpy(prompt)[None]
    with torch.no_grad():
        for _ in range(WRITTEN):
            tokens = torch.cat([tokens, model(tokens).logits[:, -1].argmax(-1, keepdim=True)], 1)
        return tokens[0].numpy(), model(tokens).logits[0].numpy()


def check(case, name, model, binaries):
    prompt = np.random.default_rng(4).integers(0, VOCABULARY, PROMPT)
    tokens, logits = write(model, prompt)
    written = tokens[PROMPT:]
    assert len(set(written.tolist())) > 8, f"the reference repeats itself: {written}"
    np.save(case / "tokens.npy", tokens.astype(np.float32))
    np.save(case / "logits.npy", logits.astype(np.float32))
    figures = lambda engine, form: json.loads(run(
        binaries / "parity", "qwen", "--engine", engine, "--qwen", case, "--tokens", case / "tokens.npy", "--logits", case / "logits.npy",
        "--prompt", PROMPT, "--form", form,
    ).stdout)
    for engine in reference.engines():
        found = figures(engine, "fp32")
        print(f"{name:<20} {engine:<6} relative L2 {found['error']:.1e}, {found['same']} of {found['written']} tokens")
        assert found["error"] <= 1e-4 and found["same"] == WRITTEN == found["written"], found
        if name == "tied":
            for form, most in [("fp16", 5e-3), ("int8", 0.1), ("int4", 0.5)]:
                found = figures(engine, form)
                print(f"{name:<20} {engine:<6} {form}: relative L2 {found['error']:.1e}")
                assert 0 < found["error"] <= most, (form, found)


def speech(folder, kind, units=20, group=3):
    """Random speech weights beside the trunk, written and returned; the heads differ in what they say and end words now and then."""
    rng = np.random.default_rng(7)
    tensor = lambda *shape, scale=1.0: (scale * rng.standard_normal(shape) / shape[-1] ** 0.5).astype(np.float32)
    d, size, wide, middle = SIZES["hidden_size"], 8, 48, 96
    state = {"unit_embedding.weight": tensor(units + 1, size, scale=3), "adaptor.weight": tensor(d, group * size)}
    head = {"kind": kind}
    if kind == "linear":
        state["head.output.weight"] = tensor(group * (units + 1), d)
    else:
        width = d if kind == "group" else 32
        head |= dict(num_hidden_layers=2, num_attention_heads=3, head_dim=16, intermediate_size=middle)
        if kind == "group":
            state |= {"head.input.weight": tensor(d, d), "head.queries": tensor(group, d, scale=3)}
        else:
            head["hidden_size"] = width
            state |= {"head.input.weight": tensor(group * width, d), "head.embedding.weight": tensor(units + 1, width, scale=3)}
        state |= {"head.norm.weight": 1 + tensor(width), "head.output.weight": tensor(units + 1, width)}
        for layer in (f"head.layers.{i}." for i in range(2)):
            state |= {f"{layer}self_attn.{part}_proj.weight": tensor(wide, width) for part in "qkv"}
            state[f"{layer}self_attn.o_proj.weight"] = tensor(width, wide)
            for part, shape in [("gate", (middle, width)), ("up", (middle, width)), ("down", (width, middle))]:
                state[f"{layer}mlp.{part}_proj.weight"] = tensor(*shape)
            for part in ["input", "post_attention"]:
                state[f"{layer}{part}_layernorm.weight"] = 1 + tensor(width)
    folder.mkdir()
    save_file(state, folder / "model.safetensors")
    config = dict(units=units, group=group, unit_embedding_size=size, transcript=True, head=head)
    (folder / "config.json").write_text(json.dumps(config))
    return {name: torch.from_numpy(value) for name, value in state.items()}, head


def check_bundles(case, scratch, binaries):
    bundle = scratch / "bundle"
    said = run(binaries / "sa-export", "--qwen", case, "--context", 256, "--output", bundle).stdout
    assert "lm: fp32" in said and (bundle / "tokenizer.json").is_file() and not (bundle / "head.onnx").exists(), said
    for engine in reference.engines():
        assert f"loads and runs on {engine}" in run(binaries / "sa-export", "--verify", bundle).stdout
    assert "tokens of tokenizer.json" in run(binaries / "sa-export", "--inspect", bundle).stdout
    made = []
    for kind in ["group", "depth", "linear"]:
        speech(scratch / kind, kind)
        # Random networks decide by a hair: what counts is the error of the values.
        for form, most in [("fp32", 0), ("fp16", 5e-3), ("int8", 0.1), ("int4", 0.5)]:
            made.append(scratch / f"{kind}-{form}")
            run(
                binaries / "sa-export", "--qwen", case, "--speech", scratch / kind, "--context", 128, "--precision", f"lm={form},head={form}",
                "--force", "--output", made[-1],
            )
            for stage in ["lm", "head"]:
                figures = reference.measured(made[-1], stage)
                assert (0 < figures["error"] <= most) or form == "fp32" and figures["error"] == 0, (kind, form, stage, figures)
            nats = [reference.measured(made[-1], "lm")[key] for key in ["cross_entropy", "fp32_cross_entropy"]]
            assert abs(nats[0] - nats[1]) <= 2 * most and (nats[0] == nats[1]) == (form == "fp32"), (kind, form, nats)
        said = run(binaries / "sa-export", "--verify", made[-1]).stdout
        assert all(f"{stage}: loads and runs on tract" in said for stage in ["lm", "head"]), said
    reference.check_onnx(*made)
    alone = run(binaries / "sa-export", "--qwen", case, "--context", 128, "--ort-library", "/nowhere", "--output", bundle)
    assert "on ort: left out (" in alone.stdout and "/nowhere" in alone.stdout, alone.stdout + alone.stderr
    for engine in reference.engines():
        run(binaries / "sa-export", "--qwen", case, "--context", 256, "--int8", "--engine", engine, "--output", bundle)
        assert reference.measured(bundle, "lm")["engine"] == engine
    forced = run(binaries / "sa-export", "--qwen", case, "--context", 256, "--int4", "lm", "--force", "--output", bundle).stdout
    assert "int4" in forced and "weights of model.layers" in forced, forced
    assert "worst_layers" in (bundle / "bundle.toml").read_text()
    texts = scratch / "texts"
    texts.mkdir()
    export = [binaries / "sa-export", "--qwen", case, "--context", 256, "--int4", "lm", "--force", "--output", bundle]
    assert "no text" in run(*export, "--calibrate", texts, fails=True).stderr
    rng = np.random.default_rng(8)
    words = "turn the light on in the kitchen what time is it".split()
    (texts / "said.txt").write_text(" ".join(rng.choice(words, 600)))
    on_text = scratch / "on-text"
    said = run(binaries / "sa-export", "--qwen", case, "--context", 256, "--fp16", "--samples", texts, "--output", on_text).stdout
    assert f"200 tokens of the texts in {texts}" in said, said
    check_cross_entropy(case, on_text, (texts / "said.txt").read_text())
    error = lambda: reference.measured(bundle, "lm")["error"]
    plain = error()
    run(*export, "--calibrate", texts)
    assert error() != plain, "the calibration changes nothing"
    print(f"int4 of the trunk, relative L2 of its logits: {plain:.3f}, calibrated on text {error():.3f}")
    kept = run(
        binaries / "sa-export", "--qwen", case, "--context", 256, "--precision", "lm=int4", "--exclude", "*mlp*,lm_head", "--force", "--output", bundle,
    ).stdout
    assert "self_attn.qkv_proj" in kept and "mlp" not in kept and "weights of lm_head" not in kept, kept
    small = scratch / "small"
    done = run(
        binaries / "sa-export", "--qwen", case, "--context", 256, "--int4", "lm", "--budget", "lm=1", "--output", small, fails=True,
    )
    assert done.returncode == 5 and "lm in int4" in done.stderr and not small.exists(), done.stderr
    print("bundles: text alone, with a group head, with a linear head; a form beyond its budget is refused with exit code 5")


def check_damage(case, scratch, binaries):
    """Readers on damaged files; one file of each kind."""
    files = [case / name for name in ["config.json", "tokenizer.json", "model.safetensors"]]
    files += [scratch / kind / "config.json" for kind in ["group", "depth"]]
    files += [scratch / "bundle" / name for name in ["bundle.toml", "tokenizer.json", "lm.onnx"]]
    files.append(Path(__file__).parents[2] / "models/pretrained/nano/checkpoint/vocabulary.txt")
    reference.damage(binaries, 20, scratch, *files)


def check_cross_entropy(case, bundle, text):
    """What a token of a given text costs is what transformers says."""
    tokens = Tokenizer.from_file(str(case / "tokenizer.json")).encode(text, add_special_tokens=False).ids[:200]
    tokens = torch.tensor(tokens)[None]
    with torch.no_grad():
        expected = Qwen2ForCausalLM.from_pretrained(case)(tokens, labels=tokens).loss.item()
    figures = reference.measured(bundle, "lm")
    assert abs(figures["fp32_cross_entropy"] - expected) < 2e-3 * expected, (figures, expected)
    print(f"cross-entropy of a text: {figures['fp32_cross_entropy']:.3f} nats a token, in transformers {expected:.3f}")


def check_memory(scratch, binaries):
    """The export needs about twice the checkpoint's memory, beside what the program needs for a small one."""
    def peak(name, sizes, *options):
        folder = scratch / name
        if not folder.exists():
            folder.mkdir()
            model = make(dict(tie_word_embeddings=True, **sizes))
            save(folder, name, model.to(torch.bfloat16))
        command = [binaries / "sa-export", "--qwen", folder, "--context", 128, "--output", scratch / "measured", *options]
        # By a small program in between: what is started here begins with the memory of this one, PyTorch and all.
        launch = "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL); "
        launch += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
        done = run(sys.executable, "-I", "-c", launch, *command)
        return int(done.stdout) / 1024, (folder / "model.safetensors").stat().st_size / 2**20

    # A quarter of the weights is the embedding, as in Qwen2.5-0.5B.
    large = dict(hidden_size=512, intermediate_size=2816, num_hidden_layers=14, num_attention_heads=8, num_key_value_heads=2, vocab_size=48_000)
    for options in [["--int8"], ["--int8", "--engine", "ort"]][: len(reference.engines())]:
        # Any loss is within this budget: random weights are not what is looked at.
        options += ["--budget", "lm=0"]
        (small, _), (most, shard) = peak("small", {}, *options), peak("large", large, *options)
        print(f"memory of {' '.join(options)}: {most - small:.0f} MB more than for a small checkpoint, {(most - small) / shard:.2f} times its {shard:.0f} MB")
        assert most - small <= 2.1 * shard, (most, small, shard)


def check_refusals(case, scratch, binaries):
    broken, output = scratch / "broken", scratch / "refused"
    broken.mkdir()
    for file in case.iterdir():
        if file.is_file():
            (broken / file.name).write_bytes(file.read_bytes())
    config = json.loads((broken / "config.json").read_text())
    state = load_file(broken / "model.safetensors")

    def refused(*arguments, says, context=128):
        done = run(binaries / "sa-export", "--qwen", broken, "--output", output, "--context", context, *arguments, fails=True)
        assert all(word in done.stderr for word in says), (says, done.stderr)
        assert not list(scratch.glob("refused*")), "something was left behind"

    for changes, says in [
        (dict(model_type="llama"), ["llama", "qwen2"]), (dict(rope_scaling={"rope_type": "yarn"}), ["rope_scaling"]),
        (dict(intermediate_size=96), ["mlp.gate_proj", "shape"]), (dict(num_hidden_layers=4), ["model.layers.3", "nearest"]),
    ]:
        (broken / "config.json").write_text(json.dumps({**config, **changes}))
        refused(says=says)
    (broken / "config.json").write_text(json.dumps(config))
    refused(context=4096, says=["--context", "512"])
    save_file({name: value for name, value in state.items() if name != "model.layers.1.self_attn.k_proj.bias"}, broken / "model.safetensors")
    refused(says=["model.layers.1.self_attn.k_proj.bias", "nearest"])
    save_file(state, broken / "model.safetensors")
    refused("--speech", scratch / "nowhere", says=["speech weights", "text alone"])
    weights = load_file(scratch / "group" / "model.safetensors")
    del weights["adaptor.weight"]
    save_file(weights, scratch / "group" / "model.safetensors")
    refused("--speech", scratch / "group", says=["adaptor.weight", "nearest"])
    (broken / "tokenizer.json").unlink()
    refused(says=["tokenizer.json", "missing"])
    print("refused: another architecture, stretched positions, wrong sizes, a missing tensor, speech weights or tokenizer")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--bin", type=Path, required=True)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        for name, changes in CASES.items():
            case = scratch / name
            case.mkdir()
            model = make(changes)
            if name == "half-precision":
                # What is stored in half precision is computed in single precision on both sides. The model is read again: `to` would
                # round the rotary frequencies too.
                save(case, name, model.to(torch.bfloat16))
                model = Qwen2ForCausalLM.from_pretrained(case, torch_dtype=torch.float32).eval()
            else:
                save(case, name, model)
            check(case, name, model, options.bin)
        check_bundles(scratch / "tied", scratch, options.bin)
        check_damage(scratch / "tied", scratch, options.bin)
        check_memory(scratch, options.bin)
        check_refusals(scratch / "tied", scratch, options.bin)
    print("Qwen2: all layouts agree with transformers")


if __name__ == "__main__":
    main()
