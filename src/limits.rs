//! Every bound of seawall, with its unit and its reason. Nothing here depends on the size of a database.

use std::time::Duration;

/// Raw bytes that one worker reads, hashes and compresses at a time during a backup. Large enough that a frame
/// of its own costs no compression, small enough that threads × chunk stays far below the memory promise.
pub const CHUNK_BYTES: usize = 4 << 20;

/// Most files of one chunk, which keeps them open until it is packed: small relations have a page or two.
pub const CHUNK_FILES_MAX: usize = 512;

/// Raw bytes of a WAL file that become one frame, so that several threads compress it side by side. A frame of its own
/// costs a segment less than a hundredth of its size, and sixteen of them keep all threads busy to the end.
pub const WAL_FRAME_BYTES: u64 = 1 << 20;

/// Most threads that compress one WAL file: beyond four the store is what one waits for, and memory what one pays.
pub const WAL_COMPRESS_THREADS_MAX: usize = 4;

/// Stored bytes that make one piece of a multipart upload. S3 wants at least 5 MiB for all but the last and
/// allows 10,000 pieces: 8 MiB reaches 80 GB of compressed tar, far above one tar part.
pub const UPLOAD_PIECE_BYTES: usize = 8 << 20;

/// Raw bytes after which a tar part is closed. A part is the unit of parallel restore; one larger file makes a
/// larger part, because tar cannot split a member.
pub const TAR_PART_BYTES: u64 = 256 << 20;

/// Most tar parts of one backup; a larger database gets larger parts, so that listings stay short.
pub const TAR_PARTS_MAX: u64 = 10_000;

/// Pages that look bad because they were being written, kept until the end of a backup shows whether they were. A page
/// is read five times before; more than a handful means damage.
pub const EXCUSED_PAGES_MAX: usize = 10_000;

/// Largest JSON document (sentinel, metadata, identity) that is read into memory.
pub const JSON_BYTES_MAX: u64 = 64 << 20;

/// Largest file that is read whole: pg_control, backup_label, history files, configuration.
pub const SMALL_FILE_BYTES_MAX: u64 = 1 << 20;

/// The longest file that is believed to be a WAL file: the largest segment size.
pub const WAL_FILE_BYTES_MAX: u64 = 1 << 30;

/// Largest single message accepted from PostgreSQL.
pub const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// Largest message accepted before the server has let us in: its longest is an error text.
pub const LOGIN_MESSAGE_BYTES_MAX: usize = 64 << 10;

/// Bytes of one query's result that are held in memory; every query of ours asks for a few rows.
pub const RESULT_BYTES_MAX: usize = 64 << 20;

/// Notices of one connection that are kept; all are logged.
pub const NOTICES_MAX: usize = 1_000;

/// Parameters of one session that the server may report; today there are fourteen.
pub const PARAMETERS_MAX: usize = 200;

/// How long a request to cancel a statement may take, all in all.
pub const CANCEL_TIMEOUT: Duration = Duration::from_secs(1);

/// How long the few bytes of a status update may wait for the socket to take them. Only a server that has read nothing
/// for thousands of updates makes them wait at all.
pub const STATUS_SEND_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the server may take to end a copy after we have ended it: two results and what it had under way.
pub const COPY_END_TIMEOUT: Duration = Duration::from_secs(10);

/// Buffer for copying between descriptors; 256 KiB fits the second level cache and beats 1 MiB.
pub const COPY_BUFFER_BYTES: usize = 256 << 10;

/// A temporary file in an archive that nobody has written to for so long belongs to a writer that was killed: every
/// living one writes within its request timeout.
pub const STORE_TEMP_AGE: Duration = Duration::from_secs(24 * 3600);

/// The same beside the DEST of wal-fetch, where a file is written in seconds.
pub const DEST_TEMP_AGE: Duration = Duration::from_secs(3600);

/// Batches of received WAL that may wait for the writer: with those of one socket read each, some MiB, enough to keep it
/// busy during the reader's next wake-up and small against what a commit waits for.
pub const RECEIVE_QUEUE_BATCHES: usize = 32;

/// Bytes that the writer takes before it syncs although more has gathered: what arrives without end must not keep
/// waiting commits from their acknowledgement.
pub const RECEIVE_SYNC_BYTES: u64 = 4 << 20;

/// How long the reader waits for a writer that takes nothing (no room) before it leaves: a server that shuts down waits
/// for its receivers, so one that cannot receive must go. The slot keeps what follows.
pub const RECEIVE_PAUSE_MAX: Duration = Duration::from_secs(10);

/// First pause before a new connection; it doubles up to `RECONNECT_PAUSE_MAX`.
pub const RECONNECT_PAUSE_FIRST: Duration = Duration::from_millis(500);

/// Longest pause before a new connection; pg_receivewal's is 5 s.
pub const RECONNECT_PAUSE_MAX: Duration = Duration::from_secs(5);

/// How long a receiver asks the archive for what it has before it receives without it: what the server holds back for us
/// fills its disk, and synchronous commits wait.
pub const ARCHIVE_ASK_MAX: Duration = Duration::from_secs(5);

/// How long `wal-push` still archives what waits once its own file is archived: PostgreSQL waits for it, and a server
/// that shuts down too.
pub const AHEAD_TIME_MAX: Duration = Duration::from_secs(10);

/// If its own file took longer than this, nothing is gained by taking others along: their time would be over first.
pub const AHEAD_OWN_MAX: Duration = Duration::from_secs(2);

/// How many segments are compressed side by side while they wait for their turn to be sent: memory for each.
pub const AHEAD_JOBS_MAX: usize = 2;

/// How long what a `wal-push` noted of segments that it archived ahead is believed: PostgreSQL asks within seconds.
pub const LEDGER_AGE_MAX: Duration = Duration::from_secs(3600);

/// How long a request to a store still goes on once it is to be ended: enough to take back a begun upload where the
/// store answers, and short against the second in which a receiver ends.
pub const STORE_STOP_GRACE: Duration = Duration::from_millis(200);

/// Zeros that are written into a new segment file between two syncs, after each of which the stop is looked at.
pub const FILL_SYNC_BYTES: u64 = 16 << 20;

/// Keys per LIST page; S3 gives no more.
pub const LIST_PAGE_KEYS: usize = 1_000;

/// LIST pages without a key, one after the other, before a listing is given up: it does not come to its end.
pub const LIST_EMPTY_PAGES_MAX: u32 = 20;

/// Names of one directory of a file archive that are held in memory. A directory with more is read anew for each so
/// many, so a larger number saves time in long listings; names take some 100 bytes.
pub const LIST_NAMES_MAX: usize = 10_000;

/// First pause of a retry; it doubles up to `RETRY_PAUSE_MAX`, with jitter.
pub const RETRY_PAUSE_FIRST: Duration = Duration::from_millis(100);

/// Longest pause between two tries.
pub const RETRY_PAUSE_MAX: Duration = Duration::from_secs(10);

/// How long a TCP or TLS connection may take.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Largest body of an error or of another small answer of a store; the real ones are below 4 KiB.
pub const ERROR_BODY_BYTES_MAX: u64 = 64 << 10;

/// Largest LIST page: a thousand keys of a thousand bytes, each byte encoded as three, with room for the rest.
pub const LIST_PAGE_BYTES_MAX: u64 = 8 << 20;
