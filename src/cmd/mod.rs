//! The verbs: one file each, with its command line (`command`), what was asked for (`Args`, `args`) and a `run` that
//! reads like a recipe. Policy is decided here; the rooms below are mechanism.

pub mod arguments;
pub mod backup_fetch;
pub mod backup_list;
pub mod backup_push;
pub mod man;
pub mod output;
mod password;
pub mod status;
pub mod wal_fetch;
pub mod wal_push;
pub mod wal_receive;

use crate::archive::Archive;
use crate::archive::state::State;
use crate::config::Config;
use crate::error::{Error, Kind, Result};
use crate::pg::control::ControlFile;
use crate::store;
use crate::work::stop::Stop;
use clap::{ArgMatches, Command};
use std::path::Path;
use std::time::Duration;

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

/// How long PostgreSQL waits for one WAL file while the store does not answer.
pub const WAL_RETRY: Duration = Duration::from_secs(60);
/// How long one request of a receiver goes on: it is tried again for ever, and receiving must not wait for an archive
/// that is down.
pub const RECEIVE_RETRY: Duration = Duration::from_secs(10);
/// How long a backup or restore, which is long anyway, goes on trying.
pub const BASE_RETRY: Duration = Duration::from_secs(600);

impl Context {
    /// The archive of this run; asks nothing of the store yet. A verb can do without memory of earlier runs, so a
    /// state directory that cannot be used is a warning.
    pub fn archive(&self, retry_default: Duration) -> Result<Archive> {
        self.archive_in(&self.config.store_options(retry_default, &self.stop)?)
    }

    /// The same, of which nothing more is asked once `stop` is raised, and what is under way is cut.
    pub fn archive_until(&self, retry_default: Duration, stop: &Stop) -> Result<Archive> {
        let mut options = self.config.store_options(retry_default, stop)?;
        options.until = Some(stop.clone());
        self.archive_in(&options)
    }

    fn archive_in(&self, options: &store::Options) -> Result<Archive> {
        let state = match self.config.state_dir() {
            Ok(directory) => State::in_directory(directory),
            Err(e) if e.kind() == Kind::Config => return Err(e),
            Err(e) => {
                log::warn!(
                    "going on without writing to the state directory: {}",
                    e.one_line()
                );
                // What an earlier run remembered still counts.
                State::readable(self.config.state_dirs()?)
            }
        };
        Ok(Archive {
            store: store::open(options)?,
            compression: self.config.compression()?,
            state,
        })
    }
}

/// The verbs' command lines, in the order of the manual.
pub fn commands() -> Vec<Command> {
    vec![
        wal_receive::command(),
        wal_push::command(),
        wal_fetch::command(),
        backup_push::command(),
        backup_fetch::command(),
        backup_list::command(),
        status::command(),
        man::command(),
    ]
}

/// Does what was asked for.
pub fn run(context: &Context, verb: &str, matches: &ArgMatches) -> Result<()> {
    match verb {
        "wal-receive" => wal_receive::run(context, &wal_receive::args(matches)?),
        "wal-push" => wal_push::run(context, &wal_push::args(matches)?),
        "wal-fetch" => wal_fetch::run(context, &wal_fetch::args(matches)?),
        "backup-push" => backup_push::run(context, &backup_push::args(matches)?),
        "backup-fetch" => backup_fetch::run(context, &backup_fetch::args(matches)?),
        "backup-list" => backup_list::run(context, &backup_list::args(matches)?),
        "status" => status::run(context, &status::args(matches)?),
        _ => Err(Error::new(
            Kind::Bug,
            format!("the verb {verb} has no code"),
        )),
    }
}

/// pg_control of the cluster that a WAL file belongs to: of the current directory, where PostgreSQL runs its
/// commands, or of the directory above the file's. `None` if neither is a data directory; two clusters are refused,
/// because a text file does not say whose it is.
fn cluster_of(file: &Path) -> Result<Option<ControlFile>> {
    let here = control_of(Path::new("."))?;
    let above = file.parent().and_then(|directory| directory.parent());
    let Some(there) = above.map(control_of).transpose()?.flatten() else {
        return Ok(here);
    };
    match here {
        Some(here) if here.system_id != there.system_id => Err(Error::new(
            Kind::Mismatch,
            format!(
                "\"{}\" is in another cluster's data directory than this",
                file.display()
            ),
        )
        .detail(format!(
            "The current directory is of system identifier {}, the directory above the file of {}.",
            here.system_id, there.system_id
        ))
        .hint("Run this in the data directory that the file belongs to.")),
        Some(here) => Ok(Some(here)),
        None => Ok(Some(there)),
    }
}

/// pg_control of a data directory; `None` if it is none.
fn control_of(data: &Path) -> Result<Option<ControlFile>> {
    let data = match data.as_os_str().is_empty() {
        true => Path::new("."),
        false => data,
    };
    match crate::backup::server::control_file(data) {
        Err(e) if e.kind() == Kind::Missing => Ok(None),
        other => other.map(Some).map_err(|e| {
            e.hint("Run this as the server's operating system user; its pg_control says whose WAL it is.")
        }),
    }
}
