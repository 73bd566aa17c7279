//! What the server says beside its answers: errors and notices, taken apart and turned into ours.

use crate::error::{Error, Kind};
use crate::limits::NOTICES_MAX;
use fallible_iterator::FallibleIterator;
use postgres_protocol::message::backend::ErrorFields;
use std::fmt;

/// A NoticeResponse or ErrorResponse.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Notice {
    /// `WARNING`, `NOTICE`, `ERROR`…, not translated.
    pub severity: String,
    /// The five characters of the SQLSTATE.
    pub code: String,
    /// The headline.
    pub message: String,
    /// More about it.
    pub detail: Option<String>,
    /// What to do.
    pub hint: Option<String>,
}

impl Notice {
    /// Takes the fields of a message; what is not UTF-8 is shown with replacement characters.
    pub(super) fn from_fields(mut fields: ErrorFields<'_>) -> Notice {
        let mut notice = Notice::default();
        while let Ok(Some(field)) = fields.next() {
            let text = || String::from_utf8_lossy(field.value_bytes()).into_owned();
            match field.type_() {
                b'S' if notice.severity.is_empty() => notice.severity = text(),
                b'V' => notice.severity = text(),
                b'C' => notice.code = text(),
                b'M' => notice.message = text(),
                b'D' => notice.detail = Some(text()),
                b'H' => notice.hint = Some(text()),
                _ => {}
            }
        }
        notice
    }

    /// The same as an error of ours: message, detail, hint and SQLSTATE are PostgreSQL's own.
    pub(super) fn into_error(self) -> Error {
        let mut detail = format!("SQLSTATE {}.", self.code);
        if let Some(more) = &self.detail {
            detail = format!("{detail} {more}");
        }
        let error = Error::new(kind_of(&self.code), self.message)
            .detail(detail)
            .with_sqlstate(&self.code);
        match self.hint {
            Some(hint) => error.hint(hint),
            None => error,
        }
    }

    fn level(&self) -> log::Level {
        match self.severity.as_str() {
            "WARNING" => log::Level::Warn,
            "NOTICE" | "INFO" => log::Level::Info,
            _ => log::Level::Debug,
        }
    }
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.severity, self.message)?;
        if let Some(detail) = &self.detail {
            write!(f, " ({detail})")?;
        }
        Ok(())
    }
}

/// The kind that a SQLSTATE means to us (PostgreSQL, appendix "Error Codes").
fn kind_of(code: &str) -> Kind {
    match code {
        // 42501 insufficient_privilege
        "42501" => Kind::Denied,
        // admin_shutdown, crash_shutdown, cannot_connect_now, too_many_connections
        "57P01" | "57P02" | "57P03" | "53300" => Kind::Transient,
        _ => match code.get(..2) {
            Some("28") => Kind::Denied,
            Some("08") => Kind::Transient,
            _ => Kind::Protocol,
        },
    }
}

/// The notices of a connection: logged as they come, the first `NOTICES_MAX` kept.
#[derive(Default)]
pub(super) struct Notices {
    kept: Vec<Notice>,
    dropped: u64,
}

impl Notices {
    /// Logs a notice, and keeps it if there is room.
    pub fn keep(&mut self, notice: Notice) {
        log::log!(notice.level(), "PostgreSQL says: {notice}");
        if self.kept.len() < NOTICES_MAX {
            self.kept.push(notice);
        } else {
            self.dropped += 1;
        }
    }

    /// Hands over what was kept and begins anew.
    pub fn take(&mut self) -> Vec<Notice> {
        if self.dropped > 0 {
            log::warn!(
                "{} further notices of the server were logged, not kept",
                self.dropped
            );
        }
        self.dropped = 0;
        std::mem::take(&mut self.kept)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::script::{fields, message};
    use postgres_protocol::message::backend::Message;

    fn parse(list: &[(u8, &str)]) -> Notice {
        let mut bytes = bytes::BytesMut::from(&message(b'N', &fields(list))[..]);
        match Message::parse(&mut bytes).unwrap().unwrap() {
            Message::NoticeResponse(body) => Notice::from_fields(body.fields()),
            _ => unreachable!("built as a notice"),
        }
    }

    #[test]
    fn an_error_keeps_what_postgresql_said() {
        let notice = parse(&[
            (b'S', "FEHLER"),
            (b'V', "ERROR"),
            (b'C', "55000"),
            (b'M', "WAL level not sufficient for making an online backup"),
            (b'D', "It is \"minimal\"."),
            (
                b'H',
                "wal_level must be set to \"replica\" or \"logical\" at server start.",
            ),
            (b'R', "do_pg_backup_start"),
        ]);
        assert_eq!(notice.severity, "ERROR");
        let error = notice.into_error();
        assert_eq!(error.kind(), Kind::Protocol);
        assert_eq!(error.sqlstate(), Some("55000"));
        assert_eq!(
            error.to_string(),
            "WAL level not sufficient for making an online backup\ndetail: SQLSTATE 55000. It is \"minimal\".\n\
             hint: wal_level must be set to \"replica\" or \"logical\" at server start."
        );
    }

    #[test]
    fn the_kind_follows_the_sqlstate() {
        let cases = [
            ("28P01", Kind::Denied),
            ("28000", Kind::Denied),
            ("42501", Kind::Denied),
            ("57P03", Kind::Transient),
            ("57P01", Kind::Transient),
            ("08006", Kind::Transient),
            ("53300", Kind::Transient),
            ("53100", Kind::Protocol),
            ("42601", Kind::Protocol),
            ("XX001", Kind::Protocol),
            ("", Kind::Protocol),
            ("é", Kind::Protocol),
        ];
        for (code, kind) in cases {
            assert_eq!(kind_of(code), kind, "{code}");
        }
    }

    #[test]
    fn notices_are_bounded() {
        let mut notices = Notices::default();
        for _ in 0..NOTICES_MAX + 5 {
            notices.keep(Notice::default());
        }
        assert_eq!(notices.take().len(), NOTICES_MAX);
        assert!(notices.take().is_empty());
    }
}
