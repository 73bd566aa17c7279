//! The command line: from arguments to a verb, from its end to an exit code.
//!
//! Promise: PostgreSQL reads the code, so it follows from `Kind` and verb alone. Whatever happens to `wal-fetch`, a
//! mistake in the arguments and a panic included, its code is 200 or more unless absence was proven; no other verb
//! ever exceeds 125.

mod log;

use crate::cmd::arguments::{settings_of, text};
use crate::cmd::{self, Context, output::Screen};
use crate::config::{self, Config, Given, Inputs};
use crate::error::{Error, Kind, Result};
use crate::work::stop::{Stop, die_by_signal};
use ::log::{debug, info, warn};
use clap::error::ErrorKind;
use clap::{Arg, ArgAction, ArgMatches, Command};
use log::{Reporter, write_stderr};
use std::ffi::OsString;
use std::panic;
use std::path::PathBuf;

/// The verb whose exit codes PostgreSQL reads as answers.
const FETCH: &str = "wal-fetch";

/// Does what the arguments say; answers the exit code.
pub fn main() -> u8 {
    panic::set_hook(Box::new(|info| {
        let what = info.payload_as_str().unwrap_or("panic");
        let place = info.location().map_or(String::new(), |l| format!(" ({l})"));
        write_stderr(&format!(
            "seawall: error: this is a mistake in seawall: {what}{place}\n"
        ));
    }));
    let words = config::process_arguments();
    let end = panic::catch_unwind(|| run(&words)).unwrap_or_else(|_| End {
        code: exit_code(Kind::Bug, is_fetch(&words)),
        signal: None,
    });
    if let Some(signal) = end.signal {
        die_by_signal(signal);
    }
    end.code
}

/// How a run ended: by its code, or by the signal that it was sent.
struct End {
    code: u8,
    signal: Option<i32>,
}

impl From<u8> for End {
    fn from(code: u8) -> End {
        End { code, signal: None }
    }
}

fn run(words: &[OsString]) -> End {
    let mut tree = tree();
    tree.build();
    let program = std::iter::once(OsString::from("seawall"));
    let matches = match tree.try_get_matches_from_mut(program.chain(words.iter().cloned())) {
        Ok(matches) => matches,
        Err(error) => return not_parsed(&error, words),
    };
    let (verb, matches) = matches.subcommand().expect("a verb is required");
    let mut reporter = Reporter::default();
    let mut stop = None;
    match perform(&tree, verb, matches, &mut reporter, &mut stop) {
        Ok(()) => End::from(0),
        Err(error) => {
            let code = exit_code(error.kind(), verb == FETCH);
            match error.kind() {
                // An answer, not an accident: every recovery ends with it.
                Kind::Absent if verb == FETCH => info!("{}", error.message()),
                _ => reporter.report(&error, code),
            }
            let interrupted = verb == FETCH && error.kind() == Kind::Interrupted;
            let signal = stop.filter(|_| interrupted).and_then(|s| s.signal());
            End { code, signal }
        }
    }
}

fn perform(
    tree: &Command,
    verb: &str,
    matches: &ArgMatches,
    reporter: &mut Reporter,
    stop: &mut Option<Stop>,
) -> Result<()> {
    if verb == "man" {
        return cmd::man::run(tree, matches);
    }
    // Before anything else: a signal that comes now must find a process that knows what to do with it.
    let stop = stop.insert(Stop::on_signals()?).clone();
    let config = Config::load(&inputs(tree, verb, matches)?)?;
    let options = config.log_options();
    let screen = Screen::new(!options.json && !matches.get_flag("terse"));
    *reporter = log::open(&options, &screen);
    for warning in config.warnings() {
        warn!("{warning}");
    }
    debug!("settings: {config:?}");
    let context = Context {
        options: options_for_another(&config, matches)?,
        config,
        stop,
        screen,
    };
    cmd::run(&context, verb, matches)
}

/// Options, environment, and where to look for more.
fn inputs(tree: &Command, verb: &str, matches: &ArgMatches) -> Result<Inputs> {
    let command = tree.find_subcommand(verb).expect("clap found it");
    let mut flags = settings_of(command, matches);
    let mut add = |setting, flag: &str, value: Option<String>| {
        flags.extend(value.map(|value| Given {
            setting,
            flag: flag.to_string(),
            value,
        }));
    };
    add("prefix", "--s3-prefix", text(matches, "s3-prefix"));
    add("prefix", "--file-prefix", text(matches, "file-prefix"));
    let level = |flag, level: &str| matches.get_flag(flag).then(|| level.to_string());
    add("log.level", "--terse", level("terse", "warn"));
    add("log.level", "--verbose", level("verbose", "debug"));
    Ok(Inputs {
        flags,
        env: Inputs::process_environment()?,
        envdir: matches.get_one::<PathBuf>("envdir").cloned(),
        config_file: matches.get_one::<PathBuf>("config").cloned(),
    })
}

/// What another run needs to be told to find the same archive. PostgreSQL runs it in another directory.
fn options_for_another(config: &Config, matches: &ArgMatches) -> Result<Vec<String>> {
    let mut options = Vec::new();
    let named = |id| matches.get_one::<PathBuf>(id).cloned();
    let by_env = || Some(config.text("SEAWALL_CONFIG")?.into());
    let passing = config.is_passing("SEAWALL_CONFIG");
    let file = named("config").or_else(|| by_env().filter(|_| passing));
    for (option, path) in [("--envdir", named("envdir")), ("--config", file)] {
        if let Some(path) = path {
            let path = std::path::absolute(&path)
                .map_err(|e| Error::io(format!("{option}: the path cannot be made absolute"), e))?;
            options.extend([option.to_string(), path.display().to_string()]);
        }
    }
    // One that a file gives would be found again, and may be changed there later; others would not.
    if config.is_passing("prefix") {
        options.extend(["--prefix".to_string(), config.prefix()?.to_string()]);
    }
    if let Some(key) = text(matches, "s3.access-key-id") {
        options.extend(["--aws-access-key-id".to_string(), key]);
    }
    Ok(options)
}

/// The whole command line.
pub fn tree() -> Command {
    Command::new("seawall")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Keep PostgreSQL clusters recoverable: archive WAL, make base backups, restore them")
        .after_help(
            "Manual pages: seawall man, seawall man VERB, seawall man toml, seawall man archive.",
        )
        .subcommand_required(true)
        .arg_required_else_help(true)
        .disable_help_subcommand(true)
        .subcommand_value_name("VERB")
        .subcommand_help_heading("Verbs")
        .args(global_options())
        .subcommands(cmd::commands())
}

fn global_options() -> Vec<Arg> {
    use cmd::arguments::setting_option;
    let path = || clap::value_parser!(PathBuf);
    let options = [
        setting_option("prefix", "prefix", "URL")
            .help("Where the archive is: file:///DIR or s3://BUCKET/PATH"),
        Arg::new("s3-prefix")
            .long("s3-prefix")
            .value_name("URL")
            .help("The same, as WAL-E names it"),
        Arg::new("file-prefix")
            .long("file-prefix")
            .value_name("URL")
            .help("The same, as WAL-E names it"),
        setting_option("s3.access-key-id", "aws-access-key-id", "KEYID")
            .short('k')
            .help("Access key for S3; its secret comes from the environment or a file"),
        Arg::new("config")
            .long("config")
            .value_name("FILE")
            .value_parser(path())
            .help("Read settings from this TOML file"),
        Arg::new("envdir")
            .long("envdir")
            .value_name("DIR")
            .value_parser(path())
            .help("Read environment settings from this directory, as envdir(8) does"),
        setting_option("log.level", "log-level", "LEVEL")
            .help("Write messages of this level and above: error, warn, info, debug or trace"),
        Arg::new("terse")
            .long("terse")
            .action(ArgAction::SetTrue)
            .conflicts_with_all(["log.level", "verbose"])
            .help("Write warnings and errors only"),
        Arg::new("verbose")
            .long("verbose")
            .short('v')
            .action(ArgAction::SetTrue)
            .conflicts_with("log.level")
            .help("Write debugging messages too"),
    ];
    let global = |arg: Arg| arg.global(true).help_heading("Global options");
    options.into_iter().map(global).collect()
}

/// Help and version are answers; everything else is a mistake in the arguments.
fn not_parsed(error: &clap::Error, words: &[OsString]) -> End {
    let rendered = error.render().to_string();
    let code = usage_code(words);
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => match cmd::output::print(&rendered) {
            Ok(()) => return End::from(0),
            Err(error) => Reporter::default().report(&error, code),
        },
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => write_stderr(&rendered),
        _ => Reporter::default().report(&usage_error(&rendered), code),
    }
    End::from(code)
}

/// clap's text in our grammar: its first paragraph is the message, its tips are the hint.
fn usage_error(rendered: &str) -> Error {
    let text = rendered.strip_prefix("error: ").unwrap_or(rendered);
    let message: Vec<&str> = text
        .lines()
        .take_while(|l| !l.is_empty())
        .map(str::trim)
        .collect();
    let tips = text.lines().filter_map(|l| l.trim().strip_prefix("tip: "));
    let tips: Vec<String> = tips.map(capitalized).collect();
    let usage = text.lines().find_map(|l| l.trim().strip_prefix("Usage: "));
    let mut hint = tips.join(" ");
    if let Some(usage) = usage {
        hint = format!("{hint} Usage: {usage}").trim().to_string();
    }
    let error = Error::new(Kind::Usage, message.join(" "));
    match hint.is_empty() {
        true => error,
        false => error.hint(hint),
    }
}

fn capitalized(tip: &str) -> String {
    let mut chars = tip.chars();
    let first = chars.next().into_iter().flat_map(char::to_uppercase);
    format!("{}.", first.chain(chars).collect::<String>())
}

/// The one map from what happened to what PostgreSQL reads.
fn exit_code(kind: Kind, fetch: bool) -> u8 {
    match fetch {
        true => kind.fetch_code(),
        false => kind.code(),
    }
}

/// The code of arguments that were not understood. If they name no verb at all, restore_command may have run them, and
/// the safe answer is the one that stops recovery.
fn usage_code(words: &[OsString]) -> u8 {
    let commands = cmd::commands();
    let is_verb = |word: &OsString| commands.iter().any(|c| word == c.get_name());
    exit_code(Kind::Usage, is_fetch(words) || !words.iter().any(is_verb))
}

fn is_fetch(words: &[OsString]) -> bool {
    words.iter().any(|word| word == FETCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split_whitespace().map(OsString::from).collect()
    }

    #[test]
    fn the_tree_is_sound() {
        tree().debug_assert();
    }

    #[test]
    fn no_option_takes_a_secret() {
        let mut tree = tree();
        tree.build();
        let all = tree.get_subcommands().flat_map(|c| c.get_arguments());
        for arg in all.chain(tree.get_arguments()) {
            let secret = config::find(arg.get_id().as_str()).is_some_and(|s| s.secret);
            assert!(!secret, "{}", arg.get_id());
        }
    }

    #[test]
    fn codes_of_arguments_that_are_not_understood() {
        let cases = [
            ("", 202),
            ("--nonsense", 202),
            ("wal-fecth f p", 202),
            ("wal-fetch", 202),
            ("--nonsense wal-fetch f p", 202),
            ("wal-push wal-fetch", 202),
            ("wal-push", 2),
            ("--nonsense wal-push p", 2),
            ("backup-fetch", 2),
        ];
        for (line, code) in cases {
            assert_eq!(usage_code(&words(line)), code, "{line}");
        }
    }

    #[test]
    fn options_become_settings_with_their_names() {
        let mut tree = tree();
        tree.build();
        let line = "seawall --file-prefix file:///a --terse wal-push -p 3 x -k KEY";
        let matches = tree.try_get_matches_from_mut(words(line)).unwrap();
        let (verb, matches) = matches.subcommand().unwrap();
        let flags = inputs(&tree, verb, matches).unwrap().flags;
        let mut seen: Vec<(String, &str, String)> = (flags.into_iter())
            .map(|g| (g.flag, config::find(g.setting).unwrap().key, g.value))
            .collect();
        seen.sort();
        let expected = [
            ("--aws-access-key-id", "s3.access-key-id", "KEY"),
            ("--file-prefix", "prefix", "file:///a"),
            ("--pool-size", "upload.threads", "3"),
            ("--terse", "log.level", "warn"),
        ];
        let expected = expected.map(|(f, k, v)| (f.to_string(), k, v.to_string()));
        assert_eq!(seen, expected);
    }

    #[test]
    fn another_run_is_told_what_it_would_not_find() {
        let line = "seawall --envdir rel --prefix file:///a/ -k KEY wal-push x";
        let matches = tree().try_get_matches_from(words(line)).unwrap();
        let (_, matches) = matches.subcommand().unwrap();
        let with = |flags: &[(&'static str, &str)], env: &[(&str, &str)]| {
            let given = |(setting, value): &(&'static str, &str)| Given {
                setting,
                flag: "--x".to_string(),
                value: value.to_string(),
            };
            let own = |(name, text): &(&str, &str)| (name.to_string(), text.to_string());
            let inputs = Inputs {
                flags: flags.iter().map(given).collect(),
                env: env.iter().map(own).collect(),
                ..Inputs::default()
            };
            options_for_another(&Config::load(&inputs).unwrap(), matches).unwrap()
        };
        let here = std::path::absolute("rel").unwrap().display().to_string();
        let base = ["--envdir", &here];
        let key = ["--aws-access-key-id", "KEY"];
        let prefix = ["--prefix", "file:///a"];
        assert_eq!(with(&[], &[]), [base, key].concat());
        let expected = [base, prefix, key].concat();
        assert_eq!(with(&[("prefix", "file:///a/")], &[]), expected);
        assert_eq!(with(&[], &[("WALE_FILE_PREFIX", "file:///a")]), expected);
    }

    #[test]
    fn a_usage_error_reads_like_ours() {
        let error = tree().try_get_matches_from(words("seawall wal-push --pol-size 3 x"));
        let error = usage_error(&error.unwrap_err().render().to_string());
        assert_eq!(error.message(), "unexpected argument '--pol-size' found");
        let hint = error.hint_text().unwrap();
        assert!(
            hint.contains("--pool-size") && hint.contains("Usage: "),
            "{hint}"
        );
        let error = tree().try_get_matches_from(words("seawall wal-receive --directory"));
        let error = usage_error(&error.unwrap_err().render().to_string());
        assert_eq!(error.hint_text(), None, "{error}");
        let error = tree().try_get_matches_from(words("seawall wal-fetch"));
        let error = usage_error(&error.unwrap_err().render().to_string());
        let message = error.message();
        assert!(
            message.contains("<NAME>") && message.contains("<DEST>"),
            "{message}"
        );
    }
}
