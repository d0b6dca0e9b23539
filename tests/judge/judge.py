#!/usr/bin/env python3
"""Judges spoken replies with an independent recogniser: pocketsphinx on a language model of the reply domain.

    judge.py --list spoken.jsonl --domain replies.txt [--domain more.txt] [--max-wer 8] [--json report.json]

`spoken.jsonl` holds {"wav": "…", "text": "what it should say"} a line, the WAV path relative to the list.
`--domain` files hold one reply text a line (or JSON Lines with "text", or a corpus' questions with
dialogue.reply): everything the agent may say, *including replies that it was never trained on*. The
recogniser must choose among all of that, not confirm one sentence: with the default `--grammar ngram`
a trigram with back-off over every word of the domain, so that any word may follow any other at a price.
Other grammars, from the most forgiving to the least: `sentences` (one of the domain's sentences, whole),
`pairs` (each word pair must occur in the domain: DARPA's word-pair grammar), `general` (pocketsphinx's own
US English model, which knows nothing of the domain; informative, not a bar).

WER is (substitutions + deletions + insertions) / reference words, summed over all sentences.
Exit codes: 0 within the bar, 1 above it, 2 usage or unreadable input.
"""

import argparse
import collections
import json
import math
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import wave

RATE = 16000
PADDING = 0.2  # seconds of silence at both ends: the recogniser wants to see an utterance begin and end
HERE = os.path.dirname(os.path.abspath(__file__))
WORD = re.compile(r"^[a-z']+$")


class Unusable(Exception):
    """An input that cannot be judged; the message says which and why."""


def words_of(text):
    words = text.lower().replace(",", " ").replace(".", " ").replace("?", " ").split()
    for word in words:
        if not WORD.match(word):
            raise Unusable(f"'{word}' in '{text}' is not a spoken word (numbers must be spelled out)")
    return words


def read_texts(path):
    """Reply texts of a domain file, each as a tuple of words."""
    texts = []
    with open(path, encoding="utf-8") as file:
        for line in file:
            line = line.strip()
            if not line:
                continue
            if line.startswith("{"):
                row = json.loads(line)
                # a question's own text is what the user says: not part of what the agent may say
                line = row["dialogue"]["reply"] if "dialogue" in row else row.get("reply") or row["text"]
            texts.append(tuple(words_of(line)))
    return texts


def read_wav(path):
    try:
        with wave.open(path, "rb") as file:
            form = (file.getframerate(), file.getnchannels(), file.getsampwidth())
            audio = file.readframes(file.getnframes())
    except (OSError, EOFError, wave.Error) as error:
        raise Unusable(f"{path}: {error}") from error
    if form != (RATE, 1, 2):
        raise Unusable(f"{path}: {form[0]} Hz, {form[1]} channels, {8 * form[2]} bits; the judge wants 16000 Hz, 1, 16")
    return audio


# --- the language: pronunciations, and one of four grammars ---------------------------------------


def pronounce(word):
    """Phones of a word that the recogniser's dictionary lacks, by flite's letter-to-sound rules."""
    if not shutil.which("flite"):
        return None
    run = subprocess.run(["flite", "-voice", "slt", "-ps", "-t", word, "-o", "none"], capture_output=True, text=True)
    phones = [phone for phone in run.stdout.split() if phone != "pau"]
    return " ".join("AH" if phone == "ax" else phone.upper() for phone in phones) or None


def dictionary(words, standard):
    """Pronouncing dictionary of exactly these words: pocketsphinx's, then extra.dict, then flite."""
    entries = collections.defaultdict(list)
    for path in (standard, os.path.join(HERE, "extra.dict")):
        with open(path, encoding="utf-8") as file:
            for line in file:
                head, _, phones = line.strip().partition(" ")
                word = re.sub(r"\(\d+\)$", "", head)
                if word in words and phones:
                    entries[word].append(phones)
    guessed, unknown = {}, []
    for word in sorted(words - entries.keys()):
        phones = pronounce(word)
        if phones:
            entries[word].append(phones)
            guessed[word] = phones
        else:
            unknown.append(word)
    if unknown:
        raise Unusable(f"no pronunciation of {', '.join(unknown)}: add to extra.dict, or install flite, which guesses")
    lines = []
    for word in sorted(entries):
        for index, phones in enumerate(dict.fromkeys(entries[word])):
            lines.append(f"{word}{f'({index + 1})' if index else ''} {phones}\n")
    return "".join(lines), guessed


def ngram(texts):
    """Trigram with absolute discounting and back-off, as an ARPA file. Each distinct reply counts once."""
    discount = 0.5
    counts = [collections.Counter(), collections.Counter(), collections.Counter()]
    for text in sorted(set(texts)):
        sentence = ("<s>",) + text + ("</s>",)
        for order in (1, 2, 3):
            for start in range(len(sentence) - order + 1):
                counts[order - 1][sentence[start : start + order]] += 1
    del counts[0][("<s>",)]
    total = sum(counts[0].values())
    probability = {gram: count / total for gram, count in counts[0].items()}
    backoff = {}
    for order in (2, 3):
        context_total, context_kinds = collections.Counter(), collections.Counter()
        for gram, count in counts[order - 1].items():
            context_total[gram[:-1]] += count
            context_kinds[gram[:-1]] += 1
        for context, seen in context_total.items():
            backoff[context] = discount * context_kinds[context] / seen
        for gram, count in counts[order - 1].items():
            context = gram[:-1]
            # interpolated: what the discount takes is spread as the shorter context would
            probability[gram] = (count - discount) / context_total[context] + backoff[context] * probability[gram[1:]]
    probability[("<s>",)] = 1e-99
    lines = ["\\data\\"]
    grams = [sorted(gram for gram in probability if len(gram) == order) for order in (1, 2, 3)]
    lines += [f"ngram {order}={len(grams[order - 1])}" for order in (1, 2, 3)]
    for order in (1, 2, 3):
        lines += ["", f"\\{order}-grams:"]
        for gram in grams[order - 1]:
            line = f"{max(-99.0, math.log10(probability[gram])):.5f}\t{' '.join(gram)}"
            if order < 3:
                line += f"\t{math.log10(backoff[gram]):.5f}" if gram in backoff else "\t0.0"
            lines.append(line)
    return "\n".join(lines + ["", "\\end\\", ""])


def pairs(texts):
    """Word-pair grammar as a finite state grammar: a state per word, an arc per pair of the domain."""
    follow = collections.defaultdict(set)
    for text in texts:
        for left, right in zip(("<s>",) + text, text + ("</s>",)):
            follow[left].add(right)
    states = {word: index for index, word in enumerate(["<s>"] + sorted(set(follow) - {"<s>"}) + ["</s>"])}
    lines = [f"FSG_BEGIN replies\nNUM_STATES {len(states)}\nSTART_STATE 0\nFINAL_STATE {states['</s>']}"]
    for left in states:
        for right in sorted(follow.get(left, ())):
            label = "" if right == "</s>" else f" {right}"
            lines.append(f"TRANSITION {states[left]} {states[right]} {1 / len(follow[left]):.6g}{label}")
    return "\n".join(lines + ["FSG_END", ""])


def sentences(texts):
    """One of the domain's sentences, as a prefix tree in a finite state grammar."""
    tree, arcs, ends = {}, [], set()
    for text in sorted(set(texts)):
        state = 0
        for word in text:
            if (state, word) not in tree:
                tree[state, word] = len(tree) + 1
                arcs.append((state, tree[state, word], word))
            state = tree[state, word]
        ends.add(state)
    final = len(tree) + 1
    lines = [f"FSG_BEGIN replies\nNUM_STATES {final + 1}\nSTART_STATE 0\nFINAL_STATE {final}"]
    out = collections.Counter(arc[0] for arc in arcs) + collections.Counter(ends)
    lines += [f"TRANSITION {left} {right} {1 / out[left]:.6g} {word}" for left, right, word in arcs]
    lines += [f"TRANSITION {state} {final} {1 / out[state]:.6g}" for state in sorted(ends)]
    return "\n".join(lines + ["FSG_END", ""])


def decoder_options(grammar, texts, folder):
    """Configuration of the recogniser for a grammar of these texts; files go into `folder`."""
    import pocketsphinx

    model = os.path.join(pocketsphinx.get_model_path(), "en-us")
    standard = os.path.join(model, "cmudict-en-us.dict")
    # batch normalisation: a result depends on its own sentence only, not on the order of the list
    options = {"hmm": os.path.join(model, "en-us"), "cmn": "batch", "loglevel": "FATAL"}
    if grammar == "general":
        options.update(dict=standard, lm=os.path.join(model, "en-us.lm.bin"))
        return options, {}
    entries, guessed = dictionary({word for text in texts for word in text}, standard)
    options["dict"] = os.path.join(folder, "words.dict")
    with open(options["dict"], "w", encoding="utf-8") as file:
        file.write(entries)
    key, make = {"ngram": ("lm", ngram), "pairs": ("fsg", pairs), "sentences": ("fsg", sentences)}[grammar]
    options[key] = os.path.join(folder, f"domain.{key}")
    with open(options[key], "w", encoding="utf-8") as file:
        file.write(make(texts))
    return options, guessed


# --- recognition and scores -----------------------------------------------------------------------

DECODER = None


def start(options):
    global DECODER
    import pocketsphinx

    DECODER = pocketsphinx.Decoder(**options)


def recognise(audio):
    silence = bytes(2 * int(PADDING * RATE))
    DECODER.start_utt()
    DECODER.process_raw(silence + audio + silence, no_search=False, full_utt=True)
    DECODER.end_utt()
    hypothesis = DECODER.hyp()
    return (hypothesis.hypstr if hypothesis else "").lower().split()


def align(reference, heard):
    """(substitutions, deletions, insertions) of the cheapest alignment."""
    rows = [[(j, 0, 0, j) for j in range(len(heard) + 1)]]
    for i, expected in enumerate(reference, 1):
        row = [(i, 0, i, 0)]
        for j, got in enumerate(heard, 1):
            cost, subs, dels, ins = rows[i - 1][j - 1]
            wrong = expected != got
            options = [(cost + wrong, subs + wrong, dels, ins)]
            cost, subs, dels, ins = rows[i - 1][j]
            options.append((cost + 1, subs, dels + 1, ins))
            cost, subs, dels, ins = row[j - 1]
            options.append((cost + 1, subs, dels, ins + 1))
            row.append(min(options))
        rows.append(row)
    return rows[-1][-1][1:]


def judge(items, options, jobs):
    """Rows with what was heard and the errors, in the order of the list."""
    audio = [item.pop("audio") for item in items]
    with multiprocessing.Pool(jobs, start, (options,)) as pool:
        heard = pool.map(recognise, audio, chunksize=4)
    for item, words in zip(items, heard):
        reference = words_of(item["text"])
        subs, dels, ins = align(reference, words)
        item.update(heard=" ".join(words), words=len(reference), substitutions=subs, deletions=dels, insertions=ins)
    return items


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", required=True, help="JSON Lines of {wav, text}")
    parser.add_argument("--domain", action="append", default=[], help="file of reply texts; may be repeated")
    parser.add_argument("--grammar", choices=["ngram", "pairs", "sentences", "general"], default="ngram")
    parser.add_argument("--max-wer", type=float, help="exit 1 above this word error rate, in percent")
    parser.add_argument("--json", help="write the report here")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--errors", type=int, default=20, help="print at most so many wrong sentences")
    args = parser.parse_args()

    started = time.monotonic()
    items, seconds = [], 0.0
    folder = os.path.dirname(os.path.abspath(args.list))
    with open(args.list, encoding="utf-8") as file:
        for line in file:
            if line.strip():
                row = json.loads(line)
                audio = read_wav(os.path.join(folder, row["wav"]))
                seconds += len(audio) / 2 / RATE
                items.append({"wav": row["wav"], "text": row["text"], "audio": audio})
    if not items:
        raise Unusable(f"{args.list}: no sentences")
    domain = [text for path in args.domain for text in read_texts(path)]
    distinct = len(set(domain))
    if args.grammar != "general" and distinct < 100:
        raise Unusable(f"the domain has {distinct} distinct replies; below 100 the judge would only confirm what it expects")
    # what the sentences say belongs to the domain, too, or a new word could never be heard
    domain += [tuple(words_of(item["text"])) for item in items]
    with tempfile.TemporaryDirectory() as scratch:
        options, guessed = decoder_options(args.grammar, domain, scratch)
        rows = judge(items, options, min(args.jobs, len(items)))
    total = sum(row["words"] for row in rows)
    wrong = {kind: sum(row[kind] for row in rows) for kind in ("substitutions", "deletions", "insertions")}
    wer = 100 * sum(wrong.values()) / total
    failed = [row for row in rows if row["substitutions"] + row["deletions"] + row["insertions"]]
    report = {
        "wer": round(wer, 2), "sentences": len(rows), "exact": len(rows) - len(failed), "words": total, **wrong,
        "grammar": args.grammar, "domain_replies": distinct, "guessed_pronunciations": guessed,
        "audio_seconds": round(seconds, 1), "judge_seconds": round(time.monotonic() - started, 1), "rows": rows,
    }
    for row in failed[: args.errors]:
        print(f"  said  {row['text']}\n  heard {row['heard']}   ({row['wav']})")
    if guessed:
        print(f"pronunciations guessed by flite: {', '.join(guessed)}")
    print(
        f"WER {wer:.2f} % ({wrong['substitutions']} substituted, {wrong['deletions']} deleted, {wrong['insertions']} inserted"
        f" of {total} words), {len(rows) - len(failed)} of {len(rows)} sentences exact;"
        f" grammar {args.grammar} over {distinct} replies; {seconds:.0f} s of audio in {report['judge_seconds']} s"
    )
    if args.json:
        partial = args.json + ".partial"
        with open(partial, "w", encoding="utf-8") as file:
            json.dump(report, file, indent=1)
        os.replace(partial, args.json)
    if args.max_wer is not None and wer > args.max_wer:
        print(f"above the bar of {args.max_wer:g} %")
        return 1
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (Unusable, OSError, KeyError, json.JSONDecodeError, ImportError) as error:
        print(f"judge: {type(error).__name__ if not isinstance(error, Unusable) else 'unusable'}: {error}", file=sys.stderr)
        sys.exit(2)
