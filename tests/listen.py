#!/usr/bin/env python3
"""A real `sa-agent listen` over PulseAudio: questions are played into its microphone, and what its speaker plays is recorded.

    tests/listen.py --agent SA_AGENT --bundle DIR --samples DIR --scratch DIR [--judge PYTHON]

There is no sound card here, so two null sinks of a PulseAudio of its own stand for microphone and speaker. Sound may be lost
under load (the machine is shared), so each part may be tried three times; what counts is whether it can be had at all.
Right means: each question becomes one turn, most of them with the words that were said; the agent does not answer itself; its
speech is in the recording, and the judge understands it; hooks and socket tell what it does while it does it, and its field log is
replayed to the same decisions. Then the sound server dies and comes back; its output is not read, or on a full disk; a key takes the
place of the voice; and `sa-agent doctor` finds the echo between the same two sinks.
"""

import argparse
import array
import json
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import wave

HERE = os.path.dirname(os.path.abspath(__file__))
QUESTIONS = ["12-locks", "01-agenda", "11-lights"]
STATES = ["listening", "thinking", "speaking", "interrupted", "idle"]
WAITS = ["endpoint", "first_text", "first_audio", "playback", "audible"]
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
    """A running `sa-agent listen` and the PulseAudio that it talks to; leave it by `with`. Its output goes into files, or where `outputs`
    (standard output and error) says: then its events are those of its socket. `state`: the folder that it is given for its state."""

    def __init__(self, args, folder, *flags, outputs=None, state="state"):
        self.samples, self.folder, self.agent, self.server, self.children, self.outputs = args.samples, folder, None, None, [], outputs
        self.out, self.errors, self.socket = (os.path.join(folder, name) for name in ("events.jsonl", "errors.log", "socket"))
        self.received = []
        self.command = [args.agent, "listen", "--json", "--bundle", args.bundle, "--tools", args.tools, "--microphone", "alsa:pulse", "--speaker", "alsa:pulse"]
        self.command += ["--events-socket", self.socket, *flags]
        if state:
            self.command += ["--state", os.path.join(folder, state)]

    def __enter__(self):
        try:
            self.server, self.environment = pulse(self.folder)
            self.environment |= {} if "--state" in self.command else {"STATE_DIRECTORY": "/dev/null/sa"}
            with open(self.out, "w", encoding="utf-8") as stdout, open(self.errors, "w", encoding="utf-8") as stderr:
                out, errors = self.outputs or (stdout, stderr)
                self.agent = subprocess.Popen(self.command, env=self.environment, stdout=out, stderr=errors)
            self.reader = threading.Thread(target=self.read_socket, daemon=True)
            self.reader.start()
            wait_for("`ready`", 60, lambda: self.count("ready") or self.agent.poll() is not None)
            if self.agent.poll() is not None:
                with open(self.errors, encoding="utf-8") as file:
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

    def read_socket(self):
        """What comes out of the socket, from the moment it is there (before the graphs are loaded) to its end."""
        with socket.socket(socket.AF_UNIX) as client:
            while client.connect_ex(self.socket):
                if self.agent.poll() is not None:
                    return
                time.sleep(0.02)
            with client.makefile(encoding="utf-8") as lines:
                self.received.extend(map(json.loads, lines))

    def events(self):
        if self.outputs:
            return list(self.received)
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
        wait_for(f"the answer to {name}", 30, lambda: self.count("settled") > turns or self.agent.poll() is not None)
        if self.count("settled") == turns:
            raise Failed(f"listen ended with {self.agent.returncode} instead of answering {name}")
        time.sleep(1.5)

    def end(self):
        self.agent.send_signal(signal.SIGINT)
        if self.agent.wait(timeout=20) != 0:
            raise Failed(f"after Ctrl-C it ended with {self.agent.returncode}")
        self.reader.join(timeout=10)

    def turns(self):
        return [event["turn"] for event in self.events() if event["event"] == "settled"]


def converse(args, folder):
    """Asks the questions; returns the conversation that is over, and the recording of the speaker."""
    recorded, config, lights = (os.path.join(folder, name) for name in ("speaker.raw", "settings.toml", "lights"))
    with open(config, "w", encoding="utf-8") as file:
        for name in ["ready", *STATES]:
            script = f"echo $SA_EVENT $(date +%s.%N) >>{lights}"
            file.write(f"[hook.{name}]\nprogram = {json.dumps(['/bin/sh', '-c', script])}\n")
    with Listen(args, folder, "--config", config, "--field-log", os.path.join(folder, "log")) as listen:
        with open(recorded, "wb") as file:
            recorder = ["parec", "-d", "vspeaker.monitor", f"--rate={RATE}", "--channels=1", "--format=s16le"]
            listen.children.append(subprocess.Popen(recorder, env=listen.environment, stdout=file))
        time.sleep(1.5)
        for name in QUESTIONS:
            listen.ask(name)
        time.sleep(2)  # what comes now, it would say to itself
        listen.end()
    with open(recorded, "rb") as file:
        return listen, array.array("h", file.read()[: os.path.getsize(recorded) // 2 * 2])


def told(listen):
    """Hooks and socket told what the agent did, while it did it; and how long the user waited, in its five parts."""
    states = [event["state"] for event in listen.events() if event["event"] == "state"]
    with open(os.path.join(listen.folder, "lights"), encoding="utf-8") as file:
        lights = [(name, float(at)) for name, at in map(str.split, file)]
    # Events that come together run their programs together.
    lights.sort(key=lambda light: light[1])
    if [name for name, _ in lights] != ["ready", *states]:
        raise Failed(f"the states were {states}, and hooks were run for {lights}")
    spoken = [later - at for (name, at), (_, later) in zip(lights, lights[1:]) if name == "speaking"]
    settled = [event for event in listen.events() if event["event"] == "settled"]
    if len(spoken) != len(settled) or any(seconds < 0.7 * event["turn"]["answer_s"] for seconds, event in zip(spoken, settled)):
        raise Failed(f"it spoke for {[event['turn']['answer_s'] for event in settled]} s, by its hooks for {spoken}")
    for kind in ("ready", "state", "heard", "call", "result", "text", "speech", "turn", "settled"):
        printed, sent = ([event for event in events if event["event"] == kind] for events in (listen.events(), listen.received))
        if printed != sent or not sent:
            raise Failed(f"{len(printed)} events `{kind}` were printed, {len(sent)} sent to the socket, or they differ")
    for waited in (event["waited_ms"] for event in settled):
        parts = [waited[part] for part in WAITS]
        # A first word and its sound can come in the same moment, and be given to a device that has room.
        positive = waited["endpoint"] > 100 and waited["first_text"] > 0 and waited["audible"] > 0 and min(parts) > -0.1
        if not positive or abs(sum(parts) - waited["voice_to_voice"]) > 0.1:
            raise Failed(f"what the user waited is not the sum of its parts, or one of them cannot be: {waited}")


def replay(args, listen):
    """The field log has every turn, with what the user waited, and the same is decided again."""
    log = os.path.join(listen.folder, "log")
    waits = []
    for name in sorted(name for name in os.listdir(log) if name.endswith(".jsonl")):
        with open(os.path.join(log, name), encoding="utf-8") as file:
            waits.append(json.load(file).get("waited_ms"))
    if waits != [event["waited_ms"] for event in listen.events() if event["event"] == "settled"]:
        raise Failed(f"the field log says that the user waited {waits}")
    run = subprocess.run([args.agent, "replay", log, "--json", "--bundle", args.bundle], capture_output=True, text=True, check=False)
    if run.returncode != 0:
        raise Failed(f"the field log was not replayed to the same decisions: {run.stdout[-2000:]} {run.stderr[-500:]}")


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


def outputs(args, folder):
    """Nobody reads its output, or it is on a full disk: the conversation goes on. So it does without the usual folder for its state."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    try:
        while True:
            os.write(writer, b"\n" * 4096)
    except BlockingIOError:
        os.set_blocking(writer, True)
    with open("/dev/full", "wb") as full:
        inside = os.path.join(folder, "unread")
        os.makedirs(inside)
        with Listen(args, inside, outputs=(writer, full), state=None) as listen:
            os.close(writer)
            listen.ask(QUESTIONS[0])
            if not any(event["event"] == "error" and "/dev/null/sa" in event["message"] for event in listen.events()):
                raise Failed(f"nobody was told that the state is not kept: {listen.events()}")
            # What waited was kept, as far as there was room.
            text = b""
            while b'"settled"' not in text:
                if not select.select([reader], [], [], 10)[0]:
                    raise Failed(f"what was not read is lost: {text[-500:]}")
                text += os.read(reader, 65536)
            if not all(isinstance(json.loads(line), dict) for line in text.splitlines()[:-1] if line.strip()):
                raise Failed("the lines are not whole")
            os.close(reader)
            listen.play(QUESTIONS[1])
            wait_for("the end after its reader has gone", 30, lambda: listen.agent.poll() is not None)
            if listen.agent.returncode != 0:
                raise Failed(f"when its reader had gone it ended with {listen.agent.returncode}")
        inside = os.path.join(folder, "full")
        os.makedirs(inside)
        with Listen(args, inside, outputs=(full, full)) as listen:
            listen.ask(QUESTIONS[0])
            listen.end()
    print("with an output that nobody read, and one on a full disk, the conversation went on")


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
    listen, sound = converse(args, folder)
    turns = listen.turns()
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
    told(listen)
    replay(args, listen)
    if not args.judge:
        print("nobody listened to the recording: no --judge")
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
    parser.add_argument("--only", choices=["check", "unplug", "outputs", "keys", "wake", "examine"], help="one part alone")
    parser.add_argument("--judge", help="the Python that has pocketsphinx; without it nobody listens to the recording")
    args = parser.parse_args()
    parts = [part for part in (check, unplug, outputs, keys, wake, examine) if args.only in (None, part.__name__)]
    for part in parts:
        for attempt in range(1, 4):
            folder = os.path.join(args.scratch, f"listen-{part.__name__}-{attempt}")
            shutil.rmtree(folder, ignore_errors=True)
            os.makedirs(folder)
            try:
                part(args, folder)
                break
            except (Failed, subprocess.SubprocessError) as failure:
                print(f"listen: {part.__name__}, attempt {attempt}: {failure}")
        else:
            return 1
    print(f"listen: a conversation of {len(QUESTIONS)} turns over PulseAudio" if check in parts else "listen: passed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
