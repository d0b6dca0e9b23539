"""A public Qwen2 as the language model of an agent, against the same conversation in PyTorch.

A small Qwen2 with random weights, a `tokenizer.json` with the special tokens, and speech weights for each head become an agent together with
the tokenizer and the decoder of the shipped bundle. `sa-agent talk` then answers a spoken question; the same turn is computed here from the
units that it heard, by the rules of the sequence written down anew: text and units must be the same to the last.

    speaks.py --bin target/debug
"""

import argparse
import json
import math
import tempfile
from pathlib import Path

import qwen
import reference  # prepares torch; must come before transformers
import torch
from reference import run
from safetensors.numpy import load_file, save_file
from tokenizers import AddedToken, Tokenizer

ROOT = Path(__file__).resolve().parents[2]
NANO = ROOT / "models/pretrained/nano/bundle"
QUESTION = ROOT / "models/pretrained/nano/samples/03-arithmetic.wav"
UNITS, GROUP, RATE = 500, 4, 25
SPECIALS = ["<user>", "<transcribe>", "<agent>", "<call>", "<result>", "<speak>", "<text>", "<say>", "<end>"]
LIMITS = dict(transcript_words=5, call_words=3, calls=1, reply_words=6, word_seconds=0.5, reply_seconds=2.0)
EPSILON = 1e-6


def linear(x, weight):
    return x @ weight.T


def norm(x, weight):
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + EPSILON) * weight


def attention(x, weights, name, heads, causal):
    n = x.shape[0]
    part = lambda letter: linear(x, weights[f"{name}.self_attn.{letter}_proj.weight"]).view(n, heads, -1).transpose(0, 1)
    q, k, v = part("q"), part("k"), part("v")
    scores = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])
    if causal:
        scores = scores + torch.full((n, n), -torch.inf).triu(1)
    mixed = (scores.softmax(-1) @ v).transpose(0, 1).reshape(n, -1)
    return linear(mixed, weights[f"{name}.self_attn.o_proj.weight"])


def layers(x, weights, count, heads, causal):
    for i in range(count):
        name = f"head.layers.{i}"
        x = x + attention(norm(x, weights[f"{name}.input_layernorm.weight"]), weights, name, heads, causal)
        y = norm(x, weights[f"{name}.post_attention_layernorm.weight"])
        gate, up = (linear(y, weights[f"{name}.mlp.{part}_proj.weight"]) for part in ["gate", "up"])
        x = x + linear(torch.nn.functional.silu(gate) * up, weights[f"{name}.mlp.down_proj.weight"])
    return x


def group_units(hidden, weights, head):
    """The units of a group, by each of the three heads."""
    if head["kind"] == "linear":
        return linear(hidden, weights["head.output.weight"]).view(GROUP, -1).argmax(-1).tolist()
    count, heads = head["num_hidden_layers"], head["num_attention_heads"]
    logits = lambda x: linear(norm(x, weights["head.norm.weight"]), weights["head.output.weight"])
    inputs = linear(hidden, weights["head.input.weight"])
    if head["kind"] == "group":
        x = torch.cat([inputs[None], weights["head.queries"]])
        return logits(layers(x, weights, count, heads, causal=False))[1:].argmax(-1).tolist()
    steps, units = inputs.view(GROUP, -1), []
    for i in range(GROUP):
        # All steps so far anew, where the graph keeps their keys and values.
        x = steps[: i + 1].clone()
        x[1:] += weights["head.embedding.weight"][units]
        units.append(logits(layers(x, weights, count, heads, causal=True))[-1].argmax().item())
    return units


class Conversation:
    """One turn by the rules of the sequence, greedily."""

    def __init__(self, model, weights, head, tokenizer):
        self.model, self.weights, self.head, self.tokenizer = model, weights, head, tokenizer
        self.id = {name: tokenizer.token_to_id(name) for name in SPECIALS}
        no_text = set(self.id.values()) | {tokenizer.token_to_id("<|endoftext|>")}
        count = tokenizer.get_vocab_size()
        self.text = [i for i in range(count) if i not in no_text]
        self.begins = {i for i in self.text if tokenizer.id_to_token(i).startswith("Ġ")}
        self.rows = []
        self.state = None

    def feed(self, row):
        self.rows.append(row)
        self.state = None

    def look(self):
        if self.state is None:
            with torch.no_grad():
                hidden = self.model.model(inputs_embeds=torch.stack(self.rows)[None]).last_hidden_state[0, -1]
                self.state = hidden, self.model.lm_head(hidden)
        return self.state

    def token(self, token):
        self.feed(self.model.model.embed_tokens.weight[token].detach())

    def special(self, name):
        self.token(self.id[name])

    def group(self, units):
        ids = list(units) + [UNITS] * (GROUP - len(units))
        self.feed(linear(self.weights["unit_embedding.weight"][ids].reshape(-1), self.weights["adaptor.weight"]))

    def choose(self, allowed):
        logits = self.look()[1]
        return max(allowed, key=lambda i: logits[i].item())

    def word(self, end):
        word = []
        while len(word) < 24:
            token = self.choose(self.text + [self.id[end]])
            if token == self.id[end] or (word and token in self.begins):
                break
            word.append(token)
            self.token(token)
        return word

    def words(self, end, most):
        words = []
        while len(words) < most and (word := self.word(end)):
            words.append(word)
        return words

    def decode(self, words):
        return " ".join(self.tokenizer.decode(word).strip() for word in words)

    def read(self, text):
        for word in text.split():
            for token in self.tokenizer.encode(" " + word, add_special_tokens=False).ids:
                self.token(token)

    def turn(self, question, results):
        self.special("<user>")
        for i in range(0, len(question), GROUP):
            self.group(question[i : i + GROUP])
        self.special("<transcribe>")
        transcript = self.decode(self.words("<agent>", LIMITS["transcript_words"]))
        self.special("<agent>")
        calls = []
        while len(calls) < LIMITS["calls"] and self.choose([self.id["<call>"], self.id["<speak>"]]) == self.id["<call>"]:
            self.special("<call>")
            calls.append(self.decode(self.words("<result>", LIMITS["call_words"])))
            self.special("<result>")
            self.read(results[len(calls) - 1])
        before = len(self.rows)
        self.special("<text>")
        plan = self.words("<end>", LIMITS["reply_words"])
        del self.rows[before:]
        self.state = None
        self.special("<speak>")
        units, spoken = [], []
        for word in plan:
            if len(units) >= LIMITS["reply_seconds"] * RATE:
                break
            spoken.append(word)
            for token in word:
                self.token(token)
            most = math.ceil(LIMITS["word_seconds"] * RATE / GROUP)
            for n in range(most + 1):
                group = [] if n == most else group_units(self.look()[0], self.weights, self.head)
                said = group[: group.index(UNITS)] if UNITS in group else group
                units += said
                self.group(group)
                if len(said) < GROUP:
                    break
        return dict(transcript=transcript, calls=calls, reply_text=self.decode(spoken), units=units)


def prepare(folder):
    """A trunk whose text ends now and then, and whose tokenizer has the special tokens."""
    folder.mkdir()
    model = qwen.make(dict(tie_word_embeddings=False, max_position_embeddings=1024))
    qwen.save(folder, "tied", model)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens([AddedToken(name, normalized=False) for name in SPECIALS])
    tokenizer.save(str(folder / "tokenizer.json"))
    assert max(tokenizer.token_to_id(name) for name in SPECIALS) < qwen.VOCABULARY
    with torch.no_grad():
        # Random weights seldom end anything: here ends are likelier than any one token.
        for name, factor in [("<agent>", 1.2), ("<result>", 1.2), ("<end>", 1.4), ("<call>", 2.0)]:
            model.lm_head.weight[tokenizer.token_to_id(name)] *= factor
    model.save_pretrained(folder)
    return model.float(), tokenizer


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--bin", type=Path, required=True)
    binaries = parser.parse_args().bin
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        trunk = scratch / "trunk"
        model, tokenizer = prepare(trunk)
        config = scratch / "agent.toml"
        config.write_text("[conversation]\n" + "".join(f"{key} = {value}\n" for key, value in LIMITS.items()))
        spoken = set()
        for kind in ["group", "depth", "linear"]:
            weights, head = qwen.speech(scratch / kind, kind, UNITS, GROUP)
            part, agent = scratch / f"{kind}-part", scratch / f"{kind}-agent"
            run(binaries / "sa-export", "--qwen", trunk, "--speech", scratch / kind, "--context", 512, "--output", part)
            said = run(binaries / "sa-export", "--join", part, NANO, "--output", agent).stdout
            assert all(word in said for word in ["tokenizer", "lm", "head", "decoder"]) and "part of an agent" not in said, said
            for engine in reference.engines():
                talked = run(
                    binaries / "sa-agent", "talk", "--input", QUESTION, "--json", "--bundle", agent, "--config", config, "--engine", engine,
                    "--output", scratch / "answer.wav",
                )
                turn = json.loads([line for line in talked.stdout.splitlines() if '"turn_id"' in line][-1])
                turn = turn.get("turn", turn)
                results = [call["result"] for call in turn["calls"]]
                expected = Conversation(model, weights, head, tokenizer).turn(turn["question_units"], results)
                found = dict(
                    transcript=turn["transcript"], calls=[call["call"] for call in turn["calls"]], reply_text=turn["reply_text"],
                    units=turn["units"],
                )
                assert found == expected, f"{kind} on {engine}\nfound    {found}\nexpected {expected}"
                assert len(found["units"]) > 20 and (scratch / "answer.wav").stat().st_size > 10_000
                words = len(found["reply_text"].split())
                print(f"{kind:<7} {engine:<6} {words} words and {len(found['units'])} units as in PyTorch: {found['reply_text']!r}")
            spoken.add(tuple(found["units"]))
        assert len(spoken) == 3, "the heads say the same: they are not used"
        refusals(trunk, scratch, binaries)
    print("a Qwen2 that speaks: every word and unit as in PyTorch")


def refusals(trunk, scratch, binaries):
    """Without a special token there is no conversation, and units of another kind are not joined."""
    file = trunk / "tokenizer.json"
    tokens = json.loads(file.read_text())
    tokens["added_tokens"] = [token for token in tokens["added_tokens"] if token["content"] != "<call>"]
    file.write_text(json.dumps(tokens))
    part, agent = scratch / "mute-part", scratch / "mute"
    done = run(binaries / "sa-export", "--qwen", trunk, "--speech", scratch / "linear", "--context", 512, "--output", part)
    assert "<call>" in done.stderr, done.stderr
    run(binaries / "sa-export", "--join", part, NANO, "--output", agent)
    done = run(binaries / "sa-agent", "talk", "--input", QUESTION, "--bundle", agent, "--output", scratch / "none.wav", fails=True)
    assert done.returncode == 4 and "<call>" in done.stderr and "added_tokens" in done.stderr, (done.returncode, done.stderr)
    config = scratch / "linear" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | dict(units=20)))
    state = load_file(scratch / "linear" / "model.safetensors")
    state["unit_embedding.weight"] = state["unit_embedding.weight"][:21].copy()
    state["head.output.weight"] = state["head.output.weight"][: GROUP * 21].copy()
    save_file(state, scratch / "linear" / "model.safetensors")
    run(binaries / "sa-export", "--qwen", trunk, "--speech", scratch / "linear", "--context", 512, "--output", part)
    done = run(binaries / "sa-export", "--join", part, NANO, "--output", scratch / "never", fails=True)
    assert "500 units" in done.stderr and "20 at" in done.stderr and not (scratch / "never").exists(), done.stderr
    print("refused: a conversation without <call>, and parts of different units")


if __name__ == "__main__":
    main()
