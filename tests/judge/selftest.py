#!/usr/bin/env python3
"""Validates the judge itself: clean flite speech must score about 0 %, broken speech must not.

    selftest.py [--sentences 80]

Speaks replies of a small domain with flite slt (the voice that the agent copies) and judges them clean,
in noise, low-passed, with words swapped between sentences, and as noise alone. Exit code 0 when the judge tells them apart.
"""

import argparse
import array
import itertools
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import wave

HERE = os.path.dirname(os.path.abspath(__file__))
ROOMS = "kitchen bedroom bathroom garage hallway office attic cellar".split() + ["living room", "dining room"]
NUMBERS = "one two three four five six seven eight nine ten eleven twelve fifteen twenty thirty forty fifty".split()
CITIES = "paris london chicago berlin tokyo madrid".split()
SKIES = "sunny cloudy rainy windy snowy".split()


def domain():
    for room, state in itertools.product(ROOMS, ("on", "off")):
        yield f"okay the {room} light is {state}"
    for room, (thing, state) in itertools.product(ROOMS, (("blinds are", "open"), ("blinds are", "closed"), ("door is", "locked"))):
        yield f"the {room} {thing} now {state}"
    for number, unit in itertools.product(NUMBERS, ("minutes", "seconds")):
        yield f"i have set a timer for {number} {unit}"
    for left, right in itertools.product(NUMBERS, NUMBERS):
        yield f"{left} plus {right} makes something i had to calculate"
    for city, sky, degrees in itertools.product(CITIES, SKIES, NUMBERS):
        yield f"in {city} it is {sky} with {degrees} degrees"


def speak(text, path):
    subprocess.run(["flite", "-voice", "slt", "-t", text, "-o", path], check=True)


def load(path):
    with wave.open(path, "rb") as file:
        return array.array("h", file.readframes(file.getnframes()))


def store(path, samples):
    with wave.open(path, "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes(array.array("h", (max(-32768, min(32767, int(x))) for x in samples)).tobytes())


def noisy(samples, snr_db, rng):
    level = math.sqrt(sum(x * x for x in samples) / len(samples)) * 10 ** (-snr_db / 20)
    return [x + rng.gauss(0, level) for x in samples]


def low_pass(samples, cutoff):
    keep, out = math.exp(-2 * math.pi * cutoff / 16000), samples
    for _ in range(4):
        state, filtered = 0.0, []
        for x in out:
            state = keep * state + (1 - keep) * x
            filtered.append(state)
        out = filtered
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sentences", type=int, default=40)
    parser.add_argument("--grammar", default="ngram")
    args = parser.parse_args()
    rng = random.Random(1)
    texts = list(domain())
    chosen = rng.sample(texts, args.sentences)
    with tempfile.TemporaryDirectory() as folder:
        with open(f"{folder}/domain.txt", "w") as file:
            file.write("\n".join(texts))
        spoken = []
        for index, text in enumerate(chosen):
            speak(text, f"{folder}/{index}.wav")
            spoken.append(load(f"{folder}/{index}.wav"))
        conditions = {
            "clean": (lambda i: spoken[i], 0, 2),
            "noise 20 dB": (lambda i: noisy(spoken[i], 20, rng), 0, 100),
            "noise 0 dB": (lambda i: noisy(spoken[i], 0, rng), 10, 200),
            "low-passed at 500 Hz": (lambda i: low_pass(spoken[i], 500), 3, 200),
            "first half missing": (lambda i: spoken[i][len(spoken[i]) // 2 :], 15, 200),
            "another sentence": (lambda i: spoken[i - 1], 50, 300),
            "noise alone": (lambda i: [rng.gauss(0, 2000) for _ in spoken[i]], 60, 300),
        }
        good = True
        for name, (make, low, high) in conditions.items():
            with open(f"{folder}/list.jsonl", "w") as file:
                for index, text in enumerate(chosen):
                    store(f"{folder}/judged-{index}.wav", make(index))
                    file.write(json.dumps({"wav": f"judged-{index}.wav", "text": text}) + "\n")
            command = [sys.executable, f"{HERE}/judge.py", "--list", f"{folder}/list.jsonl", "--domain", f"{folder}/domain.txt"]
            command += ["--json", f"{folder}/report.json", "--grammar", args.grammar]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            report = json.load(open(f"{folder}/report.json"))
            fits = low <= report["wer"] <= high
            good &= fits
            print(f"{name:22} WER {report['wer']:6.2f} %  exact {report['exact']:3}/{report['sentences']}"
                  f"  {report['audio_seconds']:5.0f} s of audio in {report['judge_seconds']:5.1f} s"
                  f"  expected {low} to {high} %{'' if fits else '   WRONG'}", flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
