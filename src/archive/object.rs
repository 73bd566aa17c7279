//! Writing one object whose size is not known before: a single PUT if it fits into an upload piece, else an
//! upload in pieces, so that memory does not grow with the object.

use super::sentinel::Object;
use crate::codec::digest::{Sha256, hex};
use crate::codec::{Compression, Encoder};
use crate::error::{Result, from_io};
use crate::limits::UPLOAD_PIECE_BYTES;
use crate::store::{Key, Store, Upload, When};
use std::io::Write;

/// Compresses what is written to it into a new object.
pub struct ObjectWriter<'a> {
    encoder: Encoder<Sink<'a>>,
    codec: String,
    raw_bytes: u64,
}

impl Write for ObjectWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let count = self.encoder.write(bytes)?;
        self.raw_bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.encoder.flush()
    }
}

struct Sink<'a> {
    store: &'a dyn Store,
    key: Key,
    when: When,
    piece: Vec<u8>,
    sent: u64,
    pieces: u32,
    /// Of what was stored; none where nobody asks for it.
    digest: Option<Sha256>,
    upload: Option<Box<dyn Upload>>,
    hold: Option<Ready<'a>>,
}

/// Asked before the first byte is sent.
type Ready<'a> = Box<dyn FnOnce() -> Result<()> + Send + 'a>;

impl<'a> ObjectWriter<'a> {
    /// Nothing reaches the store before a whole piece is filled.
    pub fn new(
        store: &'a dyn Store,
        key: Key,
        compression: Compression,
    ) -> Result<ObjectWriter<'a>> {
        ObjectWriter::held(store, key, compression, || Ok(()))
    }

    /// The same, and before the first byte is sent `ready` is asked; compression need not wait for it.
    pub fn held(
        store: &'a dyn Store,
        key: Key,
        compression: Compression,
        ready: impl FnOnce() -> Result<()> + Send + 'a,
    ) -> Result<ObjectWriter<'a>> {
        let sink = Sink::new(store, key, When::Absent, Box::new(ready));
        ObjectWriter::into_sink(sink, compression)
    }

    /// Replaces what has the name, in one step. `front` goes before the frames as it is: a frame without content.
    pub fn replacing(
        store: &'a dyn Store,
        key: Key,
        compression: Compression,
        front: &[u8],
    ) -> Result<ObjectWriter<'a>> {
        let mut sink = Sink::new(store, key, When::Always, Box::new(|| Ok(())));
        sink.digest = Some(Sha256::new());
        sink.write_all(front)
            .map_err(|e| from_io("could not send the object", e))?;
        ObjectWriter::into_sink(sink, compression)
    }

    fn into_sink(mut sink: Sink<'a>, compression: Compression) -> Result<ObjectWriter<'a>> {
        sink.digest.get_or_insert_default();
        Ok(ObjectWriter {
            encoder: Encoder::new(compression, sink)?,
            codec: compression.method.to_string(),
            raw_bytes: 0,
        })
    }

    /// Makes the object appear; `Kind::Exists` if there is one.
    pub fn finish(self) -> Result<Object> {
        let mut sink = self.encoder.finish()?;
        let key = sink.key.to_string();
        let digest = sink.digest.take().unwrap_or_default();
        let stored_bytes = sink.finish()?;
        let sha256 = hex(&digest.finish());
        Ok(Object {
            key,
            stored_bytes,
            raw_bytes: self.raw_bytes,
            sha256,
            codec: self.codec,
            key_id: None,
        })
    }
}

/// Stores frames that were compressed elsewhere as a new object.
pub struct FrameWriter<'a>(Sink<'a>);

impl<'a> FrameWriter<'a> {
    /// Before the first byte is sent `ready` is asked; compression need not wait for it.
    pub fn held(
        store: &'a dyn Store,
        key: Key,
        ready: impl FnOnce() -> Result<()> + Send + 'a,
    ) -> FrameWriter<'a> {
        FrameWriter(Sink::new(store, key, When::Absent, Box::new(ready)))
    }

    /// The next frame, whole.
    pub fn frame(&mut self, frame: &[u8]) -> Result<()> {
        self.0
            .write_all(frame)
            .map_err(|e| from_io("could not send the object", e))
    }

    /// Makes the object appear and answers its stored bytes; `Kind::Exists` if there is one.
    pub fn finish(self) -> Result<u64> {
        self.0.finish()
    }
}

impl<'a> Sink<'a> {
    fn new(store: &'a dyn Store, key: Key, when: When, ready: Ready<'a>) -> Sink<'a> {
        Sink {
            store,
            key,
            when,
            piece: Vec::new(),
            sent: 0,
            pieces: 0,
            digest: None,
            upload: None,
            hold: Some(ready),
        }
    }

    fn wait(&mut self) -> Result<()> {
        self.hold.take().map_or(Ok(()), |ready| ready())
    }

    fn send_piece(&mut self) -> Result<()> {
        self.wait()?;
        let upload = match &mut self.upload {
            Some(upload) => upload,
            none => none.insert(self.store.begin(&self.key, self.when)?),
        };
        upload.piece(self.pieces, self.sent, &self.piece)?;
        self.sent += self.piece.len() as u64;
        self.pieces += 1;
        self.piece.clear();
        Ok(())
    }

    fn finish(mut self) -> Result<u64> {
        self.wait()?;
        if self.upload.is_some() && !self.piece.is_empty() {
            self.send_piece()?;
        }
        match self.upload {
            Some(upload) => upload.finish(self.pieces, self.sent).map(|()| self.sent),
            None => self
                .store
                .put(&self.key, &self.piece, self.when)
                .map(|()| self.piece.len() as u64),
        }
    }
}

impl Write for Sink<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if let Some(digest) = &mut self.digest {
            digest.update(bytes);
        }
        self.piece.extend_from_slice(bytes);
        if self.piece.len() > UPLOAD_PIECE_BYTES {
            self.send_piece()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
