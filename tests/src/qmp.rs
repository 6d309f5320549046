//! QEMU's control socket: commands, and the events that tell how a job goes.

use crate::PATIENCE;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

/// See the module's documentation.
pub struct Qmp {
    stream: BufReader<UnixStream>,
    /// Events that came while an answer was awaited.
    events: Vec<Value>,
}

impl Qmp {
    /// Connects to the socket of `-qmp unix:PATH,server=on,wait=off`.
    pub fn connect(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).expect("QEMU listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let mut qmp = Self { stream: BufReader::new(stream), events: Vec::new() };
        qmp.next();
        qmp.run("qmp_capabilities", json!({}));
        qmp
    }

    fn next(&mut self) -> Value {
        let mut line = String::new();
        self.stream.read_line(&mut line).expect("an answer in time");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
    }

    /// Carries out a command, which succeeds; returns its answer.
    pub fn run(&mut self, command: &str, arguments: Value) -> Value {
        let request = json!({ "execute": command, "arguments": arguments });
        writeln!(self.stream.get_mut(), "{request}").expect("QEMU reads");
        loop {
            let mut message = self.next();
            if message.get("event").is_some() {
                self.events.push(message);
            } else {
                assert!(message.get("error").is_none(), "{request}: {message}");
                return message["return"].take();
            }
        }
    }

    /// Waits for an event; returns its data.
    pub fn wait_for(&mut self, event: &str) -> Value {
        loop {
            let mut next = if self.events.is_empty() { self.next() } else { self.events.remove(0) };
            if next["event"] == event {
                return next["data"].take();
            }
        }
    }
}
