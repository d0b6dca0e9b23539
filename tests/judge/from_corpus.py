#!/usr/bin/env python3
"""Takes replies of a corpus, as the agent's model voice says them, into a list for the judge: the floor of every WER.

    from_corpus.py --corpus DIR --output DIR [--split test] [--limit N]
"""

import argparse
import glob
import json
import os
import wave


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--split", default="test")
    parser.add_argument("--limit", type=int, default=200)
    args = parser.parse_args()
    os.makedirs(args.output, exist_ok=True)
    count = 0
    with open(os.path.join(args.output, "list.jsonl"), "w", encoding="utf-8") as out:
        for path in sorted(glob.glob(os.path.join(args.corpus, "replies", "*.jsonl"))):
            with open(path, encoding="utf-8") as lines, open(path.removesuffix(".jsonl") + ".s16", "rb") as sound:
                for row in map(json.loads, lines):
                    if row["split"] != args.split or count == args.limit:
                        continue
                    sound.seek(2 * row["offset"])
                    name = f"{row['id']}.wav"
                    with wave.open(os.path.join(args.output, name), "wb") as file:
                        file.setparams((1, 2, 16000, 0, "NONE", ""))
                        file.writeframes(sound.read(2 * row["samples"]))
                    out.write(json.dumps({"wav": name, "text": row["text"]}) + "\n")
                    count += 1
    print(f"{count} replies in {args.output}")


if __name__ == "__main__":
    main()
