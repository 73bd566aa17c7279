//! Everything that differs from one major version of PostgreSQL to the next, in one place: the numbers that files
//! carry, and the words that a server understands.

use crate::error::{Error, Kind, Result};
use std::fmt;

/// The oldest major version that seawall works with.
pub const MAJOR_MIN: u32 = 13;
/// The newest major version whose files seawall knows.
pub const MAJOR_MAX: u32 = 18;

/// The numbers by which a release's files show where they come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Release {
    /// Major version, 13 to 18.
    pub major: u32,
    /// `pg_control_version`: the layout of pg_control.
    pub control_version: u32,
    /// `catalog_version_no`, which ends the name of a tablespace's `PG_<major>_<catalog>` directory.
    pub catalog_version: u32,
    /// `xlp_magic`, the first two bytes of each WAL page.
    pub wal_magic: u16,
}

/// The releases, oldest first; each number was read from a cluster of that version.
pub const RELEASES: [Release; 6] = [
    release(13, 1300, 202007201, 0xD106),
    release(14, 1300, 202107181, 0xD10D),
    release(15, 1300, 202209061, 0xD110),
    release(16, 1300, 202307071, 0xD113),
    release(17, 1700, 202406281, 0xD116),
    release(18, 1800, 202506291, 0xD118),
];

const fn release(
    major: u32,
    control_version: u32,
    catalog_version: u32,
    wal_magic: u16,
) -> Release {
    Release {
        major,
        control_version,
        catalog_version,
        wal_magic,
    }
}

/// The release that writes this page magic; `None` for development versions and what is newer than we know.
pub fn by_wal_magic(magic: u16) -> Option<&'static Release> {
    RELEASES.iter().find(|r| r.wal_magic == magic)
}

/// The release that writes this pg_control. Four releases share control version 1300 and differ by catalog
/// version; a catalog version between two of them is a beta of the later one.
pub fn by_control(control_version: u32, catalog_version: u32) -> Option<&'static Release> {
    RELEASES
        .iter()
        .find(|r| r.control_version == control_version && catalog_version <= r.catalog_version)
}

/// How the options of replication commands are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandForm {
    /// Up to 14: bare keywords, `BASE_BACKUP LABEL 'x' FAST NOWAIT`; one COPY per tablespace and one for the
    /// manifest, the tar archives without their end.
    Keywords,
    /// From 15: `BASE_BACKUP (LABEL 'x', CHECKPOINT 'fast', WAIT false)`; one COPY whose messages begin with a
    /// type byte.
    List,
}

/// `server_version_num` of a server, as in 150018.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServerVersion(pub u32);

impl ServerVersion {
    /// The major version, as in 15.
    pub fn major(self) -> u32 {
        self.0 / 10_000
    }

    /// Refuses servers older than 13; for one newer than we know, gives the sentence to warn with.
    pub fn check_supported(self) -> Result<Option<String>> {
        if self.major() < MAJOR_MIN {
            return Err(Error::new(
                Kind::Refused,
                format!("PostgreSQL {self} is too old for seawall"),
            )
            .detail(format!(
                "Versions {MAJOR_MIN} to {MAJOR_MAX} are supported."
            )));
        }
        Ok((self.major() > MAJOR_MAX).then(|| {
            format!("PostgreSQL {self} is newer than this seawall knows (up to {MAJOR_MAX})")
        }))
    }

    /// The numbers of its files, if it is a version that we know.
    pub fn release(self) -> Option<&'static Release> {
        RELEASES.iter().find(|r| r.major == self.major())
    }

    /// SQL that begins a backup. `$1` is the label, `$2` whether to checkpoint fast (`true` or `false`); one row,
    /// column `lsn`. The backup ends with the session that runs this.
    pub fn backup_start_sql(self) -> &'static str {
        match self.major() {
            ..=14 => "SELECT pg_start_backup($1, $2, false)::text AS lsn",
            _ => "SELECT pg_backup_start($1, $2)::text AS lsn",
        }
    }

    /// SQL that ends a backup without waiting for archiving; one row, columns `lsn`, `labelfile`, `spcmapfile`.
    pub fn backup_stop_sql(self) -> &'static str {
        match self.major() {
            ..=14 => {
                "SELECT lsn::text AS lsn, labelfile, spcmapfile FROM pg_stop_backup(false, false)"
            }
            _ => "SELECT lsn::text AS lsn, labelfile, spcmapfile FROM pg_backup_stop(false)",
        }
    }

    /// How BASE_BACKUP and CREATE_REPLICATION_SLOT are written for this server.
    pub fn command_form(self) -> CommandForm {
        match self.major() {
            ..=14 => CommandForm::Keywords,
            _ => CommandForm::List,
        }
    }

    /// The version of `backup_manifest` that this server writes and its `pg_verifybackup` reads: 2, with the
    /// system identifier, from 17 on.
    pub fn manifest_version(self) -> u32 {
        if self.major() >= 17 { 2 } else { 1 }
    }

    /// Whether the server has `allow_in_place_tablespaces`, without which it refuses plain directories in
    /// `pg_tblspc` at the end of a recovery. It came with 15 and, in August 2022, with 13.8 and 14.5.
    pub fn has_in_place_tablespaces(self) -> bool {
        match self.major() {
            13 => self.0 >= 130_008,
            14 => self.0 >= 140_005,
            major => major >= 15,
        }
    }

    /// Whether the server knows READ_REPLICATION_SLOT.
    pub fn reads_slots(self) -> bool {
        self.major() >= 15
    }
}

impl fmt::Display for ServerVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major(), self.0 % 10_000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_as_people_say_it() {
        assert_eq!(ServerVersion(150018).to_string(), "15.18");
        assert_eq!(ServerVersion(180004).major(), 18);
    }

    #[test]
    fn words_change_at_15_and_17() {
        let (old, new) = (ServerVersion(140023), ServerVersion(150018));
        assert_eq!(old.command_form(), CommandForm::Keywords);
        assert_eq!(new.command_form(), CommandForm::List);
        assert!(old.backup_start_sql().contains("pg_start_backup($1"));
        assert!(new.backup_start_sql().contains("pg_backup_start($1"));
        assert!(
            old.backup_stop_sql()
                .contains("pg_stop_backup(false, false)")
        );
        assert!(new.backup_stop_sql().contains("pg_backup_stop(false)"));
        assert_eq!(ServerVersion(160014).manifest_version(), 1);
        assert_eq!(ServerVersion(170010).manifest_version(), 2);
    }

    #[test]
    fn in_place_tablespaces_came_with_minor_releases() {
        for (number, has) in [
            (130_006, false),
            (130_007, false),
            (130_008, true),
            (140_003, false),
            (140_004, false),
            (140_005, true),
            (150_000, true),
            (180_004, true),
        ] {
            let version = ServerVersion(number);
            assert_eq!(version.has_in_place_tablespaces(), has, "{version}");
        }
    }

    #[test]
    fn old_servers_are_refused_and_new_ones_noted() {
        assert_eq!(
            ServerVersion(120022).check_supported().unwrap_err().kind(),
            Kind::Refused
        );
        for release in RELEASES {
            let version = ServerVersion(release.major * 10_000);
            assert_eq!(version.check_supported().unwrap(), None);
            assert_eq!(version.release(), Some(&release));
        }
        assert!(ServerVersion(190000).check_supported().unwrap().is_some());
    }

    #[test]
    fn files_name_their_release() {
        for release in &RELEASES {
            assert_eq!(by_wal_magic(release.wal_magic), Some(release));
            assert_eq!(
                by_control(release.control_version, release.catalog_version),
                Some(release)
            );
        }
        // A beta of 15 lies between 14 and 15; after 16 the control version moves on.
        assert_eq!(by_control(1300, 202205191).map(|r| r.major), Some(15));
        assert_eq!(by_control(1300, 202307072), None);
        assert_eq!(by_control(1201, 201909212), None);
        assert_eq!(by_wal_magic(0xD101), None);
    }
}
