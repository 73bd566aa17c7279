//! Password files (`~/.pgpass`): lines `host:port:database:user:password`, where `*` stands for anything and a
//! backslash takes the next letter as it is. The first line that fits counts.

use super::Secret;

/// Whom a password is for.
pub(super) struct Wanted<'a> {
    /// A host name, a socket directory, or `localhost` for the default socket directory.
    pub host: &'a str,
    pub port: u16,
    pub dbname: &'a str,
    pub user: &'a str,
}

/// The password of the first line that fits. One that is not UTF-8 counts as none.
pub(super) fn password(bytes: &[u8], wanted: &Wanted<'_>) -> Option<Secret> {
    let port = wanted.port.to_string();
    let fields = [wanted.host, &port, wanted.dbname, wanted.user];
    bytes.split(|byte| *byte == b'\n').find_map(|line| {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.starts_with(b"#") {
            return None;
        }
        let mut rest = line;
        for field in fields {
            let (first, after) = split(rest);
            let fits = first == b"*" || unescape(first) == field.as_bytes();
            rest = after.filter(|_| fits)?;
        }
        let (password, _) = split(rest);
        String::from_utf8(unescape(password)).ok().map(Secret::from)
    })
}

/// A field up to the next colon without backslash, and what follows the colon.
fn split(line: &[u8]) -> (&[u8], Option<&[u8]>) {
    let mut at = 0;
    while at < line.len() && line[at] != b':' {
        at += if line[at] == b'\\' { 2 } else { 1 };
    }
    match line.get(at) {
        Some(_) => (&line[..at], Some(&line[at + 1..])),
        None => (line, None),
    }
}

fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = field.iter();
    let mut out = Vec::with_capacity(field.len());
    while let Some(byte) = bytes.next() {
        let taken = match byte {
            b'\\' => bytes.next().unwrap_or(byte),
            _ => byte,
        };
        out.push(*taken);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_that_fits_counts() {
        let file = b"# db:5432:app:alice:comment\n\
            db:5432:app:alice:one\r\n\
            db:*:app:bo\\:b:t\\:w\\\\o:rest is no password\n\
            /var/run\\:x:5432:*:alice:three\n\
            incomplete:5432:app\n\
            :5432:app:alice:empty host\n\
            bad:*:*:*:\xff\n\
            *:*:replication:repl:four\n\
            back\\slash:*:*:*:five\\\n\
            *:*:*:*:\n";
        let cases = [
            ("db", 5432, "app", "alice", "one"),
            ("db", 5433, "app", "alice", ""),
            ("db", 1, "app", "bo:b", "t:w\\o"),
            ("/var/run:x", 5432, "any", "alice", "three"),
            ("h", 1, "replication", "repl", "four"),
            ("backslash", 1, "x", "x", "five\\"),
            ("bad", 1, "x", "x", ""),
            ("incomplete", 5432, "app", "", ""),
        ];
        for (host, port, dbname, user, expected) in cases {
            let wanted = Wanted {
                host,
                port,
                dbname,
                user,
            };
            let found = password(file, &wanted).unwrap();
            assert_eq!(&*found, expected, "{host}:{port}:{dbname}:{user}");
        }
        let nobody = Wanted {
            host: "x",
            port: 1,
            dbname: "x",
            user: "x",
        };
        assert!(password(b"y:1:x:x:p", &nobody).is_none());
        assert!(password(b"", &nobody).is_none());
    }
}
