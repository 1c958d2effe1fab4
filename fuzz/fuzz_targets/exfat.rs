//! The whole walk of a volume, with reads.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| imgfs_fuzz::walk_volume(&imgfs::filesystem::exfat::FORMAT, data));
