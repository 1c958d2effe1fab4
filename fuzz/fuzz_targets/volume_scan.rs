//! Partition tables, and whatever decoder finds something in a volume.
#![no_main]

use imgfs::{filesystem, volume};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let disk = imgfs_fuzz::disk(data);
    let Ok(Some(scan)) = volume::scan(&disk) else { return };
    for volume in scan.volumes.iter().take(32) {
        imgfs_fuzz::read_some(&volume.device);
        if let Ok(Some((_, tree))) = filesystem::open(&volume.device, &filesystem::Options::default()) {
            let _ = tree.summary();
        }
    }
});
