//! Command lines as people type them: slips, missing things, the wrong order. Each answer is one
//! sentence that says what to do.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use crate::disks::Scratch;
use crate::program::{imgfs, mount_of, ok, said, testimage};

/// A folder with `demo.img`, `mnt/` and what else is named; command lines run in it.
struct Desk(Scratch);

impl Desk {
    fn new() -> Self {
        let scratch = Scratch::new();
        testimage("demo.img", &scratch.path(""));
        std::fs::create_dir(scratch.path("mnt")).unwrap();
        Self(scratch)
    }

    /// The exit status, and all that was said.
    fn says(&self, line: &str) -> (Option<i32>, String) {
        let said = said(imgfs().current_dir(self.0.folder()).args(line.split(' ')).output().unwrap());
        (said.code, format!("{}{}", said.out, said.err))
    }

    fn refuses(&self, line: &str, sentence: &str) {
        let (code, text) = self.says(line);
        assert_eq!((code, text.trim_end()), (Some(1), format!("imgfs: {sentence}").as_str()), "imgfs {line}");
    }
}

#[test]
fn a_slip_in_the_name_of_a_command_or_an_image_is_answered_with_what_was_meant() {
    let desk = Desk::new();
    for (line, advice) in [
        ("lss demo.img", "lss: no image is there, and no command is called so; did you mean `imgfs ls`?"),
        ("verfy demo.img", "verfy: no image is there, and no command is called so; did you mean `imgfs verify`?"),
        (
            "frobnicate demo.img",
            "frobnicate: no image is there, and no command is called so; `imgfs --help` lists the commands",
        ),
    ] {
        assert_eq!(desk.says(line), (Some(2), format!("imgfs: {advice}\n")));
    }
    desk.refuses("ls nosuch.img", "nosuch.img: No such file or directory (os error 2)");
    desk.refuses("nosuch.img mnt", "nosuch.img: No such file or directory (os error 2)");
    desk.refuses(
        "ls demo.img/files/etc",
        "demo.img/files/etc: what is in an image comes after a colon: demo.img:/files/etc",
    );
    desk.refuses("ls -", "-: an image is read from any place at any time, which a pipe cannot do: put it into a file");
    desk.refuses("ls demo.img:/nosuch", "demo.img:/nosuch: no such file or directory");
    desk.refuses("mnt demo.img", "mnt: is a directory: the image comes first, then the mount point");
    desk.0.sh("coreutils", "mkfifo pipe");
    desk.refuses("demo.img pipe", "pipe: neither a folder nor a file: nothing is mounted there");
    desk.refuses("ls pipe", "pipe: is neither a file nor a block device");
    desk.refuses("cat demo.img", "demo.img is a whole image: its bytes are demo.img:/disk.img");
    desk.refuses("cat demo.img:/p2/notes", "demo.img:/p2/notes is a symbolic link to home/ada/notes.txt");
    desk.refuses(
        "demo.img nosuch",
        "nosuch (the mount point has to be there: mkdir it): No such file or directory (os error 2)",
    );
    let (code, text) = desk.says("cp demo.img:/files/etc/hostname");
    assert!(code == Some(2) && text.contains("imgfs cp [OPTIONS] IMAGE:/PATH... DEST"), "{text}");
}

#[test]
fn a_part_without_a_tree_says_why_nothing_is_in_it() {
    let desk = Desk::new();
    desk.0.sh("dosfstools", "mkfs.fat -C f.img 1440 > /dev/null");
    let (code, text) = desk.says("ls -o codepage=9999 f.img:/disk");
    assert!(code == Some(1) && text.contains("(disk has no tree: ") && text.contains("9999"), "{text}");
    desk.0.write("zeros.img", &[0; 65536]);
    desk.refuses(
        "ls zeros.img:/disk/x",
        "zeros.img:/disk/x (disk has no file system that imgfs knows): no such file or directory",
    );
}

#[test]
fn what_cannot_be_had_of_several_things_does_not_keep_the_others_from_their_turn() {
    let desk = Desk::new();
    let missing = "imgfs: demo.img:/files/no: no such file or directory\n";
    let nowhere = "imgfs: no.img: No such file or directory (os error 2)\n";
    let (code, text) = desk.says("cat demo.img:/files/no no.img demo.img:/files/etc/hostname");
    assert_eq!((code, text), (Some(1), format!("demo\n{missing}{nowhere}")));
    let (code, text) = desk.says("ls demo.img:/files/no no.img demo.img:/files/etc/hostname");
    assert_eq!((code, text), (Some(1), format!("hostname\n{missing}{nowhere}")));
    let (code, text) = desk.says("ls --json demo.img:/files/no demo.img:/files/etc/hostname");
    assert!(code == Some(1) && text.contains("\"hostname\"") && text.ends_with(missing), "{text}");
    let (code, text) = desk.says("cp demo.img:/files/no no.img demo.img:/files/etc demo.img:/files/etc/hostname mnt");
    assert_eq!(
        (code, text),
        (Some(1), format!("{missing}{nowhere}imgfs: demo.img:/files/etc is a directory: add -r or -a\n"))
    );
    assert_eq!(std::fs::read(desk.0.path("mnt/hostname")).unwrap(), b"demo\n");
    // A directory does not take the place of a file.
    let (code, text) = desk.says("cp -r demo.img:/files/etc mnt/hostname");
    assert_eq!((code, text.as_str()), (Some(1), "imgfs: hostname: something that is no directory is there already\n"));
    assert_eq!(std::fs::read(desk.0.path("mnt/hostname")).unwrap(), b"demo\n");
}

#[test]
fn output_that_cannot_be_written_is_an_error_of_every_command() {
    let desk = Desk::new();
    for line in [
        "ls demo.img",
        "cat demo.img:/files/etc/hostname demo.img:/files/etc/hostname",
        "info demo.img",
        "tree demo.img",
        "hash demo.img",
        "manifest demo.img",
        "completions bash",
    ] {
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let output = imgfs().current_dir(desk.0.folder()).args(line.split(' ')).stdout(full).output().unwrap();
        let said = said(output);
        assert!(said.code == Some(1) && said.err.lines().count() == 1, "{line}: {said:?}");
        assert!(said.err.contains("No space left on device"), "{line}: {said:?}");
    }
}

#[test]
fn an_image_in_the_place_of_its_overlay_is_told_from_it() {
    let desk = Desk::new();
    ok(&["create", desk.0.path("f.img").to_str().unwrap(), "--size", "1440K"]);
    assert_eq!(desk.says("mkdir f.img:/disk/NEW").0, Some(0));
    for line in ["diff f.img", "overlay info f.img", "discard f.img", "commit f.img --in-place"] {
        desk.refuses(line, "f.img: that is an image: its overlay is f.img.overlay.qcow2");
    }
    // An overlay over an overlay is no slip.
    assert_eq!(desk.says("mkdir f.img.overlay.qcow2:/disk/MORE").0, Some(0));
    assert_eq!(desk.says("diff f.img.overlay.qcow2").0, Some(0));
}

#[test]
fn a_mount_point_is_taken_once_and_an_image_names_its_mount() {
    let desk = Desk::new();
    let at = desk.0.path("mnt");
    assert_eq!(desk.says("demo.img mnt"), (Some(0), String::new()));
    let image = desk.0.path("demo.img");
    assert_eq!(mount_of(&at).unwrap().2, image.to_str().unwrap(), "the source is the image's whole path");
    let taken = format!("mnt: {} is mounted there already: `imgfs umount mnt` ends that", image.display());
    desk.refuses("demo.img mnt", &taken);
    // As umount(8) takes a device, and with its letters.
    assert_eq!(desk.says("umount demo.img"), (Some(0), String::new()));
    assert!(mount_of(&at).is_none());
    let nothing = format!("{}: nothing is mounted there; `imgfs list` shows what is", image.display());
    desk.refuses("umount demo.img", &nothing);
    for line in ["umount -l mnt", "unmount mnt"] {
        assert_eq!(desk.says("demo.img mnt"), (Some(0), String::new()));
        assert_eq!(desk.says(line), (Some(0), String::new()));
    }
    std::fs::create_dir(desk.0.path("two")).unwrap();
    assert_eq!((desk.says("demo.img mnt").0, desk.says("demo.img two").0), (Some(0), Some(0)));
    desk.refuses("umount demo.img", &format!("{}: mounted 2 times; `imgfs list` shows where", image.display()));
    assert_eq!(desk.says("umount mnt two"), (Some(0), String::new()));
}

#[test]
fn an_image_whose_name_is_not_utf_8_is_mounted_and_listed() {
    let scratch = Scratch::new();
    let image = testimage("demo.img", &scratch.path(""));
    let odd = scratch.folder().join(OsStr::from_bytes(b"ba\xffd.img"));
    std::fs::rename(image, &odd).unwrap();
    let at = scratch.path("mnt");
    std::fs::create_dir(&at).unwrap();
    let mount = imgfs().arg(&odd).arg(&at).output().unwrap();
    assert_eq!(said(mount).code, Some(0));
    assert_eq!(std::fs::read_to_string(at.join("files/etc/hostname")).unwrap(), "demo\n");
    let value: serde_json::Value = serde_json::from_str(&ok(&["list", "--json"])).unwrap();
    let row = value["mounts"].as_array().unwrap().iter().find(|row| row["mountpoint"] == at.to_str().unwrap()).unwrap();
    assert!(row["process"].is_number() && row["image_hex"].as_str().unwrap().ends_with("6261ff642e696d67"), "{row}");
    ok(&["umount", at.to_str().unwrap()]);
}

#[test]
fn a_reader_that_goes_away_ends_every_listing_without_a_word() {
    let desk = Desk::new();
    for line in [
        "ls -R demo.img",
        "tree demo.img",
        "cat demo.img:/disk.img",
        "manifest demo.img",
        "hash --files demo.img",
        "info demo.img",
    ] {
        let shell = |script: &str| {
            let program = imgfs().get_program().to_owned();
            let script = script.replace("LINE", line);
            let mut bash = std::process::Command::new("bash");
            said(bash.env("IMGFS", program).args(["-c", &script]).current_dir(desk.0.folder()).output().unwrap())
        };
        let left = shell("\"$IMGFS\" LINE 2> said | head -c 1 > /dev/null; echo ${PIPESTATUS[0]}; cat said");
        assert_eq!(left.out, "0\n", "{line}");
        // A full disk is an error, and said.
        let full = shell("\"$IMGFS\" LINE > /dev/full");
        assert!(full.code == Some(1) && full.err.contains("No space left on device"), "{line}: {}", full.err);
    }
}

mod as_root {
    use super::*;

    #[test]
    fn what_may_not_be_looked_at_is_not_said_to_be_missing() {
        crate::program::needs_root();
        let desk = Desk::new();
        let program = desk.0.path("imgfs");
        std::fs::copy(imgfs().get_program(), &program).unwrap();
        let prepare = "chmod 755 . imgfs; mkdir closed; cp demo.img closed; chmod 700 closed";
        desk.0.sh("coreutils", prepare);
        let line = "runuser -u nobody -- ./imgfs ls closed/demo.img 2>&1 || true";
        let answer = desk.0.sh("util-linux", line);
        assert_eq!(answer, "imgfs: closed/demo.img: Permission denied (os error 13)\n");
    }
}
