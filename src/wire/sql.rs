//! Ordinary SQL: simple and parameterised statements with text results, and COPY out.

use super::codec::{self, Frame};
use super::conn::Conn;
use super::notice::Notice;
use crate::error::{Error, Kind, Result};
use crate::limits::RESULT_BYTES_MAX;
use bytes::BytesMut;
use fallible_iterator::FallibleIterator;
use postgres_protocol::IsNull;
use postgres_protocol::message::backend::{DataRowBody, Message, RowDescriptionBody};
use postgres_protocol::message::frontend;

/// A result: names of the columns, and the rows as text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rows {
    /// Names of the columns.
    pub columns: Vec<String>,
    /// One value per column; `None` is NULL.
    pub rows: Vec<Vec<Option<String>>>,
}

impl Rows {
    /// The value of a column in a row; `None` if it is NULL or not there.
    pub fn get(&self, row: usize, column: &str) -> Option<&str> {
        let index = self.columns.iter().position(|name| name == column)?;
        self.rows.get(row)?.get(index)?.as_deref()
    }

    /// The same, where it must be there and not NULL.
    pub fn need(&self, row: usize, column: &str) -> Result<&str> {
        self.get(row, column).ok_or_else(|| {
            Error::new(Kind::Protocol, "the server's answer lacks a value")
                .detail(format!("Column \"{column}\" in row {}.", row + 1))
        })
    }

    /// How many rows there are.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    pub(super) fn begin(body: &RowDescriptionBody) -> Result<Rows> {
        let names = body
            .fields()
            .map(|field| Ok(field.name().to_string()))
            .collect();
        Ok(Rows {
            columns: names.map_err(|e| codec::malformed(format!("{e}.")))?,
            rows: Vec::new(),
        })
    }

    pub(super) fn push(&mut self, body: &DataRowBody) -> Result<()> {
        let row = values(body)?.into_iter();
        let row: Vec<_> = row
            .map(|value| value.map(text).transpose())
            .collect::<Result<_>>()?;
        if row.len() != self.columns.len() {
            return Err(codec::malformed(
                "A row has not as many values as there are columns.",
            ));
        }
        self.rows.push(row);
        Ok(())
    }
}

/// The values of a row; `None` is NULL.
fn values(body: &DataRowBody) -> Result<Vec<Option<&[u8]>>> {
    let ranges = body.ranges();
    let values = ranges.map(|range| Ok(range.map(|range| &body.buffer()[range])));
    let values: std::io::Result<Vec<_>> = values.collect();
    values.map_err(|cause| codec::malformed(format!("{cause}.")))
}

/// What a result consists of.
enum Part {
    Columns(RowDescriptionBody),
    Row(DataRowBody),
}

fn text(bytes: &[u8]) -> Result<String> {
    String::from_utf8(bytes.to_vec()).map_err(|_| {
        Error::new(Kind::Protocol, "the server sent a text that is not UTF-8")
            .hint("The database has the encoding SQL_ASCII; connect to one in UTF8.")
    })
}

impl Conn {
    /// Runs SQL; of several statements the last result counts.
    pub fn query(&mut self, sql: &str) -> Result<Rows> {
        let mut out = BytesMut::new();
        frontend::query(sql, &mut out).map_err(unsendable)?;
        self.begin(&out)?;
        self.result()
    }

    /// Runs SQL whose result is of no interest.
    pub fn execute(&mut self, sql: &str) -> Result<()> {
        self.query(sql).map(drop)
    }

    /// Runs one statement with parameters `$1`…, given as text; `None` is NULL. Not in a replication session.
    pub fn query_params(&mut self, sql: &str, parameters: &[Option<&str>]) -> Result<Rows> {
        let mut out = BytesMut::new();
        extended(sql, parameters, &mut out)?;
        self.begin(&out)?;
        self.result()
    }

    /// Runs `COPY … TO STDOUT` and hands each piece to `sink`. If the sink fails, the copy is cancelled, and the
    /// connection is of no use afterwards.
    pub fn copy_out(&mut self, sql: &str, sink: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let mut out = BytesMut::new();
        frontend::query(sql, &mut out).map_err(unsendable)?;
        self.begin(&out)?;
        let mut error = None;
        loop {
            let frame = self.next()?;
            match frame.tag {
                b'd' => {
                    if let Err(failure) = sink(self.body(&frame)) {
                        self.abandon();
                        return Err(failure);
                    }
                }
                b'H' => self.lift_deadline(),
                b'c' | b'C' => {}
                b'E' => error = Some(self.error_of(&frame)?),
                b'Z' => return error.map_or(Ok(()), Err),
                tag => return Err(codec::unexpected(tag, "COPY")),
            }
        }
    }

    /// Runs a statement and gives the values of its one row as they were sent: for what is not text, or in no known
    /// encoding.
    pub(super) fn query_row_bytes(&mut self, sql: &str) -> Result<Vec<Vec<u8>>> {
        let mut out = BytesMut::new();
        frontend::query(sql, &mut out).map_err(unsendable)?;
        self.begin(&out)?;
        let mut rows: Vec<Vec<Vec<u8>>> = Vec::new();
        self.parts(&mut |part| {
            if let Part::Row(body) = part {
                let values = values(&body)?.into_iter();
                rows.push(values.map(|v| v.unwrap_or_default().to_vec()).collect());
            }
            Ok(())
        })?;
        match <[_; 1]>::try_from(rows) {
            Ok([row]) => Ok(row),
            Err(rows) => Err(codec::malformed(format!(
                "A result has {} rows; one was due.",
                rows.len()
            ))),
        }
    }

    /// The result of the running statement as text.
    fn result(&mut self) -> Result<Rows> {
        let mut rows = Rows::default();
        self.parts(&mut |part| {
            match part {
                Part::Columns(body) => rows = Rows::begin(&body)?,
                Part::Row(body) => rows.push(&body)?,
            }
            Ok(())
        })?;
        Ok(rows)
    }

    /// The result of the running statement, up to ReadyForQuery.
    fn parts(&mut self, each: &mut dyn FnMut(Part) -> Result<()>) -> Result<()> {
        let (mut bytes, mut error) = (0, None);
        loop {
            let frame = self.next()?;
            match self.message(&frame)? {
                Message::RowDescription(body) => each(Part::Columns(body))?,
                Message::DataRow(body) => {
                    bytes += self.body(&frame).len();
                    if bytes > RESULT_BYTES_MAX {
                        self.abandon();
                        return Err(too_large());
                    }
                    each(Part::Row(body))?;
                }
                Message::ErrorResponse(body) => {
                    error.get_or_insert(Notice::from_fields(body.fields()));
                }
                Message::ReadyForQuery(_) => {
                    return error.map_or(Ok(()), |notice| Err(notice.into_error()));
                }
                Message::CommandComplete(_)
                | Message::EmptyQueryResponse
                | Message::ParseComplete
                | Message::BindComplete
                | Message::NoData
                | Message::PortalSuspended => {}
                _ => return Err(codec::unexpected(frame.tag, "a query")),
            }
        }
    }

    /// The error in an ErrorResponse.
    pub(super) fn error_of(&self, frame: &Frame) -> Result<Error> {
        match self.message(frame)? {
            Message::ErrorResponse(body) => Ok(Notice::from_fields(body.fields()).into_error()),
            _ => Err(codec::unexpected(frame.tag, "an error")),
        }
    }
}

/// Makes the session independent of what the role or the database sets: no timeouts (a backup may take hours, and
/// its session is idle for most of them), and no functions of strangers under the names of PostgreSQL's own.
pub(super) fn prepare_session(conn: &mut Conn) -> Result<()> {
    conn.execute(
        "SELECT pg_catalog.set_config('search_path', '', false), \
         pg_catalog.set_config(name, '0', false) FROM pg_catalog.pg_settings WHERE name IN \
         ('statement_timeout', 'lock_timeout', 'transaction_timeout', \
          'idle_in_transaction_session_timeout', 'idle_session_timeout')",
    )
}

/// Parse, Bind, Describe, Execute and Sync of the unnamed statement, all in text.
fn extended(sql: &str, parameters: &[Option<&str>], out: &mut BytesMut) -> Result<()> {
    frontend::parse("", sql, std::iter::empty(), out).map_err(unsendable)?;
    let bound = frontend::bind(
        "",
        "",
        std::iter::empty(),
        parameters,
        |value, buffer| match value {
            Some(text) => {
                buffer.extend_from_slice(text.as_bytes());
                Ok(IsNull::No)
            }
            None => Ok(IsNull::Yes),
        },
        std::iter::empty(),
        out,
    );
    if bound.is_err() {
        return Err(Error::new(Kind::Bug, "a statement has too many parameters"));
    }
    frontend::describe(b'P', "", out).map_err(unsendable)?;
    frontend::execute("", 0, out).map_err(unsendable)?;
    frontend::sync(out);
    Ok(())
}

fn too_large() -> Error {
    Error::new(Kind::Protocol, "the result of a query is too large").detail(format!(
        "More than {RESULT_BYTES_MAX} bytes are not kept in memory."
    ))
}

pub(super) fn unsendable(cause: std::io::Error) -> Error {
    Error::new(Kind::Usage, "a text cannot be sent to PostgreSQL").because(cause)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::script::{data_row, row_description};

    fn parse(bytes: &[u8]) -> Message {
        Message::parse(&mut BytesMut::from(bytes)).unwrap().unwrap()
    }

    #[test]
    fn rows_by_name() {
        let Message::RowDescription(body) = parse(&row_description(&["a", "b"])) else {
            unreachable!("built as a description")
        };
        let mut rows = Rows::begin(&body).unwrap();
        for values in [&[Some("1"), None][..], &[Some(""), Some("ü")][..]] {
            let Message::DataRow(body) = parse(&data_row(values)) else {
                unreachable!("built as a row")
            };
            rows.push(&body).unwrap();
        }
        assert_eq!(rows.get(0, "a"), Some("1"));
        assert_eq!(rows.get(0, "b"), None);
        assert_eq!(rows.need(1, "b").unwrap(), "ü");
        assert!(
            rows.need(0, "b").is_err() && rows.need(2, "a").is_err() && rows.need(0, "c").is_err()
        );
        let Message::DataRow(short) = parse(&data_row(&[Some("1")])) else {
            unreachable!("built as a row")
        };
        assert!(rows.push(&short).is_err());
    }

    #[test]
    fn parameters_are_bound_not_spliced() {
        let mut out = BytesMut::new();
        extended("SELECT $1, $2", &[Some("a'b"), None], &mut out).unwrap();
        let parse = b"P\0\0\0\x15\0SELECT $1, $2\0\0\0";
        let bind = b"B\0\0\0\x17\0\0\0\0\0\x02\0\0\0\x03a'b\xFF\xFF\xFF\xFF\0\0";
        let rest = b"D\0\0\0\x06P\0E\0\0\0\x09\0\0\0\0\0S\0\0\0\x04";
        assert_eq!(&out[..], [&parse[..], bind, rest].concat());
        assert!(extended("a\0b", &[], &mut out).is_err());
    }

    #[test]
    fn text_must_be_utf8() {
        assert!(text(b"\xFF").is_err());
        assert_eq!(text("ü".as_bytes()).unwrap(), "ü");
    }
}
