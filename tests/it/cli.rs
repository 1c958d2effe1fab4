//! The commands that need no mount, as a user meets them: what they say, make, and refuse.

use std::fs::symlink_metadata as lstat;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};

use crate::fat::{Scratch, tool};
use crate::program::{Untouched, imgfs, ok, project, run, sha256, testimage};

struct Case {
    // Before the folder, which takes the image away.
    _untouched: Untouched,
    image: PathBuf,
    scratch: Scratch,
}

impl Case {
    fn new(name: &str) -> Self {
        let scratch = Scratch::new();
        let image = testimage(name, &scratch.path(""));
        Self { _untouched: Untouched::new(&image), image, scratch }
    }

    /// IMAGE:/path
    fn at(&self, path: &str) -> String {
        format!("{}:{path}", self.image.display())
    }

    fn dest(&self) -> String {
        let dest = self.scratch.path("dest");
        std::fs::create_dir_all(&dest).unwrap();
        dest.to_str().unwrap().to_owned()
    }
}

#[test]
fn info_names_the_file_systems_that_it_does_not_read() {
    let scratch = Scratch::new();
    let image = scratch.path("foreign.img");
    let path = image.to_str().unwrap();
    std::fs::write(&image, vec![0; 4 << 20]).unwrap();
    assert!(ok(&["info", path]).contains("  no file system that imgfs knows: only disk.img\n"));
    tool("util-linux", "mkswap", &[path]);
    assert!(ok(&["info", path]).contains("  swap space, which imgfs does not read: only disk.img\n"));
    let refused = run(&["mount", "-o", "tree", path, scratch.path("").to_str().unwrap()]);
    assert!(refused.code != Some(0) && refused.err.contains("swap space, which imgfs"), "{}", refused.err);
}

#[test]
fn of_more_file_systems_than_there_are_trees_the_rest_keeps_its_bytes() {
    let scratch = Scratch::new();
    let (floppy, image) = (scratch.path("floppy.img"), scratch.path("many.img"));
    tool("dosfstools", "mkfs.fat", &["-C", "-i", "12345678", floppy.to_str().unwrap(), "64"]);
    std::fs::File::create(&image).unwrap().set_len(40 << 20).unwrap();
    let rows: Vec<String> = (1..=300).map(|row| format!("-n{row}:{}:+64K", 128 + row * 128)).collect();
    let words: Vec<&str> = rows.iter().map(String::as_str).chain([image.to_str().unwrap()]).collect();
    tool("gdisk", "sgdisk", &[&["-S", "300", "-a", "1"], words.as_slice()].concat());
    let disk = std::fs::File::options().write(true).open(&image).unwrap();
    for row in 1..=300 {
        disk.write_all_at(&std::fs::read(&floppy).unwrap(), (128 + row * 128) * 512).unwrap();
    }
    let listed = ok(&["ls", image.to_str().unwrap()]);
    let has = |name: &str| listed.lines().any(|line| line == name);
    assert!(has("p255") && has("p255.img") && !has("p256") && has("p256.img") && has("p300.img"), "{listed}");
    let links = ok(&["ls", "-l", &format!("{}:/by-uuid", image.display())]);
    assert_eq!(links.lines().count(), 255);
    assert!(links.contains(" 1234-5678-255 -> ../p255\n"), "{links}");
    let said = "no tree: forest: a tree after the first 255 of an image is not supported";
    assert_eq!(ok(&["info", image.to_str().unwrap()]).matches(said).count(), 45);
}

#[test]
fn info_says_what_an_image_is_and_how_that_is_known() {
    let case = Case::new("demo.img");
    let text = ok(&["info", case.image.to_str().unwrap()]);
    for line in [
        "GPT partition table, 2 rows, identifier 4F68BCE3-E8CD-4DB1-96E7-FBCAF984B703",
        "p1: 262144 bytes (256.0 KiB) from byte 32768, type C12A7328-F81F-11D2-BA4B-00A0C93EC93B \"boot\"",
        "  byte 1080: superblock magic number = 53 ef",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in:\n{text}");
    }
    let value: serde_json::Value =
        serde_json::from_str(&ok(&["info", "--json", "--stats", case.image.to_str().unwrap()])).unwrap();
    assert_eq!(value["shape"], "imgfs-info");
    assert_eq!((&value["size"], &value["container"]["format"]), (&(1 << 20).into(), &"raw".into()));
    assert_eq!((&value["main"], &value["partition_table"]["type"]), (&"p2".into(), &"gpt".into()));
    let (p1, p2) = (&value["parts"][1], &value["parts"][2]);
    assert_eq!((&p1["tree"]["label"], &p2["tree"]["label"]), (&"EFI".into(), &"root".into()));
    assert_eq!((&p2["offset"], &p2["entry"]["slot"]), (&327_680.into(), &2.into()));
    assert!(value["cache"]["misses"].as_u64().unwrap() > 0);
}

#[test]
fn nothing_of_an_image_reaches_a_terminal_or_json_raw() {
    let scratch = Scratch::new();
    // A label that turns the line round and clears the screen.
    let image = scratch.path("label.img");
    let label = "\u{202e}gpj.\u{9b}2J";
    std::fs::File::create(&image).unwrap().set_len(1 << 20).unwrap();
    tool("e2fsprogs", "mke2fs", &["-q", "-L", label, image.to_str().unwrap()]);
    for flags in [&["info"][..], &["info", "--json"]] {
        let said = ok(&[flags, &[image.to_str().unwrap()]].concat());
        let raw = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
        assert!(!said.contains(raw), "{said:?}");
        assert!(said.contains("gpj."), "{said:?}");
    }
    let json: serde_json::Value = serde_json::from_str(&ok(&["info", "--json", image.to_str().unwrap()])).unwrap();
    assert_eq!(json["parts"][0]["tree"]["label"], label, "the escapes of JSON mean the same text");
    // A word of the user comes back in the error.
    let said = run(&["ls", "no\u{1b}[2Jsuch.img"]);
    assert!(said.err.contains("\\u{1b}") && !said.err.contains('\u{1b}'), "{:?}", said.err);
}

#[test]
fn what_goes_through_all_trees_says_which_one_is_missing() {
    let case = Case::new("demo.img");
    let image = case.scratch.path("damaged.img");
    std::fs::copy(&case.image, &image).unwrap();
    // The size of a block in the superblock of the second partition.
    let disk = std::fs::File::options().write(true).open(&image).unwrap();
    disk.write_all_at(&[0xff; 4], 640 * 512 + 1024 + 0x18).unwrap();
    let _untouched = Untouched::new(&image);
    let image = image.to_str().unwrap();
    let dest = case.dest();
    let whole = format!("{image}:/");
    let reason = "ext: superblock (block size) at byte 1024 is damaged";
    for args in [
        &["manifest", image][..],
        &["manifest", "--json", image],
        &["manifest", "--format", "dfxml", image],
        &["tree", image],
        &["tree", "--json", image],
        &["hash", "--files", image],
        &["ls", "-R", image],
        &["ls", "-R", "--json", &whole],
        &["cp", "-a", &whole, &dest],
    ] {
        let said = run(args);
        let expected = format!("imgfs: p2 has no tree: {reason}; p2.img has its bytes\n");
        assert_eq!((said.code, said.err), (Some(1), expected), "{args:?}");
        match args {
            ["manifest", _] => assert!(said.out.contains(&format!("\n# unreadable: p2: {reason}\n")), "{}", said.out),
            ["manifest", "--format", ..] => assert!(said.out.contains(&format!("<!-- unreadable: p2: {reason} -->"))),
            _ => {}
        }
    }
    assert!(Path::new(&dest).join("p1/startup.nsh").exists());
    // Whoever asks for the other one is not troubled.
    ok(&["manifest", &format!("{image}:/p1")]);
    ok(&["ls", image]);
}

#[test]
fn a_partition_past_the_end_of_a_cut_image_is_missing_with_a_word() {
    let case = Case::new("demo.img");
    let image = case.scratch.path("cut.img");
    std::fs::copy(&case.image, &image).unwrap();
    // Before the first byte of the second partition.
    std::fs::File::options().write(true).open(&image).unwrap().set_len(320 * 1024).unwrap();
    let _untouched = Untouched::new(&image);
    let image = image.to_str().unwrap();
    let reason = "its 655360 bytes from byte 327680 on lie past the end of the disk";
    let said = run(&["manifest", image]);
    assert_eq!((said.code, said.err), (Some(1), format!("imgfs: p2 is missing: {reason}\n")));
    assert!(said.out.contains(&format!("\n# unreadable: p2: {reason}\n")), "{}", said.out);
    assert!(said.out.contains("p1/startup.nsh\tfile\t23\t"), "{}", said.out);
    assert_eq!(run(&["ls", "-R", image]).code, Some(1));
}

/// What a command shows on a terminal, as bytes.
fn on_a_terminal(args: &[&str]) -> Vec<u8> {
    let program = imgfs().get_program().to_str().unwrap().to_owned();
    let words: Vec<String> = args.iter().map(|word| format!("'{word}'")).collect();
    let line = format!("TERM=xterm '{program}' {} 2>/dev/null", words.join(" "));
    let output = std::process::Command::new("script").args(["-qec", &line, "/dev/null"]).output();
    output.expect("script (Debian package bsdutils) runs").stdout
}

#[test]
fn no_name_of_an_image_steers_a_terminal() {
    let scratch = Scratch::new();
    let (folder, image) = (scratch.path("folder"), scratch.path("names.img"));
    std::fs::create_dir(&folder).unwrap();
    let name = "a\u{1b}[2J\u{202e}\\b";
    std::fs::write(folder.join(name), b"x").unwrap();
    std::fs::File::create(&image).unwrap().set_len(1 << 20).unwrap();
    let image = image.to_str().unwrap();
    tool("e2fsprogs", "mke2fs", &["-q", "-d", folder.to_str().unwrap(), image]);
    for args in [
        &["manifest"][..],
        &["manifest", "--format", "bagit"],
        &["manifest", "--format", "bodyfile"],
        &["manifest", "--format", "dfxml"],
        &["hash", "--files"],
        &["ls", "-R"],
    ] {
        let shown = on_a_terminal(&[args, &[image]].concat());
        let steers = |what: &str| shown.windows(what.len()).any(|bytes| bytes == what.as_bytes());
        assert!(steers("u{1b}[2J"), "{args:?}: {}", String::from_utf8_lossy(&shown));
        assert!(!steers("\u{1b}[2J") && !steers("\u{202e}"), "{args:?}");
    }
    // To a pipe go the bytes of the name.
    let listed = ok(&["manifest", "--format", "bagit", &format!("{image}:/disk")]);
    assert!(listed.contains(&format!("data/disk/{name}\n")), "{listed:?}");
}

#[test]
fn a_pipe_is_said_to_be_no_image() {
    let mut command = imgfs();
    command.args(["info", "/dev/stdin"]).stdin(std::process::Stdio::piped());
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let child = command.spawn().unwrap();
    let said = crate::program::said(child.wait_with_output().unwrap());
    assert_eq!(said.code, Some(1));
    assert!(said.err.contains("neither a file nor a block device") && !said.err.contains("rights"), "{}", said.err);
    // What the sandbox does not let be opened at all.
    let said = run(&["info", "/dev/zero"]);
    assert_eq!((said.code, said.err.as_str()), (Some(1), "imgfs: /dev/zero: is neither a file nor a block device\n"));
}

#[test]
fn ls_lists_as_ls_does() {
    let case = Case::new("demo.img");
    let home = case.at("/p2/home/ada");
    assert_eq!(ok(&["ls", &home]), "notes.txt\nsparse.db\n");
    assert_eq!(ok(&["ls", "-a", &home]), ".profile\nnotes.txt\nsparse.db\n");
    let long = ok(&["ls", "-l", &home]);
    assert!(long.starts_with("-rw-r--r--  1  1000  1000        103 2026-01-02 03:04 notes.txt\n"), "{long}");
    let links = ok(&["ls", "-l", &case.at("/p2")]);
    assert!(links.contains("notes -> home/ada/notes.txt\n"), "{links}");
    let all = ok(&["ls", "-R", &case.at("/p2/home")]);
    assert_eq!(all, ".:\nada\n\nada:\nnotes.txt\nsparse.db\n");
    assert_eq!(ok(&["ls", &case.at("/by-label/root/etc")]), "hostname\nos-release\n");
}

#[test]
fn cat_writes_files_and_flat_bytes() {
    let case = Case::new("demo.img");
    assert_eq!(
        ok(&["cat", &case.at("/files/etc/hostname"), &case.at("/p2/etc/os-release")]),
        "demo\nNAME=\"Demo\"\nVERSION_ID=1\n"
    );
    let output = imgfs().args(["cat", &case.at("/p1.img")]).output().unwrap();
    assert_eq!(output.stdout, std::fs::read(&case.image).unwrap()[32_768..][..262_144]);
    let refused = run(&["cat", &case.at("/p2/etc")]);
    assert!(refused.code == Some(1) && refused.err.contains("is a directory"), "{}", refused.err);
}

#[test]
fn tree_draws_everything() {
    let case = Case::new("demo.img");
    let drawn = ok(&["tree", &case.at("/p2/home")]);
    let expected = "└── ada\n    ├── .profile\n    ├── notes.txt\n    └── sparse.db\n\n1 directories, 3 files\n";
    assert_eq!(drawn.split_once('\n').unwrap().1, expected);
}

#[test]
fn errors_name_what_is_wrong_and_what_to_do() {
    let case = Case::new("demo.img");
    let image = case.image.to_str().unwrap();
    let folder = case.scratch.path("");
    for (args, words) in [
        (vec!["ls".to_owned(), format!("{image}.gone")], "demo.img.gone: "),
        (vec!["ls".into(), folder.to_str().unwrap().into()], "director"),
        (vec!["ls".into(), case.at("/etc")], "did you mean /p2/etc?"),
        (vec!["cat".into(), case.at("/p2/none")], "/p2/none: no such file or directory"),
        (vec!["ls".into(), case.at("/p2/etc/hostname/x")], "not a directory"),
        (vec!["ls".into(), "-o".into(), "nojolit".into(), image.into()], "did you mean nojoliet?"),
        (vec!["info".into(), case.at("/p1")], "leave out the path"),
        (vec!["cp".into(), case.at("/p2/etc"), case.dest()], "is a directory: add -r or -a"),
    ] {
        let said = run(&args.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(said.code, Some(1), "{args:?}");
        assert!(said.err.starts_with("imgfs: ") && said.err.contains(words), "{args:?}: {}", said.err);
        assert_eq!(said.out, "", "{args:?}");
    }
    let usage = run(&["ls", "--nonsense", image]);
    assert!(usage.code == Some(2) && usage.err.contains("--nonsense"), "{}", usage.err);
}

#[test]
fn manifest_is_one_row_a_node() {
    let case = Case::new("demo.img");
    let text = ok(&["manifest", &case.at("/p2/etc")]);
    let rows: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    assert_eq!(rows.len(), 3, "{text}");
    assert_eq!(rows[0], "p2/etc\tdir\t0\t-");
    let hash = tool("coreutils", "bash", &["-c", "echo demo | sha256sum"]);
    assert_eq!(rows[1], format!("p2/etc/hostname\tfile\t5\t{}", hash.split(' ').next().unwrap()));
}

#[test]
fn cp_takes_times_modes_links_attributes_and_holes() {
    let case = Case::new("filesystem/ext/ext4.img");
    let dest = case.dest();
    let said = run(&["cp", "-a", &case.at("/disk"), &dest]);
    // Device nodes are not made unless asked for.
    assert_eq!(said.code, Some(1));
    assert_eq!(said.err.lines().count(), 2, "{}", said.err);
    assert!(said.err.contains("(--special makes it)"), "{}", said.err);
    let top = Path::new(&dest).join("disk");
    let stat = |name: &str| lstat(top.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
    assert!(lstat(top.join("null")).is_err() && lstat(top.join("disk")).is_err());
    assert_eq!((stat("readme.txt").mtime(), stat("docs").mtime()), (1_767_323_045, 1_767_323_045));
    assert_eq!(stat("secret").mode() & 0o7777, 0o640);
    assert_eq!(stat("bin/tool").mode() & 0o7777, 0o755, "set-id bits come with --special");
    assert_eq!((stat("hard link").ino(), stat("readme.txt").nlink()), (stat("readme.txt").ino(), 2));
    assert_eq!(std::fs::read_link(top.join("short link")).unwrap(), Path::new("docs/notes.txt"));
    assert_eq!(stat("short link").mtime(), 1_767_323_045);
    assert!(stat("pipe").file_type().is_fifo());
    assert_eq!(stat("sparse.bin").len(), 301_056);
    assert!(stat("sparse.bin").blocks() < 64, "{} blocks", stat("sparse.bin").blocks());
    let mut value = [0; 100];
    let len = rustix::fs::lgetxattr(top.join("readme.txt"), "user.comment", &mut value).unwrap();
    assert_eq!(&value[..len], b"kept");
    // The same contents as the kernel read in them.
    let truth = std::fs::read_to_string(project().join("testimages/filesystem/ext/ext4.img.truth.tsv")).unwrap();
    let rows: Vec<Vec<&str>> = truth.lines().map(|line| line.split('\t').collect()).collect();
    let files = rows.iter().filter(|row| row.get(1) == Some(&"file") && !row[0].contains('\\'));
    let compared = files.map(|row| assert_eq!(sha256(&top.join(row[0])), row[3], "{}", row[0])).count();
    assert!(compared > 20, "{compared} files");
}

/// Needs root, as ordinary users give links no attributes.
#[test]
fn cp_takes_the_attributes_of_links_and_pipes_and_says_which_are_left_out_as_root() {
    crate::program::needs_root();
    let scratch = Scratch::new();
    let (folder, image, dest) = (scratch.path("folder"), scratch.path("volume.img"), scratch.path("dest"));
    std::fs::create_dir(&folder).unwrap();
    std::fs::create_dir(&dest).unwrap();
    std::fs::write(scratch.path("aim"), b"x").unwrap();
    symlink(scratch.path("aim"), folder.join("link")).unwrap();
    tool("coreutils", "mkfifo", &[folder.join("pipe").to_str().unwrap()]);
    std::fs::File::create(&image).unwrap().set_len(4 << 20).unwrap();
    tool("e2fsprogs", "mke2fs", &["-q", "-t", "ext4", "-d", folder.to_str().unwrap(), image.to_str().unwrap()]);
    for set in [
        "/link trusted.note kept",
        "/link system.richacl lost",
        "/pipe security.note kept",
        "/pipe system.richacl lost",
    ] {
        tool("e2fsprogs", "debugfs", &["-w", "-R", &format!("ea_set {set}"), image.to_str().unwrap()]);
    }
    let _untouched = Untouched::new(&image);
    let said = run(&["cp", "-a", &format!("{}:/disk", image.display()), dest.to_str().unwrap()]);
    let expected = "imgfs: left out, as the destination refuses them: the attributes system.richacl\n";
    assert_eq!((said.code, said.err.as_str()), (Some(0), expected));
    for (name, attribute) in [("link", "trusted.note"), ("pipe", "security.note")] {
        let mut value = [0; 16];
        let len = rustix::fs::lgetxattr(dest.join("disk").join(name), attribute, &mut value).unwrap();
        assert_eq!(&value[..len], b"kept", "{name}");
    }
    assert!(rustix::fs::getxattr(scratch.path("aim"), "trusted.note", &mut [0; 16]).is_err(), "not what it leads to");
}

/// Needs root, as the files are root's.
#[test]
fn the_access_control_lists_of_discs_are_those_that_xorriso_reads_as_root() {
    crate::program::needs_root();
    let scratch = Scratch::new();
    let (folder, image, dest) = (scratch.path("folder"), scratch.path("disc.iso"), scratch.path("dest"));
    std::fs::create_dir_all(folder.join("above/d")).unwrap();
    std::fs::create_dir(&dest).unwrap();
    std::fs::write(folder.join("f"), b"x").unwrap();
    let (disc, from) = (image.to_str().unwrap(), folder.to_str().unwrap());
    let own = "u::rw,u:1234:rw,g::r,g:77:x,m::rw,o::r";
    let default = "u::rwx,g::rx,o::rx,d:u::rwx,d:u:99:rx,d:g::rx,d:m::rx,d:o::rx";
    let making = ["-acl", "on", "-outdev", disc, "-map", from, "/", "-setfacl", own, "/f", "--"];
    tool("xorriso", "xorriso", &[&making[..], &["-setfacl", default, "/above/d", "--"]].concat());
    let _untouched = Untouched::new(&image);
    ok(&["cp", "-a", &format!("{disc}:/disk"), dest.to_str().unwrap()]);
    let entries = |text: &str| -> Vec<String> {
        let parts = text.lines().filter_map(|line| line.split_once(':').map(|_| line.trim().to_owned()));
        let mut rows: Vec<String> = parts.filter(|line| line.ends_with(['r', 'w', 'x', '-'])).collect();
        rows.sort();
        rows
    };
    for (name, count) in [("f", 6), ("above/d", 8)] {
        let theirs = tool("xorriso", "xorriso", &["-acl", "on", "-indev", disc, "-getfacl", &format!("/{name}"), "--"]);
        let theirs: Vec<String> = entries(&theirs).into_iter().filter(|row| !row.contains(' ')).collect();
        let copy = dest.join("disk").join(name);
        let ours = entries(&tool("acl", "getfacl", &["-nE", "--omit-header", "-p", copy.to_str().unwrap()]));
        assert_eq!((ours.len(), &ours), (count, &theirs), "{name}");
    }
}

#[test]
fn cp_copies_one_file_under_a_new_name() {
    let case = Case::new("demo.img");
    let new = case.scratch.path("new name");
    ok(&["cp", &case.at("/p2/home/ada/notes.txt"), new.to_str().unwrap()]);
    assert_eq!(std::fs::read_to_string(&new).unwrap(), ok(&["cat", &case.at("/p2/home/ada/notes.txt")]));
    ok(&["cp", "-r", &case.at("/p1"), &case.at("/p2/etc/hostname"), &case.dest()]);
    assert!(Path::new(&case.dest()).join("p1/EFI/BOOT/BOOTX64.EFI").is_file());
    assert!(Path::new(&case.dest()).join("hostname").is_file());
}

#[test]
fn every_core_copies_and_what_cannot_be_made_costs_itself_alone() {
    let scratch = Scratch::new();
    let (folder, image) = (scratch.path("source"), scratch.path("disk.img"));
    for number in 0..300u32 {
        let below = folder.join(format!("folder{}/below", number % 7));
        std::fs::create_dir_all(&below).unwrap();
        std::fs::write(below.join(format!("{number}")), vec![number as u8; number as usize * 50]).unwrap();
    }
    // Longer than what one core takes alone, no two pages alike, with a hole.
    let words: Vec<u8> = (0..5_000_000u32).flat_map(|word| word.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let big = std::fs::File::create(folder.join("big.bin")).unwrap();
    for start in [0, 31 << 20] {
        std::os::unix::fs::FileExt::write_all_at(&big, &words, start).unwrap();
    }
    let [from, to] = [&folder, &image].map(|path| path.to_str().unwrap());
    let dated = ["folder3/below/17", "folder3/below", "folder3"];
    for (name, days) in dated.iter().zip(1..) {
        let then = std::time::UNIX_EPOCH + std::time::Duration::from_secs(days * 86_400);
        std::fs::File::open(folder.join(name)).unwrap().set_modified(then).unwrap();
    }
    tool("e2fsprogs", "mke2fs", &["-q", "-F", "-t", "ext4", "-d", from, to, "80M"]);
    let _untouched = Untouched::new(&image);
    let dest = scratch.path("dest");
    std::fs::create_dir(&dest).unwrap();
    let said = run(&["cp", "-a", &format!("{to}:/disk"), dest.to_str().unwrap()]);
    assert_eq!((said.code, said.err.as_str()), (Some(0), ""));
    let top = dest.join("disk");
    std::fs::remove_dir(top.join("lost+found")).unwrap();
    tool("diffutils", "diff", &["-r", from, top.to_str().unwrap()]);
    let blocks = |path: &Path| lstat(path.join("big.bin")).unwrap().blocks();
    assert!(blocks(&top) <= blocks(&folder) + 16, "{} of {} blocks", blocks(&top), blocks(&folder));
    for path in ["folder3/below/17", "folder3/below", "folder3"] {
        assert_eq!(
            lstat(top.join(path)).unwrap().mtime_nsec(),
            lstat(folder.join(path)).unwrap().mtime_nsec(),
            "{path}"
        );
    }
    let copy = scratch.path("big.copy");
    let out = std::fs::File::create(&copy).unwrap();
    let status = imgfs().args(["cat", &format!("{to}:/disk/big.bin")]).stdout(out).status().unwrap();
    assert!(status.success());
    assert_eq!(sha256(&copy), sha256(&folder.join("big.bin")));

    // A file stands where a directory belongs.
    std::fs::remove_dir_all(top.join("folder3")).unwrap();
    std::fs::write(top.join("folder3"), "mine").unwrap();
    std::fs::remove_file(top.join("folder6/below/20")).unwrap();
    let said = run(&["cp", "-a", &format!("{to}:/disk"), dest.to_str().unwrap()]);
    assert_eq!(said.code, Some(1));
    assert!(said.err.contains("folder3") && said.err.lines().count() == 1, "{}", said.err);
    assert_eq!(std::fs::read(top.join("folder6/below/20")).unwrap(), vec![20; 1000]);
    assert_eq!(std::fs::read(top.join("folder3")).unwrap(), b"mine");
}

/// An image whose names are changed behind mke2fs's back.
fn hostile(scratch: &Scratch, outside: &Path) -> PathBuf {
    let (folder, image) = (scratch.path("evil"), scratch.path("evil.img"));
    std::fs::create_dir_all(folder.join("evil2")).unwrap();
    std::fs::write(folder.join("XXXX"), "climbed\n").unwrap();
    std::fs::write(folder.join("evil2/file"), "through a link\n").unwrap();
    symlink(outside, folder.join("evil1")).unwrap();
    let args = ["-q", "-F", "-t", "ext2", "-b", "1024", "-O", "none,filetype", "-d"];
    let rest = [folder.to_str().unwrap(), image.to_str().unwrap(), "1M"];
    tool("e2fsprogs", "mke2fs", &[&args[..], &rest].concat());
    let mut bytes = std::fs::read(&image).unwrap();
    for (name, other) in [(b"XXXX".as_slice(), b"../x".as_slice()), (b"evil2", b"evil1")] {
        let at = bytes.windows(name.len()).position(|window| window == name).unwrap();
        bytes[at..at + name.len()].copy_from_slice(other);
    }
    std::fs::write(&image, bytes).unwrap();
    image
}

#[test]
fn cp_never_writes_outside_of_its_destination() {
    let scratch = Scratch::new();
    let outside = scratch.path("outside");
    std::fs::create_dir(&outside).unwrap();
    let image = hostile(&scratch, &outside);
    let _untouched = Untouched::new(&image);
    for option in ["-r", "-a"] {
        let dest = scratch.path(&format!("dest{option}"));
        std::fs::create_dir(&dest).unwrap();
        let said = run(&["cp", option, &format!("{}:/disk", image.display()), dest.to_str().unwrap()]);
        assert_eq!(said.code, Some(0), "names that are there twice are told apart: {}", said.err);
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0, "something was written through the link");
        assert!(!scratch.path("x").exists() && !dest.join("x").exists(), "something climbed out");
    }
    // The name with a slash is shown escaped, and copied so.
    let dest = scratch.path("climber");
    std::fs::create_dir(&dest).unwrap();
    ok(&["cp", &format!("{}:/disk/..%2Fx", image.display()), dest.to_str().unwrap()]);
    assert_eq!(std::fs::read_to_string(dest.join("..%2Fx")).unwrap(), "climbed\n");
}

#[test]
fn cp_does_not_follow_links_that_are_there_already() {
    let case = Case::new("filesystem/fat/floppy.img");
    let outside = case.scratch.path("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("victim"), "unharmed").unwrap();
    let dest = case.dest();
    symlink(&outside, Path::new(&dest).join("docs")).unwrap();
    symlink(outside.join("victim"), Path::new(&dest).join("readme.txt")).unwrap();
    let said = run(&["cp", "-r", &case.at("/disk/docs"), &dest]);
    assert_eq!(said.code, Some(1), "{}", said.err);
    ok(&["cp", &case.at("/disk/readme.txt"), &dest]);
    assert_eq!(std::fs::read_to_string(outside.join("victim")).unwrap(), "unharmed");
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 1);
    assert!(lstat(Path::new(&dest).join("readme.txt")).unwrap().is_file());
}

mod as_root {
    use super::*;

    #[test]
    fn cp_makes_device_nodes_and_owners_when_asked() {
        crate::program::needs_root();
        let case = Case::new("filesystem/ext/ext4.img");
        let dest = case.dest();
        ok(&["cp", "-a", "--special", &case.at("/disk"), &dest]);
        let stat = |name: &str| lstat(Path::new(&dest).join("disk").join(name)).unwrap();
        assert!(stat("null").file_type().is_char_device() && stat("disk").file_type().is_block_device());
        assert_eq!(stat("disk").rdev(), rustix::fs::makedev(259, 70_000));
        assert_eq!((stat("secret").uid(), stat("secret").gid()), (1000, 100));
        assert_eq!(stat("bin/tool").mode() & 0o7777, 0o4755);
        let mut value = [0; 100];
        let tool = Path::new(&dest).join("disk/bin/tool");
        assert_eq!(rustix::fs::lgetxattr(tool, "security.capability", &mut value).unwrap(), 20);
    }
}

#[test]
fn what_was_deleted_is_in_the_flat_file_alone() {
    let scratch = crate::disks::Scratch::new();
    let (deleted, slack) = ("bytes of a file that was deleted", "bytes behind the end of a file");
    scratch.sh("coreutils", &format!("echo '{deleted}' > GONE; printf 'kept{slack}' > KEPT"));
    scratch.sh("e2fsprogs", "mke2fs -q -F -t ext4 ext.img 8M; for name in GONE KEPT; do debugfs -w -R \"write $name $name\" ext.img; done 2> /dev/null");
    scratch.sh(
        "e2fsprogs",
        "debugfs -w -R 'rm GONE' ext.img; debugfs -w -R 'set_inode_field KEPT size 4' ext.img 2> /dev/null",
    );
    scratch.sh(
        "dosfstools mtools",
        "mkfs.fat -C fat.img 1440 > /dev/null; mcopy -i fat.img GONE KEPT ::; mdel -i fat.img ::GONE",
    );
    // The size of the only row that is left, in its last four bytes.
    let mut fat = std::fs::read(scratch.path("fat.img")).unwrap();
    let row = fat.windows(11).position(|bytes| bytes == b"KEPT       ").unwrap();
    fat[row + 28..row + 32].copy_from_slice(&4u32.to_le_bytes());
    scratch.write("fat.img", &fat);
    for (name, journal) in [("ext.img", true), ("fat.img", false)] {
        let image = scratch.path(name);
        let _untouched = Untouched::new(&image);
        let path = |path: &str| format!("{}:/{path}", image.display());
        let tree = ok(&["ls", "-R", "-a", &path("disk")]);
        assert!(tree.contains("KEPT") && !tree.contains("GONE") && !tree.contains("journal"), "{tree}");
        assert_eq!(ok(&["cat", &path("disk/KEPT")]), "kept");
        ok(&["cp", "-r", &path("disk"), scratch.path("").join(format!("{name}.out")).to_str().unwrap()]);
        let found = scratch.sh("grep", &format!("grep -rl 'bytes' {name}.out || true"));
        assert_eq!(found, "", "{name}");
        let flat = imgfs().args(["cat", &path("disk.img")]).output().unwrap().stdout;
        let has = |bytes: &[u8]| flat.windows(bytes.len()).any(|window| window == bytes);
        assert!(has(deleted.as_bytes()) && has(slack.as_bytes()), "{name}");
        // The first block of a journal (jbd2: c0 3b 39 98).
        assert_eq!(has(&[0xc0, 0x3b, 0x39, 0x98]), journal, "{name}");
    }
}

#[test]
fn a_bar_moves_within_a_file_and_none_is_full_before_the_work_begins() {
    let scratch = crate::disks::Scratch::new();
    let image = scratch.path("disk.img");
    let image = image.to_str().unwrap();
    ok(&["create", image, "--size", "300M"]);
    scratch.sh("coreutils", "head -c 128M /dev/urandom > big");
    ok(&["cp", scratch.path("big").to_str().unwrap(), &format!("{image}:/files/")]);
    let program = imgfs().get_program().to_str().unwrap().to_owned();
    let overlay = format!("{image}.overlay.qcow2");
    let shown = |words: &str| {
        let line = format!("{program} {words} > /dev/null || true");
        scratch.sh("bsdutils", &format!("TERM=xterm script -qec 'stty cols 100; {line}' /dev/null < /dev/null"))
    };
    for words in [
        format!("hash --files {overlay}"),
        format!("manifest {overlay}:/files"),
        format!("export {overlay} --patch {}", scratch.path("patch").display()),
    ] {
        let out = shown(&words);
        // Places that were shown: `12.00 MiB/128.00 MiB`.
        let places: std::collections::BTreeSet<&str> =
            out.split("MiB/128").filter_map(|before| before.rsplit(' ').nth(1)).collect();
        assert!(places.len() > 2, "{words}: {out}");
    }
    let out = shown(&format!("verify {image}"));
    assert!(!out.contains("0 B/0 B"), "{out}");
}
