//! Opening an overlay that someone else made, reading through it, writing to it.
#![no_main]

use std::path::Path;
use std::sync::Arc;

use imgfs::device::memory::Memory;
use imgfs::device::overlay::store::{MemoryStore, Store};
use imgfs::device::overlay::{Base, Options, Overlay};
use imgfs::device::{BlockDevice, Device};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let store = MemoryStore::default();
    store.write_at(data, 0).unwrap();
    let disk: Device = Arc::new(Memory::new(vec![7; 1 << 20], 512));
    let base = Base { disk, path: "base.img".into(), format: "raw".to_owned() };
    let options = Options { force: true, ..Options::default() };
    let Ok(overlay) = Overlay::open_in(Box::new(store), Path::new("fuzz.qcow2"), &base, &options) else { return };
    let overlay = Arc::new(overlay);
    let disk: Device = overlay.clone();
    imgfs_fuzz::read_some(&disk);
    if let Some(writer) = overlay.writer() {
        let end = overlay.size().saturating_sub(100);
        let _ = (writer.write_all_at(b"abc", 5), writer.write_all_at(b"abc", end), writer.flush());
    }
    imgfs_fuzz::read_some(&disk);
});
