//! Ctrl-C in the middle of a large job: nothing half-written stays, and the job can be done again.
//!
//! Packages: coreutils.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::disks::Scratch;
use crate::program::{imgfs, ok, sha256, within};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Everything in a folder and below it.
fn listing(folder: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(folder).unwrap().flatten() {
        found.insert(entry.path().display().to_string());
        if entry.path().is_dir() {
            found.extend(listing(&entry.path()));
        }
    }
    found
}

/// Starts the program, and interrupts it as soon as something new of this size is in the folder.
fn interrupted(folder: &Path, size: u64, args: &[&str]) {
    let before = listing(folder);
    let mut child =
        imgfs().args(args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the program starts");
    let grown = || {
        let new = listing(folder).into_iter().filter(|path| !before.contains(path));
        new.into_iter().any(|path| fs::metadata(path).is_ok_and(|found| found.is_file() && found.len() >= size))
    };
    assert!(within(Duration::from_secs(60), grown), "imgfs {args:?} makes nothing");
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let status = child.wait().unwrap();
    // As whoever waits for it has to be told: a shell ends its script then.
    assert_eq!(status.signal(), Some(Signal::INT.as_raw()), "imgfs {args:?}: {status}");
    assert_eq!(listing(folder), before, "imgfs {args:?}");
}

#[test]
fn an_interrupted_job_leaves_nothing_and_can_be_done_again() {
    let scratch = Scratch::new();
    let (image, file) = (scratch.path("disk.img"), scratch.path("big"));
    ok(&["create", text(&image), "--size", "600M"]);
    scratch.sh("coreutils", "head -c 250M /dev/urandom > big; mkdir out work");
    let before = sha256(&image);
    let files = format!("{}:/files/", text(&image));
    let overlay = format!("{}.overlay.qcow2", text(&image));
    let large = 16 << 20;
    let top = scratch.folder();
    // Into an image, through a new overlay, and into the image itself.
    interrupted(top, large, &["cp", text(&file), &files]);
    interrupted(top, large, &["cp", "--in-place", text(&file), &files]);
    assert_eq!(sha256(&image), before);
    ok(&["cp", text(&file), &files]);
    // Into an overlay that is there: what was in it stays, and no part of a file is beside it.
    let more = scratch.path("more");
    fs::rename(&file, &more).unwrap();
    let size = fs::metadata(&overlay).unwrap().len();
    let mut child = imgfs().args(["cp", text(&more), &files]).stderr(Stdio::null()).spawn().unwrap();
    assert!(within(Duration::from_secs(60), || fs::metadata(&overlay).unwrap().len() > size + large));
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(Signal::INT.as_raw()));
    assert_eq!(ok(&["ls", &format!("{overlay}:/files")]), "big\n");
    // Out of it.
    let work = scratch.path("work");
    let patch = work.join("patch");
    interrupted(&work, large, &["export", &overlay, "--patch", text(&patch)]);
    let new = work.join("new.img");
    interrupted(&work, 1, &["commit", &overlay, "-o", text(&new)]);
    interrupted(&work, large, &["commit", &overlay, "-o", text(&new), "--format", "qcow2"]);
    interrupted(&work, 1, &["cp", "-a", &format!("{overlay}:/files/big"), text(&work)]);
    interrupted(&work, 1, &["create", text(&work.join("blank")), "--size", "1T"]);
    ok(&["export", &overlay, "--patch", text(&patch)]);
    ok(&["commit", &overlay, "-o", text(&new)]);
    ok(&["cp", "-a", &format!("{overlay}:/files/big"), text(&work)]);
    assert_eq!(sha256(&work.join("big")), sha256(&more));
    ok(&["create", text(&work.join("blank")), "--size", "1M"]);
    assert_eq!(sha256(&image), before);
}

#[test]
fn a_new_file_takes_no_name_that_is_taken() {
    let scratch = Scratch::new();
    let image = scratch.write("disk.img", b"somebody's");
    let refused = crate::program::run(&["create", text(&image), "--size", "1M"]);
    assert!(refused.code == Some(1) && refused.err.contains("File exists"), "{}", refused.err);
    assert_eq!(fs::read(&image).unwrap(), b"somebody's");
    assert_eq!(listing(scratch.folder()).len(), 1);
}
