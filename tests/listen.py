#!/usr/bin/env python3
"""A real `sa-agent listen` over PulseAudio: questions are played into its microphone, and what its speaker plays is recorded.

    tests/listen.py --agent SA_AGENT --bundle DIR --samples DIR --scratch DIR [--judge PYTHON]

There is no sound card here, so two null sinks of a PulseAudio of its own stand for microphone and speaker. Sound may be lost
under load (the machine is shared), so the conversation may be tried three times; what counts is whether it can be had at all.
Right means: each question becomes one turn, most of them with the words that were said; the agent does not answer itself; its
speech is in the recording, and the judge understands it. Then `sa-agent doctor` finds the echo between the same two sinks.
"""

import argparse
import array
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import wave

HERE = os.path.dirname(os.path.abspath(__file__))
QUESTIONS = ["12-locks", "01-agenda", "11-lights"]
RATE = 16000


class Failed(Exception):
    """What the agent did wrong."""


def wait_for(what, seconds, ready):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if ready():
            return
        time.sleep(0.1)
    raise Failed(f"{what} did not happen within {seconds} s")


def pulse(folder, *more):
    """A PulseAudio server of its own with the two null sinks and `more` modules; the environment in which its clients find it."""
    socket = os.path.join(folder, "pulse.sock")
    home = {"HOME": folder, "XDG_RUNTIME_DIR": folder, "PULSE_SERVER": f"unix:{socket}"}
    environment = {**os.environ, **home}
    command = ["pulseaudio", "-n", "--daemonize=no", "--exit-idle-time=-1", "--disallow-exit", "--use-pid-file=no"]
    command += ["-L", f"module-native-protocol-unix socket={socket} auth-anonymous=1"]
    command += ["-L", "module-null-sink sink_name=vmic rate=16000 channels=1 norewinds=1"]
    command += ["-L", "module-null-sink sink_name=vspeaker rate=48000 channels=2 norewinds=1"]
    for module in more:
        command += ["-L", module]
    with open(os.path.join(folder, "pulse.log"), "w", encoding="utf-8") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    def answers():
        return subprocess.run(["pactl", "info"], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False).returncode == 0

    wait_for("the start of PulseAudio", 15, answers)
    for kind, name in (("sink", "vspeaker"), ("source", "vmic.monitor")):
        subprocess.run(["pactl", f"set-default-{kind}", name], env=environment, check=True)
    return server, environment


def events(path):
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.endswith("\n")]


def converse(args, folder):
    """Asks the questions; returns the turns, and the recording of the speaker."""
    server, environment = pulse(folder)
    children = [server]
    out, recorded = os.path.join(folder, "events.jsonl"), os.path.join(folder, "speaker.raw")
    try:
        command = [args.agent, "listen", "--json", "--bundle", args.bundle, "--tools", args.tools, "--microphone", "alsa:pulse", "--speaker", "alsa:pulse"]
        environment["SA_HOME_STATE"] = os.path.join(folder, "home.state")
        with open(out, "w", encoding="utf-8") as stdout, open(os.path.join(folder, "errors.log"), "w", encoding="utf-8") as stderr:
            agent = subprocess.Popen(command, env=environment, stdout=stdout, stderr=stderr)
        children.append(agent)
        wait_for("`ready`", 60, lambda: any(event["event"] == "note" for event in events(out)) or agent.poll() is not None)
        if agent.poll() is not None:
            with open(os.path.join(folder, "errors.log"), encoding="utf-8") as file:
                raise Failed(f"listen ended with {agent.returncode}: {file.read()[-500:]}")
        with open(recorded, "wb") as file:
            children.append(subprocess.Popen(["parec", "-d", "vspeaker.monitor", f"--rate={RATE}", "--channels=1", "--format=s16le"], env=environment, stdout=file))
        time.sleep(1.5)
        for number, name in enumerate(QUESTIONS, 1):
            subprocess.run(["paplay", "-d", "vmic", os.path.join(args.samples, f"{name}.wav")], env=environment, check=True)
            wait_for(f"the answer to {name}", 30, lambda: sum(event["event"] == "settled" for event in events(out)) >= number)
            time.sleep(1.5)
        time.sleep(2)  # what comes now, it would say to itself
        agent.send_signal(signal.SIGINT)
        if agent.wait(timeout=20) != 0:
            raise Failed(f"after Ctrl-C it ended with {agent.returncode}")
    finally:
        for child in reversed(children):
            child.terminate()
            child.wait()
    with open(recorded, "rb") as file:
        sound = array.array("h", file.read()[: os.path.getsize(recorded) // 2 * 2])
    return [event["turn"] for event in events(out) if event["event"] == "settled"], sound


def utterances(sound):
    """The recording cut at silences of more than 0.7 s."""
    frame, pieces, quiet = RATE // 50, [], 36
    for start in range(0, len(sound) - frame, frame):
        piece = sound[start : start + frame]
        quiet = 0 if max(map(abs, piece)) > 250 else quiet + 1
        if quiet == 0 and (not pieces or pieces[-1][1] + 35 * frame < start):
            pieces.append([start, start])
        if quiet == 0:
            pieces[-1][1] = start + frame
    return [sound[max(0, first - 5 * frame) : last + 5 * frame] for first, last in pieces if last - first > RATE // 4]


def check(args, folder):
    turns, sound = converse(args, folder)
    with open(os.path.join(args.samples, "samples.jsonl"), encoding="utf-8") as file:
        said = {row["wav"].removesuffix(".wav"): row["text"] for row in map(json.loads, file)}
    heard = [turn["transcript"] for turn in turns]
    print(f"asked {[said[name] for name in QUESTIONS]}\nheard {heard}\nanswered {[turn['reply_text'] for turn in turns]}")
    if len(turns) != len(QUESTIONS):
        raise Failed(f"{len(turns)} turns for {len(QUESTIONS)} questions")
    right = sum(said[name] == text for name, text in zip(QUESTIONS, heard))
    if right < 2:
        raise Failed(f"only {right} of {len(QUESTIONS)} questions were heard right")
    spoken = utterances(sound)
    if len(spoken) != len(turns):
        raise Failed(f"{len(spoken)} utterances were recorded for {len(turns)} answers")
    if not args.judge:
        return
    with open(os.path.join(folder, "list.jsonl"), "w", encoding="utf-8") as listing:
        for number, (turn, samples) in enumerate(zip(turns, spoken)):
            with wave.open(os.path.join(folder, f"{number}.wav"), "wb") as file:
                file.setparams((1, 2, RATE, 0, "NONE", ""))
                file.writeframes(samples.tobytes())
            listing.write(json.dumps({"wav": f"{number}.wav", "text": turn["reply_text"]}) + "\n")
    command = [args.judge, os.path.join(HERE, "judge", "judge.py"), "--list", os.path.join(folder, "list.jsonl")]
    command += ["--domain", os.path.join(args.samples, "replies.txt"), "--max-wer", "25"]
    if subprocess.run(command, check=False).returncode != 0:
        raise Failed("what it said is not understood")


def examine(args, folder):
    """`sa-agent doctor` in a room that echoes: what the speaker plays comes back to the microphone."""
    server, environment = pulse(folder, "module-loopback source=vspeaker.monitor sink=vmic latency_msec=60")
    path = os.path.join(folder, "report.json")
    command = [args.agent, "doctor", "--bundle", args.bundle, "--microphone", "alsa:pulse", "--speaker", "alsa:pulse", "--report", path]
    try:
        run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    finally:
        server.terminate()
        server.wait()
    print(run.stdout)
    # A silent null sink is a muted microphone, which is a problem: 1.
    if run.returncode != 1 or not os.path.exists(path):
        raise Failed(f"doctor ended with {run.returncode}: {run.stderr[-500:]}")
    with open(path, encoding="utf-8") as file:
        report = json.load(file)
    sound, speeds = report["sound"], [stage["stage"] for stage in report["stages"]["stages"]]
    if not sound["delays_ms"] or not 30 < min(sound["delays_ms"]) < 300 or not -15 < sound["echo_db"] < 6:
        raise Failed(f"the echo was not measured: {sound}")
    if speeds != ["tokenizer", "lm", "head", "decoder"] or not report["opened"]:
        raise Failed(f"the report is not complete: {report}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("agent", "bundle", "samples", "scratch"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--tools", default=os.path.join(HERE, "..", "device", "examples", "tools.toml"))
    parser.add_argument("--judge", help="the Python that has pocketsphinx; without it nobody listens to the recording")
    args = parser.parse_args()
    for attempt in range(1, 4):
        folder = os.path.join(args.scratch, f"listen-{attempt}")
        shutil.rmtree(folder, ignore_errors=True)
        os.makedirs(folder)
        try:
            check(args, folder)
            examine(args, folder)
            print(f"listen: a conversation of {len(QUESTIONS)} turns over PulseAudio (attempt {attempt})")
            return 0
        except Failed as failure:
            print(f"listen: attempt {attempt}: {failure}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
