//! What every codec must do, for all of them.

use super::*;
use std::io::Cursor;

fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15u64;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect()
}

fn compression(method: Method) -> Compression {
    Compression::new(method, None).unwrap()
}

fn frames(method: Method, parts: &[&[u8]]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut compressor = Compressor::new(compression(method)).unwrap();
    parts
        .iter()
        .for_each(|part| compressor.frame(part, &mut out).unwrap());
    out
}

fn decode(method: Method, object: &[u8]) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    decoder(method, std::io::Cursor::new(object.to_vec()))
        .read_to_end(&mut out)
        .map_err(|e| from_io("decoding", e))?;
    Ok(out)
}

#[test]
fn what_goes_in_comes_out() {
    for method in Method::ALL {
        for raw in [
            noise(0),
            noise(1),
            noise(65_536),
            noise(3_000_001),
            vec![7; 5_000_000],
        ] {
            assert!(
                decode(method, &frames(method, &[&raw])).unwrap() == raw,
                "{method} {}",
                raw.len()
            );
            let mut encoder = Encoder::new(compression(method), Vec::new()).unwrap();
            raw.chunks(1000)
                .for_each(|chunk| encoder.write_all(chunk).unwrap());
            assert!(
                decode(method, &encoder.finish().unwrap()).unwrap() == raw,
                "{method} stream {}",
                raw.len()
            );
        }
        let all = [noise(10), noise(0), noise(100_000)].concat();
        assert!(
            decode(method, &frames(method, &[&noise(10), &[], &noise(100_000)])).unwrap() == all,
            "{method}"
        );
    }
}

#[test]
fn an_object_cut_anywhere_is_refused() {
    let raw = noise(300);
    for method in Method::ALL {
        let borders: Vec<usize> = (1..=3)
            .map(|n| frames(method, &vec![&raw[..]; n]).len())
            .collect();
        let object = frames(method, &[&raw, &raw, &raw]);
        for cut in 0..object.len() {
            let result = decode(method, &object[..cut]);
            if borders.contains(&cut) {
                // A shorter object of whole frames is a valid object; sizes and digests are checked above.
                assert!(result.is_ok(), "{method} {cut}");
            } else {
                assert_eq!(
                    result.unwrap_err().kind(),
                    Kind::Corrupt,
                    "{method} cut at {cut} of {}",
                    object.len()
                );
            }
        }
    }
}

#[test]
fn nothing_may_follow_the_last_frame() {
    for method in Method::ALL {
        for tail in [
            &b"x"[..],
            b"\0",
            b"\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
            b"trailing garbage of some length",
        ] {
            let object = [frames(method, &[b"data"]), tail.to_vec()].concat();
            assert_eq!(
                decode(method, &object).unwrap_err().kind(),
                Kind::Corrupt,
                "{method} {tail:?}"
            );
        }
    }
}

#[test]
fn a_flipped_bit_never_gives_other_bytes() {
    let raw = [noise(60), vec![5; 300]].concat();
    for method in Method::ALL {
        let object = frames(method, &[&raw]);
        for bit in 0..object.len() * 8 {
            let mut damaged = object.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            if let Ok(out) = decode(method, &damaged) {
                assert!(out == raw, "{method} bit {bit}");
            }
        }
    }
}

struct Dripping(std::io::Cursor<Vec<u8>>, usize, Option<usize>);

impl Read for Dripping {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.2.is_some_and(|at| self.0.position() as usize >= at) {
            return Err(Error::new(Kind::Transient, "connection reset").into());
        }
        let count = out.len().min(self.1);
        self.0.read(&mut out[..count])
    }
}

#[test]
fn the_size_of_reads_does_not_matter_and_an_outage_stays_one() {
    let raw = noise(2000);
    for method in Method::ALL {
        let object = frames(method, &[&raw, &raw]);
        for step in [1, 7, 64] {
            let mut out = Vec::new();
            decoder(
                method,
                Dripping(io::Cursor::new(object.clone()), step, None),
            )
            .read_to_end(&mut out)
            .unwrap();
            assert!(
                out == [raw.clone(), raw.clone()].concat(),
                "{method} {step}"
            );
        }
        for at in [0, 1, object.len() / 2, object.len()] {
            let mut out = Vec::new();
            let result = decoder(
                method,
                Dripping(io::Cursor::new(object.clone()), 1, Some(at)),
            )
            .read_to_end(&mut out);
            assert_eq!(
                from_io("x", result.unwrap_err()).kind(),
                Kind::Transient,
                "{method} {at}"
            );
        }
    }
}

#[test]
fn levels_are_checked() {
    for (method, level, fine) in [
        (Method::Zstd, 19, true),
        (Method::Zstd, -7, true),
        (Method::Zstd, 20, false),
        (Method::Zstd, 0, false),
        (Method::Gzip, 9, true),
        (Method::Gzip, -1, false),
        (Method::Lz4, 1, true),
        (Method::Lz4, 3, false),
    ] {
        assert_eq!(
            Compression::new(method, Some(level)).is_ok(),
            fine,
            "{method} {level}"
        );
    }
    for method in Method::ALL {
        assert_eq!(Method::from_extension(method.extension()), Some(method));
        assert_eq!(method.to_string().parse::<Method>().unwrap(), method);
    }
}

#[test]
fn many_frames_in_any_sizes_and_reads_of_any_size() {
    let noise = noise(4_000_000);
    for method in Method::ALL {
        let mut compressor = Compressor::new(compression(method)).unwrap();
        let (mut object, mut raw) = (Vec::new(), Vec::new());
        for length in [1, 0, 0, 65_536, 1, 3_000_001, 0, 1 << 20, (1 << 20) + 1, 7] {
            for part in [&noise[..length], &vec![length as u8; length]] {
                compressor.frame(part, &mut object).unwrap();
                raw.extend_from_slice(part);
            }
        }
        assert!(decode(method, &object).unwrap() == raw, "{method}");
        // Stored bytes come in pieces of 64 KiB, raw bytes leave in odd ones.
        let mut reader = decoder(method, Dripping(Cursor::new(object), 64 << 10, None));
        let (mut found, mut buffer) = (Vec::new(), vec![0; 9973]);
        loop {
            match reader.read(&mut buffer).unwrap() {
                0 => break,
                count => found.extend_from_slice(&buffer[..count]),
            }
        }
        assert!(found == raw, "{method}");
        assert_eq!(
            reader.read(&mut buffer).unwrap(),
            0,
            "the end stays the end"
        );
    }
}

#[test]
fn an_object_of_three_frames_is_cut_at_every_byte_and_grows_by_every_byte() {
    let parts = [noise(70), vec![3; 500], noise(1)];
    for method in Method::ALL {
        let object = frames(method, &parts.each_ref().map(|part| &part[..]));
        for byte in 0..=255 {
            let longer = [&object[..], &[byte]].concat();
            let error = decode(method, &longer).unwrap_err();
            assert_eq!(error.kind(), Kind::Corrupt, "{method} {byte}");
        }
        // The same through the streaming encoder, whose only frame has no border inside.
        let mut encoder = Encoder::new(compression(method), Vec::new()).unwrap();
        encoder.write_all(&parts.concat()).unwrap();
        let object = encoder.finish().unwrap();
        for cut in 0..object.len() {
            let error = decode(method, &object[..cut]).unwrap_err();
            assert_eq!(error.kind(), Kind::Corrupt, "{method} cut at {cut}");
            let what = if cut == 0 {
                "is empty"
            } else {
                "before its end mark"
            };
            assert!(error.message().contains(what), "{method} {cut}: {error}");
        }
    }
}

#[test]
fn an_encoder_that_is_dropped_leaves_no_whole_object() {
    for method in Method::ALL {
        let mut out = Vec::new();
        let mut encoder = Encoder::new(compression(method), &mut out).unwrap();
        encoder.write_all(&noise(300_000)).unwrap();
        encoder.flush().unwrap();
        drop(encoder);
        assert_eq!(
            decode(method, &out).unwrap_err().kind(),
            Kind::Corrupt,
            "{method}"
        );
    }
}

struct Failing(Cursor<Vec<u8>>, io::ErrorKind);

impl Read for Failing {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        match self.0.read(out)? {
            0 => Err(io::Error::new(self.1, "the wire broke")),
            count => Ok(count),
        }
    }
}

#[test]
fn an_error_of_the_input_passes_unchanged_wherever_it_comes() {
    for method in Method::ALL {
        let object = frames(method, &[&noise(50), &[7; 400]]);
        for cut in 0..=object.len() {
            for kind in [
                io::ErrorKind::UnexpectedEof,
                io::ErrorKind::TimedOut,
                io::ErrorKind::InvalidData,
                io::ErrorKind::Other,
            ] {
                let input = Failing(Cursor::new(object[..cut].to_vec()), kind);
                let mut reader = decoder(method, input);
                let error = reader.read_to_end(&mut Vec::new()).unwrap_err();
                assert_eq!(error.kind(), kind, "{method} {cut}");
                assert_eq!(error.to_string(), "the wire broke", "{method} {cut}");
                // Whoever reads on gets neither an end nor a verdict of damage.
                let again = reader.read(&mut [0; 10]).unwrap_err();
                assert_eq!(from_io("x", again).kind(), Kind::Bug, "{method} {cut}");
            }
        }
    }
}

struct Interrupting(Cursor<Vec<u8>>, bool);

impl Read for Interrupting {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.1 = !self.1;
        match self.1 {
            true => Err(io::ErrorKind::Interrupted.into()),
            false => self.0.read(&mut out[..1]),
        }
    }
}

#[test]
fn an_interrupted_read_is_no_failure() {
    for method in Method::ALL {
        let object = frames(method, &[&noise(50), &[7; 400]]);
        let mut out = Vec::new();
        decoder(method, Interrupting(Cursor::new(object), false))
            .read_to_end(&mut out)
            .unwrap();
        assert_eq!(out, [noise(50), vec![7; 400]].concat(), "{method}");
    }
}

#[test]
fn an_error_of_the_output_passes_too() {
    struct Full;
    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    for method in Method::ALL {
        let mut encoder = Encoder::new(compression(method), Full).unwrap();
        let error = encoder.write_all(&noise(3_000_000)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull, "{method}");
        let encoder = Encoder::new(compression(method), Full).unwrap();
        assert_eq!(
            encoder.finish().err().unwrap().kind(),
            Kind::Full,
            "{method}"
        );
    }
}

#[test]
fn a_zstd_frame_tells_its_size_and_has_a_checksum() {
    let frame = frames(Method::Zstd, &[&noise(70_000)]);
    // RFC 8878, frame header descriptor: size field of 4 bytes, single segment, content checksum.
    assert_eq!(frame[4] & 0b1010_0100, 0b1010_0100);
    assert_eq!(frame[5..9], 70_000u32.to_le_bytes());
}

#[test]
fn zstd_frames_without_content_are_skipped_and_are_no_object() {
    let skippable = [&[0x5A, 0x2A, 0x4D, 0x18, 3, 0, 0, 0][..], b"abc"].concat();
    let frame = frames(Method::Zstd, &[b"data"]);
    for object in [
        [&skippable[..], &frame].concat(),
        [&frame[..], &skippable].concat(),
        [&skippable[..], &skippable, &frame].concat(),
    ] {
        for step in [1, 3, 1000] {
            let mut out = Vec::new();
            decoder(
                Method::Zstd,
                Dripping(Cursor::new(object.clone()), step, None),
            )
            .read_to_end(&mut out)
            .unwrap();
            assert_eq!(out, b"data");
        }
    }
    for object in [&skippable[..], &[&skippable[..], &skippable].concat()] {
        let error = decode(Method::Zstd, object).unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt);
        assert!(error.message().contains("is empty"), "{error}");
    }
}

#[test]
fn a_zstd_window_is_bounded_and_the_refusal_says_so() {
    // Magic number, no flags, a window of 2^(10 + n) bytes, an empty last block.
    let object = |n: u8| [0x28, 0xB5, 0x2F, 0xFD, 0, n << 3, 1, 0, 0];
    assert_eq!(decode(Method::Zstd, &object(17)).unwrap(), b"");
    let error = decode(Method::Zstd, &object(18)).unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt);
    assert!(error.to_string().contains("128 MiB"), "{error}");
}

#[test]
fn an_empty_lz4_block_is_not_the_end() {
    // Header with content checksum, then blocks of no content.
    let header = &frames(Method::Lz4, &[b""])[..7];
    let end = &frames(Method::Lz4, &[b""])[7..];
    let stored_empty = &[0, 0, 0, 0x80][..];
    let packed_empty = &[1, 0, 0, 0, 0][..];
    for block in [stored_empty, packed_empty] {
        let whole = [header, block, block, end].concat();
        assert_eq!(decode(Method::Lz4, &whole).unwrap(), b"");
        for cut in 1..whole.len() {
            let error = decode(Method::Lz4, &whole[..cut]).unwrap_err();
            assert_eq!(error.kind(), Kind::Corrupt, "cut at {cut}");
        }
    }
}

#[test]
fn damage_is_placed() {
    let mut object = frames(Method::Zstd, &[b"first", b"second"]);
    let second = frames(Method::Zstd, &[b"first"]).len();
    object[second] ^= 1;
    let text = decode(Method::Zstd, &object).unwrap_err().to_string();
    assert!(text.contains(&format!("byte {second}")), "{text}");
    assert!(text.contains("goes on after its last frame"), "{text}");
}
