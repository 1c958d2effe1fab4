//! The desktop: `imgfs open` with stand-ins for its programs, and the files that lead there.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::fat::{Scratch, tool};
use crate::program::{Said, Untouched, imgfs, is_root, mount_of, project, said, testimage};

/// A desktop whose file manager and notifications are lists of words.
struct Desktop {
    scratch: Scratch,
    programs: PathBuf,
}

impl Desktop {
    fn new() -> Self {
        let scratch = Scratch::new();
        let programs = scratch.path("bin");
        let desktop = Self { scratch, programs };
        for folder in [&desktop.programs, &desktop.scratch.path("run")] {
            std::fs::create_dir(folder).unwrap();
        }
        for name in ["xdg-open", "notify-send"] {
            let (program, said) = (desktop.programs.join(name), desktop.scratch.path(name));
            std::fs::write(&program, format!("#!/bin/sh\necho \"$@\" >>{}\n", said.display())).unwrap();
            std::fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
        }
        desktop
    }

    fn open(&self, words: &[&str]) -> Said {
        let path = std::env::var("PATH").unwrap();
        let mut command = imgfs();
        command.env("PATH", format!("{}:{path}", self.programs.display()));
        command.env("XDG_RUNTIME_DIR", self.scratch.path("run")).arg("open").args(words);
        said(command.output().unwrap())
    }

    /// Opens an image, and says where it is mounted.
    fn mount(&self, words: &[&str]) -> Mounted {
        let said = self.open(words);
        assert_eq!(said.code, Some(0), "{}", said.err);
        let at = PathBuf::from(said.out.trim_end_matches('\n'));
        let run = if is_root() { "/run/imgfs-mounts".into() } else { self.scratch.path("run/imgfs-mounts") };
        assert_eq!(at.parent(), Some(run.as_path()));
        Mounted { at, run: self.scratch.path("run") }
    }

    fn heard(&self, program: &str) -> String {
        std::fs::read_to_string(self.scratch.path(program)).unwrap_or_default()
    }
}

/// Unmounted with the test. Only the program's own runtime folder says when the daemon is gone.
struct Mounted {
    at: PathBuf,
    run: PathBuf,
}

impl Mounted {
    fn unmount(&self) -> Said {
        said(imgfs().env("XDG_RUNTIME_DIR", &self.run).arg("umount").arg(&self.at).output().unwrap())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if mount_of(&self.at).is_some() {
            let said = self.unmount();
            assert!(said.code == Some(0) || std::thread::panicking(), "{}", said.err);
        }
        drop(std::fs::remove_dir(&self.at));
    }
}

/// An image with a name that no other test has: root's mounts are all in one folder.
fn image(folder: &Path, test: &str) -> PathBuf {
    std::fs::create_dir_all(folder).unwrap();
    let image = folder.join(format!("{test}, {}.img", std::process::id()));
    std::fs::rename(testimage("demo.img", folder), &image).unwrap();
    image
}

#[test]
fn open_mounts_read_only_and_shows_the_file_manager() {
    let desktop = Desktop::new();
    let image = image(&desktop.scratch.path("ro"), "read only");
    let _untouched = Untouched::new(&image);
    let first = desktop.mount(&[image.to_str().unwrap()]);
    assert_eq!(first.at.file_name(), image.file_name());
    assert_eq!(std::fs::read_to_string(first.at.join("files/etc/hostname")).unwrap(), "demo\n");
    assert!(mount_of(&first.at).unwrap().0.starts_with("ro,"));
    // The same image is not mounted twice, and another one of the same name beside it.
    assert_eq!(desktop.mount(&[image.to_str().unwrap()]).at, first.at);
    assert!(mount_of(&first.at).is_none(), "the second handle has unmounted it");
    let first = desktop.mount(&[image.to_str().unwrap()]);
    let other = self::image(&desktop.scratch.path("other"), "read only");
    let second = desktop.mount(&[other.to_str().unwrap()]);
    assert_eq!(second.at.to_str().unwrap(), format!("{} 2", first.at.display()));
    let shown = [&first.at, &first.at, &first.at, &second.at].map(|at| format!("{}\n", at.display()));
    assert_eq!(desktop.heard("xdg-open"), shown.concat());
    assert_eq!(desktop.heard("notify-send"), "");
}

#[test]
fn open_read_write_takes_changes_into_an_overlay() {
    let desktop = Desktop::new();
    let image = image(&desktop.scratch.path("rw"), "read write");
    let _untouched = Untouched::new(&image);
    let reading = desktop.mount(&[image.to_str().unwrap()]);
    let writing = desktop.mount(&["--rw", image.to_str().unwrap()]);
    assert_ne!(reading.at, writing.at);
    assert!(mount_of(&writing.at).unwrap().0.starts_with("rw,"));
    std::fs::write(writing.at.join("p1/new.txt"), "new").unwrap();
    assert_eq!(writing.unmount().code, Some(0));
    assert!(PathBuf::from(format!("{}.overlay.qcow2", image.display())).exists());
    // What is unmounted leaves an empty folder, which goes with the next mount.
    let other = self::image(&desktop.scratch.path("another"), "read write");
    let next = desktop.mount(&[other.to_str().unwrap()]);
    assert!(next.at == writing.at || !writing.at.exists());
}

#[test]
fn errors_of_open_go_to_the_desktop_as_well() {
    let desktop = Desktop::new();
    let missing = desktop.scratch.path("a <b> & c.img");
    let refused = desktop.open(&[missing.to_str().unwrap()]);
    assert!(refused.code == Some(1) && refused.err.contains("a <b> & c.img: No such file"), "{}", refused.err);
    let image = image(&desktop.scratch.path("refused"), "refused");
    std::fs::write(format!("{}.overlay.qcow2", image.display()), "no overlay").unwrap();
    let refused = desktop.open(&["--rw", image.to_str().unwrap()]);
    assert_eq!((refused.code, refused.out.as_str()), (Some(1), ""));
    let heard = desktop.heard("notify-send");
    assert!(heard.contains("-- imgfs ") && heard.contains("a &lt;b> &amp; c.img: No such file"), "{heard}");
    assert!(heard.contains(refused.err.trim_start_matches("imgfs: ").trim_end()), "{heard}\n{}", refused.err);
    assert_eq!(desktop.heard("xdg-open"), "");
    let run = if is_root() { "/run/imgfs-mounts".into() } else { desktop.scratch.path("run/imgfs-mounts") };
    assert!(!run.join(image.file_name().unwrap()).exists(), "the mount point stays");
}

/// Types that newer versions of shared-mime-info know by another name: old, new.
const RENAMED: [(&str, &str); 2] = [
    ("application/x-raw-disk-image", "application/vnd.efi.img"),
    ("application/x-cd-image", "application/vnd.efi.iso"),
];

#[test]
fn the_desktop_files_are_valid_and_name_types_that_exist() {
    let packaging = project().join("packaging");
    let scratch = Scratch::new();
    // The database that results where nothing but shared-mime-info is there besides.
    let packages = scratch.path("packages");
    std::fs::create_dir(&packages).unwrap();
    let ours = packaging.join("imgfs-mime.xml");
    tool("libxml2-utils", "xmllint", &["--noout", ours.to_str().unwrap()]);
    std::fs::copy(&ours, packages.join("imgfs.xml")).unwrap();
    let theirs = "/usr/share/mime/packages/freedesktop.org.xml";
    std::fs::copy(theirs, packages.join("freedesktop.org.xml"))
        .unwrap_or_else(|error| panic!("{theirs} (Debian package shared-mime-info): {error}"));
    tool("shared-mime-info", "update-mime-database", &[scratch.path("").to_str().unwrap()]);
    let known = std::fs::read_to_string(scratch.path("types")).unwrap();
    for name in ["imgfs.desktop", "imgfs-read-write.desktop"] {
        let path = packaging.join(name);
        let said = tool("desktop-file-utils", "desktop-file-validate", &[path.to_str().unwrap()]);
        assert_eq!(said, "");
        let text = std::fs::read_to_string(&path).unwrap();
        for kind in text.lines().find_map(|line| line.strip_prefix("MimeType=")).unwrap().split_terminator(';') {
            // Newer names of two types that shared-mime-info has had for long.
            let other = RENAMED.iter().find_map(|&(old, new)| match kind {
                kind if kind == old => Some(new),
                kind if kind == new => Some(old),
                _ => None,
            });
            let is_known = |kind: &str| known.lines().any(|known| known == kind);
            assert!(is_known(kind) || other.is_some_and(is_known), "{name}: {kind}");
        }
    }
    let globs = std::fs::read_to_string(scratch.path("globs")).unwrap();
    for ending in ["img", "iso", "qcow2", "vhdx", "vmdk", "e01", "nrg", "d64"] {
        assert!(globs.lines().any(|line| line.ends_with(&format!(":*.{ending}"))), "{ending}");
    }
}
