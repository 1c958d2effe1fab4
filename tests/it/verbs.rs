//! The commands that make, change and describe images without a mount, against mtools, dosfstools,
//! qemu-img, cmp and the readers of partition tables.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::fat::{Scratch, Tree, by_mtools, converted, host_tree, mcopy, mkfs, pattern, tool, try_tool};
use crate::program::{Untouched, imgfs, needs_root, ok, run, sha256};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn overlay_of(image: &Path) -> PathBuf {
    format!("{}.overlay.qcow2", image.display()).into()
}

fn refused(args: &[&str], words: &str) {
    let said = run(args);
    assert_eq!(said.code, Some(1), "{args:?}: {}", said.out);
    assert_eq!(said.err.lines().count(), 1, "{args:?}: {}", said.err);
    assert!(said.err.contains(words), "{args:?}: {}", said.err);
}

/// A floppy with some files.
fn floppy(scratch: &Scratch) -> PathBuf {
    let image = scratch.path("floppy.img");
    mkfs(&image, 1440, "");
    let folder = scratch.path("first");
    drop(std::fs::create_dir_all(folder.join("docs")));
    std::fs::write(folder.join("docs/notes.txt"), pattern(3000, 1)).unwrap();
    std::fs::write(folder.join("Long name of a file.text"), pattern(9000, 2)).unwrap();
    std::fs::write(folder.join("changes.bin"), pattern(4000, 3)).unwrap();
    for name in ["docs", "Long name of a file.text", "changes.bin"] {
        mcopy(&image, &folder.join(name), "::");
    }
    image
}

fn number_after(listing: &str, label: &str) -> u64 {
    let rest = listing.split(label).nth(1).unwrap_or_else(|| panic!("no {label:?} in {listing}"));
    let word = rest.trim_start_matches([':', ' ', '=']).split_whitespace().next().unwrap();
    let (digits, radix) = word.strip_prefix("0x").map_or((word, 10), |hex| (hex, 16));
    u64::from_str_radix(digits, radix).unwrap()
}

#[test]
fn an_overlay_that_is_read_as_an_image_wants_its_own_base_and_has_its_size() {
    let scratch = Scratch::new();
    let image = floppy(&scratch);
    // A base whose size is no multiple of a sector.
    File::options().append(true).open(&image).unwrap().set_len(1_474_660).unwrap();
    let file = scratch.path("h");
    std::fs::write(&file, "h").unwrap();
    ok(&["cp", text(&file), &format!("{}:/files/", text(&image))]);
    let overlay = overlay_of(&image);
    let flat = format!("{}:/disk.img", text(&overlay));
    assert_eq!(imgfs().args(["cat", &flat]).output().unwrap().stdout.len(), 1_474_660);
    assert!(ok(&["ls", &format!("{}:/files", text(&overlay))]).contains("h\n"));
    let before = std::fs::metadata(&image).unwrap().modified().unwrap();
    let base = File::options().write(true).open(&image).unwrap();
    base.write_all_at(b"WRONG", 20_000).unwrap();
    base.set_modified(before).unwrap();
    let changed = sha256(&image);
    let why = "is not this overlay's base, or was changed since the overlay was made";
    for args in [["cat", flat.as_str()], ["ls", &flat], ["info", text(&overlay)]] {
        refused(&args, why);
    }
    let verified = run(&["verify", text(&overlay)]);
    assert!(verified.code != Some(0) && verified.err.contains(why), "{}", verified.err);
    let forced = imgfs().args(["cat", "--force-base", &flat]).output().unwrap();
    assert_eq!((forced.status.code(), forced.stdout.len()), (Some(0), 1_474_660));
    assert!(forced.stdout[20_000..].starts_with(b"WRONG"));
    refused(&["cat", &flat], why);
    assert_eq!(sha256(&image), changed);
}

#[test]
fn a_commit_in_place_that_runs_out_of_room_says_what_is_left_to_do_as_root() {
    needs_root();
    let scratch = Scratch::new();
    let (small, contents) = (scratch.path("small"), pattern(3 << 20, 9));
    std::fs::create_dir(&small).unwrap();
    tool("mount", "mount", &["-t", "tmpfs", "-o", "size=2M", "none", text(&small)]);
    let (image, whole) = (small.join("a.img"), scratch.path("whole.img"));
    mkfs(&whole, 20 * 1024, "-F 16");
    tool("coreutils", "cp", &["--sparse=always", text(&whole), text(&image)]);
    let (file, overlay) = (scratch.path("file"), scratch.path("o.q"));
    std::fs::write(&file, &contents).unwrap();
    ok(&["cp", "--overlay", text(&overlay), text(&file), &format!("{}:/files/r", text(&image))]);
    let committing = ["commit", text(&overlay), "--in-place", "--base", text(&image)];
    refused(&committing, "the image is half written, and all changes are still in");
    let patch = scratch.path("patch");
    for args in [vec!["export", text(&overlay), "--patch", text(&patch)], vec!["diff", text(&overlay)]] {
        refused(&[args, vec!["--base", text(&image)]].concat(), "run it again to finish it");
    }
    assert!(!patch.exists());
    tool("mount", "mount", &["-o", "remount,size=40M", text(&small)]);
    ok(&committing);
    assert!(imgfs().args(["cat", &format!("{}:/files/r", text(&image))]).output().unwrap().stdout == contents);
    tool("mount", "umount", &[text(&small)]);
}

#[test]
fn an_edit_in_place_that_fails_half_way_says_what_is_left_to_do() {
    let scratch = Scratch::new();
    let image = scratch.path("a.img");
    mkfs(&image, 20 * 1024, "-F 16");
    let (filler, file, contents) = (scratch.path("filler"), scratch.path("file"), pattern(100_000, 4));
    std::fs::write(&filler, pattern(3 << 20, 3)).unwrap();
    std::fs::write(&file, &contents).unwrap();
    ok(&["cp", "--in-place", text(&filler), &format!("{}:/files/filler", text(&image))]);
    assert!(!overlay_of(&image).exists());
    let place = format!("{}:/files/file", text(&image));
    // Behind the filler, and the limit lies before its end.
    let program = imgfs();
    let script = format!(
        "ulimit -f 2048; '{}' cp --in-place '{}' '{place}' 2>&1; echo $?",
        program.get_program().display(),
        text(&file)
    );
    let said = tool("bash", "bash", &["-c", &script]);
    let (overlay, image) = (overlay_of(&image), text(&image));
    let what = format!("imgfs commit {} --in-place` finishes it", text(&overlay));
    assert!(said.contains("the image is half written") && said.contains(&what) && said.ends_with("\n1\n"), "{said}");
    refused(&["cp", "--in-place", text(&file), &place], "there is an overlay with other changes");
    ok(&["commit", text(&overlay), "--in-place"]);
    assert!(imgfs().args(["cat", &place]).output().unwrap().stdout == contents);
    tool("dosfstools", "fsck.fat", &["-n", image]);
}

#[test]
fn a_commit_in_place_compares_the_whole_base_with_its_hash_first() {
    let scratch = Scratch::new();
    let image = scratch.path("a.img");
    mkfs(&image, 20 * 1024, "-F 16");
    let before = std::fs::metadata(&image).unwrap().modified().unwrap();
    ok(&["mkdir", &format!("{}:/files/NEW", text(&image))]);
    let overlay = overlay_of(&image);
    // No sample lies here, and the time says nothing.
    let base = File::options().write(true).open(&image).unwrap();
    base.write_all_at(b"CHANGED", 9_000_000).unwrap();
    base.set_modified(before).unwrap();
    let changed = sha256(&image);
    refused(&["commit", text(&overlay), "--in-place"], "its SHA-256 is another");
    assert_eq!(sha256(&image), changed);
    base.write_all_at(&[0; 7], 9_000_000).unwrap();
    base.set_modified(before).unwrap();
    ok(&["commit", text(&overlay), "--in-place"]);
    let known: serde_json::Value = serde_json::from_str(&ok(&["overlay", "info", "--json", text(&overlay)])).unwrap();
    assert_eq!(known["binding"]["sha256"], sha256(&image), "the new base is known as well as the old one was");
}

#[test]
fn floppies_of_every_size_are_as_dos_formats_them() {
    let scratch = Scratch::new();
    let file = scratch.path("file");
    std::fs::write(&file, pattern(20_000, 1)).unwrap();
    for (kib, media, heads, per_track) in [
        (160, 0xfe, 1, 8),
        (180, 0xfc, 1, 9),
        (320, 0xff, 2, 8),
        (360, 0xfd, 2, 9),
        (720, 0xf9, 2, 9),
        (1200, 0xf9, 2, 15),
        (1440, 0xf0, 2, 18),
        (1680, 0xf0, 2, 21),
        (2880, 0xf0, 2, 36),
    ] {
        let image = scratch.path(&format!("{kib}.img"));
        ok(&["create", text(&image), "--size", &format!("{kib}K"), "--label", "MY DISK"]);
        assert_eq!(std::fs::metadata(&image).unwrap().len(), kib * 1024);
        tool("dosfstools", "fsck.fat", &["-n", text(&image)]);
        let listing = tool("mtools", "minfo", &["-i", text(&image), "::"]);
        assert_eq!(number_after(&listing, "media descriptor byte"), media, "{kib}: {listing}");
        assert_eq!(number_after(&listing, "heads"), heads, "{kib}: {listing}");
        assert_eq!(number_after(&listing, "sectors per track"), per_track, "{kib}: {listing}");
        assert!(tool("mtools", "mdir", &["-i", text(&image), "::"]).contains("MY DISK"), "{kib}");
        mcopy(&image, &file, "::");
        tool("dosfstools", "fsck.fat", &["-n", text(&image)]);
        assert_eq!(ok(&["ls", &format!("{}:/files", image.display())]).trim(), "file");
        let out = scratch.path("out");
        ok(&["cp", &format!("{}:/files/file", image.display()), text(&out)]);
        assert!(std::fs::read(&out).unwrap() == pattern(20_000, 1));
        std::fs::remove_file(&out).unwrap();
    }
    refused(&["create", text(&file), "--size", "1440K"], "exists");
    refused(&["create", text(&scratch.path("x")), "--size", "1440K", "--label", "much too long a label"], "label");
    assert!(!scratch.path("x").exists());
}

#[test]
fn hard_disks_of_every_width_are_sound_with_and_without_a_table() {
    let scratch = Scratch::new();
    let file = scratch.path("file");
    std::fs::write(&file, pattern(20_000, 1)).unwrap();
    // The wish for a width is kept where the size alone would bring another about.
    for (width, size) in [("12", "8M"), ("12", "200M"), ("16", "64M"), ("16", "5M"), ("16", "2G"), ("32", "80M")] {
        for table in [None, Some("mbr"), Some("gpt")] {
            let image = scratch.path("disk.img");
            let mut args = vec!["create", text(&image), "--size", size, "--fat", width, "--label", "LABELLED"];
            args.extend(table.iter().flat_map(|table| ["--partition", table]));
            ok(&args);
            let (volume, offset) = match table {
                None => (image.clone(), ""),
                Some(_) => {
                    let volume = scratch.path("volume.img");
                    let out = text(&volume);
                    drop(std::fs::remove_file(&volume));
                    ok(&["cp", &format!("{}:/p1.img", image.display()), out]);
                    (volume, "@@1M")
                }
            };
            let checked = tool("dosfstools", "fsck.fat", &["-n", "-v", text(&volume)]);
            assert!(
                checked.contains(&format!("{width} bit")) || checked.contains(&format!("{width} bits")),
                "{checked}"
            );
            let hidden = if table.is_some() { 2048 } else { 0 };
            assert!(checked.contains(&format!("{hidden} hidden sectors")), "{checked}");
            match table {
                Some("mbr") => {
                    let dump: Value =
                        serde_json::from_str(&tool("fdisk", "sfdisk", &["--json", text(&image)])).unwrap();
                    let row = &dump["partitiontable"]["partitions"][0];
                    assert_eq!(dump["partitiontable"]["label"], "dos");
                    assert_eq!(row["start"], 2048);
                    assert_eq!(row["size"].as_u64().unwrap() * 512, std::fs::metadata(&volume).unwrap().len());
                    let kind = [("12", "1"), ("16", "e"), ("32", "c")].into_iter().find(|(of, _)| *of == width);
                    assert_eq!(row["type"], kind.unwrap().1, "{row}");
                }
                Some(_) => {
                    let verified = tool("gdisk", "sgdisk", &["-v", text(&image)]);
                    assert!(verified.contains("No problems found"), "{verified}");
                    assert!(tool("gdisk", "sgdisk", &["-i", "1", text(&image)]).contains("Microsoft basic data"));
                }
                None => {}
            }
            let at = format!("{}{offset}", text(&image));
            tool("mtools", "mcopy", &["-i", &at, text(&file), "::"]);
            let found = by_mtools(&at, &scratch);
            assert!(found["file"] == Some(pattern(20_000, 1)));
            let said = run(&["cat", &format!("{}:/files/file", image.display())]);
            assert_eq!(said.code, Some(0), "{}", said.err);
            std::fs::remove_file(&image).unwrap();
        }
    }
}

#[test]
fn what_cannot_be_created_is_refused_and_leaves_nothing() {
    let scratch = Scratch::new();
    let image = scratch.path("disk.img");
    for (words, reason) in [
        (&["--size", "8M", "--fat", "32"][..], "is FAT32"),
        (&["--size", "3G", "--fat", "12"], "is FAT12"),
        (&["--size", "1440K", "--fat", "16"], "is FAT16"),
        (&["--size", "1K"], "65536 bytes or more"),
        (&["--size", "1M", "--partition", "mbr"], "starts at byte 1048576"),
        (&["--size", "1440K", "--label", " X"], "start with a space"),
    ] {
        refused(&[&["create", text(&image)], words].concat(), reason);
        assert!(!image.exists(), "{words:?}");
    }
    ok(&["create", text(&image), "--size", "1440K", "--label", ""]);
    tool("dosfstools", "fsck.fat", &["-n", text(&image)]);
}

#[test]
fn edits_say_where_they_went_and_one_that_fails_does_not_stop_the_rest() {
    let scratch = Scratch::new();
    let image = floppy(&scratch);
    let at = |path: &str| format!("{}:/files/{path}", image.display());
    let said = run(&["mkdir", &at("a"), &at("b")]);
    assert_eq!(said.code, Some(0), "{}", said.err);
    let place = format!("imgfs: changes went to {}\n", overlay_of(&image).display());
    assert_eq!(said.err, place);
    let said = run(&["rm", "-r", &at("a"), &at("nothing"), &at("b")]);
    assert_eq!(said.code, Some(1), "{}", said.err);
    assert!(said.err.contains("nothing") && said.err.ends_with(&place), "{}", said.err);
    assert_eq!(ok(&["diff", "--files", text(&overlay_of(&image))]), "");
    refused(&["mkdir", &at("what?")], "cannot hold the name");
    // What is in a folder, as with cp(1), and another spelling of a folder's name.
    let folder = scratch.path("folder");
    std::fs::create_dir_all(folder.join("inner")).unwrap();
    std::fs::write(folder.join("inner/file"), b"text").unwrap();
    ok(&["cp", "-r", &format!("{}/.", folder.display()), &at("")]);
    ok(&["mv", &at("inner"), &at("INNER")]);
    ok(&["commit", text(&overlay_of(&image)), "--in-place"]);
    assert!(ok(&["ls", &at("")]).lines().any(|name| name == "INNER"));
    assert!(by_mtools(text(&image), &scratch).contains_key("INNER/file"));
}

#[test]
fn a_limit_on_the_size_of_files_refuses_a_write_and_does_not_end_the_program() {
    let scratch = Scratch::new();
    let image = floppy(&scratch);
    let _untouched = Untouched::new(&image);
    let file = scratch.path("large");
    std::fs::write(&file, pattern(900_000, 1)).unwrap();
    let script = format!(
        "ulimit -f 400; '{}' cp '{}' '{}:/files/' 2>&1; echo $?",
        imgfs().get_program().display(),
        file.display(),
        image.display()
    );
    let said = tool("bash", "bash", &["-c", &script]);
    assert!(said.contains("no space") && said.ends_with("1\n"), "{said}");
}

#[test]
fn a_renamed_directory_is_one_row_and_files_of_equal_contents_are_told_apart_by_their_names() {
    let scratch = Scratch::new();
    let image = floppy(&scratch);
    let folder = scratch.path("dir");
    std::fs::create_dir_all(folder.join("deep")).unwrap();
    for name in ["one", "two", "deep/three"] {
        std::fs::write(folder.join(name), name).unwrap();
    }
    std::fs::write(folder.join("empty"), b"").unwrap();
    for name in ["f1", "f2"] {
        std::fs::write(scratch.path(name), b"the same").unwrap();
    }
    let at = |path: &str| format!("{}:/files/{path}", image.display());
    let [one, two] = ["f1", "f2"].map(|name| scratch.path(name));
    ok(&["cp", "-r", text(&folder), text(&one), text(&two), &at("")]);
    ok(&["commit", text(&overlay_of(&image)), "--in-place"]);
    for (from, to) in [("dir", "other"), ("f2", "F1.new"), ("f1", "other/f1"), ("F1.new", "F2")] {
        ok(&["mv", &at(from), &at(to)]);
    }
    let listing = ok(&["diff", "--files", text(&overlay_of(&image))]);
    let mut rows: Vec<&str> = listing.lines().collect();
    rows.sort_unstable();
    assert_eq!(
        rows,
        ["renamed  disk/dir -> disk/other", "renamed  disk/f1 -> disk/other/f1", "renamed  disk/f2 -> disk/F2"]
    );
}

#[test]
fn files_go_into_an_image_and_out_of_it_without_a_mount() {
    let scratch = Scratch::new();
    let folder = scratch.path("new");
    std::fs::create_dir_all(folder.join("deep/er")).unwrap();
    std::fs::write(folder.join("deep/er/file"), pattern(30_000, 5)).unwrap();
    std::fs::write(folder.join("ünï.txt"), "text").unwrap();
    for in_place in [false, true] {
        let image = floppy(&scratch);
        let before = sha256(&image);
        let name = |path: &str| format!("{}:/{path}", image.display());
        let edit = |verb: &str, args: &[&str]| {
            let flag: &[&str] = if in_place { &["--in-place"] } else { &[] };
            ok(&[&[verb], flag, args].concat());
            assert_eq!(overlay_of(&image).exists(), !in_place);
        };
        let mut expected = by_mtools(text(&image), &scratch);
        edit("cp", &["-r", text(&folder), &name("files")]);
        for (path, bytes) in host_tree(&folder) {
            expected.insert(format!("new/{path}"), bytes);
        }
        expected.insert("new".to_owned(), None);
        edit("mkdir", &["-p", &name("files/a/b/c"), &name("disk/a/b")]);
        expected.extend(["a", "a/b", "a/b/c"].map(|path| (path.to_owned(), None)));
        edit("cp", &[text(&folder.join("ünï.txt")), &name("disk/changes.bin")]);
        expected.insert("changes.bin".to_owned(), Some(b"text".to_vec()));
        edit("mv", &[&name("disk/Long name of a file.text"), "/disk/a/short"]);
        let moved = expected.remove("Long name of a file.text").unwrap();
        expected.insert("a/short".to_owned(), moved);
        edit("mv", &[&name("files/a/short"), &name("files/new/deep")]);
        let moved = expected.remove("a/short").unwrap();
        expected.insert("new/deep/short".to_owned(), moved);
        edit("rm", &["-r", &name("disk/docs")]);
        expected.retain(|path, _| !path.starts_with("docs"));
        let whole = if in_place { image.clone() } else { converted(&overlay_of(&image), &scratch) };
        tool("dosfstools", "fsck.fat", &["-n", text(&whole)]);
        let found = by_mtools(text(&whole), &scratch);
        let list = |tree: &Tree| tree.keys().cloned().collect::<BTreeSet<_>>();
        assert_eq!(list(&found), list(&expected));
        assert!(found == expected);
        assert_eq!(sha256(&image) == before, !in_place);
        if in_place {
            std::fs::remove_file(&image).unwrap();
        } else {
            std::fs::remove_file(overlay_of(&image)).unwrap();
        }
    }
}

#[test]
fn an_edit_that_cannot_be_is_refused_and_leaves_no_overlay_behind() {
    let scratch = Scratch::new();
    let image = floppy(&scratch);
    let _untouched = Untouched::new(&image);
    let name = |path: &str| format!("{}:/{path}", image.display());
    let big = scratch.path("big");
    std::fs::write(&big, pattern(2_000_000, 1)).unwrap();
    let iso = scratch.path("cd.iso");
    tool("genisoimage", "genisoimage", &["-quiet", "-o", text(&iso), text(&scratch.path("first"))]);
    let qcow2 = scratch.path("disk.qcow2");
    tool("qemu-utils", "qemu-img", &["convert", "-O", "qcow2", text(&image), text(&qcow2)]);
    for flag in [&[][..], &["--in-place"]] {
        let edit = |verb: &str, args: &[&str], words: &str| refused(&[&[verb], flag, args].concat(), words);
        edit("rm", &[&name("files/nothing")], "no such file");
        edit("rm", &[&name("files/docs")], "add -r");
        edit("mkdir", &[&name("files/docs")], "exists");
        edit("mkdir", &[&name("files/x/y")], "no such file");
        edit("cp", &[text(&big), &name("files/big")], "no space");
        edit("cp", &[text(&scratch.path("first/docs")), &name("files/dir")], "add -r");
        edit("mv", &[&name("files/docs"), "/files/docs/inside"], "into itself");
        edit("mkdir", &[&format!("{}:/files/x", iso.display())], "read-only");
    }
    refused(&["mkdir", "--in-place", &format!("{}:/files/x", qcow2.display())], "imgfs commit -o");
    for image in [&image, &iso, &qcow2] {
        assert!(!overlay_of(image).exists(), "{}", image.display());
    }
    // With other changes in the way, nothing goes into the image.
    ok(&["mkdir", &name("files/x")]);
    refused(&["mkdir", "--in-place", &name("files/y")], "commit or discard it first");
}

/// Sectors of 512 bytes that differ, by cmp.
fn differing(one: &Path, other: &Path) -> BTreeSet<u64> {
    let (code, listing) = try_tool("diffutils", "cmp", &["-l", text(one), text(other)]);
    assert!(matches!(code, Some(0 | 1)), "{listing}");
    let offset = |line: &str| line.split_whitespace().next().unwrap().parse::<u64>().unwrap() - 1;
    listing.lines().map(|line| offset(line) / 512).collect()
}

#[test]
fn diff_names_the_sectors_and_the_files_that_differ() {
    let scratch = Scratch::new();
    let image = floppy(&scratch);
    let name = |path: &str| format!("{}:/{path}", image.display());
    let (overlay, file) = (overlay_of(&image), scratch.path("file"));
    std::fs::write(&file, pattern(2000, 8)).unwrap();
    ok(&["cp", text(&file), &name("disk/added.txt")]);
    ok(&["cp", text(&file), &name("disk/changes.bin")]);
    ok(&["mv", &name("disk/Long name of a file.text"), "/disk/docs/other.name"]);
    ok(&["rm", &name("disk/docs/notes.txt")]);
    let (overlay_name, whole) = (text(&overlay), converted(&overlay, &scratch));
    let rows = [
        ("added", "disk/added.txt", None),
        ("changed", "disk/changes.bin", None),
        ("removed", "disk/docs/notes.txt", None),
        ("renamed", "disk/Long name of a file.text", Some("disk/docs/other.name")),
    ];
    let listing = ok(&["diff", "--files", overlay_name]);
    let expected: BTreeSet<String> = rows
        .iter()
        .map(|(change, path, to)| format!("{change:<8} {path}{}", to.map_or(String::new(), |to| format!(" -> {to}"))))
        .collect();
    assert_eq!(listing.lines().map(str::to_owned).collect::<BTreeSet<_>>(), expected);
    let value: Value = serde_json::from_str(&ok(&["diff", "--json", overlay_name])).unwrap();
    assert_eq!(value["shape"], "imgfs-diff");
    for (change, path, to) in rows {
        let row = match to {
            None => json!({ "change": change, "path": path }),
            Some(to) => json!({ "change": change, "path": path, "to": to }),
        };
        assert!(value["files"].as_array().unwrap().contains(&row), "{row}");
    }
    assert_eq!(value["files"].as_array().unwrap().len(), rows.len());
    let mut sectors = BTreeSet::new();
    for run in value["sectors"].as_array().unwrap() {
        let first = run["first"].as_u64().unwrap();
        sectors.extend(first..first + run["count"].as_u64().unwrap());
    }
    assert_eq!(sectors, differing(&image, &whole));
    let only = ok(&["diff", "--sectors", overlay_name]);
    assert_eq!(only.lines().count(), value["sectors"].as_array().unwrap().len());
    assert!(only.lines().all(|line| line.starts_with("sectors ")), "{only}");
    // Back as it was: there is nothing left to say.
    ok(&["discard", overlay_name]);
    assert_eq!(ok(&["diff", overlay_name]), "");
}

#[test]
fn a_commit_to_a_new_image_is_what_qemu_makes_of_the_overlay() {
    let scratch = Scratch::new();
    let image = floppy(&scratch);
    let _untouched = Untouched::new(&image);
    ok(&["mkdir", &format!("{}:/files/new folder", image.display())]);
    let whole = converted(&overlay_of(&image), &scratch);
    let (raw, qcow2) = (scratch.path("new.img"), scratch.path("new.qcow2"));
    ok(&["commit", text(&overlay_of(&image)), "-o", text(&raw)]);
    assert_eq!(sha256(&raw), sha256(&whole));
    ok(&["commit", text(&overlay_of(&image)), "-o", text(&qcow2), "--format", "qcow2"]);
    tool("qemu-utils", "qemu-img", &["check", text(&qcow2)]);
    tool("qemu-utils", "qemu-img", &["compare", "-f", "qcow2", "-F", "raw", text(&qcow2), text(&whole)]);
    let info: Value =
        serde_json::from_str(&tool("qemu-utils", "qemu-img", &["info", "--output=json", text(&qcow2)])).unwrap();
    assert_eq!(info.get("backing-filename"), None);
    refused(&["commit", text(&overlay_of(&image)), "-o", text(&raw)], "exists");
    assert_eq!(run(&["commit", text(&overlay_of(&image))]).code, Some(2), "one of -o and --in-place is needed");
}

#[test]
fn a_commit_in_place_empties_the_overlay_and_a_discard_too() {
    let scratch = Scratch::new();
    let image = floppy(&scratch);
    let overlay = overlay_of(&image);
    let changed = || -> u64 {
        let value: Value = serde_json::from_str(&ok(&["overlay", "info", "--json", text(&overlay)])).unwrap();
        value["changed_bytes"].as_u64().unwrap()
    };
    ok(&["mkdir", &format!("{}:/files/stays", image.display())]);
    let whole = converted(&overlay, &scratch);
    assert!(changed() > 0);
    ok(&["commit", "--in-place", text(&overlay)]);
    assert_eq!(sha256(&image), sha256(&whole));
    assert_eq!(changed(), 0);
    ok(&["mkdir", &format!("{}:/files/goes", image.display())]);
    assert!(changed() > 0);
    ok(&["discard", text(&overlay)]);
    assert_eq!(changed(), 0);
    assert_eq!(sha256(&image), sha256(&whole));
    assert_eq!(sha256(&converted(&overlay, &scratch)), sha256(&whole));
    let qcow2 = scratch.path("disk.qcow2");
    tool("qemu-utils", "qemu-img", &["convert", "-O", "qcow2", text(&image), text(&qcow2)]);
    ok(&["mkdir", &format!("{}:/files/x", qcow2.display())]);
    refused(&["commit", "--in-place", text(&overlay_of(&qcow2))], "commit to a new image");
}

#[test]
fn a_patch_travels_and_fits_its_base_alone() {
    let scratch = Scratch::new();
    let image = floppy(&scratch);
    let (overlay, patch) = (overlay_of(&image), scratch.path("changes.patch"));
    ok(&["mkdir", &format!("{}:/files/from a patch", image.display())]);
    let whole = converted(&overlay, &scratch);
    ok(&["export", text(&overlay), "--patch", text(&patch)]);
    assert!(std::fs::metadata(&patch).unwrap().len() < 20_000);
    refused(&["export", text(&overlay), "--patch", text(&patch)], "exists");
    let copy = scratch.path("copy.img");
    std::fs::copy(&image, &copy).unwrap();
    ok(&["apply", text(&patch), text(&copy)]);
    assert_eq!(sha256(&converted(&overlay_of(&copy), &scratch)), sha256(&whole));
    assert!(ok(&["apply", text(&patch), text(&copy)]).contains("there already"), "twice does no harm");
    // Another disk, where the patch would replace other bytes.
    let other = scratch.path("other.img");
    mkfs(&other, 1440, "-n OTHER");
    let file = File::options().write(true).open(&other).unwrap();
    file.write_all_at(&pattern(30_000, 9), 512).unwrap();
    refused(&["apply", text(&patch), text(&other)], "does not fit");
    assert!(!overlay_of(&other).exists());
    let damaged = scratch.path("damaged.patch");
    let mut bytes = std::fs::read(&patch).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&damaged, bytes).unwrap();
    std::fs::remove_file(overlay_of(&copy)).unwrap();
    refused(&["apply", text(&damaged), text(&copy)], "");
}

#[test]
fn an_overlay_is_described_and_checked() {
    let scratch = Scratch::new();
    let image = floppy(&scratch);
    let overlay = overlay_of(&image);
    ok(&["mkdir", &format!("{}:/files/x", image.display())]);
    let value: Value = serde_json::from_str(&ok(&["overlay", "info", "--json", text(&overlay)])).unwrap();
    assert_eq!((&value["shape"], &value["disk_size"]), (&json!("imgfs-overlay"), &json!(1_474_560)));
    assert_eq!((&value["base_format"], &value["binding"]["format"]), (&json!("raw"), &json!("raw")));
    assert_eq!(value["binding"]["file_size"], 1_474_560);
    let qemu: Value =
        serde_json::from_str(&tool("qemu-utils", "qemu-img", &["info", "--output=json", text(&overlay)])).unwrap();
    assert_eq!(value["cluster_size"], qemu["cluster-size"]);
    let listing = ok(&["overlay", "info", text(&overlay)]);
    assert!(listing.contains("bound to a raw image of 1474560 bytes") && listing.contains("state: Bound"), "{listing}");
    assert!(ok(&["overlay", "check", text(&overlay)]).contains("0 errors, 0 clusters leaked"));
    // Two clusters of the disk in one place: an L2 entry over its neighbour.
    let mut bytes = std::fs::read(&overlay).unwrap();
    let field = |bytes: &[u8], at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap());
    let l1 = field(&bytes, 40) as usize;
    let l2 = (0..).map(|i| field(&bytes, l1 + i * 8)).find(|entry| *entry != 0).unwrap() & 0x00ff_ffff_ffff_fe00;
    let l2 = l2 as usize;
    let used: Vec<usize> = (0..64).map(|i| l2 + i * 8).filter(|at| field(&bytes, *at) > 1).collect();
    bytes.copy_within(used[0]..used[0] + 8, used[1]);
    std::fs::write(&overlay, bytes).unwrap();
    let damaged = run(&["overlay", "check", text(&overlay)]);
    assert_eq!(damaged.code, Some(1));
    assert!(damaged.out.contains("error: "), "{}", damaged.out);
    refused(&["overlay", "info", text(&image)], "");
}

#[test]
fn a_base_in_another_folder_has_to_be_named() {
    let scratch = Scratch::new();
    let image = floppy(&scratch);
    let folder = scratch.path("elsewhere");
    std::fs::create_dir(&folder).unwrap();
    let overlay = folder.join("changes.qcow2");
    ok(&["mkdir", &format!("{}:/files/x", image.display()), "--overlay", text(&overlay)]);
    assert!(!overlay_of(&image).exists());
    for args in [&["diff", text(&overlay)][..], &["commit", "--in-place", text(&overlay)], &["discard", text(&overlay)]]
    {
        refused(args, "--base");
        if args[0] == "diff" {
            assert!(ok(&[args, &["--base", text(&image), "--files"]].concat()).contains("added    disk/x"));
        }
    }
    ok(&["commit", "--in-place", text(&overlay), "--base", text(&image)]);
    assert!(by_mtools(text(&image), &scratch).contains_key("x"));
}

#[test]
fn a_command_that_only_looks_refuses_to_be_told_to_write_and_info_knows_of_the_overlay() {
    let scratch = Scratch::new();
    let image = floppy(&scratch);
    let _untouched = Untouched::new(&image);
    let overlay = overlay_of(&image);
    assert!(!ok(&["info", text(&image)]).contains("lies beside it"));
    ok(&["mkdir", &format!("{}:/disk/NEW", text(&image))]);
    for words in [vec!["ls"], vec!["cat"], vec!["tree"], vec!["info"], vec!["hash"], vec!["manifest"]] {
        for option in ["rw", "overlay"] {
            refused(&[&words[..], &["-o", option, text(&image)]].concat(), text(&overlay));
        }
    }
    let out = text(&scratch.path("out")).to_owned();
    refused(&["cp", "-o", "rw", "-r", &format!("{}:/", text(&image)), &out], "name the overlay in its place");
    assert!(ok(&["ls", &format!("{}:/disk", text(&overlay))]).contains("NEW"));
    assert!(ok(&["info", text(&image)]).contains(&format!("note: {} lies beside it", text(&overlay))));
    let info: Value = serde_json::from_str(&ok(&["info", "--json", text(&image)])).unwrap();
    assert_eq!(info["overlay"], text(&overlay));
}

#[test]
fn a_wrong_base_or_a_wrong_overlay_is_said_with_what_to_do() {
    let scratch = Scratch::new();
    let image = floppy(&scratch);
    let overlay = overlay_of(&image);
    ok(&["mkdir", &format!("{}:/disk/NEW", text(&image))]);
    let mut bytes = std::fs::read(&image).unwrap();
    bytes[70] ^= 1;
    std::fs::write(&image, bytes).unwrap();
    let advice = "--force-base takes it all the same, `imgfs discard --force-base` drops the changes, --overlay FILE";
    for args in [
        vec!["diff", text(&overlay)],
        vec!["discard", text(&overlay)],
        vec!["rm", &format!("{}:/disk/NEW", text(&image))],
        vec![text(&image), text(&scratch.path("")), "-o", "rw"],
    ] {
        refused(&args, advice);
        let once = run(&args).err.matches("takes it all the same").count();
        assert_eq!(once, 1, "{args:?}");
    }
    assert_eq!(run(&["diff", text(&overlay)]).err.matches("--force-base takes").count(), 1, "said once");
    let forced = run(&["discard", "--force-base", text(&overlay)]);
    assert_eq!(forced.code, Some(0), "{}", forced.err);
    assert!(!ok(&["ls", &format!("{}:/disk", text(&image))]).contains("NEW"));
    // What is empty now is an overlay of the image as it is now.
    ok(&["mkdir", &format!("{}:/disk/NEW", text(&image))]);
    ok(&["discard", text(&overlay)]);
    let notes = scratch.path("notes.txt");
    std::fs::write(&notes, "x".repeat(5000)).unwrap();
    let dir = format!("{}:/disk/NEW", text(&image));
    for args in [
        vec!["mkdir", &dir, "--overlay", text(&notes)],
        vec![text(&image), text(&scratch.path("")), "--overlay", text(&notes)],
        vec!["overlay", "info", text(&notes)],
        vec!["diff", text(&notes)],
    ] {
        refused(&args, "notes.txt");
    }
}
