//! Messages to a real broker: mosquitto, started for each test on a free port (`tests/setup.sh test` installs it).

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use sa_device::tools::Tools;

/// A broker, ended with the test.
struct Broker {
    process: Child,
    log: BufReader<std::process::ChildStderr>,
    port: u16,
}

impl Broker {
    /// `settings` are lines of its configuration.
    fn start(folder: &Path, settings: &str) -> Self {
        let port = free_port();
        let file = folder.join("mosquitto.conf");
        // As root it would become another user, who may not read the test's folder.
        std::fs::write(&file, format!("listener {port} 127.0.0.1\nuser root\n{settings}\n")).expect("writable");
        let mut process = Command::new(program("mosquitto"))
            .args(["-v", "-c"])
            .arg(file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("mosquitto is there: tests/setup.sh test installs it");
        let log = BufReader::new(process.stderr.take().expect("piped"));
        let mut broker = Self { process, log, port };
        broker.wait_for("running");
        broker
    }

    /// Reads its log until it says this.
    fn wait_for(&mut self, what: &str) {
        let mut all = String::new();
        loop {
            let before = all.len();
            self.log.read_line(&mut all).expect("text");
            assert!(all.len() > before, "the broker ended: {all}");
            if all[before..].contains(what) {
                return;
            }
        }
    }

    /// A subscriber that ends after `count` messages, and is ready.
    fn subscribe(&mut self, count: &str, more: &[&str]) -> Child {
        let port = self.port.to_string();
        let subscriber = Command::new(program("mosquitto_sub"))
            .args(["-h", "127.0.0.1", "-p", &port, "-t", "#", "-q", "1", "-C", count, "-W", "60", "-F", "%t|%p|%q|%r"])
            .args(more)
            .stdout(Stdio::piped())
            .spawn()
            .expect("mosquitto-clients is there: tests/setup.sh test installs it");
        self.wait_for("Sending SUBACK");
        subscriber
    }

    fn tools(&self, folder: &Path, more: &str) -> Tools {
        tools(folder, self.port, more)
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Debian has the broker where only root's PATH looks.
fn program(name: &str) -> String {
    ["/usr/sbin", "/usr/bin"]
        .map(|dir| format!("{dir}/{name}"))
        .into_iter()
        .find(|path| Path::new(path).exists())
        .unwrap_or(name.to_owned())
}

fn free_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0)).and_then(|listener| listener.local_addr()).expect("a port is free").port()
}

fn tools(folder: &Path, port: u16, more: &str) -> Tools {
    let text = format!(
        r#"
        [[tool.light]]
        call = "set {{room}} {{state}}"
        topic = "home/{{room}}/light"
        payload = '{{"state": "{{state}}"}}'
        values.room = {{ kitchen = "kitchen", "living room" = "living_room" }}
        values.state = {{ on = "ON", off = "OFF" }}
        [[tool.light]]
        call = "dim {{level}}"
        topic = "home/dim"
        payload = "{{level}}"
        retain = true
        values.level = {{ from = 0, to = 100 }}
        [mqtt]
        broker = "127.0.0.1:{port}"
        {more}
        "#
    );
    let path = folder.join("tools.toml");
    std::fs::write(&path, text).expect("writable");
    Tools::load(&path).expect("well formed")
}

fn output(subscriber: Child) -> Vec<String> {
    let output = subscriber.wait_with_output().expect("ends");
    String::from_utf8(output.stdout).expect("text").lines().map(str::to_owned).collect()
}

#[test]
fn allowed_calls_become_messages() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut broker = Broker::start(folder.path(), "allow_anonymous true");
    let subscriber = broker.subscribe("3", &[]);
    let mut tools = broker.tools(folder.path(), "seconds = 10.0");
    for (call, words) in [
        ("light set living room on", "ok"),
        ("light set garage on", "not available"),
        ("light set kitchen off", "ok"),
        ("light dim two hundred", "not available"),
        ("light dim forty two", "ok"),
    ] {
        let outcome = tools.call(call);
        assert_eq!(outcome.words, words, "{call}: {:?}", outcome.problem);
    }
    let heard = output(subscriber);
    assert_eq!(heard, ["home/living_room/light|{\"state\": \"ON\"}|1|0", "home/kitchen/light|{\"state\": \"OFF\"}|1|0", "home/dim|42|1|0"]);
    // What is retained is there for those who come later.
    assert_eq!(output(broker.subscribe("1", &[])), ["home/dim|42|1|1"]);
}

#[test]
fn a_broker_that_is_down_or_silent_is_told_in_time() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let down = tools(folder.path(), free_port(), "seconds = 5.0").call("light set kitchen on");
    assert_eq!(down.words, "not available");
    assert!(down.problem.is_some_and(|problem| problem.contains("tool `light`") && problem.contains("cannot be reached")));
    // It accepts the connection and says nothing.
    let silent = TcpListener::bind(("127.0.0.1", 0)).expect("a port is free");
    let port = silent.local_addr().expect("bound").port();
    let started = Instant::now();
    let outcome = tools(folder.path(), port, "seconds = 0.5").call("light set kitchen on");
    assert_eq!(outcome.words, "timed out");
    assert!(outcome.problem.is_some_and(|problem| problem.contains("within 0.5 s")));
    assert!(started.elapsed() < Duration::from_secs(30), "nothing hangs");
    // It comes back, and the next call works.
    let broker = Broker::start(folder.path(), "allow_anonymous true");
    assert_eq!(broker.tools(folder.path(), "seconds = 10.0").call("light set kitchen on").words, "ok");
}

#[test]
fn a_password_opens_and_a_wrong_one_is_told() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let passwords = folder.path().join("passwords");
    let made = Command::new(program("mosquitto_passwd")).args(["-b", "-c"]).arg(&passwords).args(["sa", "secret"]).status();
    assert!(made.expect("comes with mosquitto").success());
    let mut broker = Broker::start(folder.path(), &format!("allow_anonymous false\npassword_file {}", passwords.display()));
    let subscriber = broker.subscribe("1", &["-u", "sa", "-P", "secret"]);
    for (password, words) in [("wrong\n", "failed"), ("secret\n", "ok")] {
        std::fs::write(folder.path().join("mqtt-password"), password).expect("writable");
        let outcome =
            broker.tools(folder.path(), "user = \"sa\"\npassword_file = \"mqtt-password\"\nseconds = 10.0").call("light set kitchen on");
        assert_eq!(outcome.words, words, "{:?}", outcome.problem);
    }
    assert_eq!(output(subscriber).len(), 1);
}
