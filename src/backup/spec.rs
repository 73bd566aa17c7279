//! Where tablespaces were and where they go on a restore: WAL-E's `spec`, `--restore-spec`, `--blind-restore` and
//! `--tablespace-mapping OLD=NEW`.

use super::scan::Tablespace;
use crate::archive::sentinel::{Spec, TablespaceSpec};
use crate::error::{Error, Kind, Result};
use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

/// The `spec` of a backup. A tablespace that lies in `pg_tblspc` itself has no place to be put: it is one directory of
/// the data directory.
pub fn of(data: &Path, tablespaces: &[Tablespace]) -> Result<Spec> {
    let text = |path: &Path| {
        path.to_str().map(str::to_string).ok_or_else(|| {
            Error::new(
                Kind::Refused,
                format!("the path {} is not UTF-8", path.display()),
            )
            .hint("The sentinel is JSON; rename the directory.")
        })
    };
    let mut spec = Spec {
        base_prefix: text(data)?,
        ..Spec::default()
    };
    for space in tablespaces
        .iter()
        .filter(|space| !is_in_place(&space.location))
    {
        let oid = space.oid.to_string();
        let link = format!("pg_tblspc/{oid}");
        spec.locations.insert(
            oid.clone(),
            TablespaceSpec {
                loc: text(&space.location)?,
                link,
            },
        );
        spec.tablespaces.push(oid);
    }
    Ok(spec)
}

/// From 16 on BASE_BACKUP reports such a tablespace, at `pg_tblspc/<oid>`; that of others is an absolute path.
fn is_in_place(location: &Path) -> bool {
    !location.is_absolute()
}

/// What the operator wants done with the tablespaces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Placement {
    /// `--blind-restore`: plain directories below `pg_tblspc`.
    pub blind: bool,
    /// `--restore-spec FILE`: its `spec`.
    pub restore_spec: Option<Spec>,
    /// `--tablespace-mapping`: old location to new.
    pub mapping: Vec<(PathBuf, PathBuf)>,
}

/// Decides where every tablespace of `spec` goes: its OID and directory. Empty for a blind restore. Without any
/// wish a tablespace goes where it was; the restore refuses a place that is not empty, so on the host of the
/// original nothing is overwritten.
pub fn place(spec: &Spec, placement: &Placement) -> Result<BTreeMap<u32, PathBuf>> {
    let mut places = BTreeMap::new();
    if placement.blind {
        return Ok(places);
    }
    for (old, _) in &placement.mapping {
        if !spec
            .locations
            .values()
            .any(|space| Path::new(&space.loc) == old)
        {
            return Err(Error::new(
                Kind::Usage,
                format!("no tablespace of this backup was in \"{}\"", old.display()),
            )
            .hint("seawall backup-list NAME --detail shows where they were."));
        }
    }
    for oid in &spec.tablespaces {
        let number = oid.parse().map_err(|_| {
            Error::new(
                Kind::Corrupt,
                format!("\"{oid}\" is not the OID of a tablespace"),
            )
        })?;
        let place = place_one(oid, spec, placement)?;
        if place == Path::new("pg_tblspc").join(oid) {
            continue;
        }
        let plain =
            place.is_absolute() && !place.components().any(|part| part == Component::ParentDir);
        if !plain {
            return Err(Error::new(
                Kind::Usage,
                format!(
                    "the place of tablespace {oid} is not an absolute path: \"{}\"",
                    place.display()
                ),
            ));
        }
        if places
            .values()
            .any(|other: &PathBuf| other.starts_with(&place) || place.starts_with(other))
        {
            return Err(Error::new(
                Kind::Usage,
                format!("two tablespaces would share \"{}\"", place.display()),
            ));
        }
        places.insert(number, place);
    }
    Ok(places)
}

fn place_one(oid: &str, spec: &Spec, placement: &Placement) -> Result<PathBuf> {
    let unknown = || {
        Error::new(
            Kind::Corrupt,
            format!("the sentinel does not say where tablespace {oid} was"),
        )
    };
    let was = Path::new(&spec.locations.get(oid).ok_or_else(unknown)?.loc);
    if let Some((_, new)) = placement.mapping.iter().find(|(old, _)| old == was) {
        return Ok(new.clone());
    }
    let given = placement
        .restore_spec
        .as_ref()
        .and_then(|spec| spec.locations.get(oid));
    Ok(given.map_or(was.to_path_buf(), |space| PathBuf::from(&space.loc)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> Spec {
        let space = |oid, location: &str| Tablespace {
            oid,
            location: location.into(),
        };
        of(
            Path::new("/data"),
            &[space(16400, "/a b"), space(16401, "/c")],
        )
        .unwrap()
    }

    #[test]
    fn the_spec_has_wal_es_shape() {
        let json = serde_json::to_value(spec()).unwrap();
        assert_eq!(json["base_prefix"], "/data");
        assert_eq!(json["tablespaces"][1], "16401");
        assert_eq!(json["16400"]["loc"], "/a b");
        assert_eq!(json["16400"]["link"], "pg_tblspc/16400");
        assert_eq!(serde_json::from_value::<Spec>(json).unwrap(), spec());
    }

    #[test]
    fn a_tablespace_in_place_is_nowhere_else() {
        let space = |oid, location: &str| Tablespace {
            oid,
            location: location.into(),
        };
        let spaces = [space(16400, "pg_tblspc/16400"), space(16401, "/c")];
        let spec = of(Path::new("/data"), &spaces).unwrap();
        assert_eq!(spec.tablespaces, ["16401"]);
        assert_eq!(spec.locations.len(), 1);
    }

    #[test]
    fn every_tablespace_gets_one_place() {
        let places = |placement: Placement| place(&spec(), &placement).map_err(|e| e.kind());
        let mapping =
            |pairs: &[(&str, &str)]| pairs.iter().map(|(a, b)| (a.into(), b.into())).collect();
        assert_eq!(
            places(Placement {
                blind: true,
                ..Placement::default()
            }),
            Ok(BTreeMap::new())
        );
        let source = Placement::default();
        assert_eq!(
            places(source.clone()),
            Ok(BTreeMap::from([
                (16400, "/a b".into()),
                (16401, "/c".into())
            ]))
        );
        let moved = Placement {
            mapping: mapping(&[("/c", "/new=place")]),
            ..source.clone()
        };
        assert_eq!(places(moved).unwrap()[&16401], Path::new("/new=place"));
        for bad in [
            &[("/nowhere", "/x")][..],
            &[("/c", "relative")],
            &[("/c", "/a b/inside")],
            &[("/c", "/x/../y")],
        ] {
            assert_eq!(
                places(Placement {
                    mapping: mapping(bad),
                    ..source.clone()
                }),
                Err(Kind::Usage),
                "{bad:?}"
            );
        }
        // As PostgreSQL 16 and later report a tablespace in place, and earlier releases of seawall wrote it down.
        let mut in_place = spec();
        in_place.locations.get_mut("16400").unwrap().loc = "pg_tblspc/16400".into();
        let left = BTreeMap::from([(16401, PathBuf::from("/c"))]);
        assert_eq!(place(&in_place, &source).unwrap(), left);
        let mut given = spec();
        given.locations.get_mut("16400").unwrap().loc = "/elsewhere".into();
        let given = Placement {
            restore_spec: Some(given),
            ..Placement::default()
        };
        assert_eq!(places(given).unwrap()[&16400], Path::new("/elsewhere"));
    }
}
