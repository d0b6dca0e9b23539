#!/usr/bin/env python3
"""A real `sa-agent listen` over PulseAudio: questions are played into its microphone, and what its speaker plays is recorded.

    tests/listen.py --agent SA_AGENT --bundle DIR --samples DIR --scratch DIR [--judge PYTHON]

There is no sound card here, so two null sinks of a PulseAudio of its own stand for microphone and speaker. Sound may be lost
under load (the machine is shared), so the conversation may be tried three times; what counts is whether it can be had at all.
Right means: each question becomes one turn, most of them with the words that were said; the agent does not answer itself; its
speech is in the recording, and the judge understands it. Then the sound server dies and comes back; a key takes the place of the
voice; and `sa-agent doctor` finds the echo between the same two sinks.
"""

import argparse
import array
import json
import os
import shutil
import signal
import struct
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


class Listen:
    """A running `sa-agent listen` and the PulseAudio that it talks to; leave it by `with`."""

    def __init__(self, args, folder, *flags):
        self.samples, self.folder, self.agent, self.children = args.samples, folder, None, []
        self.out = os.path.join(folder, "events.jsonl")
        self.command = [args.agent, "listen", "--json", "--bundle", args.bundle, "--tools", args.tools, "--microphone", "alsa:pulse", "--speaker", "alsa:pulse"]
        self.command += ["--state", os.path.join(folder, "state"), *flags]

    def __enter__(self):
        try:
            self.server, self.environment = pulse(self.folder)
            with open(self.out, "w", encoding="utf-8") as stdout, open(os.path.join(self.folder, "errors.log"), "w", encoding="utf-8") as stderr:
                self.agent = subprocess.Popen(self.command, env=self.environment, stdout=stdout, stderr=stderr)
            wait_for("`ready`", 60, lambda: self.count("note") or self.agent.poll() is not None)
            if self.agent.poll() is not None:
                with open(os.path.join(self.folder, "errors.log"), encoding="utf-8") as file:
                    raise Failed(f"listen ended with {self.agent.returncode}: {file.read()[-500:]}")
            time.sleep(1.5)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for child in [*self.children, self.agent, self.server]:
            if child:
                child.terminate()
                try:
                    child.wait(timeout=10)
                except subprocess.TimeoutExpired:
                    child.kill()
                    child.wait()

    def events(self):
        with open(self.out, encoding="utf-8") as file:
            return [json.loads(line) for line in file if line.endswith("\n")]

    def count(self, kind):
        return sum(event["event"] == kind for event in self.events())

    def told(self, words):
        return any(event["event"] == "problem" and words in event["message"] for event in self.events())

    def play(self, name):
        subprocess.run(["paplay", "-d", "vmic", os.path.join(self.samples, f"{name}.wav")], env=self.environment, check=True)

    def ask(self, name):
        """Asks, and waits until the answer was spoken."""
        turns = self.count("settled")
        self.play(name)
        wait_for(f"the answer to {name}", 30, lambda: self.count("settled") > turns)
        time.sleep(1.5)

    def end(self):
        self.agent.send_signal(signal.SIGINT)
        if self.agent.wait(timeout=20) != 0:
            raise Failed(f"after Ctrl-C it ended with {self.agent.returncode}")

    def turns(self):
        return [event["turn"] for event in self.events() if event["event"] == "settled"]


def converse(args, folder):
    """Asks the questions; returns the turns, and the recording of the speaker."""
    recorded = os.path.join(folder, "speaker.raw")
    with Listen(args, folder) as listen:
        with open(recorded, "wb") as file:
            recorder = ["parec", "-d", "vspeaker.monitor", f"--rate={RATE}", "--channels=1", "--format=s16le"]
            listen.children.append(subprocess.Popen(recorder, env=listen.environment, stdout=file))
        time.sleep(1.5)
        for name in QUESTIONS:
            listen.ask(name)
        time.sleep(2)  # what comes now, it would say to itself
        listen.end()
        turns = listen.turns()
    with open(recorded, "rb") as file:
        return turns, array.array("h", file.read()[: os.path.getsize(recorded) // 2 * 2])


def unplug(args, folder):
    """The sound server dies in the middle of a conversation and comes back."""
    with Listen(args, folder) as listen:
        listen.ask(QUESTIONS[0])
        listen.server.kill()
        listen.server.wait()
        wait_for("a word about the device that is gone", 20, lambda: listen.told("it is opened again"))
        time.sleep(2)
        listen.server, listen.environment = pulse(folder)
        wait_for("a word about the device that is back", 30, lambda: listen.told("is back"))
        time.sleep(2)
        listen.ask(QUESTIONS[1])
        listen.end()
        turns = listen.turns()
    if len(turns) != 2:
        raise Failed(f"{len(turns)} turns for 2 questions around a device that was away")
    print("the device vanished and came back, the conversation went on")


def keys(args, folder):
    """With --push-to-talk only what is said between the two signals counts, or while the talk key is down: a pipe in place of its device."""
    device = os.path.join(folder, "talk-key")
    os.mkfifo(device)
    with Listen(args, folder, "--push-to-talk", "--key", f"{device}:28") as listen:
        listen.play(QUESTIONS[0])
        time.sleep(3)
        if listen.count("settled") or any(event["event"] == "state" for event in listen.events()):
            raise Failed("a voice without a key was heard")
        listen.agent.send_signal(signal.SIGUSR1)
        time.sleep(0.3)
        listen.play(QUESTIONS[2])
        listen.agent.send_signal(signal.SIGUSR2)
        wait_for("the answer to what was said between the signals", 30, lambda: listen.count("settled") == 1)
        with open(device, "wb", buffering=0) as key:
            # struct input_event: the time (two longs), EV_KEY, KEY_ENTER, and 1 for pressed, 0 for released.
            key.write(struct.pack("llHHi", 0, 0, 1, 28, 1))
            time.sleep(0.3)
            listen.play(QUESTIONS[2])
            key.write(struct.pack("llHHi", 0, 0, 1, 28, 0))
            wait_for("the answer to what was said while the key was down", 30, lambda: listen.count("settled") == 2)
        listen.end()
    print("push-to-talk: a voice without the key was not heard; one between the signals, and one while the key was down, were answered")


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


def wake(args, folder):
    """A phrase is enrolled through the microphone; then only what follows it is answered."""
    recordings, phrase, out = os.path.join(HERE, "wake"), os.path.join(folder, "wake.json"), os.path.join(folder, "enrol.txt")
    enrolling = os.path.join(folder, "enrolling")
    os.makedirs(enrolling)
    server, environment = pulse(enrolling)
    play = lambda name, env: subprocess.run(["paplay", "-d", "vmic", os.path.join(recordings, f"{name}.wav")], env=env, check=True)
    command = [args.agent, "enrol", "--bundle", args.bundle, "--microphone", "alsa:pulse", "--speaker", "alsa:pulse", "--output", phrase]
    with open(out, "w", encoding="utf-8") as stdout:
        agent = subprocess.Popen(command, env=environment, stdout=stdout, stderr=stdout)
    try:
        said = lambda words: words in open(out, encoding="utf-8").read()
        for number in (1, 2, 3):
            wait_for(f"the request for recording {number}", 30, lambda: said(f"({number} of 3)"))
            time.sleep(1)
            play(f"enrol-{number}", environment)
        wait_for("the end of enrolling", 30, lambda: agent.poll() is not None)
    finally:
        agent.terminate()
        agent.wait()
        server.terminate()
        server.wait()
    if agent.returncode != 0 or not os.path.exists(phrase):
        raise Failed(f"enrol ended with {agent.returncode}: {open(out, encoding='utf-8').read()}")
    with Listen(args, folder, "--wake", phrase) as listen:
        listen.play(QUESTIONS[0])
        time.sleep(4)
        if listen.count("settled") or listen.count("wake") or listen.count("state"):
            raise Failed("it answered, or told of, what did not follow the wake phrase")
        play("what-time-is-it", listen.environment)
        wait_for("the answer to the question behind the phrase", 30, lambda: listen.count("settled") == 1)
        if listen.turns()[0]["transcript"] != "what time is it" or listen.count("wake") != 1:
            raise Failed(f"behind the wake phrase it heard {listen.turns()[0]['transcript']!r}")
        listen.end()
    print("wake phrase: enrolled through the microphone; a question without it was ignored, one behind it answered")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("agent", "bundle", "samples", "scratch"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--tools", default=os.path.join(HERE, "..", "device", "examples", "tools.toml"))
    parser.add_argument("--only", choices=["check", "unplug", "keys", "wake", "examine"], help="one part alone")
    parser.add_argument("--judge", help="the Python that has pocketsphinx; without it nobody listens to the recording")
    args = parser.parse_args()
    parts = [part for part in (check, unplug, keys, wake, examine) if args.only in (None, part.__name__)]
    for attempt in range(1, 4):
        folder = os.path.join(args.scratch, f"listen-{attempt}")
        shutil.rmtree(folder, ignore_errors=True)
        os.makedirs(folder)
        try:
            for part in parts:
                inside = os.path.join(folder, part.__name__)
                os.makedirs(inside)
                part(args, inside)
            print(f"listen: a conversation of {len(QUESTIONS)} turns over PulseAudio (attempt {attempt})")
            return 0
        except Failed as failure:
            print(f"listen: attempt {attempt}: {failure}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
