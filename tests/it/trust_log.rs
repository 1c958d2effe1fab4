//! The log of what was done, what the page of guarantees says, and the words by which mount(8) and its
//! users call the program.
//!
//! Packages: strace, e2fsprogs, util-linux, attr.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::disks::Scratch;
use crate::program::{
    Mounted, Untouched, imgfs, is_root, mount_of, needs_root, ok, run, said, sha256, testimage, within,
};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn demo(scratch: &Scratch) -> PathBuf {
    testimage("demo.img", &scratch.path(""))
}

fn events(log: &Path) -> Vec<Value> {
    let text = fs::read_to_string(log).unwrap_or_else(|error| panic!("{}: {error}", log.display()));
    assert!(text.ends_with('\n'));
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn the_image_is_opened_for_reading_alone() {
    let scratch = Scratch::new();
    let image = demo(&scratch);
    let _untouched = Untouched::new(&image);
    let inside = format!("{}:/p2", text(&image));
    let program = imgfs().get_program().to_str().unwrap().to_owned();
    let out = scratch.path("out");
    fs::create_dir(&out).unwrap();
    fs::create_dir(scratch.path("mnt")).unwrap();
    // Changes that the commands about an overlay find.
    ok(&["mkdir", &format!("{}:/p1/NEW", text(&image))]);
    let mut commands = vec![
        format!("info {}", text(&image)),
        format!("ls -R {inside}"),
        format!("tree {inside}"),
        format!("cat {inside}/etc/hostname"),
        format!("cp -r {inside} {}", text(&out)),
        format!("manifest {}", text(&image)),
        format!("hash --parts --files {}", text(&image)),
        format!("verify {}", text(&image)),
        format!("diff {}.overlay.qcow2", text(&image)),
        format!("export {}.overlay.qcow2 --patch {}", text(&image), text(&scratch.path("patch"))),
        format!("commit {}.overlay.qcow2 -o {}", text(&image), text(&scratch.path("new.img"))),
        format!("discard {}.overlay.qcow2", text(&image)),
    ];
    // What is traced has no rights of set-user-id programs, as fusermount3 is one. Served from the
    // foreground, so that its end can be waited for.
    if is_root() {
        commands.insert(0, format!("mount -f {} mnt -o rw", text(&image)));
    }
    for words in commands {
        let traced = format!("strace -f -y -o calls -e trace=openat,open,openat2 {program} {words} > /dev/null");
        let script = match words.starts_with("mount ") {
            true => format!(
                "{traced} & until mountpoint -q mnt; do sleep 0.1; kill -0 $!; done; \
                 echo new > mnt/p1/FILE; cat mnt/disk.img > /dev/null; {program} umount mnt; wait $!"
            ),
            false => traced,
        };
        scratch.sh("strace", &script);
        let calls = fs::read_to_string(scratch.path("calls")).unwrap();
        let opened: Vec<&str> = calls.lines().filter(|call| call.contains("demo.img\"")).collect();
        assert!(!opened.is_empty(), "{words}: {calls}");
        for call in opened {
            let writes = ["O_WRONLY", "O_RDWR", "O_TRUNC", "O_CREAT"].iter().any(|flag| call.contains(flag));
            assert!(call.contains("O_RDONLY") && !writes, "{words}: {call}");
        }
    }
}

#[test]
fn norecovery_shows_what_is_on_the_disk_and_says_so() {
    let scratch = Scratch::new();
    scratch.sh(
        "e2fsprogs",
        "mke2fs -q -F -t ext4 fs.img 16M; echo on disk > file; debugfs -w -R 'write file file' fs.img 2> /dev/null",
    );
    // A transaction that was never written back.
    let write = "block=$(debugfs -R 'bmap file 0' fs.img 2> /dev/null); head -c 1024 /dev/zero > zeros; \
        printf \"jo\\njw -b $block zeros\\njc\\n\" | debugfs -w -f - fs.img > /dev/null 2>&1";
    scratch.sh("e2fsprogs", write);
    let image = scratch.path("fs.img");
    let _untouched = Untouched::new(&image);
    let plain = ok(&["info", text(&image)]);
    let without = ok(&["info", "-o", "norecovery", text(&image)]);
    assert!(plain.contains("needs_recovery: the volume was not unmounted"), "{plain}");
    assert!(without.contains("the journal holds changes, which are not shown as asked"), "{without}");
    let contents = |options: &[&str]| ok(&[&["cat"], options, &[&format!("{}:/disk/file", text(&image))]].concat());
    assert_eq!(contents(&["-o", "norecovery"]), "on disk\n");
    // The transaction brings zeros where the file has its bytes.
    assert_eq!(contents(&[]).into_bytes(), [0; 8]);
}

#[test]
fn an_overlay_has_a_log_of_all_that_was_done_to_it() {
    let scratch = Scratch::new();
    let image = scratch.path("floppy.img");
    ok(&["create", text(&image), "--size", "1440K"]);
    let before = sha256(&image);
    let overlay = format!("{}.overlay.qcow2", text(&image));
    let log = PathBuf::from(format!("{overlay}.log.jsonl"));
    let mounted = Mounted::new(&image, &["-o", "rw"]);
    fs::write(mounted.path("disk/FILE"), "some bytes").unwrap();
    drop(mounted);
    assert_eq!(sha256(&image), before);
    let found = events(&log);
    let kinds: Vec<&str> = found.iter().map(|event| event["event"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["mount", "unmount"]);
    let mount = &found[0];
    assert_eq!((&mount["shape"], &mount["version"]), (&"imgfs-log".into(), &1.into()));
    assert_eq!(mount["image"]["path"], text(&image));
    assert_eq!(mount["image"]["size"], 1_474_560);
    // The whole of a small base is known.
    assert_eq!(mount["disk_sha256"], before.as_str());
    assert_eq!(mount["detected"]["parts"][0]["tree"]["variant"], "FAT12");
    assert_eq!(mount["detected"]["parts"][0]["tree"]["evidence"][0]["offset"], 0x0b);
    assert_eq!(mount["overlay"], overlay.as_str());
    let words: Vec<&str> = mount["command"].as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect();
    assert!(words.contains(&text(&image)) && words.contains(&"rw") && !words.contains(&"--daemon"), "{words:?}");
    assert_eq!(mount["user"]["uid"], rustix::process::getuid().as_raw());
    assert_eq!(mount["host"], fs::read_to_string("/proc/sys/kernel/hostname").unwrap().trim());
    let time = mount["time"].as_str().unwrap();
    assert!(time.ends_with('Z') && time.len() == "2026-01-02T03:04:05.000000000Z".len(), "{time}");
    assert_eq!((&found[1]["outcome"], &found[1]["process"]), (&"done".into(), &mount["process"]));
    // The verbs add to it, and what is there stays.
    let first = fs::read_to_string(&log).unwrap();
    ok(&["mkdir", &format!("{}:/disk/NEW", text(&image))]);
    ok(&["commit", &overlay, "-o", text(&scratch.path("new.img"))]);
    ok(&["export", "--patch", text(&scratch.path("changes")), &overlay]);
    ok(&["discard", &overlay]);
    let refused = run(&["mkdir", &format!("{}:/nowhere/NEW", text(&image))]);
    assert_eq!(refused.code, Some(1));
    assert!(fs::read_to_string(&log).unwrap().starts_with(&first));
    let found = events(&log);
    let kinds: Vec<(&str, &str)> =
        found[2..].iter().map(|event| (event["event"].as_str().unwrap(), event["outcome"].as_str().unwrap())).collect();
    let expected = [
        ("edit", "done"),
        ("commit", "begun"),
        ("commit", "done"),
        ("export", "done"),
        ("discard", "done"),
        ("edit", "failed"),
    ];
    assert_eq!(kinds, expected);
    assert_eq!(found[4]["into"]["path"], text(&scratch.path("new.img")));
    assert!(found[7]["error"].as_str().unwrap().contains("no such file"), "{}", found[7]);
    // A commit in place, and a base that was taken by force.
    ok(&["mkdir", &format!("{}:/disk/NEW", text(&image))]);
    fs::OpenOptions::new().append(true).open(&image).unwrap().set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    ok(&["commit", "--in-place", "--force-base", &overlay]);
    let found = events(&log);
    let last = found.last().unwrap();
    assert_eq!(
        (&last["event"], &last["in_place"], &last["forced_base"]),
        (&"commit".into(), &true.into(), &true.into())
    );
    assert_ne!(sha256(&image), before);
}

#[test]
fn a_log_is_written_where_it_is_asked_for_and_warnings_are_in_it() {
    let scratch = Scratch::new();
    scratch.sh("e2fsprogs", "mkdir tree; seq 1 200000 > tree/numbers; mke2fs -q -F -t ext4 -b 1024 -d tree fs.img 8M");
    let listing = scratch.sh("e2fsprogs", "debugfs -R 'blocks /numbers' fs.img 2> /dev/null");
    // Out of the image: reads of it fail.
    let image = scratch.path("fs.img");
    let last: u64 = listing.split_whitespace().last().unwrap().parse().unwrap();
    fs::OpenOptions::new().write(true).open(&image).unwrap().set_len(last * 1024).unwrap();
    let log = scratch.path("asked.jsonl");
    let mounted = Mounted::new(&image, &["--log", text(&log)]);
    assert!(fs::read(mounted.path("disk/numbers")).is_err());
    drop(mounted);
    let found = events(&log);
    let kinds: BTreeSet<&str> = found.iter().map(|event| event["event"].as_str().unwrap()).collect();
    assert_eq!(kinds, BTreeSet::from(["mount", "unmount", "warning"]));
    let warning = found.iter().find(|event| event["event"] == "warning").unwrap();
    assert!(warning["message"].as_str().unwrap().contains("read"), "{warning}");
    assert!(!scratch.path("fs.img.overlay.qcow2.log.jsonl").exists());
    // What cannot be mounted leaves no log of its own behind.
    let said = run(&[text(&image), text(&scratch.path("missing")), "-o", "rw"]);
    assert_eq!(said.code, Some(1));
    assert!(!scratch.path("fs.img.overlay.qcow2.log.jsonl").exists());
    let said = run(&[text(&image), text(&scratch.path("missing")), "--log", "/nonexistent/log"]);
    assert!(said.code == Some(1) && said.err.contains("/nonexistent/log"), "{}", said.err);
}

#[test]
fn the_digest_of_a_file_is_an_attribute_when_asked_for() {
    let scratch = Scratch::new();
    let image = demo(&scratch);
    let mounted = Mounted::new(&image, &["-o", "hashes"]);
    let attribute = |path: &Path| {
        let mut value = [0; 100];
        let len = rustix::fs::getxattr(path, "user.hash.sha256", &mut value).ok()?;
        Some(String::from_utf8(value[..len].to_vec()).unwrap())
    };
    for name in ["p2/etc/hostname", "p2/home/ada/sparse.db", "disk.img", "p1/startup.nsh"] {
        assert_eq!(attribute(&mounted.path(name)), Some(sha256(&mounted.path(name))), "{name}");
    }
    assert_eq!(attribute(&mounted.path("p2/etc")), None);
    let listed = scratch.sh("attr", &format!("getfattr -d -m - {}", text(&mounted.path("p2/etc/hostname"))));
    assert!(listed.contains(&format!("user.hash.sha256=\"{}\"", sha256(&mounted.path("p2/etc/hostname")))), "{listed}");
    drop(mounted);
    let plain = Mounted::new(&image, &[]);
    assert!(rustix::fs::getxattr(plain.path("p2/etc/hostname"), "user.hash.sha256", &mut [0u8; 100]).is_err());
}

#[test]
fn what_is_mounted_is_listed_and_all_of_it_unmounted() {
    let scratch = Scratch::new();
    let image = demo(&scratch);
    let floppy = scratch.path("floppy with space.img");
    ok(&["create", text(&floppy), "--size", "1440K"]);
    let (one, two) = (Mounted::new(&image, &[]), Mounted::new(&floppy, &["-o", "rw"]));
    let value: Value = serde_json::from_str(&ok(&["list", "--json"])).unwrap();
    let row = |mounted: &Mounted| {
        let rows = value["mounts"].as_array().unwrap();
        rows.iter().find(|row| row["mountpoint"] == text(&mounted.at)).unwrap_or_else(|| panic!("{value}")).clone()
    };
    let uid = rustix::process::getuid().as_raw();
    assert_eq!((&row(&one)["image"], &row(&one)["writable"]), (&text(&image).into(), &false.into()));
    assert_eq!((&row(&one)["uid"], &row(&one)["process"]), (&uid.into(), &one.pid.into()));
    assert_eq!(row(&two)["overlay"], format!("{}.overlay.qcow2", text(&floppy)));
    assert_eq!((&row(&two)["writable"], &row(&one)["overlay"]), (&true.into(), &Value::Null));
    let listed = ok(&["list"]);
    assert!(listed.contains(&format!("{} on {}", text(&image), text(&one.at))), "{listed}");
    assert!(
        listed.lines().any(|line| line.contains("changes go to") && line.contains("floppy with space")),
        "{listed}"
    );
    // Not everything here: other tests have mounts as well. In a namespace of its own it is all.
    drop((one, two));
    if is_root() {
        let script = format!(
            "mkdir a b; {0} {1} a; {0} {1} b; {0} umount --all; {0} list; ls a b",
            imgfs().get_program().to_str().unwrap(),
            text(&image)
        );
        // Mounts of the tests beside are copied into the new namespace, and belong to it alone.
        let inner = format!("umount -a -l -t fuse.imgfs || true; {script}");
        scratch.write("script", inner.as_bytes());
        let left = scratch.sh("util-linux", "unshare -m --propagation private bash -e script");
        assert_eq!(left.trim(), "a:\n\nb:", "{left}");
    }
}

#[test]
fn a_mount_that_nobody_uses_goes_and_one_in_use_stays() {
    let scratch = Scratch::new();
    let image = demo(&scratch);
    let mounted = Mounted::new(&image, &["-o", "timeout=1"]);
    let file = fs::File::open(mounted.path("p2/etc/hostname")).unwrap();
    std::thread::sleep(Duration::from_millis(2500));
    assert!(mount_of(&mounted.at).is_some(), "unmounted with a file open");
    drop(file);
    let start = Instant::now();
    assert!(within(Duration::from_secs(10), || mount_of(&mounted.at).is_none()), "still mounted");
    assert!(start.elapsed() < Duration::from_secs(8));
}

#[test]
fn what_was_mounted_over_a_mount_stays_when_that_ends_as_root() {
    if !is_root() {
        return;
    }
    needs_root();
    let scratch = Scratch::new();
    let image = demo(&scratch);
    let mounted = Mounted::new(&image, &["-o", "timeout=1"]);
    let tool = |command: &str| scratch.sh("mount", command);
    tool(&format!("mount -t tmpfs none '{0}' && echo mine > '{0}/file'", mounted.at.display()));
    // Idle, and asked to end: either way only its own mount is its matter.
    std::thread::sleep(Duration::from_millis(2500));
    let pid = rustix::process::Pid::from_raw(mounted.pid.try_into().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(fs::read_to_string(mounted.path("file")).unwrap(), "mine\n");
    assert_eq!(mount_of(&mounted.at).unwrap().1, "tmpfs");
    tool(&format!("umount '{}'", mounted.at.display()));
    assert!(within(Duration::from_secs(10), || mount_of(&mounted.at).is_none()), "its own mount stays");
}

#[test]
fn the_log_of_a_mount_has_the_words_of_the_user_and_the_whole_identity_of_the_image() {
    use std::os::unix::ffi::OsStrExt;
    let scratch = Scratch::new();
    demo(&scratch);
    fs::create_dir(scratch.path("mnt")).unwrap();
    let name = std::ffi::OsStr::from_bytes(b"log \xff\xc2\x9b.jsonl");
    let overlay = std::ffi::OsStr::from_bytes(b"o\xe9.qcow2");
    let mut command = Command::new("env");
    command.arg("-C").arg(scratch.folder()).arg(imgfs().get_program());
    command.args(["demo.img", "mnt", "--commit", "--log"]).arg(name).arg("--overlay").arg(overlay);
    let mounted = said(command.output().unwrap());
    assert_eq!(mounted.code, Some(0), "{}", mounted.err);
    fs::write(scratch.path("mnt/p1/NEW"), "new").unwrap();
    let list: Value = serde_json::from_str(&ok(&["list", "--json"])).unwrap();
    let mounts = list["mounts"].as_array().unwrap();
    let mount = mounts.iter().find(|mount| mount["mountpoint"] == text(&scratch.path("mnt"))).unwrap();
    assert!(mount["overlay_hex"].as_str().unwrap().ends_with("6fe92e71636f7732"), "{mount}");
    ok(&["umount", text(&scratch.path("mnt"))]);
    let log = fs::read(scratch.path("").join(name)).unwrap();
    // A terminal that shows it is not steered.
    assert!(!log.windows(2).any(|two| two == b"\xc2\x9b"));
    let found = events(&scratch.path("").join(name));
    let kinds: Vec<&str> = found.iter().map(|event| event["event"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["mount", "commit", "unmount"]);
    for event in &found {
        assert_eq!(event["image"]["path"], text(&scratch.path("demo.img")), "{event}");
        assert!(event["image"]["size"].is_u64() && event["image"]["inode"].is_u64(), "{event}");
        let words: Vec<&str> =
            event["command"].as_array().unwrap()[1..5].iter().map(|word| word.as_str().unwrap()).collect();
        assert_eq!(words, ["demo.img", "mnt", "--commit", "--log"]);
        assert_eq!(event["command_hex"][5], "6c6f6720ffc29b2e6a736f6e6c");
    }
    assert!(found[0]["overlay_hex"].as_str().unwrap().ends_with("6fe92e71636f7732"));
}

#[test]
fn mount_8_and_fstab_mount_through_the_helper_as_root() {
    if !is_root() {
        return;
    }
    needs_root();
    let scratch = Scratch::new();
    let image = demo(&scratch);
    let _untouched = Untouched::new(&image);
    fs::create_dir(scratch.path("mnt")).unwrap();
    let at = scratch.path("mnt");
    // A namespace with an /sbin of its own: links as a package would install them.
    for name in ["mount.imgfs", "mount.fuse.imgfs"] {
        symlink(imgfs().get_program(), scratch.path(name)).unwrap();
    }
    let sbin = "cp -a /sbin/. sbin/ 2> /dev/null || true; ln -sf $PWD/mount.imgfs $PWD/mount.fuse.imgfs sbin/; mount --bind sbin \"$(readlink -f /sbin)\"";
    for (line, words) in [
        (format!("mount -t fuse.imgfs {} {}", text(&image), text(&at)), "ro,nosuid,nodev"),
        (format!("mount -t imgfs -o noatime,tree=p2,x-systemd.automount {} {}", text(&image), text(&at)), "ro,"),
        (format!("mount -t imgfs -o ro,nofail,users {} {}", text(&image), text(&at)), "ro,"),
        (
            format!(
                "echo '{} {} fuse.imgfs defaults,noauto,user 0 0' > fstab; mount -T fstab {}",
                text(&image),
                text(&at),
                text(&at)
            ),
            "ro,",
        ),
    ] {
        let script = format!(
            "mkdir -p sbin; {sbin}; {line}; grep ' fuse.imgfs ' /proc/self/mounts | grep mnt; cat {0}/files/etc/hostname {0}/etc/hostname 2> /dev/null || true; umount {0}",
            text(&at)
        );
        scratch.write("script", script.as_bytes());
        let said = scratch.sh("mount util-linux", "unshare -m --propagation private bash -e script");
        assert!(said.contains("fuse.imgfs") && said.contains(words) && said.ends_with("demo\n"), "{line}: {said}");
    }
    // Its own words: refused ones by name, a pretence, sloppiness.
    let helper = |args: &[&str]| said(Command::new(scratch.path("mount.imgfs")).args(args).output().unwrap());
    let refused = helper(&[text(&image), text(&at), "-o", "rw,suid"]);
    assert!(refused.code == Some(32) && refused.err.contains("-o suid: refused"), "{}", refused.err);
    assert_eq!(helper(&[text(&image)]).code, Some(1));
    assert_eq!(helper(&[text(&image), text(&at), "-f", "-o", "ro,uid=nobody"]).code, Some(0));
    let pretended = helper(&[text(&image), text(&at), "-f", "-o", "nonsense"]);
    assert!(pretended.code == Some(32) && pretended.err.contains("unknown option"), "{}", pretended.err);
    assert!(mount_of(&at).is_none());
    assert_eq!(helper(&[text(&image), text(&at), "-sn", "-o", "rw,nonsense=1"]).code, Some(0));
    assert!(mount_of(&at).unwrap().0.starts_with("ro,"));
    ok(&["umount", text(&at)]);
    assert!(!Path::new(&format!("{}.overlay.qcow2", text(&image))).exists());
}

#[test]
fn a_terminal_is_shown_columns_and_colours_and_nothing_else_is() {
    let scratch = Scratch::new();
    let image = demo(&scratch);
    let program = imgfs().get_program().to_str().unwrap().to_owned();
    let on_terminal = |set: &str, args: &str| {
        let line = format!("{program} ls {args} {}:/p2", text(&image));
        scratch.sh("bsdutils", &format!("TERM=xterm {set} script -qec '{line}' /dev/null < /dev/null"))
    };
    let coloured = on_terminal("", "");
    assert!(coloured.contains("\x1b[1;34metc\x1b[0m  \x1b[1;34mhome\x1b[0m"), "{coloured:?}");
    assert!(coloured.contains("\x1b[1;36mnotes\x1b[0m"), "{coloured:?}");
    let plain = on_terminal("NO_COLOR=1", "");
    assert_eq!(plain.trim_end(), "etc  home  lost+found  notes", "{plain:?}");
    assert!(!on_terminal("NO_COLOR=1", "-l").contains('\x1b'));
    assert_eq!(ok(&["ls", &format!("{}:/p2", text(&image))]), "etc\nhome\nlost+found\nnotes\n");
}

/// Names of tests in this folder and in the sources, as the page of guarantees has them.
fn known_tests() -> BTreeSet<String> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut known = BTreeSet::new();
    for base in ["tests/it", "src"] {
        let mut paths = Vec::new();
        walk(&top.join(base), &mut paths);
        for path in paths {
            let text = fs::read_to_string(&path).unwrap();
            let name = path.strip_prefix(top.join(base)).unwrap().with_extension("");
            let mut module: Vec<String> = name.iter().map(|part| part.to_str().unwrap().to_owned()).collect();
            if matches!(module.last().map(String::as_str), Some("main" | "lib")) {
                module.pop();
            }
            let (mut is_test, mut inner) = (false, String::new());
            for line in text.lines() {
                let words = line.trim();
                if let Some(name) = words.strip_prefix("mod ").and_then(|rest| rest.strip_suffix(" {")) {
                    inner = name.to_owned();
                } else if line == "}" {
                    inner.clear();
                } else if words.starts_with("#[test]") {
                    is_test = true;
                } else if let Some(name) = words.strip_prefix("fn ").and_then(|rest| rest.split('(').next())
                    && std::mem::take(&mut is_test)
                {
                    let parts = module.iter().map(String::as_str).chain((!inner.is_empty()).then_some(inner.as_str()));
                    known.insert(parts.chain([name]).collect::<Vec<_>>().join("::"));
                }
            }
        }
    }
    known
}

#[test]
fn every_promise_of_the_page_of_guarantees_names_tests_that_exist() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/guarantees.md");
    let page = fs::read_to_string(page).unwrap();
    let known = known_tests();
    assert!(known.len() > 300, "{}", known.len());
    let mut promises = 0;
    for line in page.lines().filter(|line| line.starts_with("- ")) {
        let (_, tests) = line.rsplit_once(": `").unwrap_or_else(|| panic!("no test is named: {line}"));
        for name in format!("`{tests}").trim_end_matches('.').split(", ") {
            let name = name.trim_matches('`');
            assert!(known.contains(name), "{name} does not exist: {line}");
        }
        promises += 1;
    }
    let cells = page.lines().filter(|line| line.starts_with('|') && line.contains("::")).flat_map(|row| row.split('|'));
    let named: Vec<&str> = cells.filter(|cell| cell.contains("::")).map(|cell| cell.trim().trim_matches('`')).collect();
    assert!(named.len() >= 4 && named.iter().all(|name| known.contains(*name)), "{named:?}");
    assert!(promises > 30, "{promises}");
}
