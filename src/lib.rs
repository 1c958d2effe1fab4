//! imgfs opens any disk image and shows it, through FUSE and through its own commands, both as one
//! flat block file and as a browsable tree, and never changes a byte of the image unless asked to.
//!
//! # How data flows
//!
//! One way; each arrow is a constructor, and [`stack`] is the only file that spells the chain.
//!
//! ```text
//! path - device::file - container::open - device::cached - device::overlay - volume::scan -+- filesystem::open -+
//!        host bytes     qcow2, VHD, ...   LRU sector       copy-on-write,    MBR, GPT, ... |                    +- forest - fuse - kernel
//!                       or none (raw)     cache            only for -o rw    entries       +- filesystem::open -+    |
//!                                                                            checked here     FAT, ISO, ext, ...     cli (ls, cat, cp, ...)
//! ```
//!
//! An entry that [`encryption`] knows goes through it first, when there is a key, and is read-only.
//!
//! What is handed on is a [`device::BlockDevice`] (bytes) or a [`filesystem::FileSystem`] (nodes).
//! Nothing calls upwards. The forest is a file system too: flat files and trees under one root.
//! FUSE and the commands see only that.
//!
//! # Where things are
//!
//! | module | what | imports |
//! |---|---|---|
//! | [`error`], [`bytes`], [`text`], [`cache`] | the error type; checked fields; names; one sharded LRU cache for all | nothing |
//! | [`digest`], [`check`] | digests by name; what an image says about itself that can be proven | the above, device |
//! | [`device`] | random-access bytes: file, window, concatenation, mapping, memory, sector cache, overlay | the above |
//! | [`container`] | the host file's format, and the disk inside it; one file a format | device |
//! | [`volume`] | partition tables | device |
//! | [`encryption`] | encrypted volumes: LUKS, BitLocker | device |
//! | [`filesystem`] | trees of files: FAT, exFAT, ISO 9660, UDF, ext | device |
//! | [`forest`] | `disk.img disk/ p1.img p1/ ...` | device, filesystem |
//! | [`stack`] | builds all of it for one image | everything above |
//! | [`fuse`] | the kernel's requests for any file system; no format is named there | filesystem |
//!
//! Containers, volumes, encryption and file systems are siblings that never import each other. A test reads
//! the `use crate::` lines and keeps this true.
//!
//! # What always holds
//!
//! * **The image is opened read-only by every path but one:** the commit of an overlay that a user
//!   asks for by name. Writes go to the overlay, a qcow2 file with the image as its backing file.
//! * **What is answered does not fail later:** room on the host is taken before a change is made, and only where that
//!   is so does a writer go on before his bytes are in the overlay's file. A sync waits for them.
//! * **The overlay lies above the cache:** cached sectors are of the untouched image and can never
//!   be stale, so no code invalidates them.
//! * **Images are hostile.** Every loop over disk data has a bound, no allocation is sized by an
//!   unchecked field, a reference leads only into the image's own folder. A panic would be a bug,
//!   and costs one request an EIO.
//! * **Whoever decodes is confined:** the program gives up all other rights before it reads the first
//!   byte of an image (`cli/sandbox.rs`); a second process that never sees one does what needs them.
//! * **Three answers, never mixed:** not this format (`Ok(false)` of a probe), damaged
//!   ([`error::Error::Corrupt`], with structure and byte), not supported
//!   ([`error::Error::Unsupported`], with the feature). An unreadable thing is an error, never an
//!   empty folder or a file of no bytes. A directory that is damaged in part lists what it can, and
//!   then says so.
//! * **No lock is held across I/O;** everything takes `&self` and a position.
//!
//! # Adding a format
//!
//! Its file, its `mod` and its line in the table (with the reason, where order matters), its
//! fixture under `testimages/` and the lines of `scripts/make-testimages` that make it. If more
//! has to be touched, the layer above is wrong: mend that first.
//!
//! # Why the file systems are decoded here
//!
//! Measured in November 2026 on images that real tools made: `fatfs` 0.3.6 wrote a malformed
//! directory in 9 of 9 runs (`fsck.fat`), and reads about 100 random pieces of 4 KiB a second in a
//! file of 200 MB; `iso9660` 0.1.1 knows neither Joliet nor Rock Ridge, and shows files of more than
//! 4 GB twice; `ext4-view` 1.0 and `ext4` 0.9 give deleted data for preallocated extents. None has
//! `&self` reads from many threads. `fatfs` formats blank images here, which it does well.
#![forbid(unsafe_code)]
#![warn(missing_docs, rust_2018_idioms)]
#![warn(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_possible_wrap
)]
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::cast_possible_truncation
    )
)]

pub mod bytes;
pub mod cache;
pub mod check;
pub mod container;
pub mod device;
pub mod digest;
pub mod encryption;
pub mod error;
pub mod filesystem;
pub mod forest;
pub mod fuse;
pub mod stack;
pub mod text;
pub mod volume;
