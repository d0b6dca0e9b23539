#!/usr/bin/env python3
"""Measures every figure of the README on this machine and prints them as Markdown.

    tests/figures.py PART... [--work DIR] [--limit N] [--trained CORPUS]...

`all` stands for all of the parts. The test questions come from a corpus that
is made anew (seeded; its test sets have words and voices that no training run has seen), and are asked of the
shipped bundle through `sa-agent talk`. Run it on a machine that does nothing else, or the times mean nothing.

Small worlds repeat themselves: a new corpus has dialogues and replies that the training had as well. With `--trained`, the corpora of the
training (runs/nano/corpus where it is there), these are left out of the word error rates, and the accuracy is also told without them.
"""

import argparse
import glob
import json
import os
import shutil
import statistics
import struct
import subprocess
import sys
import time
import tomllib

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
CACHE = os.environ.get("SA_CACHE") or os.path.join(os.environ.get("HOME") or "/var/tmp", ".cache", "sa")
PYTHON = os.path.join(CACHE, "judge-venv", "bin", "python")
# what is measured: a folder with `bundle`, `checkpoint` and `samples`
AGENT = os.path.abspath(os.environ.get("SA_FIGURES_OF") or os.path.join(ROOT, "models", "pretrained", "nano"))
BUNDLE = os.path.join(AGENT, "bundle")
CHECKPOINT = os.path.join(AGENT, "checkpoint")
SAMPLES = os.path.join(AGENT, "samples")
# 8000 questions are the fewest that give test sets of full size; the seed is not that of the training
CORPUS = ["--questions", "8000", "--swapped", "0", "--replies", "4000", "--seed", "77"]

# Tests that stand for a row each, and how near what they compare is.
PROOFS = (
    ("streaming equals offline, tokenizer", "streaming_gives_the_offline_features_whatever_the_length", "features within 2e-4"),
    ("streaming equals offline, decoder", "streaming_equals_offline_for_any_chunk", "spectra within 1e-4"),
    ("streaming equals offline, language model", "a_step_at_a_time_equals_the_offline_pass", "states within 1e-5"),
    ("the same losses in the first 20 steps again, tokenizer", "a_run_stopped_at_every_step_equals_an_uninterrupted_one", "to the bit, resumed at every step"),
    ("the same losses in the first 20 steps again, decoder", "the_first_twenty_steps_are_the_same_again", "to the bit"),
    ("the same losses in the first 20 steps again, language model", "the_same_seed_gives_the_same_losses_and_a_resumed_run_goes_on_exactly", "to the bit, on 1 and 2 threads"),
)

rows = []


def bar(what, value, wanted, met, command):
    """One row of the table; `met` is None where there is no bar."""
    rows.append(f"| {what} | {value} | {wanted} | {'' if met is None else 'yes' if met else '**no**'} | `{command}` |")
    print(f"  {what}: {value} (bar: {wanted or 'none'})", flush=True)


def run(command, **options):
    """Runs a command that must succeed, and returns what it printed."""
    done = subprocess.run([str(part) for part in command], text=True, stdout=subprocess.PIPE, cwd=ROOT, **options)
    if done.returncode:
        raise SystemExit(f"figures: {' '.join(map(str, command))} failed with {done.returncode}")
    return done.stdout


def program(name):
    return os.path.join(os.environ.get("CARGO_TARGET_DIR", os.path.join(ROOT, "target")), "debug", name)


def parameters(path):
    """Number of weights in a safetensors file, from its header."""
    with open(path, "rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    total = 0
    for name, tensor in header.items():
        if name != "__metadata__":
            count = 1
            for size in tensor["shape"]:
                count *= size
            total += count
    return total


def sizes():
    for part in ("tokenizer", "decoder", "lm"):
        count = parameters(os.path.join(CHECKPOINT, part, "model.safetensors"))
        limit = ("≤ 10 M", count <= 10e6) if part == "lm" else ("", None)
        bar(f"weights of the {part}", f"{count / 1e6:.2f} M", *limit, "tests/figures.py size")
    size = sum(os.path.getsize(path) for path in glob.glob(os.path.join(BUNDLE, "*")))
    bar("bundle on disk", f"{size / 1e6:.1f} MB", "≤ 25 MB", size <= 25e6, "tests/figures.py size")


def proofs(trained):
    command = ["cargo", "test", "--workspace", "--lib", "--", *(test for _, test, _ in PROOFS)]
    printed = subprocess.run(command, text=True, stdout=subprocess.PIPE, cwd=ROOT).stdout
    for what, test, how in PROOFS:
        # Other tests' names end like this one's.
        passed = f"::{test} ... ok" in printed
        bar(what, how if passed else "no", "yes", passed, f"cargo test --workspace --lib {test}")
    for folder in trained:
        path = os.path.join(os.path.dirname(folder), "times.txt")
        if os.path.exists(path):
            with open(path, encoding="utf-8") as file:
                spent = [line.split(" ", 1) for line in file.read().splitlines()]
            hours = ", ".join(f"{name} {int(seconds) / 3600:.1f}" for seconds, name in spent)
            bar("hours of `make train` on this machine", f"{sum(int(seconds) for seconds, _ in spent) / 3600:.1f}", "", None, f"times.txt of the run: {hours}")


def speed(work):
    """On one core, questions at the speed at which they are spoken: what a user waits for."""
    questions = sorted(glob.glob(os.path.join(SAMPLES, "*.wav")))
    folder = os.path.join(work, "speed")
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    command = ["taskset", "-c", "0", program("sa-agent"), "talk", "--bundle", BUNDLE, "--json", "--fresh", "--output-dir", folder]
    for question in questions:
        command += ["--input", question]
    events = [json.loads(line) for line in run(command + ["--realtime"]).splitlines()]
    turns = [event for event in events if event["event"] == "turn" and event["stopped"] != "silence"]
    waits = sorted(turn["timing_ms"]["first_audio"] for turn in turns)
    median = statistics.median(waits)
    shown = "make bench"
    bar("last sample of the question → first sample of the answer, one core, median", f"{median:.0f} ms", "≤ 100 ms", median <= 100, shown)
    bar("the same, slowest of the samples", f"{waits[-1]:.0f} ms", "", None, shown)
    started = time.monotonic()
    events = [json.loads(line) for line in run(command).splitlines()]
    seconds = time.monotonic() - started
    audio = sum(turn["question_s"] + turn["answer_s"] for turn in turns)
    bar("whole pipeline, start included, times real time, one core", f"{audio / seconds:.1f}", "> 10", audio / seconds > 10, shown)
    ready = [event["ms"] for event in events if event["event"] == "ready"]
    best = min(ready + [ready_ms(questions[0], folder) for _ in range(4)])
    bar("from start to ready, one core, best of five", f"{best:.0f} ms", "≤ 1000 ms", best <= 1000, shown)
    # By itself: the greatest of all children would be the compiler.
    agent = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=ROOT)
    peak = os.wait4(agent.pid, 0)[2].ru_maxrss / 1024
    bar("peak memory of sa-agent talk", f"{peak:.0f} MB", "≤ 150 MB", peak <= 150, shown)


def ready_ms(question, folder):
    command = ["taskset", "-c", "0", program("sa-agent"), "talk", "--bundle", BUNDLE, "--json", "--input", question]
    lines = run(command + ["--output", os.path.join(folder, "one.wav")]).splitlines()
    return next(event["ms"] for event in map(json.loads, lines) if event["event"] == "ready")


def corpus(work):
    """The test questions; made once."""
    folder = os.path.join(work, "corpus")
    run([program("sa-align"), "corpus", "--output", folder, *CORPUS])
    return folder


def rows_of(folder, kind):
    for path in sorted(glob.glob(os.path.join(folder, kind, "*.jsonl"))):
        with open(path, encoding="utf-8") as file:
            yield from map(json.loads, file)


def content(dialogue):
    """What an answer consists of: two questions that share it ask for the same."""
    return dialogue.get("call"), dialogue.get("result"), dialogue["reply"]


def trained_contents(trained):
    return {content(row["dialogue"]) for folder in trained for row in rows_of(folder, "questions") if row["split"] == "train" and row.get("dialogue")}


def trained_replies(trained):
    """Texts that the decoder and the language model were taught to speak."""
    return {row["text"] for folder in trained for row in rows_of(folder, "replies") if row["split"] == "train"}


def percent(rows, key="right"):
    return 100 * sum(row[key] for row in rows) / len(rows)


def ask(work, name, limit, *more):
    output = os.path.join(work, name)
    command = [sys.executable, os.path.join(HERE, "evaluate.py"), "--agent", program("sa-agent"), "--bundle", BUNDLE]
    command += ["--corpus", corpus(work), "--output", output, *more] + (["--limit", limit] if limit else [])
    print(run(command))
    with open(os.path.join(output, "report.json"), encoding="utf-8") as file:
        return json.load(file)


def text(work, limit, trained):
    report = ask(work, "clean", limit)
    seen = trained_contents(trained)
    asked = {row["id"]: row["dialogue"] for row in rows_of(corpus(work), "questions") if row.get("dialogue")}
    bars = {"trained": ("trained voices", 95), "timbre": ("unseen voices of known accents", 90), "accent": ("unseen accents", 60), "synthesiser": ("synthesiser never heard", 60)}
    for name, (what, wanted) in bars.items():
        some = [row for row in report if row["set"] == name]
        if some:
            value = percent(some)
            bar(f"call and reply exact, {what} ({len(some)} questions)", f"{value:.1f} %", f"≥ {wanted} %", value >= wanted, "tests/figures.py text")
            new = [row for row in some if content(asked[row["id"]]) not in seen] if seen else []
            if new:
                shown = "tests/figures.py text --trained CORPUS"
                bar(f"the same, call, result and reply together never trained ({len(new)})", f"{percent(new):.1f} %", "", None, shown)
    bar("test questions", len(report), "≥ 1000", len(report) >= 1000, "tests/figures.py text")


def noise(work, limit):
    report = ask(work, "noise", limit, "--sets", "trained", "--snr", "10")
    value = percent(report)
    bar(f"call and reply exact, trained voices in noise at 10 dB ({len(report)} questions)", f"{value:.1f} %", "≥ 80 %", value >= 80, "tests/figures.py noise")
    before, after = 0.5, 3.2
    report = ask(work, "noise-around", limit, "--sets", "trained", "--snr", "10", "--around", before, after)
    bar(f"the same, the noise from {before} s before to {after} s after the question ({len(report)})", f"{percent(report):.1f} %", "", None, "tests/figures.py noise")


def judge(work, name, listing, domain):
    report = os.path.join(work, f"judge-{name}.json")
    print(run([PYTHON, os.path.join(HERE, "judge", "judge.py"), "--list", listing, "--domain", domain, "--json", report]))
    with open(report, encoding="utf-8") as file:
        return json.load(file)


def judge_answers(work, name, answers, domain, count):
    """Some of the answers that `ask` left in a folder, from all over it."""
    with open(os.path.join(answers, "list.jsonl"), encoding="utf-8") as file:
        spoken = file.readlines()
    listing = os.path.join(answers, "judged.jsonl")
    with open(listing, "w", encoding="utf-8") as file:
        file.writelines(spoken[:: max(1, len(spoken) // count)])
    return judge(work, name, listing, domain)


def untrained(report, replies):
    """A judge's report without the replies that were spoken in training: how many are left, and their word error rate."""
    left = [row for row in report["rows"] if row["text"] not in replies]
    errors = sum(row[kind] for row in left for kind in ("substitutions", "deletions", "insertions"))
    return len(left), 100 * errors / max(1, sum(row["words"] for row in left))


def replies_of(work):
    """Everything that the agent may say, as the grammar has it."""
    path = os.path.join(work, "replies.txt")
    replies = {row["dialogue"]["reply"] for row in rows_of(corpus(work), "questions") if row.get("dialogue")}
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(reply + "\n" for reply in sorted(replies))
    return path


def speech(work, limit, trained):
    domain = replies_of(work)
    count = str(limit or 200)
    clean = os.path.join(work, "clean")
    if not os.path.exists(os.path.join(clean, "report.json")):
        ask(work, "clean", limit)
    replies = trained_replies(trained)
    shown, which = ("tests/figures.py speech --trained CORPUS", "never trained") if replies else ("tests/figures.py speech", "some of them trained")
    report = judge_answers(work, "end-to-end", clean, domain, int(count))
    left, wer = untrained(report, replies)
    bar(f"WER of the spoken reply against the text that the agent shows, end to end ({left} replies, {which})", f"{wer:.2f} %", "≤ 8 %", wer <= 8, shown)
    floor, golden = os.path.join(work, "floor"), os.path.join(work, "golden")
    run([sys.executable, os.path.join(HERE, "judge", "from_corpus.py"), "--corpus", corpus(work), "--output", floor, "--limit", count])
    run([program("resynthesise"), BUNDLE, os.path.join(floor, "list.jsonl"), golden])
    report = judge(work, "golden", os.path.join(golden, "list.jsonl"), domain)
    left, wer = untrained(report, replies)
    bar(f"WER from golden units against the text that flite was given ({left} replies, {which})", f"{wer:.2f} %", "≤ 4 %", wer <= 4, shown)
    report = judge(work, "floor", os.path.join(floor, "list.jsonl"), domain)
    left, wer = untrained(report, replies)
    bar(f"WER of flite itself, the judge's floor (the same {left} replies)", f"{wer:.2f} %", "", None, shown)


def units(work):
    """The shipped precision against fp32, as the exporter measures it on 100 test questions from all over the corpus."""
    output = os.path.join(work, "bundle")
    print(run([program("sa-export"), "--int8", "--checkpoint", CHECKPOINT, "--output", output, "--samples", corpus(work)]))
    with open(os.path.join(output, "bundle.toml"), "rb") as file:
        measured = tomllib.load(file)["measured"]
    for stage, what in (("tokenizer", "units"), ("lm", "text tokens"), ("head", "units of the head")):
        # A stage that stays in single precision has nothing to compare.
        same = 100 * measured[stage].get("agreement", 1)
        bar(f"int8 bundle against fp32: {what} ({measured['samples'].split(': ')[1].split(' of ')[0]})", f"{same:.2f} %", "≥ 98 %", same >= 98, "tests/figures.py units")


def wake(work):
    """Wake phrases: misses by voice, and false accepts in an hour of other talk."""
    folder, said = os.path.join(work, "wake"), os.path.join(HERE, "wake")
    made = ["--questions", "8000", "--swapped", "0", "--replies", "20", "--seed", "5"]
    run([program("sa-align"), "corpus", "--output", folder, "--grammar", os.path.join(said, "phrases.toml"), "--synthesisers", os.path.join(said, "voices.toml"), *made])
    told = json.loads(run([program("wakes"), BUNDLE, folder, corpus(work)]))
    command = "tests/figures.py wake"
    for name, found in told["sets"].items():
        for key, where in (("missed", ""), ("missed_in_noise", ", noise at 10 dB")):
            bar(f"wake phrase missed, {name}{where} ({found['tried']} times, {found['enrolled']} enrolled, {found['refused']} refused)", f"{100 * found[key]:.1f} %", "", None, command)
    bar(f"false accepts per hour of other talk ({told['false_accepts']} in {told['talk_hours']:.2f} h for each phrase)", f"{told['false_accepts_per_hour']:.2f}", "", None, command)


def rooms(work):
    """Simulated rooms in which voices that were never trained speak over the agent: how soon it is noticed."""
    for flags, where in (["--usual"], "the room of the simulated conversations"), ([], "rooms of all kinds"):
        told = json.loads(run([program("rooms"), corpus(work), "--split", "test", "--rooms", "40", "--seed", "9", *flags]))
        command, noticed = "tests/figures.py rooms", told["noticed_ms"]
        bar(f"a voice over the agent's noticed after, median and 99 % of {told['interruptions']}, {where}", f"{noticed['median']}, {noticed['99']} ms", "", None, command)
        bar(f"noticed too late to stop within 0.2 s, {where}", f"{told['later_than_200_ms_percent']:.1f} %", "", None, command)
        bar(f"answers held for nothing ({told['held_for_nothing']} of {told['answers']}), {where}", f"{100 * told['held_for_nothing'] / told['answers']:.1f} %", "", None, command)


PARTS = {
    "size": lambda args, trained: sizes(),
    "proofs": lambda args, trained: proofs(trained),
    "speed": lambda args, trained: speed(args.work),
    "text": lambda args, trained: text(args.work, args.limit, trained),
    "noise": lambda args, trained: noise(args.work, args.limit),
    "speech": lambda args, trained: speech(args.work, args.limit, trained),
    "units": lambda args, trained: units(args.work),
    "wake": lambda args, trained: wake(args.work),
    "rooms": lambda args, trained: rooms(args.work),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=[*PARTS, "all"])
    parser.add_argument("--work", default=os.path.join(CACHE, "figures"), help="folder for corpus and answers, kept for the next run")
    parser.add_argument("--limit", type=int, help="at most so many questions of a set: quick and rough")
    parser.add_argument("--trained", action="append", metavar="CORPUS", help="a corpus of the training (runs/nano/corpus where it is there); may be given again")
    args = parser.parse_args()
    parts = list(PARTS) if "all" in args.parts else args.parts
    os.makedirs(args.work, exist_ok=True)
    usual = os.path.join(ROOT, "runs", "nano", "corpus")
    trained = [os.path.abspath(folder) for folder in args.trained or ([usual] if os.path.exists(usual) else [])]
    needed = ["sa-agent"] if set(parts) <= {"size", "speed"} else ["sa-agent", "sa-align", "sa-export", "resynthesise", "wakes", "rooms"]
    subprocess.run(["cargo", "build", "--quiet", "--workspace"] + [flag for name in needed for flag in ("--bin", name)], cwd=ROOT, check=True)
    for part in parts:
        print(f"== {part}", flush=True)
        PARTS[part](args, trained)
    print("\n| figure | measured | bar | met | command |\n|---|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
