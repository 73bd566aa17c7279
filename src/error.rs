//! The one error of the crate: what happened, the detail, what to do about it.
//!
//! It reads as PostgreSQL's errors do: a message in lower case without full stop, a detail and a hint that are
//! sentences. `Kind` is what code may branch on, and the exit code is made from it in one place (`Kind::code`). What
//! PostgreSQL refused carries its SQLSTATE besides, for the few who must tell its errors apart more finely.

use std::fmt;

/// Result with the crate's error.
pub type Result<T> = std::result::Result<T, Error>;

/// What code may branch on, and what the exit code says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The command line is wrong.
    Usage,
    /// A setting is missing, unknown or has an unusable value.
    Config,
    /// WAL that is proven not to be in the archive: the end of recovery. Made by `archive/wal` alone, after the
    /// whole proof; the only kind that lets `wal-fetch` exit with 1.
    Absent,
    /// The thing asked for is not there.
    Missing,
    /// An object or file of that name exists already.
    Exists,
    /// Something is missing where it must not be: a gap in the archive, a deleted object.
    Hole,
    /// seawall will not do this: a running server, a target that is not empty, a file that is not what its name says.
    Refused,
    /// Another process holds it.
    Locked,
    /// Two things that must be equal differ: bytes under one name, system identifiers.
    Mismatch,
    /// Stored bytes are damaged.
    Corrupt,
    /// Credentials or permissions are refused.
    Denied,
    /// A failure that may pass: refused connection, timeout, 5xx. The only kind that is retried.
    Transient,
    /// The store or server cannot be used as things stand, and waiting will not mend it: bucket missing,
    /// untrusted certificate, redirect, an archive that does not show itself.
    Unavailable,
    /// A file system call failed.
    Io,
    /// No space left on the file system.
    Full,
    /// PostgreSQL said no, or said something unexpected.
    Protocol,
    /// SIGINT or SIGTERM.
    Interrupted,
    /// Done, but with findings that a human must look at (page checksums).
    Findings,
    /// A mistake in seawall.
    Bug,
}

impl Kind {
    /// The exit code of every verb but `wal-fetch` (DESIGN of exit codes: 1 failed, 2 usage, 3..125 named kinds).
    pub fn code(self) -> u8 {
        match self {
            Kind::Io | Kind::Protocol | Kind::Exists => 1,
            Kind::Usage | Kind::Config => 2,
            Kind::Refused => 3,
            Kind::Locked => 4,
            Kind::Mismatch => 5,
            Kind::Corrupt => 6,
            Kind::Denied => 7,
            Kind::Transient | Kind::Unavailable => 8,
            Kind::Missing | Kind::Absent => 9,
            Kind::Hole => 10,
            Kind::Full => 11,
            Kind::Interrupted => 12,
            Kind::Findings => 13,
            Kind::Bug => 19,
        }
    }

    /// The exit code of `wal-fetch`: 1 for proven absence alone, the same kinds plus 200 otherwise, because
    /// PostgreSQL takes 1..125 of `restore_command` as the end of WAL and opens the database.
    pub fn fetch_code(self) -> u8 {
        match self {
            Kind::Absent => 1,
            other => 200 + other.code(),
        }
    }
}

/// What happened, why, and what the operator can do.
#[derive(Debug)]
pub struct Error {
    kind: Kind,
    message: String,
    detail: Option<String>,
    hint: Option<String>,
    sqlstate: Option<[u8; 5]>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error with its message: lower case, no full stop.
    pub fn new(kind: Kind, message: impl Into<String>) -> Error {
        Error {
            kind,
            message: message.into(),
            detail: None,
            hint: None,
            sqlstate: None,
            source: None,
        }
    }

    /// An I/O error with what was being done, as in `could not open "/x"`. The kind follows the OS error:
    /// absent, exists, denied and full are told apart by name, everything else is `Io`.
    pub fn io(doing: impl Into<String>, cause: std::io::Error) -> Error {
        use std::io::ErrorKind as E;
        let kind = match cause.kind() {
            E::NotFound => Kind::Missing,
            E::AlreadyExists => Kind::Exists,
            E::PermissionDenied | E::ReadOnlyFilesystem => Kind::Denied,
            E::StorageFull | E::QuotaExceeded => Kind::Full,
            _ => Kind::Io,
        };
        Error::new(kind, doing).because(cause)
    }

    /// Adds or replaces the detail, a sentence.
    pub fn detail(mut self, detail: impl Into<String>) -> Error {
        self.detail = Some(detail.into());
        self
    }

    /// Adds a sentence after the detail.
    pub fn also(mut self, sentence: impl Into<String>) -> Error {
        self.detail = Some(match self.detail.take() {
            Some(detail) => format!("{detail} {}", sentence.into()),
            None => sentence.into(),
        });
        self
    }

    /// Adds or replaces the hint, a sentence that says what to do.
    pub fn hint(mut self, hint: impl Into<String>) -> Error {
        self.hint = Some(hint.into());
        self
    }

    /// Keeps PostgreSQL's own code; what is not five characters is no code.
    pub fn with_sqlstate(mut self, code: &str) -> Error {
        self.sqlstate = code.as_bytes().try_into().ok();
        self
    }

    /// Keeps the cause.
    pub fn because(mut self, cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
        self.source = Some(cause.into());
        self
    }

    /// Says the noun that only the caller knows: `message` becomes the headline, the old one joins the detail.
    pub fn context(mut self, message: impl Into<String>) -> Error {
        let inner = std::mem::replace(&mut self.message, message.into());
        let sentence = sentence(&inner);
        self.detail = Some(match self.detail.take() {
            Some(detail) => format!("{sentence} {detail}"),
            None => sentence,
        });
        self
    }

    /// The same error under another kind (a missing object that must be there is a hole).
    pub fn with_kind(mut self, kind: Kind) -> Error {
        self.kind = kind;
        self
    }

    /// What code may branch on.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The SQLSTATE, if PostgreSQL raised this error.
    pub fn sqlstate(&self) -> Option<&str> {
        std::str::from_utf8(self.sqlstate.as_ref()?).ok()
    }

    /// The headline.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The detail with the chain of causes, if there is any.
    pub fn full_detail(&self) -> Option<String> {
        let mut text = self.detail.clone().unwrap_or_default();
        let mut cause = self.source.as_deref().map(|e| e as &dyn std::error::Error);
        while let Some(error) = cause {
            if !text.is_empty() {
                text.push(' ');
            }
            text.push_str(&sentence(&error.to_string()));
            cause = error.source();
        }
        (!text.is_empty()).then_some(text)
    }

    /// The hint, if there is one.
    pub fn hint_text(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// Message, detail and hint on one line, for logs.
    pub fn one_line(&self) -> String {
        let mut text = self.message.clone();
        if let Some(detail) = self.full_detail() {
            text.push_str(&format!(" ({detail})"));
        }
        text.replace('\n', " ")
    }
}

/// First letter up, full stop at the end.
fn sentence(text: &str) -> String {
    let text = text.trim();
    let mut chars = text.chars();
    let mut out: String = match chars.next() {
        Some(first) => first.to_uppercase().chain(chars).collect(),
        None => return String::new(),
    };
    if !out.ends_with(['.', '!', '?']) {
        out.push('.');
    }
    out
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if let Some(detail) = self.full_detail() {
            write!(f, "\ndetail: {detail}")?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "\nhint: {hint}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|e| e as &dyn std::error::Error)
    }
}

/// An error that crosses a `Read` or `Write` border keeps its kind: unwrap it with `from_io`.
impl From<Error> for std::io::Error {
    fn from(error: Error) -> std::io::Error {
        std::io::Error::other(error)
    }
}

/// Gives back our own error if it travelled inside an `io::Error`, else wraps the I/O error.
pub fn from_io(doing: &str, cause: std::io::Error) -> Error {
    if cause.get_ref().is_some_and(|e| e.is::<Error>()) {
        let inner = cause.into_inner().expect("checked above");
        return *inner.downcast::<Error>().expect("checked above");
    }
    Error::io(doing, cause)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fetch_never_says_absent_for_another_kind() {
        use Kind::*;
        let all = [
            Usage,
            Config,
            Missing,
            Exists,
            Hole,
            Refused,
            Locked,
            Mismatch,
            Corrupt,
            Denied,
            Transient,
            Unavailable,
            Io,
            Full,
            Protocol,
            Interrupted,
            Findings,
            Bug,
        ];
        assert_eq!(Absent.fetch_code(), 1);
        for kind in all {
            assert!((200..=219).contains(&kind.fetch_code()), "{kind:?}");
            assert!((1..=125).contains(&kind.code()), "{kind:?}");
        }
    }

    #[test]
    fn our_error_survives_a_reader() {
        let io: std::io::Error = Error::new(Kind::Corrupt, "bad frame").into();
        assert_eq!(from_io("reading", io).kind(), Kind::Corrupt);
        let plain = std::io::Error::from(std::io::ErrorKind::NotFound);
        assert_eq!(from_io("could not open \"x\"", plain).kind(), Kind::Missing);
    }

    #[test]
    fn the_sqlstate_survives_context_and_kind() {
        let error = Error::new(Kind::Protocol, "slot is busy").with_sqlstate("55006");
        let error = error.with_kind(Kind::Locked).context("could not stream");
        assert_eq!(error.sqlstate(), Some("55006"));
        for odd in ["", "5500", "550066"] {
            let error = Error::new(Kind::Protocol, "x").with_sqlstate(odd);
            assert_eq!(error.sqlstate(), None, "{odd:?}");
        }
    }

    #[test]
    fn context_keeps_what_was_known() {
        let error = Error::new(Kind::Denied, "s3 answered 403 AccessDenied")
            .hint("Check that the key may PutObject on this prefix.")
            .context("could not archive segment X");
        assert_eq!(
            error.to_string(),
            "could not archive segment X\ndetail: S3 answered 403 AccessDenied.\nhint: Check that the key may PutObject on this prefix."
        );
    }
}
