//! Physical replication slots: made, dropped and looked at, in a replication session or, where that cannot tell, in an
//! ordinary one.

use super::command::identifier;
use super::conn::Conn;
use crate::error::{Error, Kind, Result};
use crate::pg::version::{CommandForm, ServerVersion};
use crate::pg::{Lsn, TimelineId};

/// What READ_REPLICATION_SLOT tells of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotState {
    /// WAL is kept from here on; none if nothing was ever reserved, or the slot is lost.
    pub restart_lsn: Option<Lsn>,
    /// The timeline of that position in the server's history.
    pub restart_timeline: Option<TimelineId>,
}

/// What `pg_replication_slots` tells of a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotInfo {
    /// Whether it is physical; streams of WAL need that.
    pub physical: bool,
    /// WAL is kept from here on; none if nothing was ever reserved, or the slot is lost.
    pub restart_lsn: Option<Lsn>,
    /// `reserved`, `extended`, `unreserved` or `lost`; none if nothing was ever reserved.
    pub wal_status: Option<String>,
    /// The server's process that uses it.
    pub active_pid: Option<i32>,
    /// Why it is lost, in a word, from servers of 17 on: `wal_removed`, `idle_timeout`…
    pub invalidation: Option<String>,
}

impl SlotInfo {
    /// Whether WAL that it should have kept is gone for good.
    pub fn is_lost(&self) -> bool {
        self.wal_status.as_deref() == Some("lost") || self.invalidation.is_some()
    }
}

impl Conn {
    /// Makes a physical slot, in a replication session. A temporary one ends with the session. With `reserve_wal` WAL is
    /// kept from the server's last checkpoint on, else only from the first status update of a receiver.
    ///
    /// `Kind::Exists` if there is a slot of that name.
    pub fn create_physical_slot(
        &mut self,
        name: &str,
        temporary: bool,
        reserve_wal: bool,
    ) -> Result<()> {
        let text = create(name, temporary, reserve_wal, self.server_version());
        self.execute(&text).map_err(by_sqlstate)
    }

    /// Drops a slot, in a replication session. `Kind::Missing` if there is none of that name, `Kind::Locked` if somebody
    /// uses it.
    pub fn drop_slot(&mut self, name: &str) -> Result<()> {
        let text = format!("DROP_REPLICATION_SLOT {}", identifier(name));
        self.execute(&text).map_err(by_sqlstate)
    }

    /// Looks at a physical slot, in a replication session with a server of 15 or newer (`ServerVersion::reads_slots`);
    /// `None` if there is none of that name.
    pub fn read_slot(&mut self, name: &str) -> Result<Option<SlotState>> {
        let rows = self
            .query(&format!("READ_REPLICATION_SLOT {}", identifier(name)))
            .map_err(by_sqlstate)?;
        if rows.get(0, "slot_type").is_none() {
            return Ok(None);
        }
        let timeline = rows.get(0, "restart_tli").map(|text| {
            let id = text.parse().ok().filter(|id| *id > 0);
            id.map(TimelineId).ok_or_else(|| strange("timeline", text))
        });
        Ok(Some(SlotState {
            restart_lsn: position(rows.get(0, "restart_lsn"))?,
            restart_timeline: timeline.transpose()?,
        }))
    }

    /// Looks at a slot in an ordinary session, with servers of all versions; `None` if there is none of that name. Any
    /// role may ask.
    pub fn slot_info(&mut self, name: &str) -> Result<Option<SlotInfo>> {
        let reason = match self.server_version().major() {
            17.. => "invalidation_reason",
            _ => "NULL",
        };
        let sql = format!(
            "SELECT slot_type, restart_lsn, wal_status, active_pid, {reason} AS invalidation \
             FROM pg_catalog.pg_replication_slots WHERE slot_name::text OPERATOR(pg_catalog.=) $1"
        );
        let rows = self.query_params(&sql, &[Some(name)])?;
        if rows.is_empty() {
            return Ok(None);
        }
        let text = |column| rows.get(0, column).map(str::to_string);
        let pid = rows.get(0, "active_pid");
        let pid = pid.map(|pid| pid.parse().map_err(|_| strange("process", pid)));
        Ok(Some(SlotInfo {
            physical: rows.need(0, "slot_type")? == "physical",
            restart_lsn: position(rows.get(0, "restart_lsn"))?,
            wal_status: text("wal_status"),
            active_pid: pid.transpose()?,
            invalidation: text("invalidation"),
        }))
    }
}

/// The same error under the kind that it means to replication.
pub(super) fn by_sqlstate(error: Error) -> Error {
    let kind = match error.sqlstate() {
        Some("42704") => Kind::Missing, // undefined_object: no such slot
        Some("42710") => Kind::Exists,  // duplicate_object
        Some("55006") => Kind::Locked,  // object_in_use
        Some("58P01") => Kind::Hole,    // undefined_file: the WAL was removed
        _ => return error,
    };
    error.with_kind(kind)
}

/// CREATE_REPLICATION_SLOT: words before 15, a list of options since.
fn create(name: &str, temporary: bool, reserve_wal: bool, version: ServerVersion) -> String {
    let temporary = if temporary { " TEMPORARY" } else { "" };
    let reserve = match (reserve_wal, version.command_form()) {
        (false, _) => "",
        (true, CommandForm::Keywords) => " RESERVE_WAL",
        (true, CommandForm::List) => " (RESERVE_WAL)",
    };
    let name = identifier(name);
    format!("CREATE_REPLICATION_SLOT {name}{temporary} PHYSICAL{reserve}")
}

fn position(text: Option<&str>) -> Result<Option<Lsn>> {
    let lsn = text.map(|text| text.parse().map_err(|_| strange("position", text)));
    lsn.transpose()
}

fn strange(what: &str, text: &str) -> Error {
    Error::new(
        Kind::Protocol,
        "the server's answer about a replication slot is not understood",
    )
    .detail(format!("Its {what} is \"{text}\"."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn create_by_version() {
        let cases = [
            (
                false,
                false,
                15,
                "CREATE_REPLICATION_SLOT \"a\"\"b\" PHYSICAL",
            ),
            (
                false,
                true,
                15,
                "CREATE_REPLICATION_SLOT \"a\"\"b\" PHYSICAL (RESERVE_WAL)",
            ),
            (
                true,
                true,
                18,
                "CREATE_REPLICATION_SLOT \"a\"\"b\" TEMPORARY PHYSICAL (RESERVE_WAL)",
            ),
            (
                true,
                true,
                14,
                "CREATE_REPLICATION_SLOT \"a\"\"b\" TEMPORARY PHYSICAL RESERVE_WAL",
            ),
            (
                true,
                false,
                13,
                "CREATE_REPLICATION_SLOT \"a\"\"b\" TEMPORARY PHYSICAL",
            ),
        ];
        for (temporary, reserve, major, text) in cases {
            let version = ServerVersion(major * 10_000);
            assert_eq!(create("a\"b", temporary, reserve, version), text);
        }
    }

    #[test]
    fn kinds_of_refusals() {
        let cases = [
            ("42704", Kind::Missing),
            ("42710", Kind::Exists),
            ("55006", Kind::Locked),
            ("58P01", Kind::Hole),
            ("55000", Kind::Protocol),
            ("", Kind::Protocol),
        ];
        for (code, kind) in cases {
            let error = Error::new(Kind::Protocol, "no").with_sqlstate(code);
            assert_eq!(by_sqlstate(error).kind(), kind, "{code}");
        }
        let transient = Error::new(Kind::Transient, "no").with_sqlstate("57P03");
        assert_eq!(by_sqlstate(transient).kind(), Kind::Transient);
    }
}
