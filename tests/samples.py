#!/usr/bin/env python3
"""Takes the committed sample questions out of a corpus: test split, by category, in voices trained and not.

    tests/samples.py --corpus runs/nano/corpus --output models/pretrained/nano/samples [--count 24] [--seed 1]

Writes NN-category.wav, samples.jsonl (what is said, and the right answer) and replies.txt (what the agent may
say, trained and not: the domain of the judge). Which questions are taken is left to the seed, not to how well
the agent answers them. The first turn of a follow-up, which a corpus has as text only, is spoken by flite.
"""

import argparse
import collections
import glob
import json
import os
import random
import subprocess
import tempfile
import wave

REPLIES = 4000
FOLLOW_UPS = 3


def read_lines(pattern):
    for path in sorted(glob.glob(pattern)):
        with open(path, encoding="utf-8") as file:
            for line in file:
                yield path, json.loads(line)


def store(path, samples):
    with wave.open(path, "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes(samples)


def audio_of(path, row):
    with open(path.removesuffix(".jsonl") + ".s16", "rb") as file:
        file.seek(2 * row["offset"])
        return file.read(2 * row["samples"])


def speak(voice, text):
    """The text in the same flite voice, or in flite slt for a voice of espeak-ng, as 16 kHz samples."""
    kind, _, name = voice.partition(":")
    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        subprocess.run(["flite", "-voice", name if kind == "flite" else "slt", "-t", text, "-o", file.name], check=True)
        with wave.open(file.name, "rb") as spoken:
            return spoken.readframes(spoken.getnframes())


def usable(row):
    """A spoken question whose tool the demo has (the time of another city is a tool that a user may add)."""
    return row["text"] and row["dialogue"] and not (row["dialogue"]["call"] or "").startswith("time ")


def is_follow_up(row):
    """Understood only after the question before, which called the same tool with the same result."""
    if len(row["history"]) != 1 or not row["text"].startswith(("and ", "what about ", "how about ")):
        return False
    before, now = row["history"][0], row["dialogue"]
    return bool(before["call"] and now["call"]) and before["call"].split()[0] == now["call"].split()[0] and before["result"] == now["result"]


def choose(rows, count, rng):
    """A category at a time, and within it trained voices before others, until there are enough."""
    by_category = collections.defaultdict(list)
    for path, row in rows:
        by_category[row["category"]].append((path, row))
    order = {"trained": 0, "timbre": 1, "accent": 2, "synthesiser": 2}
    for candidates in by_category.values():
        rng.shuffle(candidates)
        candidates.sort(key=lambda item: order[item[1]["set"]])
    chosen, seen = [], set()
    categories = sorted(by_category)
    turn = 0
    while len(chosen) < count and any(by_category.values()):
        for category in categories:
            # every third round takes a voice that was never heard, so that the samples are not only the easy ones
            wanted = "trained" if turn % 3 < 2 else "timbre"
            candidates = by_category[category]
            index = next((i for i, (_, row) in enumerate(candidates) if row["set"] == wanted), 0)
            while candidates:
                path, row = candidates.pop(min(index, len(candidates) - 1))
                if row["text"] not in seen:
                    seen.add(row["text"])
                    chosen.append((path, row))
                    break
            if len(chosen) == count:
                break
        turn += 1
    return chosen


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--count", type=int, default=24)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    all_rows = list(read_lines(os.path.join(args.corpus, "questions", "*.jsonl")))
    rows = [item for item in all_rows if item[1]["split"] == "test" and item[1]["set"] in ("trained", "timbre") and usable(item[1])]
    os.makedirs(args.output, exist_ok=True)
    for old in glob.glob(os.path.join(args.output, "*.wav")):
        os.remove(old)
    lines = []

    def add(turn, category, voice, samples, follows):
        name = f"{len(lines) + 1:02}-{category.replace(' ', '-')}.wav"
        store(os.path.join(args.output, name), samples)
        line = {"wav": name, "text": turn["question"], "call": turn["call"], "result": turn["result"], "reply": turn["reply"]}
        line.update(category=category, voice=voice)
        if follows:
            line["follows"] = True
        lines.append(line)

    alone = [item for item in rows if not item[1]["history"]]
    for path, row in choose(alone, args.count - FOLLOW_UPS, rng):
        add(row["dialogue"], row["category"], row["voice"], audio_of(path, row), False)
    pairs = [item for item in rows if is_follow_up(item[1])]
    for path, row in rng.sample(pairs, min(FOLLOW_UPS, len(pairs))):
        before = row["history"][0]
        add(before, row["category"], row["voice"], speak(row["voice"], before["question"]), False)
        add(row["dialogue"], row["category"], row["voice"], audio_of(path, row), True)
    with open(os.path.join(args.output, "samples.jsonl"), "w", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    replies = sorted({row["dialogue"]["reply"] for _, row in all_rows if row["dialogue"]})
    if len(replies) > REPLIES:
        replies = sorted(rng.sample(replies, REPLIES))
    with open(os.path.join(args.output, "replies.txt"), "w", encoding="utf-8") as file:
        file.writelines(reply + "\n" for reply in replies)
    print(f"{len(lines)} questions, {len(replies)} replies in {args.output}")


if __name__ == "__main__":
    main()
