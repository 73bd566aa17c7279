//! What every codec must do, for all of them.

use super::*;

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
    parts.iter().for_each(|part| compressor.frame(part, &mut out).unwrap());
    out
}

fn decode(method: Method, object: &[u8]) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    decoder(method, std::io::Cursor::new(object.to_vec())).read_to_end(&mut out).map_err(|e| from_io("decoding", e))?;
    Ok(out)
}

#[test]
fn what_goes_in_comes_out() {
    for method in Method::ALL {
        for raw in [noise(0), noise(1), noise(65_536), noise(3_000_001), vec![7; 5_000_000]] {
            assert!(decode(method, &frames(method, &[&raw])).unwrap() == raw, "{method} {}", raw.len());
            let mut encoder = Encoder::new(compression(method), Vec::new()).unwrap();
            raw.chunks(1000).for_each(|chunk| encoder.write_all(chunk).unwrap());
            assert!(decode(method, &encoder.finish().unwrap()).unwrap() == raw, "{method} stream {}", raw.len());
        }
        let all = [noise(10), noise(0), noise(100_000)].concat();
        assert!(decode(method, &frames(method, &[&noise(10), &[], &noise(100_000)])).unwrap() == all, "{method}");
    }
}

#[test]
fn an_object_cut_anywhere_is_refused() {
    let raw = noise(300);
    for method in Method::ALL {
        let borders: Vec<usize> = (1..=3).map(|n| frames(method, &vec![&raw[..]; n]).len()).collect();
        let object = frames(method, &[&raw, &raw, &raw]);
        for cut in 0..object.len() {
            let result = decode(method, &object[..cut]);
            if borders.contains(&cut) {
                // A shorter object of whole frames is a valid object; sizes and digests are checked above.
                assert!(result.is_ok(), "{method} {cut}");
            } else {
                assert_eq!(result.unwrap_err().kind(), Kind::Corrupt, "{method} cut at {cut} of {}", object.len());
            }
        }
    }
}

#[test]
fn nothing_may_follow_the_last_frame() {
    for method in Method::ALL {
        for tail in [&b"x"[..], b"\0", b"\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", b"trailing garbage of some length"] {
            let object = [frames(method, &[b"data"]), tail.to_vec()].concat();
            assert_eq!(decode(method, &object).unwrap_err().kind(), Kind::Corrupt, "{method} {tail:?}");
        }
    }
}

#[test]
fn a_flipped_bit_never_gives_other_bytes() {
    let raw = [noise(200), vec![5; 400]].concat();
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
            decoder(method, Dripping(io::Cursor::new(object.clone()), step, None)).read_to_end(&mut out).unwrap();
            assert!(out == [raw.clone(), raw.clone()].concat(), "{method} {step}");
        }
        for at in [0, 1, object.len() / 2, object.len()] {
            let mut out = Vec::new();
            let result = decoder(method, Dripping(io::Cursor::new(object.clone()), 1, Some(at))).read_to_end(&mut out);
            assert_eq!(from_io("x", result.unwrap_err()).kind(), Kind::Transient, "{method} {at}");
        }
    }
}

#[test]
fn levels_are_checked() {
    for (method, level, fine) in [
        (Method::Zstd, 19, true), (Method::Zstd, -7, true), (Method::Zstd, 20, false), (Method::Zstd, 0, false),
        (Method::Gzip, 9, true), (Method::Gzip, -1, false), (Method::Lz4, 1, true), (Method::Lz4, 3, false),
    ] {
        assert_eq!(Compression::new(method, Some(level)).is_ok(), fine, "{method} {level}");
    }
    for method in Method::ALL {
        assert_eq!(Method::from_extension(method.extension()), Some(method));
        assert_eq!(method.to_string().parse::<Method>().unwrap(), method);
    }
}
