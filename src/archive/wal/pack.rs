//! Compressing one file with several threads: pieces of it become whole frames, which follow each other in order.

use crate::codec::{Compression, Compressor};
use crate::disk::File;
use crate::error::{Error, Kind, Result};
use crate::limits::WAL_FRAME_BYTES;
use crate::work::crew;
use crate::work::stop::Stop;
use crossbeam_channel::{Receiver, Sender, bounded};
use std::os::unix::fs::FileExt;

/// A frame, and how many bytes are in it.
type Frame = (Vec<u8>, u64);

/// Hands the file's first `size` bytes to `each` as frames, in order; answers how many bytes the file really had, at
/// most one more than `size`.
///
/// Piece n goes to lane n modulo `threads`, and comes back from there: the order needs no sorting, and no lane can run
/// ahead of the slowest.
pub fn frames(
    file: &File,
    size: u64,
    compression: Compression,
    threads: usize,
    each: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<u64> {
    let pieces = size.div_ceil(WAL_FRAME_BYTES).max(1);
    let threads = (threads.max(1) as u64).min(pieces) as usize;
    crew::run(&Stop::new(), |crew| {
        let mut lanes = Vec::new();
        for n in 0..threads {
            let (offsets, todo) = bounded::<u64>(1);
            let (done, frames) = bounded::<Frame>(1);
            crew.spawn(format!("compress-{n}"), move || {
                lane(file, size, compression, &todo, &done)
            })?;
            lanes.push((offsets, frames));
        }
        let submit = |lanes: &[(Sender<u64>, Receiver<Frame>)], piece: u64| {
            let offset = piece * WAL_FRAME_BYTES;
            let lane = &lanes[piece as usize % threads].0;
            lane.send(offset).map_err(|_| ended())
        };
        for piece in 0..threads as u64 {
            submit(&lanes, piece)?;
        }
        let mut total = 0;
        for piece in 0..pieces {
            let (frame, raw) = lanes[piece as usize % threads]
                .1
                .recv()
                .map_err(|_| ended())?;
            if piece + (threads as u64) < pieces {
                submit(&lanes, piece + threads as u64)?;
            }
            total += raw;
            each(&frame)?;
        }
        Ok(total)
    })
}

/// One thread's share of the pieces.
fn lane(
    file: &File,
    size: u64,
    compression: Compression,
    todo: &Receiver<u64>,
    done: &Sender<Frame>,
) -> Result<()> {
    let mut compressor = Compressor::new(compression)?;
    let mut raw = Vec::new();
    for offset in todo {
        // The last piece looks one byte further: a file that became longer must not pass.
        let last = size - offset <= WAL_FRAME_BYTES;
        let wanted = (size - offset).min(WAL_FRAME_BYTES) + u64::from(last);
        raw.resize(wanted as usize, 0);
        let count = read_full(file, offset, &mut raw)?;
        let mut frame = Vec::with_capacity(count / 3);
        compressor.frame(&raw[..count], &mut frame)?;
        if done.send((frame, count as u64)).is_err() {
            return Ok(());
        }
    }
    Ok(())
}

/// Fills `into` from `offset` on as far as the file goes.
fn read_full(file: &File, offset: u64, into: &mut [u8]) -> Result<usize> {
    let mut filled = 0;
    while filled < into.len() {
        match file.read_at(&mut into[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Error::io("could not read the source", e)),
        }
    }
    Ok(filled)
}

/// The error of the lane counts, not this echo.
fn ended() -> Error {
    Error::new(
        Kind::Interrupted,
        "interrupted: a compressing thread has ended",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{Method, decoder};
    use std::io::{Read, Write};

    #[test]
    fn the_frames_are_the_file_in_every_codec_and_number_of_threads() {
        let mut file = tempfile::tempfile().unwrap();
        let frame = WAL_FRAME_BYTES as usize;
        for size in [0, 1, frame - 1, frame, frame + 1, 3 * frame, 5 * frame + 7] {
            let bytes: Vec<u8> = (0..size).map(|n| (n / 3 * 7 % 251) as u8).collect();
            file.set_len(0).unwrap();
            std::io::Seek::rewind(&mut file).unwrap();
            file.write_all(&bytes).unwrap();
            for method in Method::ALL {
                for threads in [0, 1, 2, 3, 8] {
                    let compression = Compression::new(method, None).unwrap();
                    let mut stored = Vec::new();
                    let total = frames(&file, size as u64, compression, threads, &mut |frame| {
                        stored.extend_from_slice(frame);
                        Ok(())
                    });
                    assert_eq!(total.unwrap(), size as u64);
                    if size == 0 {
                        continue; // an empty frame is no object
                    }
                    let mut back = Vec::new();
                    let stored = std::io::Cursor::new(stored);
                    decoder(method, stored).read_to_end(&mut back).unwrap();
                    assert!(back == bytes, "{method} {size} {threads}");
                }
            }
        }
    }

    #[test]
    fn a_file_of_another_length_shows() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![7; 3 << 20]).unwrap();
        let compression = Compression::new(Method::Zstd, None).unwrap();
        let size = 3u64 << 20;
        for (said, found) in [
            (size, size),
            (size - 1, size),
            (size + 9, size),
            (size - 9, size - 8),
        ] {
            let total = frames(&file, said, compression, 2, &mut |_| Ok(())).unwrap();
            assert_eq!(total, found, "{said}");
        }
    }

    #[test]
    fn what_the_taker_says_ends_it() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![7; 9 << 20]).unwrap();
        let compression = Compression::new(Method::Zstd, None).unwrap();
        let error = frames(&file, 9 << 20, compression, 3, &mut |_| {
            Err(Error::new(Kind::Exists, "there"))
        });
        assert_eq!(error.unwrap_err().kind(), Kind::Exists);
    }
}
