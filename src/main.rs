//! Parses, runs, prints the error chain, sets the exit code.
#![forbid(unsafe_code)]
#![warn(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing))]

mod cli;

fn main() -> std::process::ExitCode {
    cli::run(std::env::args_os())
}
