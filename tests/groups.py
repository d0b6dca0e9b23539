#!/usr/bin/env python3
"""The choice of G, the units in a group, and of writing the question down first: equal trainings of each, asked the same test questions.

    tests/groups.py --corpus CORPUS --units UNITS [--runs DIR] [--steps 1200] [--only g1,g3,g4,g5,g4-direct]

Trains each variant from the same seed for the same number of steps (64 sequences each) on one thread, where --runs does not hold it already (a run goes on
where it was stopped), exports it with the shipped tokenizer and decoder, asks it test questions through `sa-agent`, has its speech judged, and
prints Markdown. A short training: what counts are the differences. Times are of one core; the plan of the reply, a step a word whatever G is, comes
on top of them.
"""

import argparse
import json
import os
import shutil
import sys
import tomllib

import figures

VARIANTS = {f"g{group}": ["--group", str(group)] for group in (1, 3, 4, 5)} | {"g4-direct": ["--group", "4", "--no-transcript"]}


def train(args, name):
    run = os.path.join(args.runs, name)
    # One that is done is done at once.
    figures.run([figures.program("sa-align"), "lm", "--corpus", args.corpus, "--units", args.units, "--output", run, "--steps", args.steps, *VARIANTS[name]])
    return os.path.join(run, "checkpoint")


def export(args, name, trained):
    """A bundle of the trained language model and the shipped tokenizer and decoder."""
    with open(os.path.join(figures.CHECKPOINT, "vocabulary.txt"), "rb") as ours, open(os.path.join(args.corpus, "vocabulary.txt"), "rb") as theirs:
        assert ours.read() == theirs.read(), "the corpus has other words than the shipped agent"
    whole = os.path.join(args.runs, name, "agent")
    shutil.rmtree(whole, ignore_errors=True)
    shutil.copytree(figures.CHECKPOINT, whole)
    shutil.rmtree(os.path.join(whole, "lm"))
    shutil.copytree(trained, os.path.join(whole, "lm"))
    bundle = os.path.join(args.runs, name, "bundle")
    # All in the same form, whether or not what so few steps teach keeps the budgets of a finished model.
    figures.run([figures.program("sa-export"), "--int8", "tokenizer,lm,head,decoder", "--force", "--checkpoint", whole, "--output", bundle, "--name", name])
    return bundle


def measure(args, name, bundle):
    figures.BUNDLE = bundle
    asked = f"groups-{name}"
    report = figures.ask(args.work, asked, args.limit, "--sets", "trained")
    heard = figures.judge_answers(args.work, asked, os.path.join(args.work, asked), figures.replies_of(args.work), 100)
    with open(os.path.join(bundle, "bundle.toml"), "rb") as file:
        group = tomllib.load(file)["group"]
    seconds = sum(row["answer_s"] for row in report)
    words = sum(len(row["word_units"]) for row in report)
    # A word ends with a group that is not full.
    starts_and_ends = [pair for row in report for pair in zip([0, *row["word_units"]], row["word_units"])]
    groups = sum((end - start) // group + 1 for start, end in starts_and_ends)
    times = json.loads(figures.run(["taskset", "-c", "0", figures.program("sa-agent"), "bench", "--bundle", bundle, "--json"]))
    of = {row["stage"]: row["ms_per_run"] for row in times["stages"]}
    ms = (words * of["lm"] + groups * (of["lm"] + of["head"])) / seconds
    return dict(right=figures.percent(report), wer=heard["wer"], steps=(words + groups) / seconds, ms=ms)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--units", required=True)
    parser.add_argument("--runs", default=os.path.join(figures.ROOT, "runs", "groups"))
    parser.add_argument("--steps", default="1200")
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--work", default=os.path.join(figures.CACHE, "figures"))
    parser.add_argument("--only", default=",".join(VARIANTS))
    args = parser.parse_args()
    os.makedirs(args.work, exist_ok=True)
    args.corpus, args.units, args.runs = (os.path.abspath(path) for path in (args.corpus, args.units, args.runs))
    programs = ["sa-agent", "sa-align", "sa-export"]
    figures.run(["cargo", "build", "--quiet", "--workspace"] + [flag for name in programs for flag in ("--bin", name)])
    lines = []
    for name in args.only.split(","):
        found = measure(args, name, export(args, name, train(args, name)))
        lines.append(f"| {name} | {found['right']:.1f} % | {found['wer']:.1f} % | {found['steps']:.1f} | {found['ms']:.1f} ms |")
        print(lines[-1], flush=True)
    print(f"\n| variant | call and reply exact ({args.limit} questions, trained voices) | WER of the spoken reply | steps of the LM while it speaks a second | their time |\n|---|---|---|---|---|")
    print("\n".join(lines))


if __name__ == "__main__":
    sys.exit(main())
