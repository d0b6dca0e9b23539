#!/usr/bin/env python3
"""Asks the shipped agent the test questions of a corpus, end to end, and counts what it gets right.

    evaluate.py --agent SA_AGENT --bundle DIR --corpus DIR --output DIR [--sets trained,timbre] [--limit N] [--snr 10]

Nothing but `sa-agent talk` is used: audio in, audio and JSON out. Tools answer with the results that the corpus
holds, built-ins included. Right means that the call and the reply are both exact, word for word. The turns before a
follow-up are text in the corpus, and so they are for the agent (`talk --history`).

Writes report.json, the answers and list.jsonl for the judge into --output, and prints Markdown.
"""

import argparse
import array
import collections
import concurrent.futures
import glob
import json
import math
import os
import random
import shutil
import subprocess
import sys
import wave

HERE = os.path.dirname(os.path.abspath(__file__))
BATCH = 25  # questions in one call of sa-agent


def rows_of(corpus):
    for path in sorted(glob.glob(os.path.join(corpus, "questions", "*.jsonl"))):
        with open(path, encoding="utf-8") as file:
            for line in file:
                row = json.loads(line)
                if row["split"] == "test" and row.get("dialogue"):
                    row["sound"] = path.removesuffix(".jsonl") + ".s16"
                    yield row


def load(row):
    samples = array.array("h")
    with open(row["sound"], "rb") as file:
        file.seek(2 * row["offset"])
        samples.frombytes(file.read(2 * row["samples"]))
    return samples


def noise(kind, length, others, rng):
    if kind == "babble":
        sounds = [load(rng.choice(others)) for _ in range(6)]
        return [sum(sound[(i + 977 * k) % len(sound)] for k, sound in enumerate(sounds)) for i in range(length)]
    white = [rng.gauss(0, 1000) for _ in range(length)]
    if kind == "white":
        return white
    pink, slow, slower = [], 0.0, 0.0  # two poles over white: close to 3 dB an octave
    for x in white:
        slow, slower = 0.97 * slow + 0.1 * x, 0.7 * slower + 0.3 * x
        pink.append(slow + slower + 0.1 * x)
    return pink


def in_noise(samples, snr_db, kind, others, rng, around):
    """The signal's power is that of its loud frames, as the ear would say; clipping is avoided by scaling down. The noise begins
    and ends so many seconds before and after the signal."""
    frames = sorted(sum(x * x for x in samples[i : i + 320]) / 320 for i in range(0, len(samples) - 320, 320))
    loud = frames[len(frames) // 3 :] or [1.0]
    power = sum(loud) / len(loud)
    before, after = (array.array("h", bytes(2 * int(16000 * seconds))) for seconds in around)
    samples = before + samples + after
    added = noise(kind, len(samples), others, rng)
    gain = math.sqrt(power / (sum(x * x for x in added) / len(added) + 1e-9)) * 10 ** (-snr_db / 20)
    mixed = [x + gain * n for x, n in zip(samples, added)]
    scale = min(1.0, 32000 / max(1.0, max(abs(x) for x in mixed)))
    return array.array("h", (int(scale * x) for x in mixed))


def store(path, samples):
    with wave.open(path, "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes(samples.tobytes())


def batches(rows):
    """Groups of questions in which no call stands for two different results; a follow-up is alone with its past."""
    open_groups = []
    for row in rows:
        if row.get("history"):
            calls = {row["dialogue"]["call"]: row["dialogue"]["result"]} if row["dialogue"].get("call") else {}
            yield {"calls": calls, "rows": [row]}
            continue
        call, result = row["dialogue"].get("call"), row["dialogue"].get("result")
        for group in open_groups:
            if group["calls"].get(call, result) == result:
                break
        else:
            group = {"calls": {}, "rows": []}
            open_groups.append(group)
        if call:
            group["calls"][call] = result
        group["rows"].append(row)
        if len(group["rows"]) == BATCH:
            open_groups.remove(group)
            yield group
    yield from open_groups


def write_tools(folder, calls, names):
    """tools.toml whose programs look results up, and the table they look in: a file per call."""
    table = os.path.join(folder, "results")
    os.makedirs(table)
    for call, result in calls.items():
        with open(os.path.join(table, call.replace(" ", "_")), "w", encoding="utf-8") as file:
            file.write(result or "")
    script = os.path.join(folder, "look-up.sh")
    with open(script, "w", encoding="utf-8") as file:
        file.write('table=$1; shift; name=$(IFS=_; echo "$*"); exec cat "$table/$name"\n')
    path = os.path.join(folder, "tools.toml")
    with open(path, "w", encoding="utf-8") as file:
        for name in names:
            file.write(f'[tool.{name}]\nprogram = ["sh", {json.dumps(script)}, {json.dumps(table)}, "{name}", "{{words}}"]\n')
    return path


def ask(args, group, number, names, others):
    """One call of sa-agent with these questions: a dict per question of what it did."""
    folder = os.path.join(args.output, "batches", f"{number:04}")
    os.makedirs(folder)
    answers = os.path.join(args.output, "answers", f"{number:04}")
    os.makedirs(answers)
    rng = random.Random(f"{args.seed} {group['rows'][0]['id']}")
    command = [args.agent, "talk", "--bundle", args.bundle, "--json", "--fresh", "--output-dir", answers]
    command += ["--tools", write_tools(folder, group["calls"], names)]
    past = group["rows"][0].get("history")
    if past:
        path = os.path.join(folder, "history.jsonl")
        with open(path, "w", encoding="utf-8") as file:
            for turn in past:
                calls = [{"call": turn["call"], "result": turn["result"]}] if turn.get("call") else []
                file.write(json.dumps({"event": "turn", "transcript": turn["question"], "reply_text": turn["reply"], "calls": calls}) + "\n")
        command += ["--history", path]
    for index, row in enumerate(group["rows"]):
        path = os.path.join(folder, f"{row['id']}.wav")
        samples = load(row)
        if args.snr is not None:
            samples = in_noise(samples, args.snr, ("white", "pink", "babble")[(number + index) % 3], others, rng, args.around)
        store(path, samples)
        command += ["--input", path]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        raise SystemExit(f"evaluate: {' '.join(command[:4])} … failed with {run.returncode}: {run.stderr.strip()}")
    shutil.rmtree(folder)
    turns = [event for event in map(json.loads, run.stdout.splitlines()) if event["event"] == "turn"]
    if len(turns) != len(group["rows"]):
        raise SystemExit(f"evaluate: {len(turns)} turns for {len(group['rows'])} questions")
    for row, turn in zip(group["rows"], turns):
        turn["output"] = os.path.join(answers, f"{row['id']}.wav")
    return turns


def score(row, turn):
    """What was right, and what it took."""
    expected = row["dialogue"]
    calls = [call["call"] for call in turn["calls"]]
    call_right = calls == ([expected["call"]] if expected.get("call") else [])
    reply_right = turn["reply_text"] == expected["reply"]
    return {
        "id": row["id"], "set": row["set"], "category": row["category"], "voice": row["voice"], "question": row["text"],
        "heard": turn["transcript"], "calls": calls, "expected_call": expected.get("call"), "reply": turn["reply_text"],
        "expected_reply": expected["reply"], "call_right": call_right, "reply_right": reply_right,
        "right": call_right and reply_right, "heard_right": turn["transcript"] == row["text"], "output": turn["output"],
        "timing_ms": turn["timing_ms"], "real_time_factor": turn["real_time_factor"], "answer_s": turn["answer_s"],
        "word_units": turn["word_units"], "stopped": turn["stopped"],
    }


def share(rows, key="right"):
    """Percent with its Wilson 95 % interval."""
    n = len(rows)
    p, z = sum(row[key] for row in rows) / n, 1.96
    centre, reach = (p + z * z / (2 * n)) / (1 + z * z / n), z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return f"{100 * p:.1f} % ({100 * (centre - reach):.1f} to {100 * (centre + reach):.1f})"


def table(rows, key):
    groups = collections.defaultdict(list)
    for row in rows:
        groups[row[key]].append(row)
    print(f"| {key} | questions | call and reply right (95 % interval) | call right | heard right |\n|---|---|---|---|---|")
    for name in sorted(groups):
        some = groups[name]
        print(f"| {name} | {len(some)} | {share(some)} | {share(some, 'call_right')} | {share(some, 'heard_right')} |")
    print()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agent", required=True, help="the program sa-agent")
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--output", required=True, help="folder, made anew")
    parser.add_argument("--sets", default="trained,timbre,accent,synthesiser")
    parser.add_argument("--limit", type=int, help="at most so many questions of a set")
    parser.add_argument("--snr", type=float, help="add white, pink and babble noise in turn, at so many dB")
    parser.add_argument("--around", type=float, nargs=2, default=(0, 0), metavar="S", help="with --snr: the noise begins and ends so many seconds before and after the question")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    args = parser.parse_args()
    everything = [row for row in rows_of(args.corpus) if row["text"]]
    names = sorted({row["dialogue"]["call"].split(" ")[0] for row in everything if row["dialogue"].get("call")})
    rows = []
    for name in args.sets.split(","):
        rows += [row for row in everything if row["set"] == name][: args.limit]
    if not rows:
        raise SystemExit(f"evaluate: no test questions of {args.sets} in {args.corpus}")
    if os.path.exists(args.output):
        shutil.rmtree(args.output)
    os.makedirs(args.output)
    groups = list(batches(rows))
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        turns = list(pool.map(lambda item: ask(args, item[1], item[0], names, everything), enumerate(groups)))
    scored = [score(row, events) for group, some in zip(groups, turns) for row, events in zip(group["rows"], some)]
    with open(os.path.join(args.output, "report.json"), "w", encoding="utf-8") as file:
        json.dump(scored, file, indent=1)
    with open(os.path.join(args.output, "list.jsonl"), "w", encoding="utf-8") as file:
        for row in scored:
            if row["reply"]:
                file.write(json.dumps({"wav": os.path.abspath(row["output"]), "text": row["reply"]}) + "\n")
    condition = "clean" if args.snr is None else f"in noise at {args.snr:g} dB"
    condition += "".join(f", {seconds:g} s {where}" for seconds, where in zip(args.around, ("before", "after")) if seconds)
    print(f"{len(rows)} test questions, {condition} ({sum(bool(row.get('history')) for row in rows)} with the turns before them)\n")
    table(scored, "set")
    table(scored, "category")


if __name__ == "__main__":
    sys.exit(main())
