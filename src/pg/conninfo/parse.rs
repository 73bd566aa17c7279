//! The two forms of a connection string: `key=value …` and `postgresql://…`. Errors never repeat the text: any
//! piece of it may be part of a password that was not quoted.

use crate::error::{Error, Kind, Result};

/// Names and values in the order of the text; later ones count.
pub(super) type Pairs = Vec<(String, String)>;

/// Whether libpq would take this for a connection string rather than for the name of a database.
pub(super) fn is_conninfo(text: &str) -> bool {
    uri_body(text).is_some() || text.contains('=')
}

/// Splits a connection string into its settings.
pub(super) fn parse(text: &str) -> Result<Pairs> {
    match uri_body(text) {
        Some(body) => uri(body),
        None if text.contains('=') => words(text),
        None if text.trim().is_empty() => Ok(Pairs::new()),
        // Somebody forgot the scheme: the password must not travel on as a part of the database's name.
        None if text.contains('@') || text.contains("://") => Err(bad(
            "It is neither key=value nor postgresql://.",
        )
        .hint(
            "Begin it with postgresql://, or write dbname='...' if it is the name of a database.",
        )),
        None => Ok(vec![("dbname".to_string(), text.to_string())]),
    }
}

fn uri_body(text: &str) -> Option<&str> {
    text.strip_prefix("postgresql://")
        .or_else(|| text.strip_prefix("postgres://"))
}

/// `key = value`, separated by blanks; values with blanks in single quotes; a backslash takes the next letter as
/// it is.
fn words(text: &str) -> Result<Pairs> {
    let mut pairs = Pairs::new();
    let mut rest = skip_blanks(text);
    while !rest.is_empty() {
        let end = rest.find(|c: char| c == '=' || is_blank(c));
        let (key, after) = rest.split_at(end.unwrap_or(rest.len()));
        let after = skip_blanks(after).strip_prefix('=').ok_or_else(|| {
            bad(&format!("Word {} of it has no \"=\".", pairs.len() + 1))
                .hint("Put values with spaces between single quotes.")
        })?;
        let (value, after) = value(skip_blanks(after))?;
        pairs.push((key.to_string(), value));
        rest = skip_blanks(after);
    }
    Ok(pairs)
}

/// One value and what follows it.
fn value(text: &str) -> Result<(String, &str)> {
    let (quoted, body) = match text.strip_prefix('\'') {
        Some(body) => (true, body),
        None => (false, text),
    };
    let mut value = String::new();
    let mut chars = body.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => value.extend(chars.next().map(|(_, next)| next)),
            '\'' if quoted => return Ok((value, &body[at + 1..])),
            c if !quoted && is_blank(c) => return Ok((value, &body[at..])),
            c => value.push(c),
        }
    }
    match quoted {
        true => Err(bad("A quoted value in it has no end.")),
        false => Ok((value, "")),
    }
}

fn skip_blanks(text: &str) -> &str {
    text.trim_start_matches(is_blank)
}

/// What C's isspace() takes for a blank.
fn is_blank(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\r' | '\x0b' | '\x0c')
}

/// `[user[:password]@][host[:port][,…]][/dbname][?key=value[&…]]`
fn uri(body: &str) -> Result<Pairs> {
    let mut pairs = Pairs::new();
    let mut put = |key: &str, text: &str| -> Result<()> {
        if !text.is_empty() {
            pairs.push((key.to_string(), decode(text)?));
        }
        Ok(())
    };
    let rest = match body.find(['@', '/']) {
        Some(at) if body[at..].starts_with('@') => {
            let (user, password) = body[..at].split_once(':').unwrap_or((&body[..at], ""));
            put("user", user)?;
            put("password", password)?;
            &body[at + 1..]
        }
        _ => body,
    };
    let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (hosts, dbname) = place.split_once('/').unwrap_or((place, ""));
    // libpq would take the rest of such a password for hosts and ports, and show them in its errors.
    if place.contains('@') {
        return Err(bad("It has more than one \"@\".").hint(
            "In user name, password and database write %40 for @, %2F for / and %3A for :.",
        ));
    }
    let (hosts, ports) = split_hosts(hosts)?;
    put("host", &hosts)?;
    put("port", &ports)?;
    put("dbname", dbname)?;
    pairs.extend(parameters(query)?);
    Ok(pairs)
}

/// Hosts and ports as the two lists that the settings `host` and `port` are.
fn split_hosts(text: &str) -> Result<(String, String)> {
    let mut hosts = Vec::new();
    let mut ports = Vec::new();
    for part in text.split(',') {
        let (host, port) = match part.strip_prefix('[') {
            Some(v6) => {
                let (host, after) = v6
                    .split_once(']')
                    .filter(|(host, _)| !host.is_empty())
                    .ok_or_else(|| bad("It has an IPv6 address without \"]\"."))?;
                let port = match after {
                    "" => "",
                    _ => after.strip_prefix(':').ok_or_else(|| {
                        bad("After an IPv6 address comes \":\", \",\", \"/\" or nothing.")
                    })?,
                };
                (host, port)
            }
            None => part.split_once(':').unwrap_or((part, "")),
        };
        hosts.push(host);
        ports.push(port);
    }
    // Without any port the setting is absent, not a list of empty ones.
    let ports = match ports.iter().all(|port| port.is_empty()) {
        true => String::new(),
        false => ports.join(","),
    };
    Ok((hosts.join(","), ports))
}

fn parameters(query: &str) -> Result<Pairs> {
    let mut pairs = Pairs::new();
    for part in query.trim_end_matches('&').split('&') {
        if query.is_empty() {
            break;
        }
        let (key, value) = part
            .split_once('=')
            .filter(|(_, value)| !value.contains('='))
            .ok_or_else(|| bad("Each of its parameters must be key=value."))?;
        let (key, value) = (decode(key)?, decode(value)?);
        // JDBC's spelling, which libpq understands too.
        match (key.as_str(), value.as_str()) {
            ("ssl", "true") => pairs.push(("sslmode".to_string(), "require".to_string())),
            _ => pairs.push((key, value)),
        }
    }
    Ok(pairs)
}

/// `%XX` to bytes; the result must be UTF-8 and hold no zero byte.
fn decode(text: &str) -> Result<String> {
    let wrong = || {
        bad("It has a \"%\" without two hexadecimal digits, or that is no letter.")
            .hint("Write %25 for a % itself.")
    };
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || char::from(rest.next()?).to_digit(16);
        let code = digit().zip(digit()).map(|(high, low)| high << 4 | low);
        let code = code.filter(|code| *code != 0).ok_or_else(wrong)?;
        bytes.push(code as u8);
    }
    String::from_utf8(bytes).map_err(|_| wrong())
}

fn bad(detail: &str) -> Error {
    Error::new(Kind::Config, "the connection string cannot be read").detail(detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> String {
        let pairs = parse(text).unwrap();
        let words: Vec<String> = pairs.iter().map(|(k, v)| format!("{k}={v}")).collect();
        words.join("|")
    }

    #[test]
    fn words_and_quotes() {
        // As psql 15 takes them.
        let cases = [
            ("", ""),
            ("mydb", "dbname=mydb"),
            ("host=a port=1", "host=a|port=1"),
            ("  host = a\n port\t=1 ", "host=a|port=1"),
            ("password='a b' user=''", "password=a b|user="),
            (r"password='it\'s' user=a\ b", "password=it's|user=a b"),
            (r"password=a\\b", r"password=a\b"),
            ("user= host=x", "user=host=x"),
            ("options='-c a=b'", "options=-c a=b"),
            ("user=ü", "user=ü"),
            (r"user=x\", "user=x"),
        ];
        for (text, pairs) in cases {
            assert_eq!(shown(text), pairs, "{text}");
        }
    }

    #[test]
    fn uris() {
        let cases = [
            ("postgresql://", ""),
            ("postgres://h", "host=h"),
            (
                "postgresql://u:p@h:1/d?sslmode=require",
                "user=u|password=p|host=h|port=1|dbname=d|sslmode=require",
            ),
            (
                "postgresql://u:p%40%2F:x@h/d%20b",
                "user=u|password=p@/:x|host=h|dbname=d b",
            ),
            ("postgresql://u:p?x@h", "user=u|password=p?x|host=h"),
            ("postgresql://[::1]:5433/d", "host=::1|port=5433|dbname=d"),
            ("postgresql://[fe80::1],h:2,:3", "host=fe80::1,h,|port=,2,3"),
            (
                "postgresql://u@%2Fvar%2Frun:6/",
                "user=u|host=/var/run|port=6",
            ),
            (
                "postgresql:///d?host=/tmp&port=5&",
                "dbname=d|host=/tmp|port=5",
            ),
            ("postgresql://h?ssl=true", "host=h|sslmode=require"),
            (
                "postgresql://h/d?application_name=a+b%20c",
                "host=h|dbname=d|application_name=a+b c",
            ),
            ("postgresql://:p@h", "password=p|host=h"),
        ];
        for (text, pairs) in cases {
            assert_eq!(shown(text), pairs, "{text}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_not_repeated() {
        for text in [
            "host=a S3CRET",
            "password='S3CRET",
            "password=a S3CRET port=1",
            "u:S3CRET@h/db",
            "mysql://u:S3CRET",
            "postgresql://u:a@S3CRET@h",
            "postgresql://u:a/S3CRET@h",
            "postgresql://[S3CRET",
            "postgresql://[::1]S3CRET",
            "postgresql://[]/S3CRET",
            "postgresql://u:S3CRET%@h",
            "postgresql://u:S3CRET%zz@h",
            "postgresql://u:S3CRET%00@h",
            "postgresql://u:S3CRET%ff@h",
            "postgresql://h?S3CRET",
            "postgresql://h?password=a=S3CRET",
            "postgresql://h?a=b&&password=S3CRET",
        ] {
            let error = parse(text).unwrap_err();
            assert_eq!(error.kind(), Kind::Config, "{text}");
            assert!(!error.to_string().contains("S3CRET"), "{error}");
        }
    }
}
