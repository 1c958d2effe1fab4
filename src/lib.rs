//! imgfs opens any disk image and shows it, through FUSE and through its own commands, both as one
//! flat block file and as a browsable tree, and never changes a byte of the image.
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
pub mod container;
pub mod device;
pub mod error;
pub mod filesystem;
pub mod forest;
pub mod fuse;
pub mod stack;
pub mod text;
pub mod volume;
