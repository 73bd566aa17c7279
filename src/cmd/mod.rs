//! The verbs: one file each, with its command line (`command`), what was asked for (`Args`, `args`) and a `run` that
//! reads like a recipe. Policy is decided here; the rooms below are mechanism.

pub mod arguments;
pub mod backup_fetch;
pub mod backup_list;
pub mod backup_push;
pub mod man;
pub mod output;
pub mod wal_fetch;
pub mod wal_push;

use crate::config::Config;
use crate::error::{Error, Kind, Result};
use crate::work::stop::Stop;
use clap::{ArgMatches, Command};

/// What every verb works with.
#[derive(Clone, Debug)]
pub struct Context {
    /// All settings.
    pub config: Config,
    /// Raised by SIGINT and SIGTERM.
    pub stop: Stop,
    /// Where progress is drawn.
    pub screen: output::Screen,
    /// The global options that lead another seawall to the same archive, with absolute paths: for the
    /// `restore_command` of a copy. What came from the environment is not among them, the prefix excepted.
    pub options: Vec<String>,
}

/// The verbs' command lines, in the order of the manual.
pub fn commands() -> Vec<Command> {
    vec![
        wal_push::command(),
        wal_fetch::command(),
        backup_push::command(),
        backup_fetch::command(),
        backup_list::command(),
        man::command(),
    ]
}

/// Does what was asked for.
pub fn run(_context: &Context, verb: &str, _matches: &ArgMatches) -> Result<()> {
    Err(Error::new(
        Kind::Bug,
        format!("the verb {verb} has no code"),
    ))
}
