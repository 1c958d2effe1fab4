//! Names in other character sets than UTF-8: what iconv(1) makes of the names that mtools, xorriso, 7z
//! and the crate hadris-fat know.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Command, Stdio};

use imgfs::text::charset::{Charset, names};

use crate::fat::{Scratch, by_hadris, converted, mcopy, mkfs, tool};
use crate::program::{Mounted, ok, run};

/// Words in many scripts.
const WORDS: [&str; 10] = [
    "plain.txt",
    "Grüße.txt",
    "письмо.txt",
    "Ελληνικά.txt",
    "日本語テスト.txt",
    "中文文件.txt",
    "한글파일.txt",
    "smile 😀.txt",
    "50 € %u20AC %xFF.txt",
    "łódź podwodna.txt",
];

/// Kernel's names of sets, and iconv's.
const SETS: [(&str, &str); 12] = [
    ("iso8859-1", "ISO-8859-1"),
    ("iso8859-2", "ISO-8859-2"),
    ("iso8859-7", "ISO-8859-7"),
    ("iso8859-15", "ISO-8859-15"),
    ("koi8-r", "KOI8-R"),
    ("cp437", "CP437"),
    ("cp1251", "CP1251"),
    ("sjis", "CP932"),
    ("euc-jp", "EUC-JP"),
    ("gb2312", "GBK"),
    ("big5", "BIG5"),
    ("euc-kr", "EUC-KR"),
];

/// What iconv makes of some bytes, and whether it could convert all of them; `-c` leaves out what it cannot.
fn iconv(options: &[&str], from: &str, to: &str, bytes: &[u8]) -> (Vec<u8>, bool) {
    let child = Command::new("iconv")
        .args(options)
        .args(["-f", from, "-t", to])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let mut child = child.expect("iconv does not run: install the Debian package libc-bin");
    child.stdin.take().unwrap().write_all(bytes).unwrap();
    let output = child.wait_with_output().unwrap();
    (output.stdout, output.status.success())
}

/// The name in a set: iconv's, where it has all of it, or the start of one with an escape.
fn expected(set: &str, name: &str) -> Result<Vec<u8>, ()> {
    match iconv(&[], "UTF-8", set, name.as_bytes()) {
        // What would read as an escape is escaped itself, in every set.
        // The third plane of EUC-JP is only ever read.
        (bytes, true) if !(name.contains("%u") || set == "EUC-JP" && bytes.contains(&0x8f)) => Ok(bytes),
        _ => Err(()),
    }
}

fn listed(folder: &Path) -> BTreeSet<Vec<u8>> {
    std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().as_bytes().to_vec()).collect()
}

fn floppy(scratch: &Scratch) -> std::path::PathBuf {
    let (image, folder) = (scratch.path("volume.img"), scratch.path("words"));
    mkfs(&image, 1440, "");
    std::fs::create_dir_all(&folder).unwrap();
    for word in WORDS {
        std::fs::write(folder.join(word), word).unwrap();
        // mtools knows characters of 16 bits.
        if word.contains('😀') {
            ok(&["cp", "--in-place", folder.join(word).to_str().unwrap(), &format!("{}:/disk", image.display())]);
        } else {
            mcopy(&image, &folder.join(word), "::");
        }
    }
    image
}

/// Each word is shown as in the set, with escapes for what is not in it, and found by what is shown.
fn shows_words(folder: &Path, set: &str) -> u32 {
    let mut exact = 0;
    let shown = listed(folder);
    assert_eq!(shown.len(), WORDS.len());
    for name in &shown {
        let word = std::fs::read(folder.join(OsStr::from_bytes(name))).unwrap();
        let word = String::from_utf8(word).unwrap();
        match expected(set, &word) {
            Ok(bytes) => {
                assert_eq!(bytes, *name, "{word} in {set}");
                exact += 1;
            }
            // There are several of that name; the web's has kana and Cyrillic letters.
            Err(()) if set == "BIG5" => {}
            Err(()) => assert!(name.windows(2).any(|pair| pair == b"%u"), "{word} in {set}: {name:?}"),
        }
    }
    exact
}

#[test]
fn names_of_fat_are_shown_and_taken_in_the_character_set_that_was_asked_for() {
    let scratch = Scratch::new();
    let image = floppy(&scratch);
    let words: BTreeSet<String> = WORDS.map(str::to_owned).into();
    for (kernels, iconvs) in SETS {
        let mounted = Mounted::new(&image, &["-o", &format!("rw,iocharset={kernels}")]);
        let folder = mounted.path("disk");
        assert!(shows_words(&folder, iconvs) >= 2, "{kernels}");
        // What is made, renamed and removed there has the same name for everybody.
        let (word, escape) = ("Grüße.txt", "neu €.txt");
        let set = Charset::named(kernels).unwrap().unwrap();
        let path = |name: &str| folder.join(OsStr::from_bytes(&set.encode_name(name.as_bytes())));
        std::fs::create_dir(path("日本")).unwrap();
        std::fs::rename(path(word), path(&format!("日本/{word}"))).unwrap();
        std::fs::write(path(escape), b"new").unwrap();
        std::fs::remove_file(path("письмо.txt")).unwrap();
        let raw = rustix::fs::getxattr(path(escape), "user.imgfs.name", &mut [0; 64]);
        let stays = set.encode_name(escape.as_bytes()) == escape.as_bytes();
        assert_eq!(raw, if stays { Err(rustix::io::Errno::NODATA) } else { Ok(escape.len()) });
        drop(mounted);
        let overlay = scratch.path("volume.img.overlay.qcow2");
        let raw = converted(&overlay, &scratch);
        tool("dosfstools", "fsck.fat", &["-n", raw.to_str().unwrap()]);
        let found: BTreeSet<String> = by_hadris(std::fs::read(&raw).unwrap()).into_keys().collect();
        let mut names = words.clone();
        names.remove("письмо.txt");
        names.remove(word);
        names.extend(["日本".to_owned(), format!("日本/{word}"), escape.to_owned()]);
        assert_eq!(found, names, "{kernels}");
        ok(&["discard", overlay.to_str().unwrap()]);
    }
}

#[test]
fn bytes_that_are_not_in_the_character_set_name_nothing() {
    let scratch = Scratch::new();
    let image = floppy(&scratch);
    let mounted = Mounted::new(&image, &["-o", "rw,tree,iocharset=ascii"]);
    let path = mounted.at.join(OsStr::from_bytes(b"\xe4.txt"));
    assert_eq!(std::fs::metadata(&path).unwrap_err().raw_os_error(), Some(2));
    assert_eq!(std::fs::write(&path, b"x").unwrap_err().raw_os_error(), Some(22));
    // Its own length is more than FUSE carries: the start and a checksum, to look at, rename and remove.
    let long = "日".repeat(255);
    drop(mounted);
    let mounted = Mounted::new(&image, &["-o", "rw,tree"]);
    std::fs::write(mounted.path(&long), b"long").unwrap();
    drop(mounted);
    let mounted = Mounted::new(&image, &["-o", "rw,tree,iocharset=ascii"]);
    let name = listed(&mounted.at).into_iter().find(|name| name.starts_with(b"%u65E5%u65E5")).unwrap();
    assert!(name.len() < 1000 && name.windows(2).any(|pair| pair == b"%~"));
    let path = mounted.at.join(OsStr::from_bytes(&name));
    assert_eq!(std::fs::read(&path).unwrap(), b"long");
    std::fs::rename(&path, mounted.path("short")).unwrap();
    std::fs::remove_file(mounted.path("short")).unwrap();
}

#[test]
fn names_of_joliet_follow_the_character_set_and_those_of_rock_ridge_are_bytes() {
    let scratch = Scratch::new();
    let folder = scratch.path("words");
    std::fs::create_dir_all(&folder).unwrap();
    for word in WORDS.iter().filter(|word| !word.contains('😀')) {
        std::fs::write(folder.join(word), word).unwrap();
    }
    let image = scratch.path("disc.iso");
    let (image_name, folder_name) = (image.to_str().unwrap(), folder.to_str().unwrap());
    let words = ["-as", "mkisofs", "-quiet", "-r", "-J", "-input-charset", "utf-8", "-o", image_name, folder_name];
    tool("xorriso", "xorriso", &words);
    // It reads the Joliet tree.
    let theirs = tool("7zip", "7z", &["l", "-ba", "-slt", image_name]);
    let theirs: Vec<&str> = theirs.lines().filter_map(|line| line.strip_prefix("Path = ")).collect();
    assert_eq!(theirs.len(), WORDS.len() - 1, "{theirs:?}");
    for (kernels, iconvs) in SETS {
        let listed = |options: &str| {
            let out = scratch.path("out");
            std::fs::create_dir(&out).unwrap();
            ok(&["cp", "-r", "-o", options, &format!("{image_name}:/disk"), out.to_str().unwrap()]);
            let names = listed(&out.join("disk"));
            // Its directories are read-only.
            tool("coreutils", "chmod", &["-R", "u+w", out.to_str().unwrap()]);
            std::fs::remove_dir_all(&out).unwrap();
            names
        };
        let joliet = listed(&format!("norock,iocharset={kernels}"));
        for name in &theirs {
            if let Ok(bytes) = expected(iconvs, name) {
                assert!(joliet.contains(&bytes), "{name} in {kernels}");
            }
        }
        let rock_ridge = listed(&format!("iocharset={kernels}"));
        assert_eq!(rock_ridge, listed("utf8"), "{kernels}");
    }
    let refused = run(&["ls", "-o", "iocharset=koi8r-x", image_name]);
    assert!(refused.code == Some(1) && refused.err.contains("did you mean koi8-r?"), "{refused:?}");
}

#[test]
fn every_byte_of_the_single_byte_sets_is_the_character_that_iconv_has() {
    let known = tool("libc-bin", "iconv", &["-l"]);
    let lines: Vec<u8> = (0x80..=0xff).flat_map(|byte| [byte, b'\n']).collect();
    let (mut compared, mut differ) = (0, Vec::new());
    for name in names().filter(|name| name.starts_with("iso") || name.starts_with("cp") || name.starts_with("koi8")) {
        let set = Charset::named(name).unwrap().unwrap();
        let iconvs = match name {
            // The kernel has one table for both.
            "iso8859-8" => "CP1255".to_owned(),
            // iconv's has typographic signs where the kernel's has the frames of koi8-u.
            "koi8-ru" => continue,
            other => other.replace("iso", "iso-").to_uppercase(),
        };
        let is_wide = set.decode_first(b"\xb0\xa1").is_none_or(|(_, len)| len == 2);
        if is_wide || !known.split(['/', '\n', ' ', ',']).any(|known| known == iconvs) {
            continue;
        }
        let (theirs, _) = iconv(&["-c"], &iconvs, "UTF-8", &lines);
        for (byte, theirs) in (0x80..=0xff).zip(String::from_utf8(theirs).unwrap().lines()) {
            let ours = set.decode_first(&[byte]).and_then(|(chars, _)| chars.first().copied());
            compared += 1;
            // What a set leaves free are control characters in the web's tables.
            let is_free = theirs.is_empty() && ours.is_some_and(|c| matches!(c, '\u{80}'..='\u{9f}'));
            if !is_free && theirs.chars().ne(ours) {
                differ.push((name, byte, ours, theirs.to_owned()));
            }
        }
    }
    // A point of Hebrew that came later.
    differ.retain(|(name, byte, _, _)| !(matches!(*name, "cp1255" | "iso8859-8") && *byte == 0xca));
    assert!(differ.is_empty(), "{differ:x?}");
    assert!(compared > 3000, "only {compared} were compared");
}
