//! A password from the operator's terminal, which does not show it.

use crate::disk::{self, File};
use crate::error::{Error, Kind, Result};
use crate::work::stop::Stop;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;

/// How often a wait for the operator looks for a stop.
const PATIENCE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};

/// The terminal with its echo off, until this is dropped.
struct Silent<'a> {
    terminal: &'a File,
    before: Termios,
}

/// Asks for it. `Kind::Usage` where there is no terminal.
pub fn ask(stop: &Stop) -> Result<String> {
    let terminal = disk::open_writable(Path::new("/dev/tty")).map_err(|e| {
        Error::new(Kind::Usage, "there is no terminal to ask for a password")
            .detail(format!("{}.", e.one_line()))
            .hint("Without --password it comes from a password file (~/.pgpass), PGPASSWORD or PGPASSWORD_FILE.")
    })?;
    let failed = |e: std::io::Error| {
        Error::new(Kind::Io, "could not read the password").detail(format!("{e}."))
    };
    let silent = Silent::make(&terminal).map_err(|e| failed(e.into()))?;
    (&terminal).write_all(b"Password: ").map_err(failed)?;
    // The terminal gives whole lines, so a read does not wait once there is something.
    loop {
        let mut readable = [PollFd::new(&terminal, PollFlags::IN)];
        match rustix::event::poll(&mut readable, Some(&PATIENCE)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => stop.check()?,
            Ok(_) => break,
            Err(e) => return Err(failed(e.into())),
        }
    }
    let mut line = String::new();
    let read = BufReader::new(&terminal).read_line(&mut line);
    drop(silent);
    read.map_err(failed)?;
    Ok(line.trim_end_matches(['\r', '\n']).to_string())
}

impl Silent<'_> {
    fn make(terminal: &File) -> rustix::io::Result<Silent<'_>> {
        let before = tcgetattr(terminal)?;
        let mut silent = before.clone();
        silent.local_modes.remove(LocalModes::ECHO);
        silent.local_modes.insert(LocalModes::ECHONL);
        tcsetattr(terminal, OptionalActions::Flush, &silent)?;
        Ok(Silent { terminal, before })
    }
}

impl Drop for Silent<'_> {
    fn drop(&mut self) {
        // A terminal that is gone shows nothing.
        let _ = tcsetattr(self.terminal, OptionalActions::Flush, &self.before);
    }
}
