//! Server messages for tests, spelled byte by byte.

/// A message with its header.
pub(super) fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    out.extend((body.len() as u32 + 4).to_be_bytes());
    out.extend(body);
    out
}

/// A RowDescription of text columns.
pub(super) fn row_description(names: &[&str]) -> Vec<u8> {
    let mut body = (names.len() as u16).to_be_bytes().to_vec();
    for name in names {
        body.extend(name.as_bytes());
        body.push(0);
        body.extend([
            0, 0, 0, 0, 0, 0, 0, 0, 0, 25, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0,
        ]);
    }
    message(b'T', &body)
}

/// A DataRow of text values.
pub(super) fn data_row(values: &[Option<&str>]) -> Vec<u8> {
    let mut body = (values.len() as u16).to_be_bytes().to_vec();
    for value in values {
        match value {
            Some(text) => {
                body.extend((text.len() as u32).to_be_bytes());
                body.extend(text.as_bytes());
            }
            None => body.extend([0xFF; 4]),
        }
    }
    message(b'D', &body)
}

/// A CommandComplete.
pub(super) fn complete(tag: &str) -> Vec<u8> {
    message(b'C', format!("{tag}\0").as_bytes())
}

/// The body of an ErrorResponse or NoticeResponse.
pub(super) fn fields(fields: &[(u8, &str)]) -> Vec<u8> {
    let mut body = Vec::new();
    for (tag, text) in fields {
        body.push(*tag);
        body.extend(text.as_bytes());
        body.push(0);
    }
    body.push(0);
    body
}

/// An ErrorResponse.
pub(super) fn error(code: &str, text: &str) -> Vec<u8> {
    message(
        b'E',
        &fields(&[(b'S', "ERROR"), (b'V', "ERROR"), (b'C', code), (b'M', text)]),
    )
}

/// A piece of WAL in a CopyData message.
pub(super) fn wal(lsn: u64, server_end: u64, bytes: &[u8]) -> Vec<u8> {
    let numbers = [lsn, server_end, 0].map(u64::to_be_bytes).concat();
    message(b'd', &[b"w", &numbers[..], bytes].concat())
}

/// A keepalive in a CopyData message.
pub(super) fn keepalive(server_end: u64, reply_requested: bool) -> Vec<u8> {
    let numbers = [server_end, 0].map(u64::to_be_bytes).concat();
    message(
        b'd',
        &[b"k", &numbers[..], &[u8::from(reply_requested)]].concat(),
    )
}
