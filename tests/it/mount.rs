//! Mounts through the real kernel: as root directly, as an ordinary user through fusermount3. What
//! needs root stands in `as_root`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, Permissions, symlink_metadata as lstat};
use std::io::{Read, Seek, SeekFrom as At, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::SeekFrom;
use rustix::process::{Pid, Signal, kill_process};
use sha2::{Digest, Sha256};

use crate::fat::{Scratch, pattern, tool, try_tool};
use crate::program::{
    Mounted, Untouched, ends, imgfs, is_alive, is_root, mount_of, ok, run, said, sha256, testimage, within,
};

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn demo(scratch: &Scratch) -> std::path::PathBuf {
    testimage("demo.img", &scratch.path(""))
}

fn send(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid.try_into().unwrap()).unwrap(), signal).unwrap();
}

/// An attribute of a node itself, links not followed.
fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 65_536];
    let len = rustix::fs::lgetxattr(path, name, &mut value).ok()?;
    value.truncate(len);
    Some(value)
}

fn xattr_names(path: &Path) -> BTreeSet<String> {
    let mut list = vec![0; 65_536];
    let len = rustix::fs::llistxattr(path, &mut list).unwrap();
    let names = list[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    names.map(|name| String::from_utf8_lossy(name).into_owned()).collect()
}

/// Where data starts and ends, as the kernel tells.
fn runs(path: &Path) -> Vec<(u64, u64)> {
    let file = File::open(path).unwrap();
    let mut runs = Vec::new();
    let mut at = 0;
    while let Ok(start) = rustix::fs::seek(&file, SeekFrom::Data(at)) {
        at = rustix::fs::seek(&file, SeekFrom::Hole(start)).unwrap();
        runs.push((start, at));
    }
    runs
}

/// The rows that `imgfs manifest` would write, from the outside.
fn walked(at: &Path) -> BTreeSet<String> {
    fn walk(folder: &Path, prefix: &str, rows: &mut BTreeSet<String>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let (path, name) = (entry.path(), entry.file_name().into_string().unwrap());
            let shown = format!("{prefix}{}", name.replace('\\', "\\\\").replace('\t', "\\t").replace('\n', "\\n"));
            let found = lstat(&path).unwrap();
            let kind = found.file_type();
            assert_eq!(kind, entry.file_type().unwrap(), "{shown}: the listing and lstat disagree");
            let (kind, size, hash) = if kind.is_dir() {
                walk(&path, &format!("{shown}/"), rows);
                ("dir", 0, "-".to_owned())
            } else if kind.is_symlink() {
                let target = std::fs::read_link(&path).unwrap();
                let hash = Sha256::digest(target.as_os_str().as_bytes());
                ("link", found.len(), hash.iter().map(|byte| format!("{byte:02x}")).collect())
            } else if kind.is_file() {
                ("file", found.len(), sha256(&path))
            } else {
                let kinds =
                    [(kind.is_char_device(), "char"), (kind.is_block_device(), "block"), (kind.is_fifo(), "fifo")];
                (kinds.iter().find(|(is, _)| *is).map_or("sock", |(_, name)| *name), 0, "-".to_owned())
            };
            assert!(rows.insert(format!("{shown}\t{kind}\t{size}\t{hash}")), "{shown} appears twice");
        }
    }
    let mut rows = BTreeSet::new();
    walk(at, "", &mut rows);
    rows
}

fn manifest(image: &str) -> BTreeSet<String> {
    ok(&["manifest", image]).lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect()
}

#[test]
fn success_means_that_the_mount_answers() {
    let scratch = Scratch::new();
    let image = demo(&scratch);
    let mounted = Mounted::new(&image, &[]);
    assert_eq!(names(&mounted.at), ["by-label", "by-uuid", "disk.img", "files", "p1", "p1.img", "p2", "p2.img"]);
    assert_eq!(std::fs::read_to_string(mounted.path("files/etc/hostname")).unwrap(), "demo\n");
    assert_eq!(std::fs::read_link(mounted.path("by-label/root")).unwrap(), Path::new("../p2"));
    assert_eq!(sha256(&mounted.path("disk.img")), sha256(&image));
    drop(mounted);
    // With the word, and options in front.
    let at = scratch.path("word");
    std::fs::create_dir(&at).unwrap();
    ok(&["mount", "-o", "ro", image.to_str().unwrap(), at.to_str().unwrap()]);
    assert_eq!(names(&at.join("p1")), ["EFI", "startup.nsh"]);
    ok(&["umount", at.to_str().unwrap()]);
    assert_eq!(names(&at), [""; 0]);
}

#[test]
fn umount_returns_when_the_daemon_is_gone() {
    let scratch = Scratch::new();
    let image = demo(&scratch);
    for _ in 0..5 {
        let mounted = Mounted::new(&image, &[]);
        assert!(is_alive(mounted.pid));
        ok(&["umount", mounted.at.to_str().unwrap()]);
        assert!(!is_alive(mounted.pid), "the daemon is still at work");
        assert_eq!(mount_of(&mounted.at), None);
        assert!(!scratch.path("demo.img.mnt.pid").exists(), "the file with its number stays");
    }
}

/// What the kernel says of a process and of each of its threads.
fn statuses(pid: u32) -> Vec<String> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    tasks.map(|task| std::fs::read_to_string(task.unwrap().path().join("status")).unwrap()).collect()
}

#[test]
fn the_daemon_has_given_up_its_rights_unless_told_not_to() {
    let scratch = Scratch::new();
    let image = demo(&scratch);
    for options in [&["-o", "ro"][..], &["-o", "rw"], &["--snapshot"], &["-o", "rw", "--commit"]] {
        let mounted = Mounted::new(&image, options);
        std::fs::read(mounted.path("disk.img")).unwrap();
        let statuses = statuses(mounted.pid);
        assert!(statuses.len() > 4, "its threads answer the kernel");
        for status in statuses {
            assert!(status.contains("NoNewPrivs:\t1\n") && status.contains("Seccomp:\t2\n"), "{status}");
        }
    }
    let mounted = Mounted::new(&image, &["--no-sandbox"]);
    for status in statuses(mounted.pid) {
        assert!(status.contains("NoNewPrivs:\t0\n") && status.contains("Seccomp:\t0\n"), "{status}");
    }
    drop(mounted);
    let warned = run(&["ls", "--no-sandbox", image.to_str().unwrap()]);
    assert_eq!(warned.code, Some(0));
    assert!(warned.err.contains("--no-sandbox: a bug in a decoder could"), "{}", warned.err);
}

#[test]
fn a_daemon_keeps_only_the_capabilities_of_its_task_as_root() {
    if !is_root() {
        return;
    }
    let scratch = Scratch::new();
    let image = demo(&scratch);
    // linux/capability.h: 1 is writing another user's file, 2 reading it, 21 what passthrough takes.
    for (options, kept) in [
        (&["-o", "ro"][..], 1u64 << 2 | 1 << 21),
        (&["-o", "rw"], 1 << 2 | 1 << 1),
        (&["--snapshot"], 1 << 2),
        (&["-o", "rw", "--commit"], 1 << 2 | 1 << 1),
    ] {
        // Of another user, who alone can read it.
        std::os::unix::fs::chown(&image, Some(1234), Some(1234)).unwrap();
        std::fs::set_permissions(&image, Permissions::from_mode(0o600)).unwrap();
        let mounted = Mounted::new(&image, options);
        std::fs::read(mounted.path("disk.img")).unwrap();
        for status in statuses(mounted.pid) {
            let field = |name: &str| {
                let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
                u64::from_str_radix(line.trim(), 16).unwrap()
            };
            assert_eq!((field("CapEff:"), field("CapPrm:"), field("CapInh:")), (kept, kept, 0), "{options:?}");
        }
    }
}

#[test]
fn nothing_is_left_of_a_mount_that_failed() {
    let scratch = Scratch::new();
    let (image, at) = (scratch.path("bad.img"), scratch.path("mnt"));
    std::fs::write(&image, [b"QFI\xfb\0\0\0\x02".as_slice(), &[0xff; 1000]].concat()).unwrap();
    std::fs::create_dir(&at).unwrap();
    for option in ["-orw", "--snapshot"] {
        let failed = imgfs().arg(option).args([&image, &at]).env("TMPDIR", scratch.path("")).output().unwrap();
        assert_eq!(failed.status.code(), Some(1), "{}", said(failed).err);
        // The folder of this user's mounts stays, where there is no better place for it.
        let own = format!("imgfs-{}", rustix::process::getuid().as_raw());
        let left: Vec<String> = names(&scratch.path("")).into_iter().filter(|name| *name != own).collect();
        assert_eq!(left, ["bad.img", "mnt"]);
    }
}

#[test]
fn a_daemon_ends_with_whoever_waits_for_its_mount() {
    let scratch = Scratch::new();
    let at = scratch.path("mnt");
    std::fs::create_dir(&at).unwrap();
    // It waits for a key that never comes, as it would over an image that takes for ever.
    let mut command = imgfs();
    command.args(["mount", "--key-file", "-"]).args([&demo(&scratch), &at]).stdin(Stdio::piped());
    let mut starter = command.spawn().unwrap();
    let starter_pid = starter.id();
    let waits_for_input = |pid: &u32| {
        let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let call = std::fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap_or_default();
        words.windows(8).any(|word| word == b"--daemon") && call.starts_with("0 0x0 ")
    };
    let daemon = || child_of(starter_pid).filter(waits_for_input);
    assert!(within(Duration::from_secs(10), || daemon().is_some()));
    let daemon = daemon().unwrap();
    starter.kill().unwrap();
    starter.wait().unwrap();
    assert!(ends(daemon), "the daemon goes on");
}

#[test]
fn a_mount_in_use_is_not_unmounted_unless_lazily() {
    let scratch = Scratch::new();
    let mounted = Mounted::new(&demo(&scratch), &[]);
    let mut open = File::open(mounted.path("p2/home/ada/notes.txt")).unwrap();
    let at = mounted.at.to_str().unwrap();
    let refused = run(&["umount", at]);
    assert_eq!(refused.code, Some(1));
    assert!(refused.err.contains("busy"), "{}", refused.err);
    ok(&["umount", "-z", at]);
    assert_eq!(mount_of(&mounted.at), None);
    let mut text = String::new();
    open.read_to_string(&mut text).unwrap();
    assert!(text.starts_with("The Analytical Engine"));
    assert!(is_alive(mounted.pid));
    drop(open);
    assert!(ends(mounted.pid));
}

#[test]
fn the_system_s_own_tools_unmount_as_well() {
    let scratch = Scratch::new();
    let image = demo(&scratch);
    for (package, program, option) in [("fuse3", "fusermount3", &["-u"][..]), ("mount", "umount", &[])] {
        let mounted = Mounted::new(&image, &[]);
        tool(package, program, &[option, &[mounted.at.to_str().unwrap()]].concat());
        assert!(ends(mounted.pid), "the daemon outlives {program}");
        assert_eq!(mount_of(&mounted.at), None);
    }
}

/// FAT32 whose largest file goes round in its chain of clusters, and whose folder `d` does as well.
fn with_hostile_chains(scratch: &Scratch) -> std::path::PathBuf {
    let (image, folder) = (scratch.path("hostile.img"), scratch.path("from"));
    std::fs::create_dir_all(folder.join("good")).unwrap();
    for number in 0..200 {
        std::fs::write(folder.join(format!("good/{number}")), pattern(3000, number)).unwrap();
    }
    std::fs::create_dir(folder.join("d")).unwrap();
    std::fs::write(folder.join("d/x"), "x").unwrap();
    std::fs::write(folder.join("big"), pattern(8 << 20, 1)).unwrap();
    crate::fat::mkfs(&image, 512 << 10, "-F 32 -s 1");
    for name in ["big", "d", "good"] {
        crate::fat::mcopy(&image, &folder.join(name), "::");
    }
    let file = File::options().read(true).write(true).open(&image).unwrap();
    let mut boot = [0; 512];
    file.read_exact_at(&mut boot, 0).unwrap();
    let table = u64::from(u16::from_le_bytes([boot[14], boot[15]])) * 512;
    let fats = u64::from(u32::from_le_bytes(boot[36..40].try_into().unwrap())) * 512;
    // The first row of the root is `big`: its size becomes the largest, its last cluster leads to its first.
    let data = table + 2 * fats;
    let mut root = vec![0; 4096];
    file.read_exact_at(&mut root, data).unwrap();
    let row = root.chunks(32).position(|row| row.starts_with(b"BIG        ")).unwrap() * 32;
    let first = u32::from_le_bytes([root[row + 26], root[row + 27], root[row + 20], root[row + 21]]);
    file.write_all_at(&u32::MAX.to_le_bytes(), data + row as u64 + 28).unwrap();
    let last = u64::from(first) + (8 << 20) / 512 - 1;
    let dir = root.chunks(32).position(|row| row.starts_with(b"D          ")).unwrap() * 32;
    let dir = u32::from_le_bytes([root[dir + 26], root[dir + 27], root[dir + 20], root[dir + 21]]);
    for copy in [table, table + fats] {
        file.write_all_at(&first.to_le_bytes(), copy + last * 4).unwrap();
        file.write_all_at(&dir.to_le_bytes(), copy + u64::from(dir) * 4).unwrap();
    }
    image
}

#[test]
fn a_hostile_file_delays_no_other_reader() {
    let scratch = Scratch::new();
    let mounted = Mounted::new(&with_hostile_chains(&scratch), &[]);
    let done = std::sync::atomic::AtomicBool::new(false);
    let stop = || done.load(std::sync::atomic::Ordering::Relaxed);
    let (big, folder) = (mounted.path("disk/big"), mounted.path("disk/d"));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !stop() {
                    let read = File::open(&big).and_then(|file| file.read_at(&mut [0; 4096], 4_000_000_000));
                    assert!(!matches!(read, Ok(1..)), "a chain that goes round has no byte 4,000,000,000");
                    let _ = std::fs::read_dir(&folder).map(|rows| rows.take(100_000).count());
                }
            });
        }
        let mut slowest = Duration::ZERO;
        for number in 0..200 {
            let start = Instant::now();
            assert_eq!(std::fs::read(mounted.path(&format!("disk/good/{number}"))).unwrap(), pattern(3000, number));
            slowest = slowest.max(start.elapsed());
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        println!("the slowest of 200 files took {slowest:?}");
        assert!(slowest < Duration::from_secs(2), "a reader waited for {slowest:?}");
    });
}

#[test]
fn signals_unmount_cleanly() {
    let scratch = Scratch::new();
    let image = demo(&scratch);
    for signal in [Signal::TERM, Signal::INT] {
        let mounted = Mounted::new(&image, &[]);
        send(mounted.pid, signal);
        assert!(ends(mounted.pid));
        assert_eq!(mount_of(&mounted.at), None);
    }
}

/// The process that a daemon has started.
fn keeper_of(daemon: u32) -> u32 {
    child_of(daemon).expect("the daemon has a keeper")
}

fn child_of(process: u32) -> Option<u32> {
    let parent = |pid: &u32| {
        let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        state.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(1)?.parse::<u32>().ok())
    };
    let mut processes =
        std::fs::read_dir("/proc").unwrap().filter_map(|row| row.ok()?.file_name().to_str()?.parse().ok());
    processes.find(|pid| parent(pid) == Some(process))
}

#[test]
fn a_daemon_that_was_killed_leaves_no_mount_behind() {
    let scratch = Scratch::new();
    let image = demo(&scratch);
    for options in [&[][..], &["-o", "rw"]] {
        let mounted = Mounted::new(&image, options);
        let in_use = File::open(mounted.path("disk.img")).unwrap();
        let keeper = keeper_of(mounted.pid);
        send(mounted.pid, Signal::KILL);
        assert!(within(Duration::from_secs(10), || mount_of(&mounted.at).is_none()), "{options:?}: a dead mount stays");
        assert_eq!(names(&mounted.at), [""; 0]);
        assert!(ends(keeper), "the keeper stays");
        assert!(!Path::new(&format!("{}.pid", mounted.at.display())).exists(), "the process number stays");
        drop(in_use);
        let again = Mounted::new(&image, options);
        assert_eq!(std::fs::read_to_string(again.path("files/etc/hostname")).unwrap(), "demo\n");
    }
}

#[test]
fn without_its_keeper_a_mount_works_and_can_be_unmounted() {
    let scratch = Scratch::new();
    let image = demo(&scratch);
    let mounted = Mounted::new(&image, &[]);
    send(keeper_of(mounted.pid), Signal::KILL);
    assert_eq!(std::fs::read_to_string(mounted.path("files/etc/hostname")).unwrap(), "demo\n");
    assert_eq!(ok(&["umount", mounted.at.to_str().unwrap()]), "");
    assert!(ends(mounted.pid));
}

#[test]
fn a_dead_mount_is_said_to_be_dead_and_can_be_cleared() {
    let scratch = Scratch::new();
    let image = demo(&scratch);
    let mounted = Mounted::new(&image, &[]);
    let at = mounted.at.to_str().unwrap().to_owned();
    send(keeper_of(mounted.pid), Signal::KILL);
    send(mounted.pid, Signal::KILL);
    let row = || ok(&["list"]).lines().find(|row| row.contains(&format!(" on {at}, "))).unwrap().to_owned();
    // Its threads end one after the other, and the last of them lets go of its files.
    let said = within(Duration::from_secs(10), || row().contains("dead: its daemon is gone; `imgfs umount "));
    assert!(said, "{}", row());
    let value: serde_json::Value = serde_json::from_str(&ok(&["list", "--json"])).unwrap();
    let rows = value["mounts"].as_array().unwrap();
    let row = rows.iter().find(|row| row["mountpoint"] == at.as_str()).unwrap();
    assert_eq!((&row["dead"], &row["process"]), (&true.into(), &serde_json::Value::Null));
    let refused = run(&[image.to_str().unwrap(), &at]);
    let expected = format!("imgfs: {at}: a mount is there whose daemon is gone: `imgfs umount {at}` clears it\n");
    assert_eq!((refused.code, refused.err), (Some(1), expected));
    assert_eq!(ok(&["umount", &at]), "");
    assert!(mount_of(&mounted.at).is_none());
    let said = run(&["umount", &at]);
    assert!(said.code == Some(1) && said.err.contains("nothing is mounted there"), "{}", said.err);
}

#[test]
fn an_empty_image_is_said_to_be_empty_and_not_mounted() {
    let scratch = Scratch::new();
    let image = scratch.path("empty.img");
    std::fs::write(&image, b"").unwrap();
    let at = scratch.path("mnt");
    std::fs::create_dir(&at).unwrap();
    let (shown, at) = (image.to_str().unwrap(), at.to_str().unwrap());
    for options in [&[][..], &["-o", "rw"], &["-o", "tree"]] {
        let said = run(&[&[shown, at][..], options].concat());
        assert_eq!((said.code, said.err), (Some(1), format!("imgfs: {shown}: the image is empty (0 bytes)\n")));
    }
    assert!(!scratch.path("empty.img.overlay.qcow2").exists());
    let info = ok(&["info", shown]);
    assert!(info.contains("the image is empty (0 bytes)"), "{info}");
}

#[test]
fn in_the_foreground_it_stays_until_it_is_told_to_end() {
    let scratch = Scratch::new();
    let image = demo(&scratch);
    let at = scratch.path("mnt");
    std::fs::create_dir(&at).unwrap();
    let _untouched = Untouched::new(&image);
    for debug in [false, true] {
        let mut command = imgfs();
        command.arg(if debug { "-d" } else { "-f" }).args([&image, &at]).stderr(Stdio::piped()).stdout(Stdio::piped());
        let child = command.spawn().unwrap();
        assert!(within(Duration::from_secs(10), || at.join("p1").is_dir()));
        assert!(is_alive(child.id()));
        send(child.id(), Signal::INT);
        let said = said(child.wait_with_output().unwrap());
        assert_eq!(said.code, Some(0), "{}", said.err);
        assert_eq!(said.err.is_empty(), !debug, "{}", said.err);
        assert_eq!(mount_of(&at), None);
    }
}

#[test]
fn a_file_as_mount_point_becomes_the_flat_disk() {
    let scratch = Scratch::new();
    let image = testimage("container/qcow2/zstd.qcow2", &scratch.path(""));
    let at = scratch.path("flat");
    File::create(&at).unwrap();
    let mounted = Mounted::onto(image.to_str().unwrap(), Some(&image), &at, &[]);
    let disk = std::fs::read(&at).unwrap();
    assert_eq!(&disk[..1 << 20], std::fs::read(crate::program::project().join("testimages/demo.img")).unwrap());
    assert_eq!(disk.len(), (1 << 20) + 70_144);
    drop(mounted);
    assert_eq!(lstat(&at).unwrap().len(), 0);
}

#[test]
fn one_tree_can_be_the_whole_mount() {
    let scratch = Scratch::new();
    let image = demo(&scratch);
    let mounted = Mounted::new(&image, &["-o", "tree"]);
    assert_eq!(names(&mounted.at), ["etc", "home", "lost+found", "notes"]);
    assert_eq!(std::fs::read_to_string(mounted.path("etc/hostname")).unwrap(), "demo\n");
    drop(mounted);
    let mounted = Mounted::new(&image, &["-o", "tree=p1"]);
    assert_eq!(names(&mounted.at), ["EFI", "startup.nsh"]);
    drop(mounted);
    let refused = run(&["-o", "tree=p7", image.to_str().unwrap(), scratch.path("").to_str().unwrap()]);
    assert_eq!(refused.code, Some(1));
    assert!(refused.err.contains("no tree p7"), "{}", refused.err);
}

#[test]
fn unknown_options_are_refused_by_name_with_the_nearest_word() {
    let scratch = Scratch::new();
    let image = demo(&scratch);
    let at = scratch.path("mnt");
    std::fs::create_dir(&at).unwrap();
    for (option, words) in [
        ("umaks=022", "-o umaks=022: unknown option; did you mean umask?"),
        ("ofset=512", "did you mean offset?"),
        ("allow_ohter", "did you mean allow_other?"),
        ("quite-something-else", "-o quite-something-else: unknown option"),
        ("uid=no one", "-o uid=no one: \"no one\" is neither a number nor a user in /etc/passwd"),
        ("umask=999", "-o umask=999"),
        ("offset", "needs a value"),
        ("ro=1", "takes no value"),
        ("suid", "-o suid: refused"),
    ] {
        let refused = run(&[image.to_str().unwrap(), at.to_str().unwrap(), "-o", option]);
        assert_eq!(refused.code, Some(1), "{option}");
        assert!(refused.err.contains(words), "{option}: {}", refused.err);
        assert_eq!(mount_of(&at), None);
    }
}

#[test]
fn the_mount_is_read_only_without_devices_and_set_id_programs() {
    let scratch = Scratch::new();
    let image = demo(&scratch);
    let mounted = Mounted::new(&image, &[]);
    let (options, kind, source) = mount_of(&mounted.at).unwrap();
    for option in ["ro", "nosuid", "nodev", "default_permissions"] {
        assert!(options.split(',').any(|found| found == option), "{option} is not among {options}");
    }
    assert!(!options.contains("allow_other"));
    assert_eq!((kind.as_str(), source.as_str()), ("fuse.imgfs", image.to_str().unwrap()));
    for path in ["new", "p2/new"] {
        let refused = File::create(mounted.path(path)).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    }
    let refused = std::fs::remove_file(mounted.path("p2/etc/hostname")).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
}

#[test]
fn set_id_bits_and_devices_of_the_medium_mean_nothing_as_root() {
    if !is_root() {
        return;
    }
    let scratch = crate::disks::Scratch::new();
    // A program that says who it runs as, and the device of zeros.
    let make = "mkdir tree; cp /usr/bin/id tree/id; chown 1234 tree/id; chmod 4755 tree/id; mknod tree/zero c 1 5; \
        mke2fs -q -F -t ext4 -d tree fs.img 8M";
    scratch.sh("coreutils e2fsprogs", make);
    let mounted = Mounted::new(&scratch.path("fs.img"), &["-o", "owners"]);
    let program = mounted.path("disk/id");
    assert_eq!(lstat(&program).unwrap().mode() & 0o7777, 0o4755);
    let said = std::process::Command::new(&program).arg("-u").output().unwrap();
    assert_eq!(String::from_utf8_lossy(&said.stdout), "0\n");
    let refused = File::open(mounted.path("disk/zero")).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::PermissionDenied);
}

#[test]
fn the_daemon_lets_go_of_the_terminal() {
    let scratch = crate::disks::Scratch::new();
    let image = testimage("demo.img", &scratch.path(""));
    let (at, number) = (scratch.path("mnt"), scratch.path("number"));
    std::fs::create_dir(&at).unwrap();
    let program = imgfs().get_program().to_str().unwrap().to_owned();
    let line = format!("{program} {} {} --pid-file {}", image.display(), at.display(), number.display());
    // On a terminal of its own, where there is someone to be asked; its end is waited for.
    scratch.sh("bsdutils", &format!("timeout 20 script -qec '{line}' /dev/null"));
    let pid = std::fs::read_to_string(number).unwrap().trim().to_owned();
    let open: Vec<_> = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten().collect();
    let open: Vec<_> = open.iter().filter_map(|fd| std::fs::read_link(fd.path()).ok()).collect();
    let terminal = open.iter().find(|path| path.starts_with("/dev/pts") || path.ends_with("tty"));
    assert!(!open.is_empty() && terminal.is_none(), "{open:?}");
    ok(&["umount", at.to_str().unwrap()]);
}

#[test]
fn part_is_tree_with_a_number() {
    let scratch = crate::disks::Scratch::new();
    let image = testimage("demo.img", &scratch.path(""));
    for option in ["part=2", "part=p2", "tree=p2"] {
        let mounted = Mounted::new(&image, &["-o", option]);
        assert_eq!(std::fs::read_to_string(mounted.path("etc/hostname")).unwrap(), "demo\n", "{option}");
    }
}

#[test]
fn files_belong_to_the_caller_or_to_whom_the_disk_says() {
    let scratch = Scratch::new();
    let image = testimage("filesystem/ext/ext4.img", &scratch.path(""));
    let me = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    let seen = |options: &[&str]| {
        let mounted = Mounted::new(&image, options);
        let found = lstat(mounted.path("disk/secret")).unwrap();
        (found.uid(), found.gid(), found.mode() & 0o7777, std::fs::read(mounted.path("disk/secret")).is_ok())
    };
    // The access list of the file gives its mask as the bits of the group.
    assert_eq!(seen(&["-o", "noowners"]), (me.0, me.1, 0o640, true));
    assert_eq!(seen(&["-o", "owners"]), (1000, 100, 0o640, is_root()));
    assert_eq!(seen(&[]), if is_root() { (1000, 100, 0o640, true) } else { (me.0, me.1, 0o640, true) });
    assert_eq!(seen(&["-o", "uid=77,gid=88,owners"]).1, 88);
    assert_eq!(seen(&["-o", "uid=77", "-o", "gid=88"]), (77, 88, 0o640, is_root()));
}

#[test]
fn masks_take_bits_from_files_and_directories() {
    let scratch = Scratch::new();
    let image = testimage("filesystem/fat/floppy.img", &scratch.path(""));
    let seen = |options: &str| {
        let mounted = Mounted::new(&image, &["-o", options]);
        let mode = |name| lstat(mounted.path(name)).unwrap().mode() & 0o7777;
        (mode("disk/docs"), mode("disk/readme.txt"))
    };
    assert_eq!(seen("umask=022"), (0o755, 0o755));
    assert_eq!(seen("umask=077"), (0o700, 0o700));
    assert_eq!(seen("fmask=0133,dmask=0022"), (0o755, 0o644));
    assert_eq!(seen("dmask=0227"), (0o550, lstat_default()));

    /// A medium without permissions shows what the caller's umask leaves.
    fn lstat_default() -> u32 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let mask = status.lines().find_map(|line| line.strip_prefix("Umask:")).unwrap();
        0o777 & !u32::from_str_radix(mask.trim(), 8).unwrap() | 0o400
    }
}

#[test]
fn showexec_lets_programs_of_dos_be_run_and_nothing_else() {
    let scratch = crate::disks::Scratch::new();
    let make = "mkfs.fat -C f.img 1440 > /dev/null; echo x > x; \
        for name in RUN.EXE run.com AUTO.BAT 'long name.exe' data.txt exe; do mcopy -i f.img x \"::$name\"; done; mmd -i f.img ::DIR";
    scratch.sh("dosfstools mtools", make);
    let image = scratch.path("f.img");
    let seen = |options: &str| {
        let mounted = Mounted::new(&image, &["-o", options]);
        let mode = |name| lstat(mounted.path("disk").join(name)).unwrap().mode() & 0o7777;
        ["RUN.EXE", "run.com", "AUTO.BAT", "long name.exe", "data.txt", "exe", "DIR"].map(mode)
    };
    assert_eq!(seen("umask=022"), [0o755; 7]);
    assert_eq!(seen("showexec,umask=022"), [0o755, 0o755, 0o755, 0o755, 0o644, 0o644, 0o755]);
    assert_eq!(seen("showexec,mode=0751,dmode=0710"), [0o751, 0o751, 0o751, 0o751, 0o640, 0o640, 0o710]);
    // The commands say the same.
    let at = format!("{}:/disk", image.display());
    let listed = ok(&["ls", "-l", "-o", "showexec", &at]);
    let bits = |name: &str| listed.lines().find(|line| line.ends_with(name)).unwrap()[..4].to_owned();
    assert_eq!((bits("RUN.EXE"), bits("data.txt")), ("-rwx".to_owned(), "-rw-".to_owned()), "{listed}");
    ok(&["cp", "-a", "-o", "showexec,mode=0640", &at, scratch.path("out").to_str().unwrap()]);
    assert_eq!(lstat(scratch.path("out/data.txt")).unwrap().mode() & 0o777, 0o640);
    ok(&["cp", "-r", "-o", "showexec", &format!("{at}/RUN.EXE"), scratch.path("run").to_str().unwrap()]);
    assert_eq!(lstat(scratch.path("run")).unwrap().mode() & 0o100, 0o100);
}

#[test]
fn names_of_plain_discs_are_mapped_as_the_kernel_maps_them() {
    let scratch = crate::disks::Scratch::new();
    scratch
        .sh("coreutils", "mkdir -p tree/sub; echo x | tee tree/readme.txt tree/makefile tree/sub/inner.c > /dev/null");
    scratch.sh(
        "genisoimage",
        "genisoimage -quiet -o plain.iso tree 2> /dev/null; genisoimage -quiet -r -o rock.iso tree 2> /dev/null",
    );
    let image = scratch.path("plain.iso");
    let seen = |options: &[&str]| {
        let mounted = Mounted::new(&image, options);
        names(&mounted.path("disk"))
    };
    assert_eq!(seen(&[]), ["MAKEFILE", "README.TXT", "SUB"]);
    assert_eq!(seen(&["-o", "map=normal"]), ["makefile", "readme.txt", "sub"]);
    assert_eq!(seen(&["-o", "map=a"]), ["makefile", "readme.txt", "sub"]);
    // As isoinfo lists what is recorded.
    let recorded =
        scratch.sh("genisoimage", "isoinfo -f -i plain.iso | grep -c -e '/MAKEFILE.;1$' -e '/README.TXT;1$'");
    assert_eq!(recorded.trim(), "2");
    assert_eq!(seen(&["-o", "map=off"]), ["MAKEFILE.;1", "README.TXT;1", "SUB"]);
    // Names of the world outside stay what they are, and the commands map as mounts do.
    let rock = format!("{}:/disk", scratch.path("rock.iso").display());
    assert_eq!(ok(&["ls", "-o", "map=off", &rock]), "makefile\nreadme.txt\nsub\n");
    let plain = format!("{}:/disk/sub/inner.c", image.display());
    assert_eq!(ok(&["cat", "-o", "map=normal", &plain]), "x\n");
    let modes = Mounted::new(&image, &["-o", "mode=0640,dmode=0711"]);
    let mode = |name| lstat(modes.path(name)).unwrap().mode() & 0o7777;
    assert_eq!((mode("disk/README.TXT"), mode("disk/SUB")), (0o640, 0o711));
}

#[test]
fn what_ext_keeps_for_root_is_free_and_not_available() {
    let scratch = Scratch::new();
    let image = scratch.path("reserved.img");
    File::create(&image).unwrap().set_len(8 << 20).unwrap();
    tool("e2fsprogs", "mke2fs", &["-q", "-m", "10", image.to_str().unwrap()]);
    let said = tool("e2fsprogs", "dumpe2fs", &["-h", image.to_str().unwrap()]);
    let number = |name: &str| -> u64 {
        let value = said.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        value.trim().parse().unwrap()
    };
    let mounted = Mounted::new(&image, &[]);
    let seen = rustix::fs::statvfs(mounted.path("disk")).unwrap();
    let (free, reserved) = (number("Free blocks:"), number("Reserved block count:"));
    assert_eq!((seen.f_bfree, seen.f_bavail), (free, free - reserved));
    assert!(reserved > 0);
}

#[test]
fn statfs_shows_the_totals_of_the_volume() {
    let scratch = Scratch::new();
    let image = demo(&scratch);
    let info: serde_json::Value =
        serde_json::from_str(&ok(&["info", "--json", image.to_str().unwrap()])).expect("info --json is JSON");
    let mounted = Mounted::new(&image, &[]);
    for (part, files) in [(1, "p1"), (2, "p2")] {
        let tree = &info["parts"][part]["tree"];
        let seen = rustix::fs::statvfs(mounted.path(files)).unwrap();
        let number = |name: &str| tree[name].as_u64().unwrap();
        assert_eq!(seen.f_frsize, number("block_size"));
        assert_eq!((seen.f_blocks, seen.f_bfree), (number("total_blocks"), number("free_blocks")));
        assert_eq!((seen.f_files, seen.f_ffree), (number("total_nodes"), number("free_nodes")));
        assert!(seen.f_blocks > 0 && seen.f_bfree < seen.f_blocks);
    }
    // The FAT volume as mtools counts it.
    let listing = tool("mtools", "mdir", &["-i", mounted.path("p1.img").to_str().unwrap(), "::"]);
    let free = listing.lines().find(|line| line.contains("bytes free")).unwrap();
    let free: String = free.chars().filter(char::is_ascii_digit).collect();
    let seen = rustix::fs::statvfs(mounted.path("p1")).unwrap();
    assert_eq!(free.parse::<u64>().unwrap(), seen.f_bfree * seen.f_frsize);
}

#[test]
fn holes_are_found_and_take_no_room() {
    let scratch = Scratch::new();
    let image = testimage("filesystem/ext/ext2.img", &scratch.path(""));
    let mounted = Mounted::new(&image, &[]);
    let sparse = mounted.path("disk/sparse.bin");
    // Blocks of 1,024 bytes.
    assert_eq!(runs(&sparse), [(299_008, 301_056)]);
    let found = lstat(&sparse).unwrap();
    // Two of data, and two that say where these are.
    assert_eq!((found.len(), found.blocks()), (900_000, 8));
    assert_eq!(runs(&mounted.path("disk.img")), runs(&image));
    assert!(lstat(mounted.path("disk.img")).unwrap().blocks() <= lstat(&image).unwrap().blocks() + 8);
}

#[test]
fn extended_attributes_come_through() {
    let scratch = Scratch::new();
    let image = testimage("filesystem/ext/ext4.img", &scratch.path(""));
    let mounted = Mounted::new(&image, &[]);
    let readme = mounted.path("disk/readme.txt");
    assert_eq!(xattr(&readme, "user.comment").unwrap(), b"kept");
    assert_eq!(xattr(&readme, "user.big").unwrap().len(), 600);
    assert_eq!(xattr(&readme, "user.none"), None);
    assert_eq!(xattr_names(&readme), ["user.big", "user.comment"].map(str::to_owned).into());
    assert_eq!(xattr(&mounted.path("disk/bin/tool"), "security.capability").unwrap().len(), 20);
    assert_eq!(xattr(&mounted.path("disk/secret"), "system.posix_acl_access").unwrap().len(), 44);
    drop(mounted);
    let image = testimage("filesystem/fat/fat16.img", &scratch.path(""));
    let mounted = Mounted::new(&image, &[]);
    let name = mounted.path("disk/A long name with spaces.text");
    assert_eq!(xattr_names(&name), ["user.fat.attributes", "user.fat.shortname"].map(str::to_owned).into());
    assert_eq!(xattr(&name, "user.fat.shortname").unwrap(), b"ALONGN~1.TEX");
    assert!(String::from_utf8(xattr(&name, "user.fat.attributes").unwrap()).unwrap().starts_with("0x20"));
}

#[test]
fn nodes_of_every_kind_are_what_they_are() {
    let scratch = Scratch::new();
    for name in ["filesystem/ext/ext2.img", "filesystem/ext/ext4.img", "filesystem/iso9660/rockridge.iso"] {
        let image = testimage(name, &scratch.path(""));
        let mounted = Mounted::new(&image, &["-o", "symlinks=asis"]);
        let stat = |name: &str| lstat(mounted.path("disk").join(name)).unwrap();
        let device = |name: &str| (rustix::fs::major(stat(name).rdev()), rustix::fs::minor(stat(name).rdev()));
        assert!(stat("null").file_type().is_char_device());
        assert_eq!(device("null"), (1, 3));
        assert!(stat("disk").file_type().is_block_device());
        assert_eq!(device("disk"), (259, 70_000), "{}", image.display());
        assert!(stat("pipe").file_type().is_fifo());
        assert_eq!(std::fs::read_link(mounted.path("disk/short link")).unwrap(), Path::new("docs/notes.txt"));
        let long = std::fs::read_link(mounted.path("disk/long link")).unwrap();
        assert_eq!(long.as_os_str().len(), stat("long link").len() as usize);
        assert_eq!(long.components().count(), 7);
        assert_eq!(stat("readme.txt").nlink(), 2);
        // Names on an ISO are records of their own, with the same contents.
        assert_eq!(stat("readme.txt").ino() == stat("hard link").ino(), name.contains("/ext/"), "{name}");
        assert_eq!(stat("readme.txt").mtime(), 1_767_323_045);
        // A device node of an image opens nothing.
        let refused = File::open(mounted.path("disk/null")).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::PermissionDenied);
    }
}

/// An ext4 image whose directory `many` has that many names for one file: mke2fs takes minutes to add
/// so many, so the blocks of the directory are made here, as the contents of a file that debugfs
/// then turns into a directory.
fn wide_image(scratch: &Scratch, count: u32) -> std::path::PathBuf {
    let (image, folder) = (scratch.path("wide.img"), scratch.path("wide"));
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("one"), "one\n").unwrap();
    let (image_name, folder_name) = (image.to_str().unwrap(), folder.to_str().unwrap());
    let names = (0..count).map(|number| format!("entry number {number:06}"));
    let make = |many: &[u8]| {
        std::fs::write(folder.join("many"), many).unwrap();
        let features = "^has_journal,^resize_inode,^metadata_csum,^inline_data,^dir_index";
        let args = ["-q", "-F", "-t", "ext4", "-b", "4096", "-O", features, "-d", folder_name, image_name, "16M"];
        tool("e2fsprogs", "mke2fs", &args);
    };
    let number = |name: &str| -> u32 {
        let said = tool("e2fsprogs", "debugfs", &["-R", &format!("stat {name}"), image_name]);
        said.split("Inode: ").nth(1).unwrap().split_whitespace().next().unwrap().parse().unwrap()
    };
    make(b"");
    let rows = [(number("many"), 2, ".".to_owned()), (2, 2, "..".to_owned())].into_iter();
    let one = number("one");
    let mut blocks = Vec::new();
    let mut last = 0;
    for (inode, kind, name) in rows.chain(names.map(|name| (one, 1, name))) {
        let len = (8 + name.len()).next_multiple_of(4);
        if blocks.len() % 4096 + len > 4096 || (blocks.len() % 4096 == 0 && !blocks.is_empty()) {
            // The last row of a block reaches to its end.
            blocks.resize(blocks.len().next_multiple_of(4096), 0);
            let room = u16::try_from(blocks.len() - last).unwrap();
            blocks[last + 4..last + 6].copy_from_slice(&room.to_le_bytes());
        }
        last = blocks.len();
        blocks.extend_from_slice(&inode.to_le_bytes());
        blocks.extend_from_slice(&u16::try_from(len).unwrap().to_le_bytes());
        blocks.extend_from_slice(&[u8::try_from(name.len()).unwrap(), kind]);
        blocks.extend_from_slice(name.as_bytes());
        blocks.resize(last + len, 0);
    }
    blocks.resize(blocks.len().next_multiple_of(4096), 0);
    let room = u16::try_from(blocks.len() - last).unwrap();
    blocks[last + 4..last + 6].copy_from_slice(&room.to_le_bytes());
    make(&blocks);
    for change in ["mode 040755", "links_count 2"] {
        let command = format!("set_inode_field many {change}");
        tool("e2fsprogs", "debugfs", &["-w", "-R", &command, image_name]);
    }
    image
}

fn list_200_000(image: &Path) {
    let mounted = Mounted::new(image, &[]);
    let start = Instant::now();
    let mut seen = vec![false; 200_000];
    for entry in std::fs::read_dir(mounted.path("disk/many")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let number: usize = name.strip_prefix("entry number ").unwrap().parse().unwrap();
        assert!(!std::mem::replace(&mut seen[number], true), "{name} appears twice");
    }
    assert!(seen.iter().all(|seen| *seen));
    println!("listed in {:?}", start.elapsed());
    let start = Instant::now();
    for number in (0..200_000).step_by(997) {
        assert!(lstat(mounted.path(&format!("disk/many/entry number {number:06}"))).unwrap().is_file());
        assert!(lstat(mounted.path(&format!("disk/many/entry numbes {number:06}"))).is_err());
    }
    println!("402 names looked up in {:?}", start.elapsed());
    assert!(start.elapsed() < Duration::from_secs(5), "each name is looked for from the start");
    memory_is_bounded(mounted.pid);
}

#[test]
fn a_directory_of_200_000_names_is_listed_in_bounded_memory() {
    let scratch = Scratch::new();
    list_200_000(&wide_image(&scratch, 200_000));
}

/// The most that a daemon ever had in memory: 20 MiB besides the cache of 32 MiB.
const MOST_MIB: u64 = 20 + 32;

/// The most that a daemon ever had in memory.
fn memory_is_bounded(pid: u32) {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().unwrap();
    println!("VmHWM {kib} KiB");
    assert!(kib <= MOST_MIB * 1024, "{kib} KiB in memory");
}

#[test]
fn reading_everything_leaves_memory_bounded() {
    let scratch = Scratch::new();
    let image = scratch.path("big.img");
    let folder = scratch.path("big");
    std::fs::create_dir(&folder).unwrap();
    for number in 0..40 {
        std::fs::write(folder.join(format!("{number}.bin")), pattern(2_500_000, number)).unwrap();
    }
    let args = [
        "-q",
        "-F",
        "-t",
        "ext4",
        "-O",
        "^has_journal",
        "-d",
        folder.to_str().unwrap(),
        image.to_str().unwrap(),
        "120M",
    ];
    tool("e2fsprogs", "mke2fs", &args);
    let mounted = Mounted::new(&image, &[]);
    let same = |name: String| assert_eq!(sha256(&mounted.path("disk").join(&name)), sha256(&folder.join(&name)));
    // Eight readers at once, each with files of its own and one that all want.
    std::thread::scope(|scope| {
        for reader in 0..8 {
            let same = &same;
            scope.spawn(move || (0..5).for_each(|file| same(format!("{}.bin", (reader * 5 + file) % 40))));
            scope.spawn(move || same("7.bin".to_owned()));
        }
    });
    assert_eq!(sha256(&mounted.path("disk.img")), sha256(&image));
    memory_is_bounded(mounted.pid);
}

#[test]
fn small_reads_at_random_places_equal_the_file() {
    let scratch = Scratch::new();
    let image = testimage("filesystem/iso9660/rockridge.iso", &scratch.path(""));
    let mounted = Mounted::new(&image, &[]);
    let expected = pattern_of_make_testimages(5001, 2);
    let file = File::open(mounted.path("disk/ODD.BIN")).unwrap();
    for offset in [0, 1, 511, 2047, 2048, 4095, 4096, 4999, 5000] {
        let mut buf = [0; 100];
        let len = file.read_at(&mut buf, offset).unwrap();
        assert_eq!(&buf[..len], &expected[offset as usize..][..len]);
        assert_eq!(len, (5001 - offset as usize).min(100));
    }
    assert_eq!(file.read_at(&mut [0; 10], 5001).unwrap(), 0);
}

#[test]
fn large_reads_of_flat_bytes_at_odd_places_are_the_image_s_own() {
    let scratch = Scratch::new();
    let image = scratch.path("odd.img");
    let bytes = pattern(6_000_001, 7);
    std::fs::write(&image, &bytes).unwrap();
    let at = scratch.path("mnt");
    std::fs::create_dir(&at).unwrap();
    // Byte 32,256: in the middle of a page, as the first partition of old disks.
    let name = format!("{}@@63s", image.to_str().unwrap());
    let mounted = Mounted::onto(&name, Some(&image), &at, &[]);
    let flat = at.join("disk.img");
    let expected = &bytes[63 * 512..];
    std::thread::scope(|scope| {
        for start in [0, 1, 4_095, 131_072, 3_000_001] {
            let flat = &flat;
            scope.spawn(move || {
                let mut file = File::open(flat).unwrap();
                file.seek(At::Start(start)).unwrap();
                let mut read = Vec::new();
                file.read_to_end(&mut read).unwrap();
                assert!(read == expected[usize::try_from(start).unwrap()..], "from byte {start}");
            });
        }
    });
    drop(mounted);
    // Cut short while it is mounted: what is gone is an error, and nobody waits for it.
    let mounted = Mounted::onto(&name, None, &at, &[]);
    File::options().write(true).open(&image).unwrap().set_len(3_000_000).unwrap();
    let file = File::open(&flat).unwrap();
    let mut part = vec![0; 1 << 20];
    file.read_exact_at(&mut part, 1 << 20).unwrap();
    assert!(part == expected[1 << 20..2 << 20]);
    assert_eq!(file.read_exact_at(&mut part, 4 << 20).unwrap_err().raw_os_error(), Some(5));
    drop(file);
    drop(mounted);
}

fn pattern_of_make_testimages(count: usize, seed: u32) -> Vec<u8> {
    let mut out = Vec::new();
    while out.len() < count {
        out.extend_from_slice(&Sha256::digest(format!("{seed} {}", out.len())));
    }
    out.truncate(count);
    out
}

#[test]
fn sectors_of_4096_bytes_are_read() {
    let scratch = Scratch::new();
    let image = testimage("volume/gpt/sectors-of-4096.img", &scratch.path(""));
    let mounted = Mounted::new(&image, &[]);
    assert_eq!(std::fs::read(mounted.path("p1/docs/deep/deeper/deepest.txt")).unwrap(), b"at the bottom\n");
    assert_eq!(walked(&mounted.at), manifest(image.to_str().unwrap()));
}

#[test]
fn a_window_of_the_image_is_mounted_by_name_or_by_option() {
    let scratch = Scratch::new();
    let image = scratch.path("shifted.img");
    let inner = std::fs::read(demo(&scratch)).unwrap();
    std::fs::write(&image, [vec![0xee; 1 << 20], inner.clone(), vec![0xee; 12_345]].concat()).unwrap();
    let name = image.to_str().unwrap();
    let at = scratch.path("mnt");
    std::fs::create_dir(&at).unwrap();
    let mounted = Mounted::onto(&format!("{name}@@1M"), Some(&image), &at, &[]);
    assert_eq!(std::fs::read(at.join("files/etc/hostname")).unwrap(), b"demo\n");
    assert_eq!(lstat(at.join("disk.img")).unwrap().len(), (1 << 20) + 12_345);
    drop(mounted);
    for options in ["offset=1M,sizelimit=1M", "start=2048s,length=1048576", "offset=1048576,sizelimit=1024K"] {
        let mounted = Mounted::onto(name, Some(&image), &at, &["-o", options]);
        assert_eq!(std::fs::read(at.join("disk.img")).unwrap(), inner);
        assert_eq!(std::fs::read(at.join("files/etc/hostname")).unwrap(), b"demo\n");
        drop(mounted);
    }
    let refused = run(&[name, at.to_str().unwrap(), "-o", "offset=1T"]);
    assert_eq!(refused.code, Some(1));
    assert!(refused.err.contains("past the end"), "{}", refused.err);
}

#[test]
fn an_image_that_may_only_be_read_in_a_folder_that_may_only_be_read() {
    let scratch = Scratch::new();
    let folder = scratch.path("closed");
    std::fs::create_dir(&folder).unwrap();
    let image = testimage("demo.img", &folder);
    std::fs::set_permissions(&image, Permissions::from_mode(0o444)).unwrap();
    std::fs::set_permissions(&folder, Permissions::from_mode(0o555)).unwrap();
    let at = scratch.path("mnt");
    std::fs::create_dir(&at).unwrap();
    let mounted = Mounted::onto(image.to_str().unwrap(), Some(&image), &at, &[]);
    assert_eq!(names(&at.join("p1")), ["EFI", "startup.nsh"]);
    drop(mounted);
    assert_eq!(names(&folder), ["demo.img"]);
    std::fs::set_permissions(&folder, Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn names_with_spaces_commas_and_backslashes_are_mounted() {
    let scratch = Scratch::new();
    let folder = scratch.path("a folder, with\\odd=names");
    std::fs::create_dir(&folder).unwrap();
    let image = testimage("demo.img", &folder);
    let mounted = Mounted::new(&image, &[]);
    assert_eq!(names(&mounted.path("p1")), ["EFI", "startup.nsh"]);
    ok(&["umount", mounted.at.to_str().unwrap()]);
    assert!(!is_alive(mounted.pid));
}

#[test]
fn a_terabyte_is_ready_at_once() {
    let scratch = Scratch::new();
    let image = scratch.path("terabyte.img");
    std::fs::copy(demo(&scratch), &image).unwrap();
    // The partition of the FAT volume stays; the table's copy at the end is gone.
    File::options().write(true).open(&image).unwrap().set_len(1 << 40).unwrap();
    let at = scratch.path("mnt");
    std::fs::create_dir(&at).unwrap();
    let mut best = Duration::MAX;
    for _ in 0..3 {
        let start = Instant::now();
        let mounted = Mounted::onto(image.to_str().unwrap(), None, &at, &[]);
        let names = names(&at);
        best = best.min(start.elapsed());
        assert!(names.contains(&"p1".to_owned()));
        let disk = lstat(at.join("disk.img")).unwrap();
        assert_eq!(disk.len(), 1 << 40);
        assert!(disk.blocks() < 1 << 20, "the hole takes no room");
        let mut file = File::open(at.join("disk.img")).unwrap();
        let mut end = [1; 4096];
        file.seek(At::Start((1 << 40) - 4096)).unwrap();
        file.read_exact(&mut end).unwrap();
        assert_eq!(end, [0; 4096]);
        memory_is_bounded(mounted.pid);
    }
    println!("ready, and listed, in {best:?}");
    assert!(best < Duration::from_millis(500), "{best:?}, five times the 100 ms that it may take");
}

#[test]
fn a_damaged_partition_keeps_its_bytes_and_hides_nothing() {
    let scratch = Scratch::new();
    let image = demo(&scratch);
    // The size of a block in the superblock of the second partition.
    let disk = File::options().write(true).open(&image).unwrap();
    disk.write_all_at(&[0xff; 4], 640 * 512 + 1024 + 0x18).unwrap();
    let info = ok(&["info", image.to_str().unwrap()]);
    assert!(info.contains("  no tree: ext: "), "{info}");
    let at = scratch.path("mnt");
    std::fs::create_dir(&at).unwrap();
    let _untouched = Untouched::new(&image);
    let said = run(&[image.to_str().unwrap(), at.to_str().unwrap()]);
    assert_eq!(said.code, Some(0), "{}", said.err);
    assert!(said.err.contains("p2 has no tree: ext: ") && said.err.contains("p2.img has its bytes"), "{}", said.err);
    assert_eq!(names(&at), ["by-label", "by-uuid", "disk.img", "files", "p1", "p1.img", "p2.img"]);
    assert_eq!(std::fs::read_link(at.join("files")).unwrap(), Path::new("p1"));
    assert_eq!(std::fs::read(at.join("p1/startup.nsh")).unwrap(), b"\\EFI\\BOOT\\BOOTX64.EFI\r\n");
    assert_eq!(std::fs::read(at.join("p2.img")).unwrap(), std::fs::read(&image).unwrap()[640 * 512..][..1280 * 512]);
    ok(&["umount", at.to_str().unwrap()]);
}

#[test]
fn a_damaged_file_answers_with_an_error_and_the_rest_is_read() {
    let scratch = Scratch::new();
    let image = testimage("filesystem/fat/floppy.img", &scratch.path(""));
    // The chain of ODD.BIN, ten clusters long, is made to end where it starts.
    let disk = File::options().read(true).write(true).open(&image).unwrap();
    let mut root = vec![0; 224 * 32];
    disk.read_exact_at(&mut root, 19 * 512).unwrap();
    let entry = root.chunks(32).find(|entry| entry.starts_with(b"ODD     BIN")).unwrap();
    let cluster = u64::from(u16::from_le_bytes([entry[26], entry[27]]));
    for copy in [1, 10] {
        let at = copy * 512 + cluster * 3 / 2;
        let mut pair = [0; 2];
        disk.read_exact_at(&mut pair, at).unwrap();
        let kept = if cluster % 2 == 0 { [0xff, pair[1] | 0x0f] } else { [pair[0] | 0xf0, 0xff] };
        disk.write_all_at(&kept, at).unwrap();
    }
    let mounted = Mounted::new(&image, &[]);
    let refused = std::fs::read(mounted.path("disk/ODD.BIN")).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(rustix::io::Errno::UCLEAN.raw_os_error()), "{refused}");
    assert_eq!(std::fs::read(mounted.path("disk/BLOCK.BIN")).unwrap(), pattern_of_make_testimages(2048, 1));
    let manifest = run(&["manifest", image.to_str().unwrap()]);
    assert_eq!(manifest.code, Some(1));
    assert!(manifest.out.lines().any(|row| row == "disk/ODD.BIN\tfile\t0\t!"), "{}", manifest.out);
}

#[test]
fn absolute_links_stay_inside_their_tree_unless_asked_otherwise() {
    let scratch = Scratch::new();
    let image = testimage("filesystem/ext/ext4.img", &scratch.path(""));
    let shown = |options: &[&str], path: &str| {
        let mounted = Mounted::new(&image, options);
        let target = std::fs::read_link(mounted.path(path));
        if let Ok(target) = &target {
            assert_eq!(lstat(mounted.path(path)).unwrap().len(), target.as_os_str().len() as u64);
        }
        let root = mounted.at.canonicalize().unwrap();
        target.map(|target| target.strip_prefix(root).map_or(target.clone(), |rest| Path::new("MNT").join(rest)))
    };
    let medium = Path::new("/").join(["a target of many components"; 6].join("/"));
    let inside = Path::new("MNT/disk").join(medium.strip_prefix("/").unwrap());
    assert_eq!(shown(&[], "disk/long link").unwrap(), inside);
    assert_eq!(shown(&[], "disk/short link").unwrap(), Path::new("docs/notes.txt"));
    assert_eq!(shown(&["-o", "symlinks=asis"], "disk/long link").unwrap(), medium);
    assert_eq!(shown(&["-o", "tree"], "long link").unwrap(), medium);
    assert!(shown(&["-o", "symlinks=hide"], "disk/long link").is_err());
    assert_eq!(shown(&["-o", "symlinks=hide"], "files").unwrap(), Path::new("disk"));
}

#[test]
fn the_mount_and_the_manifest_are_the_same_row_for_row() {
    let scratch = Scratch::new();
    let mut rows = 0;
    for name in [
        "demo.img",
        "volume/mbr/logical.img",
        "filesystem/fat/fat16.img",
        "filesystem/iso9660/eltorito.iso",
        "filesystem/iso9660/joliet.iso",
        "filesystem/ext/ext3.img",
        "filesystem/ext/ext4.img",
        "container/vhdx/dynamic.vhdx",
    ] {
        let image = testimage(name, &scratch.path(""));
        let mounted = Mounted::new(&image, &["-o", "symlinks=asis"]);
        let (seen, told) = (walked(&mounted.at), manifest(image.to_str().unwrap()));
        assert_eq!(seen.symmetric_difference(&told).collect::<Vec<_>>(), [""; 0], "{name}");
        rows += seen.len();
    }
    println!("{rows} rows are the same");
}

#[test]
fn copying_a_tree_with_cp_gives_the_medium() {
    let scratch = Scratch::new();
    let image = demo(&scratch);
    let mounted = Mounted::new(&image, &[]);
    let copy = scratch.path("copy");
    tool("coreutils", "cp", &["-a", mounted.path("p2").to_str().unwrap(), copy.to_str().unwrap()]);
    assert_eq!(walked(&copy), walked(&mounted.path("p2")));
    let (ours, theirs) =
        (lstat(copy.join("home/ada/notes.txt")).unwrap(), lstat(mounted.path("p2/home/ada/notes.txt")).unwrap());
    assert_eq!((ours.mtime(), ours.mtime_nsec(), ours.mode()), (theirs.mtime(), theirs.mtime_nsec(), theirs.mode()));
    assert_eq!(xattr(&copy.join("home/ada/notes.txt"), "user.source").unwrap(), b"Note A, 1843");
}

#[test]
fn what_cannot_be_mounted_leaves_nothing_behind() {
    let scratch = Scratch::new();
    let image = demo(&scratch);
    let at = scratch.path("mnt");
    let said = run(&[image.to_str().unwrap(), at.to_str().unwrap()]);
    assert_eq!(said.code, Some(1));
    assert!(said.err.contains("the mount point has to be there: mkdir it"), "{}", said.err);
    std::fs::create_dir(&at).unwrap();
    let said = run(&[scratch.path("none.img").to_str().unwrap(), at.to_str().unwrap()]);
    assert!(said.code == Some(1) && said.err.contains("none.img"), "{}", said.err);
    let said = run(&["umount", at.to_str().unwrap()]);
    assert_eq!(said.code, Some(1));
    assert!(said.err.contains("nothing is mounted there"), "{}", said.err);
    assert_eq!(mount_of(&at), None);
    // A pid file that cannot be written is an error, and there is no mount then.
    let said = run(&[image.to_str().unwrap(), at.to_str().unwrap(), "--pid-file", "/proc/no/such/place"]);
    assert_eq!(said.code, Some(1), "{}", said.err);
    assert!(within(Duration::from_secs(5), || mount_of(&at).is_none()), "the mount stays");
}

mod as_root {
    use super::*;
    use crate::program::needs_root;

    /// A loop device, given back with the test.
    struct Loop(String);

    impl Loop {
        fn new(image: &Path, options: &[&str]) -> Self {
            let args = [&["--find", "--show", "--read-only"], options, &[image.to_str().unwrap()]].concat();
            Self(tool("mount", "losetup", &args).trim().to_owned())
        }
    }

    impl Drop for Loop {
        fn drop(&mut self) {
            let _ = Command::new("losetup").args(["-d", &self.0]).status();
        }
    }

    struct KernelMount(std::path::PathBuf);

    impl Drop for KernelMount {
        fn drop(&mut self) {
            let _ = Command::new("umount").arg(&self.0).status();
        }
    }

    #[test]
    fn a_block_device_is_an_image() {
        needs_root();
        let scratch = Scratch::new();
        let image = demo(&scratch);
        let device = Loop::new(&image, &[]);
        let at = scratch.path("mnt");
        std::fs::create_dir(&at).unwrap();
        let mounted = Mounted::onto(&device.0, Some(&image), &at, &[]);
        assert_eq!(sha256(&at.join("disk.img")), sha256(&image));
        assert_eq!(std::fs::read(at.join("files/etc/hostname")).unwrap(), b"demo\n");
        assert_eq!(walked(&at.join("p2")), walked_of_image(&image));
        drop(mounted);
        let image = testimage("volume/gpt/sectors-of-4096.img", &scratch.path(""));
        let device = Loop::new(&image, &["--sector-size", "4096"]);
        let mounted = Mounted::onto(&device.0, Some(&image), &at, &[]);
        assert_eq!(std::fs::read(at.join("p1/docs/deep/deeper/deepest.txt")).unwrap(), b"at the bottom\n");
        drop(mounted);
    }

    fn walked_of_image(image: &Path) -> BTreeSet<String> {
        let rows = manifest(image.to_str().unwrap());
        rows.iter().filter_map(|row| row.strip_prefix("p2/").map(str::to_owned)).collect()
    }

    #[test]
    fn nobody_else_looks_into_a_mount_unless_allowed() {
        needs_root();
        let scratch = Scratch::new();
        let image = demo(&scratch);
        std::fs::set_permissions(scratch.path(""), Permissions::from_mode(0o755)).unwrap();
        for (options, allowed) in [(&[][..], false), (&["-o", "allow_other"], true)] {
            let mounted = Mounted::new(&image, options);
            let file = mounted.path("p2/etc/hostname");
            let (code, text) =
                try_tool("util-linux", "runuser", &["-u", "nobody", "--", "cat", file.to_str().unwrap()]);
            assert_eq!(code == Some(0), allowed, "{text}");
        }
    }

    #[test]
    fn flat_files_are_read_by_the_kernel_itself_or_as_ever() {
        needs_root();
        let scratch = Scratch::new();
        let image = scratch.path("flat.img");
        std::fs::write(&image, pattern(9_000_001, 9)).unwrap();
        let mounted = Mounted::new(&image, &[]);
        let flat = mounted.path("disk.img");
        let whole = sha256(&image);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| (0..4).for_each(|_| assert_eq!(sha256(&flat), whole)));
            }
        });
        let mut file = File::options().read(true).open(&flat).unwrap();
        assert!(file.write(b"x").is_err());
        let mut end = Vec::new();
        file.seek(At::End(-5)).unwrap();
        file.read_to_end(&mut end).unwrap();
        assert_eq!(end, std::fs::read(&image).unwrap()[9_000_001 - 5..]);
    }

    #[test]
    fn a_directory_of_200_000_files_is_listed_in_bounded_memory() {
        needs_root();
        let scratch = Scratch::new();
        let (image, at) = (scratch.path("wide.img"), scratch.path("kernel"));
        std::fs::create_dir(&at).unwrap();
        let args = ["-q", "-F", "-t", "ext4", "-b", "4096", "-N", "200100", image.to_str().unwrap(), "128M"];
        tool("e2fsprogs", "mke2fs", &args);
        tool("mount", "mount", &["-t", "ext4", "-o", "loop", image.to_str().unwrap(), at.to_str().unwrap()]);
        let kernel = KernelMount(at.clone());
        std::fs::create_dir(at.join("many")).unwrap();
        (0..200_000).for_each(|number| drop(File::create(at.join(format!("many/entry number {number:06}"))).unwrap()));
        drop(kernel);
        list_200_000(&image);
    }

    /// Everything that lstat and the attributes say of a node, but its number, device and preferred block.
    fn facts(path: &Path) -> String {
        let found = lstat(path).unwrap();
        let mut attributes = BTreeMap::new();
        for name in xattr_names(path) {
            attributes.insert(name.clone(), xattr(path, &name));
        }
        let target = std::fs::read_link(path).ok();
        // Pages that were read from reserved blocks count as data: holes are asked for before.
        let contents = found.is_file().then(|| (runs(path), sha256(path)));
        format!(
            "mode {:o} links {} owner {}.{} rdev {:x} size {} blocks {} a {}.{} m {}.{} c {}.{} {attributes:?} {target:?} {contents:?}",
            found.mode(),
            found.nlink(),
            found.uid(),
            found.gid(),
            found.rdev(),
            found.len(),
            found.blocks(),
            found.atime(),
            found.atime_nsec(),
            found.mtime(),
            found.mtime_nsec(),
            found.ctime(),
            found.ctime_nsec(),
        )
    }

    fn side_by_side(theirs: &Path, ours: &Path, count: &mut usize) {
        assert_eq!(facts(ours), facts(theirs), "{}", theirs.display());
        *count += 1;
        if lstat(theirs).unwrap().is_dir() {
            assert_eq!(names(ours), names(theirs));
            names(theirs).iter().for_each(|name| side_by_side(&theirs.join(name), &ours.join(name), count));
        }
    }

    #[test]
    fn ext_through_the_mount_is_what_the_kernel_shows() {
        needs_root();
        let scratch = Scratch::new();
        let mut count = 0;
        for options in
            ["-t ext2 -b 1024", "-t ext3 -b 2048", "-t ext4 -b 4096 -I 256", "-t ext4 -b 1024 -O inline_data"]
        {
            let image = scratch.path("side.img");
            drop(std::fs::remove_file(&image));
            File::create(&image).unwrap().set_len(48 << 20).unwrap();
            let kernel = scratch.path("kernel");
            std::fs::create_dir_all(&kernel).unwrap();
            let script = format!(
                r#"mke2fs -q -F {options} {image} && mount -t ext4 -o loop,user_xattr,acl {image} {kernel} && cd {kernel}
                mkdir -p a/b/c wide && chmod 2750 a/b && chmod 1777 a/b/c
                for i in $(seq 2500); do echo $i > "wide/number $i"; done
                head -c 3000000 /dev/urandom > big && head -c 40 /dev/urandom > small && touch empty
                truncate -s 100M huge && printf x | dd of=huge bs=1 seek=99999999 conv=notrunc status=none
                for i in $(seq 0 5 200); do printf y | dd of=holes bs=1 seek=$((i * 4096)) conv=notrunc status=none; done
                fallocate -l 1M reserved 2>/dev/null || truncate -s 1M reserved
                ln big other && ln -s ../x link && ln -s "$(printf '%0200d' 7)" "long link"
                mknod char c 1 3; mknod block b 259 70000; mkfifo pipe
                python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind("sock")'
                chown 70000:80000 big && chmod 4711 small
                setfattr -n user.name -v value big && setfattr -n user.long -v "$(printf '%0700d' 5)" big
                setfattr -n trusted.name -v secret big && setfattr -n security.x -v y big
                setfacl -m u:1000:r,g:7:rw big && setfacl -d -m u:1000:rx a
                touch -d '1905-03-04 05:06:07.123456789' past || true
                touch -d '2037-03-04 05:06:07.987654321' future
                touch -h -d '2001-02-03 04:05:06' link
                cd / && umount {kernel} && mount -t ext4 -o loop,ro,noatime {image} {kernel}"#,
                image = image.display(),
                kernel = kernel.display()
            );
            tool("e2fsprogs, mount, attr, acl, python3", "bash", &["-c", &script]);
            let _kernel = KernelMount(kernel.clone());
            let mounted = Mounted::new(&image, &[]);
            let ours = mounted.path("disk");
            // The root's own numbers are those of the mount.
            side_by_side(&kernel, &ours, &mut count);
            let (theirs, seen) = (rustix::fs::statvfs(&kernel).unwrap(), rustix::fs::statvfs(&ours).unwrap());
            assert_eq!((seen.f_blocks, seen.f_bfree), (theirs.f_blocks, theirs.f_bfree), "{options}");
            assert_eq!((seen.f_files, seen.f_ffree, seen.f_frsize), (theirs.f_files, theirs.f_ffree, theirs.f_frsize));
            assert_eq!(seen.f_namemax, theirs.f_namemax);
            // Each name that is there, and some that are not, without a listing before.
            assert!(lstat(ours.join("wide/number 2501")).is_err());
        }
        println!("{count} objects are the same");
        assert!(count > 10_000);
    }
}
