//! The little of HTTP/1.1 that the proxy needs: heads, headers, and bodies by length, in chunks or to the end.

use std::io::{self, BufRead, Read, Write};

const HEAD_BYTES_MAX: usize = 64 * 1024;

/// How long a body is.
#[derive(Clone, Copy, PartialEq)]
pub enum Framing {
    /// So many bytes.
    Length(u64),
    /// Pieces with their lengths.
    Chunked,
    /// Up to the end of the connection.
    ToEnd,
}

/// Reads up to and with the empty line; None at an orderly end.
pub fn read_head(reader: &mut impl BufRead) -> io::Result<Option<Vec<u8>>> {
    let mut head = Vec::new();
    loop {
        let start = head.len();
        let room = (HEAD_BYTES_MAX - start) as u64;
        if reader.by_ref().take(room).read_until(b'\n', &mut head)? == 0 {
            let orderly = start == 0;
            return if orderly { Ok(None) } else { Err(bad("head")) };
        }
        if matches!(&head[start..], b"\r\n" | b"\n") {
            return Ok(Some(head));
        }
    }
}

/// The error of a peer that does not speak HTTP/1.1.
pub fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("not HTTP/1.1: {what}"))
}

/// Names in lower case, in their order.
pub fn parse_headers(head: &[u8]) -> Vec<(String, String)> {
    let text = String::from_utf8_lossy(head);
    let lines = text.lines().skip(1).filter_map(|l| l.split_once(':'));
    lines
        .map(|(n, v)| (n.trim().to_ascii_lowercase(), v.trim().to_string()))
        .collect()
}

/// The first header of that name.
pub fn find_header<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    let found = headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name));
    found.map(|(_, value)| value.as_str())
}

/// What the headers say of the body; None when they say nothing.
pub fn body_framing(headers: &[(String, String)]) -> Option<Framing> {
    let encoding = find_header(headers, "transfer-encoding");
    if encoding.is_some_and(|v| v.to_ascii_lowercase().contains("chunked")) {
        return Some(Framing::Chunked);
    }
    let length = find_header(headers, "content-length")?;
    length.parse().ok().map(Framing::Length)
}

/// The status of an answer.
pub fn status_of(head: &[u8]) -> io::Result<u16> {
    let text = String::from_utf8_lossy(head);
    let word = text.split(' ').nth(1).and_then(|w| w.trim().parse().ok());
    word.ok_or_else(|| bad("status line"))
}

/// Reads a body to its end and hands over its payload in pieces.
pub fn copy_body(
    reader: &mut impl BufRead,
    framing: Framing,
    each: &mut dyn FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    match framing {
        Framing::Length(length) => copy_exactly(reader, length, each),
        Framing::ToEnd => loop {
            let piece = reader.fill_buf()?;
            if piece.is_empty() {
                return Ok(());
            }
            let taken = piece.len();
            each(piece)?;
            reader.consume(taken);
        },
        Framing::Chunked => loop {
            let mut line = String::new();
            reader.by_ref().take(1024).read_line(&mut line)?;
            let digits = line.split(';').next().unwrap_or_default().trim();
            let size = u64::from_str_radix(digits, 16).map_err(|_| bad("chunk size"))?;
            if size == 0 {
                // Trailers, up to the empty line.
                while line.trim() != "" {
                    line.clear();
                    reader.by_ref().take(1024).read_line(&mut line)?;
                }
                return Ok(());
            }
            copy_exactly(reader, size, each)?;
            line.clear();
            reader.by_ref().take(2).read_line(&mut line)?;
        },
    }
}

fn copy_exactly(
    reader: &mut impl BufRead,
    mut left: u64,
    each: &mut dyn FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    while left > 0 {
        let piece = reader.fill_buf()?;
        if piece.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let taken = (piece.len() as u64).min(left) as usize;
        each(&piece[..taken])?;
        reader.consume(taken);
        left -= taken as u64;
    }
    Ok(())
}

/// Writes a piece of a body.
pub fn write_piece(sink: &mut impl Write, chunked: bool, piece: &[u8]) -> io::Result<()> {
    if piece.is_empty() {
        return Ok(()); // as a chunk it would be the end
    }
    if chunked {
        write!(sink, "{:x}\r\n", piece.len())?;
        sink.write_all(piece)?;
        return sink.write_all(b"\r\n");
    }
    sink.write_all(piece)
}

/// Writes the end of a body.
pub fn finish_body(sink: &mut impl Write, chunked: bool) -> io::Result<()> {
    if chunked {
        sink.write_all(b"0\r\n\r\n")?;
    }
    Ok(())
}
