//! `tools.toml`.
//!
//! ```toml
//! [tool.weather]
//! program = ["/usr/local/bin/weather", "{1}"]  # no shell; {1} {2} … one word, {all} all in one argument,
//!                                              # "{words}" alone: one argument a word
//! seconds = 2.0                                # time limit, then it is killed (2 by default, 30 at most)
//! output_bytes = 4096                          # more output is a failure
//! environment = ["HOME"]                       # passed through; everything else but PATH is cleared
//!
//! [tool.lock]
//! answer = "ok"                                # a fixed answer, for trying things out
//!
//! [mqtt]
//! broker = "homeassistant.local:1883"
//! user = "sa"                                  # with password_file = "mqtt-password"
//! seconds = 2.0                                # time limit for a message (2 by default, 10 at most)
//!
//! [[tool.light]]                               # several forms of a tool: the first that fits is taken
//! call = "set {room} {state}"                  # what does not fit is refused
//! values.room = ["kitchen", "living room"]     # all that is allowed in a place
//! values.state = { on = "ON", off = "OFF" }    # … passed on as something else
//! topic = "home/{room}/light/set"
//! payload = "{state}"
//! retain = false
//!
//! [[tool.light]]
//! call = "dim {room} {level}"
//! values.room = ["kitchen"]
//! values.level = { from = 0, to = 100 }        # a number, passed on in digits
//! topic = "home/{room}/light/brightness"
//! payload = "{level}"
//! ```
//! What a program prints is the result; one that prints nothing and succeeds answers `ok`, and so does a message that the broker has
//! taken. A path that begins with `./` is looked up beside `tools.toml`. `call` and `values` are for programs and answers too.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::form::{Allowed, Form};

/// Why a `tools.toml` was refused: correct the file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ToolsError {
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{}: {message}", path.display())]
    Parse { path: PathBuf, message: String },
    #[error("{}: tool `{tool}`: {message}", path.display())]
    Tool { path: PathBuf, tool: String, message: String },
    #[error("{}: `[mqtt]`: {message}", path.display())]
    Broker { path: PathBuf, message: String },
}

/// The content of `tools.toml`.
#[derive(Debug, Clone, Default)]
pub struct ToolsFile {
    /// By the first word of the call, the forms of each tool.
    pub tool: BTreeMap<String, Vec<ToolEntry>>,
    /// Where messages go.
    pub mqtt: Option<Broker>,
}

/// One form of a tool.
#[derive(Debug, Clone)]
pub struct ToolEntry {
    /// The words it takes.
    pub form: Form,
    /// What it does.
    pub action: ToolAction,
}

/// What a tool does.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum ToolAction {
    /// Always the same result.
    Answer { answer: String },
    /// A program.
    Program {
        /// The program and its arguments, with placeholders.
        program: Vec<String>,
        limits: Limits,
    },
    /// A message to the broker.
    Message(Message),
}

/// What a program may take.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    pub seconds: f64,
    pub output_bytes: usize,
    pub environment: Vec<String>,
}

/// A message, with placeholders.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    pub topic: String,
    pub payload: String,
    /// The broker keeps it for those who come later.
    pub retain: bool,
}

/// An MQTT broker. What is sent to it is not encrypted.
#[derive(Debug, Clone, PartialEq)]
pub struct Broker {
    pub host: String,
    pub port: u16,
    pub user: Option<String>,
    pub password: String,
    /// For one message, from the name of the broker to its answer.
    pub seconds: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    tool: BTreeMap<String, toml::Value>,
    mqtt: Option<toml::Value>,
}

/// One form as it is written: every key is known, so that a misspelt limit is not a limit left out.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    call: Option<String>,
    #[serde(default)]
    values: BTreeMap<String, Allowed>,
    answer: Option<String>,
    program: Option<Vec<String>>,
    seconds: Option<f64>,
    output_bytes: Option<usize>,
    environment: Option<Vec<String>>,
    topic: Option<String>,
    payload: Option<String>,
    retain: Option<bool>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BrokerEntry {
    broker: String,
    user: Option<String>,
    password_file: Option<PathBuf>,
    #[serde(default = "seconds")]
    seconds: f64,
}

fn seconds() -> f64 {
    2.0
}

impl ToolsFile {
    /// Reads and checks a file.
    pub fn load(path: &Path) -> Result<Self, ToolsError> {
        let text = std::fs::read_to_string(path).map_err(|source| ToolsError::Read { path: path.to_owned(), source })?;
        let File { tool, mqtt } =
            toml::from_str(&text).map_err(|e| ToolsError::Parse { path: path.to_owned(), message: e.to_string().trim_end().to_owned() })?;
        // A bare file name has the empty path as its folder; joined to that, a program would be looked for in PATH.
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mqtt = mqtt.map(|entry| Broker::read(entry, folder)).transpose();
        let mqtt = mqtt.map_err(|message| ToolsError::Broker { path: path.to_owned(), message })?;
        let mut tools = BTreeMap::new();
        for (name, value) in tool {
            let entries = read_tool(&name, value, folder, mqtt.is_some());
            let refuse = |message| ToolsError::Tool { path: path.to_owned(), tool: name.clone(), message };
            tools.insert(name.clone(), entries.map_err(refuse)?);
        }
        Ok(Self { tool: tools, mqtt })
    }
}

/// One table, or several.
fn read_tool(name: &str, value: toml::Value, folder: &Path, broker: bool) -> Result<Vec<ToolEntry>, String> {
    if name.is_empty() || !name.chars().all(|c| c.is_ascii_lowercase() || c == '\'') {
        return Err("a tool's name is one word in lower case".to_owned());
    }
    let forms = match value {
        toml::Value::Array(forms) => forms,
        form => vec![form],
    };
    let read = |form: toml::Value| {
        let entry: Entry = form.try_into().map_err(|e: toml::de::Error| e.to_string().trim_end().to_owned())?;
        let entry = entry.read(folder)?;
        match entry.action {
            ToolAction::Message(_) if !broker => Err("a `topic` needs a broker: `[mqtt]` with `broker = \"host:1883\"`".to_owned()),
            _ => Ok(entry),
        }
    };
    forms.into_iter().map(read).collect()
}

impl Entry {
    fn read(self, folder: &Path) -> Result<ToolEntry, String> {
        let form = Form::parse(self.call.as_deref(), &self.values)?;
        let limited = self.seconds.is_some() || self.output_bytes.is_some() || self.environment.is_some();
        let message = self.payload.is_some() || self.retain.is_some();
        let action = match (self.answer, self.program, self.topic) {
            (Some(_), None, None) | (None, None, Some(_)) if limited => {
                return Err("`seconds`, `output_bytes` and `environment` are for programs".to_owned());
            }
            (Some(_), None, None) | (None, Some(_), None) if message => return Err("`payload` and `retain` need a `topic`".to_owned()),
            (Some(answer), None, None) => ToolAction::Answer { answer },
            (None, Some(mut program), None) => {
                let first = program.first_mut().ok_or("`program` is empty")?;
                if let Some(beside) = first.strip_prefix("./") {
                    *first = folder.join(beside).to_string_lossy().into_owned();
                }
                let seconds = self.seconds.unwrap_or_else(seconds);
                if !(seconds > 0.0 && seconds <= 30.0) {
                    return Err(format!("`seconds` is {seconds}, and must be above 0 and at most 30"));
                }
                let limits =
                    Limits { seconds, output_bytes: self.output_bytes.unwrap_or(4096), environment: self.environment.unwrap_or_default() };
                ToolAction::Program { program, limits }
            }
            (None, None, Some(topic)) => {
                let payload = self.payload.ok_or("a `topic` needs a `payload`")?;
                form.check(&topic)?;
                form.check(&payload)?;
                if topic.is_empty() || topic.contains(['#', '+', '\0']) {
                    return Err(format!("`{topic}` is no topic for a message: it may not be empty or have # or + in it"));
                }
                ToolAction::Message(Message { topic, payload, retain: self.retain.unwrap_or(false) })
            }
            _ => return Err("a tool has one of `program`, `topic` or `answer`".to_owned()),
        };
        Ok(ToolEntry { form, action })
    }
}

impl Broker {
    fn read(entry: toml::Value, folder: &Path) -> Result<Self, String> {
        let entry: BrokerEntry = entry.try_into().map_err(|e: toml::de::Error| e.to_string().trim_end().to_owned())?;
        let (host, port) = match entry.broker.rsplit_once(':') {
            Some((host, port)) => (host, port.parse().map_err(|_| format!("`{port}` is no port (`broker` is host:port)"))?),
            None => (&*entry.broker, 1883),
        };
        if host.is_empty() {
            return Err("`broker` names no host".to_owned());
        }
        if !(entry.seconds > 0.0 && entry.seconds <= 10.0) {
            return Err(format!("`seconds` is {}, and must be above 0 and at most 10", entry.seconds));
        }
        let password = match (&entry.user, &entry.password_file) {
            (None, Some(_)) => return Err("`password_file` needs a `user`".to_owned()),
            (_, None) => String::new(),
            (Some(_), Some(file)) => {
                let file = folder.join(file);
                let password = std::fs::read_to_string(&file).map_err(|e| format!("cannot read {}: {e}", file.display()))?;
                password.trim_end_matches(['\r', '\n']).to_owned()
            }
        };
        Ok(Self { host: host.to_owned(), port, user: entry.user, password, seconds: entry.seconds })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<ToolsFile, ToolsError> {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("tools.toml");
        std::fs::write(&path, text).expect("writable");
        ToolsFile::load(&path)
    }

    #[test]
    fn mistakes_are_named() {
        for (text, part) in [
            ("[tool.Light]\nanswer = \"ok\"", "one word in lower case"),
            ("[tool.light]\nprogram = []", "`program` is empty"),
            ("[tool.light]\nprogram = [\"x\"]\nseconds = 90", "at most 30"),
            ("[tool.light]\nprogram = [\"x\"]\nseconds = nan", "at most 30"),
            ("[tools.light]\nanswer = \"ok\"", "unknown field"),
            ("[tool.light]\n", "one of `program`, `topic` or `answer`"),
            ("[tool.light]\nanswer = \"ok\"\nprogram = [\"x\"]", "one of `program`, `topic` or `answer`"),
            ("[tool.light]\nprogram = [\"x\"]\ntimeout = 1", "unknown field `timeout`"),
            ("[tool.light]\nanswer = \"ok\"\nseconds = 1", "are for programs"),
            ("[tool.light]\nanswer = \"ok\"\npayload = \"on\"", "need a `topic`"),
            ("[tool.light]\nanswer = \"ok\"\nvalues.room = [\"attic\"]", "need a `call`"),
            ("[tool.light]\ntopic = \"home/light\"\npayload = \"on\"", "needs a broker"),
            ("[mqtt]\nbroker = \"here\"\n[tool.light]\ntopic = \"home/light\"", "needs a `payload`"),
            ("[mqtt]\nbroker = \"here\"\n[tool.light]\ntopic = \"home/{1}\"\npayload = \"{state}\"", "{state}, which is not in `call`"),
            ("[mqtt]\nbroker = \"here\"\n[tool.light]\ntopic = \"home/#\"\npayload = \"on\"", "no topic for a message"),
            ("[mqtt]\nbroker = \"here:port\"", "`port` is no port"),
            ("[mqtt]\nbroker = \"\"", "names no host"),
            ("[mqtt]\nbroker = \"here\"\nseconds = 60", "at most 10"),
            ("[mqtt]\nbroker = \"here\"\npassword_file = \"p\"", "needs a `user`"),
            ("[mqtt]\nbroker = \"here\"\nuser = \"me\"\npassword_file = \"/none\"", "cannot read /none"),
            ("[mqtt]\nserver = \"here\"", "unknown field `server`"),
        ] {
            let message = load(text).expect_err(text).to_string();
            assert!(message.contains(part), "{message}");
        }
        assert!(ToolsFile::load(Path::new("/no/tools.toml")).expect_err("missing").to_string().contains("/no/tools.toml"));
    }

    #[test]
    fn programs_beside_the_file_are_found_there() {
        let file = load("[tool.light]\nprogram = [\"./light.sh\"]").expect("well formed");
        let ToolAction::Program { program, limits } = &file.tool["light"][0].action else { panic!("a program") };
        assert!(program[0].ends_with("/light.sh") && Path::new(&program[0]).is_absolute());
        assert_eq!(limits.seconds, 2.0);
    }
}
