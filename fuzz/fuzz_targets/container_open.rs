//! Opening any container, and reading from the disk in it. Containers are files of the host: the
//! bytes are put into one that has no name.
#![no_main]

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::OnceLock;

use imgfs::container::{self, Options};
use libfuzzer_sys::fuzz_target;

/// The crate for CHD panics on damage, which our decoder takes for an answer: no reason to stop.
fn pass_what_is_guarded() {
    let stop = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !panic.location().is_some_and(|place| place.file().contains("/chd-")) {
            stop(panic);
        }
    }));
}

fuzz_target!(|data: &[u8]| {
    static FILE: OnceLock<(File, PathBuf)> = OnceLock::new();
    let (file, path) = FILE.get_or_init(|| {
        pass_what_is_guarded();
        let path = std::env::temp_dir().join(format!("imgfs-fuzz-{}", std::process::id()));
        let file = File::options().create(true).truncate(true).read(true).write(true).open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        (file, path.into())
    });
    file.set_len(0).unwrap();
    file.write_all_at(data, 0).unwrap();
    if let Ok(opened) = container::open(path, &Options { cache_size: 1 << 20, ..Options::default() }) {
        imgfs_fuzz::read_some(&opened.disk);
    }
});
