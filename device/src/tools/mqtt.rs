//! One message to a broker: connect, publish, wait until the broker has it, disconnect.
//!
//! A home sends a message now and then; a connection for each needs no state, no thread that lives for ever, and knows at once that the
//! broker is down. All of it happens on a thread of its own, because looking up a host's name cannot be interrupted.

use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use rumqttc::{Client, Connection, ConnectionError, Event, MqttOptions, Outgoing, Packet, QoS, RecvTimeoutError as Wait};

use super::Broker;

/// Why a message was not published.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("the MQTT broker {host}:{port} cannot be reached: {message}")]
    Unreachable { host: String, port: u16, message: String },
    #[error("the MQTT broker {host}:{port} did not take the message within {seconds} s")]
    TimedOut { host: String, port: u16, seconds: f64 },
    #[error("the MQTT broker {host}:{port} refused: {message}")]
    Refused { host: String, port: u16, message: String },
}

impl Failure {
    /// What the model reads; it was trained on these.
    pub fn words(&self) -> &'static str {
        match self {
            Self::Unreachable { .. } => "not available",
            Self::TimedOut { .. } => "timed out",
            Self::Refused { .. } => "failed",
        }
    }
}

/// Publishes with the broker's acknowledgement (QoS 1), within the broker's time limit.
pub fn publish(broker: &Broker, topic: &str, payload: &str, retain: bool) -> Result<(), Failure> {
    let deadline = Instant::now() + Duration::from_secs_f64(broker.seconds);
    let (sender, done) = sync_channel(1);
    let (to, topic, payload) = (broker.clone(), topic.to_owned(), payload.to_owned());
    // Where it hangs in looking up a name, this thread ends when the system gives up.
    std::thread::spawn(move || sender.send(exchange(&to, topic, payload, retain, deadline)));
    match done.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        Ok(result) => result,
        Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => Err(timed_out(broker)),
    }
}

fn exchange(broker: &Broker, topic: String, payload: String, retain: bool, deadline: Instant) -> Result<(), Failure> {
    // Names of clients are unique, or the broker would throw out the other one.
    let name = format!("sa-agent-{}-{:?}", std::process::id(), std::thread::current().id());
    let name: String = name.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').collect();
    let mut options = MqttOptions::new(name, &broker.host, broker.port);
    options.set_clean_session(true);
    if let Some(user) = &broker.user {
        options.set_credentials(user, &broker.password);
    }
    let (client, mut connection) = Client::new(options, 4);
    let refused = |message: String| Failure::Refused { host: broker.host.clone(), port: broker.port, message };
    client.publish(topic, QoS::AtLeastOnce, retain, payload).map_err(|e| refused(e.to_string()))?;
    wait_for(&mut connection, broker, deadline, |event| matches!(event, Event::Incoming(Packet::PubAck(_))))?;
    // The message is there; that the broker hears of the end too is a courtesy.
    if client.disconnect().is_ok() {
        let _ = wait_for(&mut connection, broker, deadline, |event| matches!(event, Event::Outgoing(Outgoing::Disconnect)));
    }
    Ok(())
}

fn wait_for(connection: &mut Connection, broker: &Broker, deadline: Instant, wanted: impl Fn(&Event) -> bool) -> Result<(), Failure> {
    let (host, port) = (broker.host.clone(), broker.port);
    loop {
        match connection.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(Ok(event)) if wanted(&event) => return Ok(()),
            Ok(Ok(_)) => {}
            Ok(Err(ConnectionError::ConnectionRefused(code))) => return Err(Failure::Refused { host, port, message: format!("{code:?}") }),
            Ok(Err(error)) => return Err(Failure::Unreachable { host, port, message: error.to_string() }),
            Err(Wait::Timeout | Wait::Disconnected) => return Err(timed_out(broker)),
        }
    }
}

fn timed_out(broker: &Broker) -> Failure {
    Failure::TimedOut { host: broker.host.clone(), port: broker.port, seconds: broker.seconds }
}
