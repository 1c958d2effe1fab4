//! Partition tables made by sfdisk, sgdisk and parted, and read back by them and by The Sleuth Kit.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use imgfs::device::Device;
use imgfs::device::file::HostFile;
use imgfs::device::memory::Memory;
use imgfs::volume::{self, Scan};
use sha2::{Digest, Sha256};

const MIB: u64 = 1 << 20;

/// A sparse image that is removed when the test ends.
struct Image(PathBuf);

impl Image {
    fn new(size: u64) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("imgfs-volumes-{}-{}.img", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let image = Self(std::env::temp_dir().join(name));
        File::create(&image.0).unwrap().set_len(size).unwrap();
        image
    }

    /// An image that sfdisk partitions as `script` says.
    fn sfdisk(size: u64, script: &str) -> Self {
        let image = Self::new(size);
        run("sfdisk", "fdisk", &["--no-reread", "--no-tell-kernel", "-q", image.path()], script);
        image
    }

    fn sgdisk(size: u64, arguments: &[&str]) -> Self {
        let image = Self::new(size);
        run("sgdisk", "gdisk", &[arguments, &[image.path()]].concat(), "");
        image
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }

    fn write(&self, bytes: &[u8], offset: u64) {
        File::options().write(true).open(&self.0).unwrap().write_all_at(bytes, offset).unwrap();
    }

    fn bytes(&self) -> Vec<u8> {
        std::fs::read(&self.0).unwrap()
    }

    fn size(&self) -> u64 {
        self.0.metadata().unwrap().len()
    }

    /// Flips every bit of one byte.
    fn damage(&self, offset: u64) {
        let mut byte = [0];
        File::open(&self.0).unwrap().read_exact_at(&mut byte, offset).unwrap();
        self.write(&[!byte[0]], offset);
    }

    fn try_scan(&self) -> imgfs::error::Result<Option<Scan>> {
        scan_file(&self.0)
    }

    fn scan(&self) -> Scan {
        self.try_scan().unwrap().expect("a partition table")
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        drop(std::fs::remove_file(&self.0));
    }
}

/// Reads the table of an image, and sees to it that the image stays as it is.
fn scan_file(path: &Path) -> imgfs::error::Result<Option<Scan>> {
    let before = hash(path);
    let disk: Device = Arc::new(HostFile::open(path)?);
    let scan = volume::scan(&disk);
    assert_eq!(before, hash(path), "{} was changed", path.display());
    scan
}

fn hash(path: &Path) -> Vec<u8> {
    let mut file = File::open(path).unwrap();
    let mut hasher = Sha256::new();
    let mut buf = vec![0; 1 << 20];
    loop {
        match file.read(&mut buf).unwrap() {
            0 => return hasher.finalize().to_vec(),
            count => hasher.update(&buf[..count]),
        }
    }
}

/// Output of a tool that must be there and succeed.
fn run(tool: &str, package: &str, arguments: &[&str], input: &str) -> String {
    let child = Command::new(tool)
        .args(arguments)
        .env("PATH", format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default()))
        .env("LC_ALL", "C.UTF-8")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = child.unwrap_or_else(|error| panic!("{tool} (Debian package {package}) is needed: {error}"));
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{tool} {arguments:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// A row as every tool can say it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Row {
    slot: u32,
    start: u64,
    len: u64,
    kind: String,
    label: Option<String>,
    uuid: Option<String>,
}

fn rows(scan: &Scan) -> Vec<Row> {
    let row = |e: &volume::Entry| Row {
        slot: e.slot,
        start: e.start,
        len: e.len,
        kind: e.kind.clone(),
        label: e.label.clone(),
        uuid: e.uuid.clone(),
    };
    scan.table.entries.iter().map(row).collect()
}

/// What `sfdisk --json` reads. The identifiers of MBR rows are Linux's: sfdisk does not show them.
fn sfdisk_rows(image: &Image) -> (Option<String>, Vec<Row>) {
    let json: serde_json::Value = serde_json::from_str(&run("sfdisk", "fdisk", &["--json", image.path()], "")).unwrap();
    let table = &json["partitiontable"];
    let unit = table["sectorsize"].as_u64().unwrap();
    let gpt = table["label"] == "gpt";
    let id = table["id"].as_str().unwrap().trim_start_matches("0x").to_owned();
    let row = |part: &serde_json::Value| {
        let node = part["node"].as_str().unwrap();
        let slot: u32 = node.strip_prefix(image.path()).unwrap().trim_start_matches('p').parse().unwrap();
        Row {
            slot,
            start: part["start"].as_u64().unwrap() * unit,
            len: part["size"].as_u64().unwrap() * unit,
            kind: part["type"].as_str().unwrap().to_owned(),
            label: part["name"].as_str().map(str::to_owned),
            uuid: if gpt { part["uuid"].as_str().map(str::to_owned) } else { Some(format!("{id}-{slot:02x}")) },
        }
    };
    let rows = table["partitions"].as_array().unwrap().iter().map(row).collect();
    (Some(id), rows)
}

/// An image that parted partitions as `script` says, in sectors of `unit` bytes.
fn parted(size: u64, unit: u32, script: &str) -> Image {
    let image = Image::new(size);
    let output = Command::new("/usr/sbin/parted")
        .args(["-s", image.path()])
        .args(script.split_whitespace())
        .env("PARTED_SECTOR_SIZE", unit.to_string())
        .output()
        .unwrap_or_else(|error| panic!("parted (Debian package parted) is needed: {error}"));
    assert!(output.status.success(), "parted: {}", String::from_utf8_lossy(&output.stderr));
    image
}

/// What `parted` reads, in sectors of `unit` bytes: slot, start, length.
fn parted_ranges(image: &Image, unit: u32) -> Vec<(u32, u64, u64)> {
    let output = Command::new("/usr/sbin/parted")
        .args(["-m", "-s", image.path(), "unit", "B", "print"])
        .env("PARTED_SECTOR_SIZE", unit.to_string())
        .output()
        .unwrap_or_else(|error| panic!("parted (Debian package parted) is needed: {error}"));
    let number = |text: &str| text.trim_end_matches('B').parse::<u64>().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let row = |line: &str| {
        let fields: Vec<&str> = line.split(':').collect();
        (fields[0].parse().unwrap(), number(fields[1]), number(fields[3]))
    };
    let mut ranges: Vec<_> = text.lines().skip(2).map(row).collect();
    ranges.sort();
    ranges
}

/// What `mmls` of The Sleuth Kit reads: start and length of every range that holds a volume.
fn mmls_ranges(image: &Image, unit: u32) -> Vec<(u64, u64)> {
    let text = run("mmls", "sleuthkit", &["-a", "-B", "-b", &unit.to_string(), image.path()], "");
    let mut ranges = Vec::new();
    for line in text.lines().filter(|line| line.starts_with(|c: char| c.is_ascii_digit())) {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let number = |text: &str| text.parse::<u64>().unwrap() * u64::from(unit);
        if fields[1] != "Meta" {
            ranges.push((number(fields[2]), number(fields[4])));
        }
    }
    ranges
}

fn ranges(scan: &Scan) -> Vec<(u32, u64, u64)> {
    scan.table.entries.iter().map(|entry| (entry.slot, entry.start, entry.len)).collect()
}

/// Ranges without the rows that hold no volume, in the order of their place.
fn placed(scan: &Scan) -> Vec<(u64, u64)> {
    let volumes = scan.table.entries.iter().filter(|entry| !entry.structural);
    let mut found: Vec<_> = volumes.map(|entry| (entry.start, entry.len)).collect();
    found.sort();
    found
}

fn assert_same_as_sfdisk(image: &Image) {
    let scan = image.scan();
    let (id, expected) = sfdisk_rows(image);
    assert_eq!(rows(&scan), expected);
    assert_eq!(scan.table.uuid, id);
    assert_eq!(scan.table.notes, Vec::<String>::new());
    assert_eq!(placed(&scan), mmls_ranges(image, 512));
    assert_eq!(ranges(&scan), parted_ranges(image, 512));
    for volume in &scan.volumes {
        assert_eq!((volume.device.size(), volume.clipped), (volume.entry.len, false));
    }
}

#[test]
fn the_rows_of_a_gpt_are_those_of_sfdisk_parted_and_mmls() {
    let script = "label: gpt\nlabel-id: 11111111-2222-3333-4444-555555555555\n\
        1 : start=2048, size=2048, name=\"first\"\n3 : start=8192, size=100, name=\"Dritte Größe 😀\", type=uefi\n\
        128 : start=10000, size=1, name=\"a name of thirty-six units, all used\"\n";
    assert_same_as_sfdisk(&Image::sfdisk(16 * MIB, script));
}

#[test]
fn all_128_rows_of_a_gpt_are_there() {
    let mut script = "label: gpt\n".to_owned();
    for slot in 1..=128 {
        script += &format!("{slot} : start={}, size=8, name=\"part {slot}\"\n", 2048 + slot * 10);
    }
    let image = Image::sfdisk(8 * MIB, &script);
    assert_eq!(image.scan().volumes.len(), 128);
    assert_same_as_sfdisk(&image);
}

#[test]
fn a_gpt_of_500_rows_is_read_as_sgdisk_reads_it() {
    let image = Image::sgdisk(32 * MIB, &["-S", "500", "-n", "1:2048:4095", "-n", "450:8192:+1M", "-c", "450:far"]);
    let scan = image.scan();
    let listed = run("sgdisk", "gdisk", &["-p", image.path()], "");
    let expected: Vec<(u32, u64, u64)> = listed
        .lines()
        .skip_while(|line| !line.starts_with("Number"))
        .skip(1)
        .map(|line| {
            let fields: Vec<u64> = line.split_whitespace().take(3).map(|field| field.parse().unwrap()).collect();
            (fields[0] as u32, fields[1] * 512, (fields[2] - fields[1] + 1) * 512)
        })
        .collect();
    assert_eq!(expected.len(), 2);
    assert_eq!(ranges(&scan), expected);
    assert_eq!(scan.table.entries[1].label.as_deref(), Some("far"));
    assert!(listed.contains(scan.table.uuid.as_deref().unwrap()));
}

#[test]
fn the_image_of_a_4096_byte_disk_is_addressed_in_its_own_sectors() {
    let image = parted(64 * MIB, 4096, "mklabel gpt mkpart one ext4 1MiB 9MiB mkpart two fat32 20MiB 60MiB");
    let scan = image.scan();
    assert_eq!((scan.system, scan.table.sector_size), ("gpt", 4096));
    assert_eq!(scan.table.notes, Vec::<String>::new());
    assert_eq!(ranges(&scan), [(1, MIB, 8 * MIB), (2, 20 * MIB, 40 * MIB)]);
    assert_eq!(ranges(&scan), parted_ranges(&image, 4096));
    assert_eq!(placed(&scan), mmls_ranges(&image, 4096));
    assert_eq!(scan.volumes[0].device.sector_size(), 4096);
}

#[test]
fn a_gpt_in_sectors_of_1024_or_2048_bytes_is_read_as_fdisk_reads_it() {
    for sector in [1024u64, 2048] {
        let image = Image::new(32 * MIB);
        let size = sector.to_string();
        run("fdisk", "fdisk", &["-b", &size, image.path()], &format!("g\nn\n1\n{}\n+8M\nw\n", 2 * MIB / sector));
        let scan = image.scan();
        assert_eq!((scan.system, u64::from(scan.table.sector_size)), ("gpt", sector));
        assert_eq!(scan.table.notes, Vec::<String>::new());
        assert_eq!(ranges(&scan), fdisk_ranges(&image, sector));
        assert_eq!(ranges(&scan), [(1, 2 * MIB, 8 * MIB)]);
    }
}

/// The rows that `fdisk -b` lists: slot, first byte, length.
fn fdisk_ranges(image: &Image, sector: u64) -> Vec<(u32, u64, u64)> {
    let listed =
        run("fdisk", "fdisk", &["-b", &sector.to_string(), "-o", "Device,Start,Sectors", "-l", image.path()], "");
    let row = |line: &str| {
        let line = line.strip_prefix(image.path())?;
        let mut numbers = line.split_whitespace().map(|number| number.parse::<u64>().unwrap());
        let slot = numbers.next()? as u32;
        Some((slot, numbers.next()? * sector, numbers.next()? * sector))
    };
    listed.lines().filter_map(row).collect()
}

#[test]
fn an_mbr_in_larger_sectors_is_read_in_them_where_its_volumes_show_it() {
    for (sector, name) in [(4096u64, "4096"), (2048, "2048")] {
        let image = Image::new(64 * MIB);
        let at = |mib: u64| mib * MIB / sector;
        // A primary of 8 MiB, and an extended one with a logical one in it.
        let rows = format!(
            "o\nn\np\n1\n{}\n{}\nn\ne\n2\n{}\n{}\nn\nl\n{}\n{}\nw\n",
            at(4),
            at(12) - 1,
            at(16),
            at(48) - 1,
            at(20),
            at(28) - 1,
        );
        run("fdisk", "fdisk", &["-b", name, image.path()], &rows);
        // A row that is blank everywhere shows nothing, a chain's record does.
        let expected = [(1, 4 * MIB, 8 * MIB), (2, 16 * MIB, 32 * MIB), (5, 20 * MIB, 8 * MIB)];
        assert_eq!(fdisk_ranges(&image, sector), expected);
        let said =
            format!("the rows count sectors of {sector} bytes: what they name begins there, and not at those of 512");
        let assert_read = || {
            let scan = image.scan();
            assert_eq!((scan.system, ranges(&scan)), ("mbr", expected.to_vec()));
            assert_eq!(
                (u64::from(scan.table.sector_size), scan.table.notes.as_slice()),
                (sector, [said.clone()].as_slice())
            );
            assert_eq!(u64::from(scan.volumes[0].device.sector_size()), sector);
        };
        assert_read();
        let ext = Image::new(8 * MIB);
        run("mke2fs", "e2fsprogs", &["-q", "-F", ext.path()], "");
        image.write(&ext.bytes(), 4 * MIB);
        assert_read();
        // What begins where sectors of 512 bytes have it decides for them.
        image.write(b"XFSB", at(4) * 512);
        let scan = image.scan();
        assert_eq!((scan.table.sector_size, ranges(&scan)[0]), (512, (1, at(4) * 512, at(8) * 512)));
    }
}

#[test]
fn rows_that_show_nothing_in_any_sectors_count_those_of_512() {
    let scan = Image::sfdisk(64 * MIB, "label: dos\n1 : start=2048, size=2048, type=83\n").scan();
    assert_eq!((scan.table.sector_size, ranges(&scan)), (512, vec![(1, MIB, MIB)]));
    assert_eq!(scan.table.notes, Vec::<String>::new());
    // Eight times the start of the first row is that of the second.
    let script = "label: dos\n1 : start=2048, size=2048, type=83\n2 : start=16384, size=2048, type=83\n";
    let image = Image::sfdisk(128 * MIB, script);
    image.write(b"XFSB", 8 * MIB);
    let scan = image.scan();
    assert_eq!((scan.table.sector_size, ranges(&scan)), (512, vec![(1, MIB, MIB), (2, 8 * MIB, MIB)]));
}

/// An image with a GPT of three rows, as every test of damage starts with. Made once, as sgdisk waits a
/// second for a kernel that does not care.
fn gpt() -> Image {
    static MADE: OnceLock<Vec<u8>> = OnceLock::new();
    let rows = ["-n", "1:2048:4095", "-n", "2:4096:6143", "-c", "2:second", "-n", "4:8192:8200"];
    let bytes = MADE.get_or_init(|| Image::sgdisk(8 * MIB, &rows).bytes());
    let image = Image::new(8 * MIB);
    image.write(bytes, 0);
    image
}

/// Checks that the rows are those of the undamaged table, and what is said about it.
fn assert_still_read(image: &Image, notes: &[&str]) {
    let scan = image.scan();
    assert_eq!(scan.system, "gpt");
    assert_eq!(ranges(&scan), [(1, MIB, MIB), (2, 2 * MIB, MIB), (4, 4 * MIB, 9 * 512)]);
    assert_eq!(scan.table.entries[1].label.as_deref(), Some("second"));
    assert_eq!(scan.table.notes, notes);
}

const HEADER: u64 = 512;
const ARRAY: u64 = 1024;
const BACKUP_HEADER: u64 = 8 * MIB - 512;
const BACKUP_ARRAY: u64 = 8 * MIB - 33 * 512;
const BACKUP_READ: &str = "the backup copy is read, header at byte 8388096";
const PRIMARY_READ: &str = "the primary copy is read, header at byte 512";

#[test]
fn a_wrong_header_crc_leads_to_the_backup() {
    let image = gpt();
    image.damage(HEADER + 48);
    assert_still_read(&image, &["primary copy: the CRC of the header is wrong", BACKUP_READ]);
}

#[test]
fn a_wrong_array_crc_leads_to_the_backup() {
    let image = gpt();
    image.damage(ARRAY + 128 + 57);
    assert_still_read(&image, &["primary copy: the CRC of the entry array is wrong", BACKUP_READ]);
}

#[test]
fn a_destroyed_array_or_header_leads_to_the_backup() {
    let image = gpt();
    image.write(&[0; 32 * 512], ARRAY);
    assert_still_read(&image, &["primary copy: the CRC of the entry array is wrong", BACKUP_READ]);
    image.write(&[0; 512], HEADER);
    assert_still_read(&image, &["there is no primary header", BACKUP_READ]);
}

#[test]
fn a_damaged_backup_is_said_and_the_primary_is_read() {
    let image = gpt();
    image.damage(BACKUP_HEADER + 48);
    assert_still_read(&image, &["backup copy: the CRC of the header is wrong", PRIMARY_READ]);
    let image = gpt();
    image.damage(BACKUP_ARRAY);
    assert_still_read(&image, &["backup copy: the CRC of the entry array is wrong", PRIMARY_READ]);
    image.write(&[0; 512], BACKUP_HEADER);
    assert_still_read(&image, &["there is no backup header", PRIMARY_READ]);
}

#[test]
fn rows_that_no_crc_vouches_for_are_shown_with_a_note() {
    let image = gpt();
    image.damage(ARRAY + 3 * 128 + 60);
    image.damage(BACKUP_ARRAY + 3 * 128 + 60);
    let scan = image.scan();
    assert_eq!(scan.volumes.len(), 3);
    assert_eq!(scan.table.notes.len(), 3);
    // The other way round: the array is in order, and vouches for the header that it was found with.
    let image = gpt();
    image.damage(HEADER + 48);
    image.damage(BACKUP_HEADER + 48);
    assert_eq!(image.scan().volumes.len(), 3);
}

#[test]
fn a_gpt_of_which_nothing_is_in_order_is_corrupt_and_not_an_mbr() {
    let image = gpt();
    for offset in [HEADER + 48, ARRAY, BACKUP_HEADER + 48, BACKUP_ARRAY] {
        image.damage(offset);
    }
    let Err(error) = image.try_scan() else { panic!("it was read") };
    assert!(error.to_string().contains("is damaged"), "{error}");
    for offset in [HEADER, BACKUP_HEADER] {
        image.write(&[0; 512], offset);
    }
    let scan = image.scan();
    assert_eq!((scan.system, rows(&scan)[0].kind.as_str()), ("mbr", "ee"));
    assert!(scan.table.entries[0].structural);
    assert_eq!(scan.table.notes, ["the MBR is protective, but there is no GPT"]);
}

#[test]
fn copies_that_are_both_in_order_and_differ_are_said() {
    let image = gpt();
    let other = Image::sgdisk(8 * MIB, &["-n", "1:2048:4095", "-n", "2:4096:6143"]);
    image.write(&other.bytes()[BACKUP_ARRAY as usize..], BACKUP_ARRAY);
    assert_still_read(&image, &["the primary and the backup copy differ", PRIMARY_READ]);
}

#[test]
fn a_gpt_without_its_protective_mbr_is_a_gpt() {
    let image = gpt();
    image.write(&[0; 512], 0);
    assert_still_read(&image, &["there is no protective MBR"]);
}

#[test]
fn the_backup_alone_counts_when_the_start_of_the_disk_is_blank() {
    let image = gpt();
    image.write(&[0; 34 * 512], 0);
    assert_still_read(&image, &["there is no protective MBR", "there is no primary header", BACKUP_READ]);
    // A file system on the whole disk: the backup at the end is what an older use left behind.
    image.write(b"\x53\xef", 1080);
    assert!(image.try_scan().unwrap().is_none());
}

#[test]
fn the_backup_is_found_where_it_was_before_the_disk_grew() {
    let image = gpt();
    File::options().write(true).open(&image.0).unwrap().set_len(9 * MIB).unwrap();
    let elsewhere = "the backup header is in sector 16383, the disk's last one is 18431";
    assert_still_read(&image, &[elsewhere, PRIMARY_READ]);
    image.write(&[0; 512], HEADER);
    assert_still_read(&image, &["there is no primary header", elsewhere, BACKUP_READ]);
}

#[test]
fn rows_past_the_end_of_a_cut_image_are_clipped_or_left_out() {
    let image = gpt();
    File::options().write(true).open(&image.0).unwrap().set_len(2 * MIB + 1000).unwrap();
    let scan = image.scan();
    assert_eq!(scan.table.entries.len(), 3);
    let read: Vec<_> = scan.volumes.iter().map(|v| (v.entry.slot, v.device.size(), v.clipped)).collect();
    assert_eq!(read, [(1, MIB, false), (2, 1000, true)]);
    assert_eq!(
        scan.table.notes[2..],
        [
            "row 2 runs 1047576 bytes past the end of the disk",
            "row 4 (byte 4194304, 4608 bytes) does not lie on the disk",
        ]
    );
}

#[test]
fn gpt_wins_in_a_hybrid_and_the_hybrid_is_said() {
    let image = gpt();
    run("sgdisk", "gdisk", &["-h", "1:2", image.path()], "");
    assert_still_read(&image, &["the MBR is a hybrid: it has rows of its own, which are not shown"]);
}

#[test]
fn an_mbr_that_divides_the_disk_outranks_the_gpt_of_an_older_use() {
    let image = gpt();
    let script = "label: dos\nstart=2048, size=4096, type=83\n";
    let other = Image::sfdisk(8 * MIB, script);
    image.write(&other.bytes()[..512], 0);
    let scan = image.scan();
    assert_eq!((scan.system, ranges(&scan)), ("mbr", vec![(1, MIB, 2 * MIB)]));
}

#[test]
fn the_rows_of_an_mbr_are_those_of_sfdisk_parted_and_mmls() {
    let script = "label: dos\nlabel-id: 0x00c0ffee\n1 : start=63, size=1000, type=6, bootable\n\
        3 : start=4096, size=2048, type=83\n4 : start=8192, size=20, type=7\n";
    assert_same_as_sfdisk(&Image::sfdisk(8 * MIB, script));
}

#[test]
fn logical_volumes_are_numbered_from_5_to_20() {
    for kind in ["5", "f", "85"] {
        let mut script =
            format!("label: dos\n1 : start=2048, size=100, type=83\n2 : start=4096, size=28672, type={kind}\n");
        for slot in 5..=20 {
            script += &format!("{slot} : start={}, size={}, type=8{}\n", slot * 1024, 100 + slot, 2 + slot % 2);
        }
        let image = Image::sfdisk(16 * MIB, &script);
        assert_eq!(image.scan().volumes.last().unwrap().entry.slot, 20);
        assert_same_as_sfdisk(&image);
        assert!(image.scan().table.entries[1].structural);
    }
}

#[test]
fn a_deleted_logical_volume_moves_the_numbers_as_in_linux() {
    let mut script = "label: dos\n4 : start=2048, size=28672, type=5\n".to_owned();
    for slot in 5..=9 {
        script += &format!("{slot} : start={}, size=100, type=83\n", (slot - 4) * 4096);
    }
    let image = Image::sfdisk(16 * MIB, &script);
    run("sfdisk", "fdisk", &["--no-reread", "--no-tell-kernel", "-q", "--delete", image.path(), "5", "7"], "");
    let scan = image.scan();
    assert_eq!(rows(&scan), sfdisk_rows(&image).1);
    let expected = [(5, 4), (6, 6), (7, 10)].map(|(slot, mib)| (slot, mib * MIB, 51200));
    assert_eq!(ranges(&scan)[1..], expected);
}

/// Place of each record in the chain that `chained` makes.
const RECORDS: [u64; 3] = [2048, 6144, 10240];

fn chained() -> Image {
    let script = "label: dos\n1 : start=2048, size=28672, type=f\n5 : start=4096, size=100, type=83\n\
        6 : start=8192, size=100, type=83\n7 : start=12288, size=100, type=83\n";
    Image::sfdisk(16 * MIB, script)
}

/// Byte of the second record's row that links to the third.
const LINK: u64 = RECORDS[1] * 512 + 446 + 16;

#[test]
fn a_chain_that_points_back_ends_there() {
    let image = chained();
    image.write(&0u32.to_le_bytes(), LINK + 8);
    let scan = image.scan();
    assert_eq!(scan.table.entries.len(), 3);
    assert_eq!(scan.table.notes, ["the chain of logical volumes points back to byte 1048576: it ends there"]);
}

#[test]
fn a_chain_that_leads_nowhere_keeps_what_came_before() {
    let image = chained();
    image.write(&u32::MAX.to_le_bytes(), LINK + 8);
    let scan = image.scan();
    assert_eq!(scan.table.entries.len(), 3);
    assert_eq!(scan.table.notes.len(), 1);
    image.write(&[0; 2], RECORDS[1] * 512 + 510);
    let scan = image.scan();
    assert_eq!(scan.table.entries.len(), 2);
    assert!(scan.table.notes[0].ends_with("no boot record"), "{:?}", scan.table.notes);
}

#[test]
fn a_boot_sector_is_not_a_partition_table() {
    let formats: [(&str, &str, &[&str]); 6] = [
        ("mkfs.fat", "dosfstools", &["-F", "12"]),
        ("mkfs.fat", "dosfstools", &["-F", "16"]),
        ("mkfs.fat", "dosfstools", &["-F", "32"]),
        ("mkfs.fat", "dosfstools", &["-F", "32", "--mbr=y"]),
        ("mke2fs", "e2fsprogs", &["-q", "-F"]),
        ("mkfs.fat", "dosfstools", &["-F", "16", "-S", "4096"]),
    ];
    for (tool, package, arguments) in formats {
        let image = Image::new(64 * MIB);
        run(tool, package, &[arguments, &[image.path()]].concat(), "");
        let found = image.try_scan().unwrap();
        assert!(found.is_none(), "{tool} {arguments:?}: {}", found.unwrap().system);
    }
}

#[test]
fn a_disk_that_was_one_volume_and_was_then_partitioned_shows_its_rows() {
    let image = Image::new(64 * MIB);
    run("mkfs.fat", "dosfstools", &["-F", "32", image.path()], "");
    let script = "label: dos\nstart=2048, size=4096, type=c\n";
    run("sfdisk", "fdisk", &["-q", "--wipe", "never", "--no-reread", "--no-tell-kernel", image.path()], script);
    let scan = image.scan();
    assert_eq!((scan.system, ranges(&scan)), ("mbr", vec![(1, MIB, 2 * MIB)]));
    assert_eq!(scan.table.notes, ["sector 0 is also the boot sector of a file system"]);
}

#[test]
fn the_rows_of_an_apple_map_are_those_of_parted() {
    let image = parted(16 * MIB, 512, "mklabel mac mkpart one hfs 1MiB 5MiB mkpart two hfs 6MiB 9MiB");
    let scan = image.scan();
    assert_eq!(scan.system, "apm");
    // parted does not number the rows of free space, which the map has.
    let used: Vec<_> = scan.table.entries.iter().filter(|e| e.kind != "Apple_Free").collect();
    let used: Vec<_> = used.iter().map(|e| (e.slot, e.start, e.len)).collect();
    assert_eq!(used, parted_ranges(&image, 512));
    let label = |slot: u32| scan.table.entries.iter().find(|e| e.slot == slot).unwrap().label.clone();
    assert_eq!((label(1).as_deref(), label(2).as_deref()), (Some("Apple"), Some("one")));
    image.write(&[0; 512], 0);
    assert_eq!(rows(&image.scan()), rows(&scan));
    image.write(&u32::MAX.to_be_bytes(), 516);
    assert!(image.scan().table.entries.len() >= used.len());
}

#[test]
fn the_labels_of_bsd_sun_and_atari_are_read_as_parted_reads_them() {
    let two = "mkpart ext2 1MiB 9MiB mkpart ext2 16MiB 40MiB";
    let chain = "mkpart primary ext2 1MiB 9MiB mkpart extended 10MiB 60MiB \
                 mkpart logical ext2 16MiB 40MiB mkpart logical ext2 41MiB 50MiB";
    for (system, parts, count) in [("bsd", two, 2), ("sun", two, 2), ("atari", chain, 3)] {
        let image = parted(64 * MIB, 512, &format!("mklabel {system} {parts}"));
        let scan = image.scan();
        assert_eq!(scan.system, system);
        // parted shows neither Sun's row of the disk as a whole, nor a number for Atari's extended one.
        let mut read = ranges(&scan);
        read.retain(|&(slot, ..)| !scan.table.entries.iter().any(|e| e.slot == slot && e.structural));
        let mut expected = parted_ranges(&image, 512);
        expected.retain(|&(slot, ..)| slot != 0);
        assert_eq!((read.len(), read), (count, expected), "{system}");
    }
}

/// A volume that was copied out of its MBR row, with rows that count from the start of the disk: as FreeBSD
/// reads it, and unlike a label whose `c` is not this volume.
#[test]
fn the_rows_of_a_bsd_label_count_from_where_c_says_that_the_volume_began() {
    let image = parted(4 * MIB, 512, "mklabel bsd mkpart ext2 1MiB 3MiB");
    let scan = image.scan();
    let (plain, label) = (ranges(&scan), scan.table.evidence[0].offset);
    let base = 7680u32;
    let row = |slot: u64| label + 148 + (slot - 1) * 16;
    image.write(&8u16.to_le_bytes(), label + 138);
    let first = u32::try_from(plain[0].1 / 512).unwrap();
    image.write(&(first + base).to_le_bytes(), row(1) + 4);
    image.write(&[(4 * MIB / 512) as u32, base].map(u32::to_le_bytes).concat(), row(3));
    let scan = image.scan();
    assert_eq!(ranges(&scan), plain);
    assert!(scan.table.notes.iter().any(|note| note.contains("sector 7680")), "{:?}", scan.table.notes);
    // `c` of another length: the numbers are taken as they are, and the row begins past the end.
    image.write(&9u32.to_le_bytes(), row(3));
    let [only] = &image.scan().volumes[..] else { panic!("{:?}", ranges(&image.scan())) };
    assert_eq!((only.entry.slot, only.entry.len), (3, 9 * 512));
}

/// As libblkid numbers them: behind the logical volumes, and neither the row itself nor what lies outside of it.
#[test]
fn the_tables_inside_rows_of_an_mbr_are_read_as_partx_reads_them() {
    let script = "label: dos\nstart=2048,size=8192,type=a5\nstart=12288,size=8192,type=82\n\
                  start=24576,size=8192,type=81\nstart=40960,size=8192,type=5\nstart=43008,size=2048,type=83\n";
    let mut label = vec![0; 512];
    let mut put = |at: usize, bytes: &[u8]| label[at..at + bytes.len()].copy_from_slice(bytes);
    for at in [0, 132] {
        put(at, &0x8256_4557u32.to_le_bytes());
    }
    put(40, &512u32.to_le_bytes());
    put(138, &5u16.to_le_bytes());
    let rows = [(0, 16u32, 4000u32, 7u8), (1, 5000, 100, 1), (2, 0, 8192, 0), (3, 6000, 0, 0), (4, 9000, 10, 7)];
    for (row, first, sectors, kind) in rows {
        put(148 + row * 16, &[sectors, first].map(u32::to_le_bytes).concat());
        put(148 + row * 16 + 12, &[kind]);
    }
    let mut vtoc = vec![0; 512];
    let mut put = |at: usize, bytes: &[u8]| vtoc[at..at + bytes.len()].copy_from_slice(bytes);
    put(12, &[0x600d_deeeu32, 1].map(u32::to_le_bytes).concat());
    put(30, &16u16.to_le_bytes());
    for (row, tag, first, sectors) in [(0, 2u16, 100u32, 1000u32), (1, 3, 1100, 500), (7, 8, 2000, 64)] {
        put(72 + row * 12, &tag.to_le_bytes());
        put(72 + row * 12 + 4, &[first, sectors].map(u32::to_le_bytes).concat());
    }
    let image = Image::sfdisk(32 * MIB, script);
    image.write(&label, 2049 * 512);
    image.write(&vtoc, 12_289 * 512);
    let mut minix = vec![0; 512];
    for (row, first) in [(0, 24_640u32), (1, 26_000)] {
        minix[446 + row * 16 + 4] = 0x81;
        minix[446 + row * 16 + 8..446 + row * 16 + 16].copy_from_slice(&[first, 1000].map(u32::to_le_bytes).concat());
    }
    minix[510..].copy_from_slice(&[0x55, 0xaa]);
    image.write(&minix, 24_576 * 512);
    let said = run("partx", "util-linux", &["-g", "-o", "NR,START,SECTORS", image.path()], "");
    let mut expected: Vec<Vec<u64>> =
        said.lines().map(|line| line.split_whitespace().map(|word| word.parse().unwrap()).collect()).collect();
    let scan = image.scan();
    let rows = scan.volumes.iter().filter(|volume| volume.entry.kind != "5");
    let read: Vec<Vec<u64>> = rows.map(|v| vec![v.entry.slot.into(), v.entry.start / 512, v.entry.len / 512]).collect();
    expected.retain(|row| row[0] != 4);
    // What partx of util-linux 2.38 says. That of 2.41 no longer looks into the rows.
    let recorded = [
        [1, 2048, 8192],
        [2, 12_288, 8192],
        [3, 24_576, 8192],
        [5, 43_008, 2048],
        [6, 2064, 4000],
        [7, 7048, 100],
        [8, 12_388, 1000],
        [9, 13_388, 500],
        [10, 14_288, 64],
        [11, 24_640, 1000],
        [12, 26_000, 1000],
    ];
    assert_eq!(read, recorded);
    let seen = if expected.len() > 4 { &recorded[..] } else { &recorded[..4] };
    assert_eq!(expected, seen);
}

#[test]
fn the_rows_of_icd_and_rows_of_other_kinds_are_read_as_parted_reads_them() {
    let rows: Vec<String> = (1..=6).map(|at| format!("mkpart primary ext2 {at}MiB {}MiB", at + 1)).collect();
    let image = parted(16 * MIB, 512, &format!("mklabel atari {}", rows.join(" ")));
    // The kind of the second row, which is of no driver that is known here.
    image.write(b"MNX", 454 + 12 + 1);
    let scan = image.scan();
    assert_eq!((scan.system, ranges(&scan)), ("atari", parted_ranges(&image, 512)));
    assert_eq!((scan.volumes.len(), scan.volumes[1].entry.kind.as_str()), (6, "MNX"));
    // The numbers are those of the rows: a gap stays one.
    image.write(&[0], 342);
    assert_eq!(image.scan().volumes.len(), 4, "without its first row there is no table of ICD");
    image.write(&[1], 342);
    image.write(&[0], 454 + 12);
    let slots: Vec<u32> = image.scan().volumes.iter().map(|volume| volume.entry.slot).collect();
    assert_eq!(slots, [1, 3, 4, 5, 6]);
    // Nothing but unknown kinds may be anything.
    for row in [0, 2, 3] {
        image.write(b"ABC", 454 + row * 12 + 1);
    }
    assert!(volume::scan(&(Arc::new(HostFile::open(Path::new(image.path())).unwrap()) as Device)).unwrap().is_none());
}

#[test]
fn an_atari_chain_that_points_back_ends_there() {
    let script = "mklabel atari mkpart extended 64KiB 900KiB mkpart logical ext2 128KiB 256KiB \
                  mkpart logical ext2 300KiB 400KiB";
    let image = parted(MIB, 512, script);
    assert_eq!(image.scan().volumes.len(), 2);
    let next_sector = 64 * 1024 + 454 + 12 + 4;
    image.write(&[0; 4], next_sector);
    let scan = image.scan();
    assert_eq!((scan.volumes.len(), scan.table.notes.len()), (1, 1));
}

/// A disc that xorriso makes of one file, with a boot volume `efi.img` behind it.
fn disc(arguments: &[&str]) -> Image {
    let efi = Image::new(2 * MIB);
    run("mkfs.fat", "dosfstools", &[efi.path()], "");
    let disc = Image::new(0);
    let arguments: Vec<&str> =
        arguments.iter().map(|&word| if word == "efi.img" { efi.path() } else { word }).collect();
    let tree = format!("/file={}", efi.path());
    let command =
        [&["-as", "mkisofs", "-quiet", "-o", disc.path()], &arguments[..], &["-graft-points", &tree]].concat();
    run("xorriso", "xorriso", &command, "");
    disc
}

#[test]
fn a_hybrid_disc_shows_the_table_that_divides_it() {
    let append = ["-append_partition", "2", "0xef", "efi.img"];
    // A GPT with its protective row; an MBR that divides the disc, with an Apple map beside it.
    let gpt = disc(&[&append[..], &["-appended_part_as_gpt", "-partition_offset", "16"]].concat());
    let mbr = disc(&[&append[..], &["-hfsplus", "-apm-block-size", "2048", "-partition_offset", "16"]].concat());
    for (disc, system) in [(gpt, "gpt"), (mbr, "mbr")] {
        let scan = disc.scan();
        assert_eq!(scan.system, system);
        let comparable = |row: Row| Row { uuid: None, ..row };
        let read: Vec<Row> = rows(&scan).into_iter().map(comparable).collect();
        let expected: Vec<Row> = sfdisk_rows(&disc).1.into_iter().map(comparable).collect();
        assert_eq!(read, expected);
    }
    // An Apple map alone, in both block sizes.
    for block in ["512", "2048"] {
        let disc = disc(&["-hfsplus", "-apm-block-size", block]);
        let scan = disc.scan();
        assert_eq!(scan.system, "apm");
        let hfs = scan.volumes.iter().find(|volume| volume.entry.kind == "Apple_HFS").unwrap();
        let mut magic = [0; 2];
        hfs.device.read_exact_at(&mut magic, 1024).unwrap();
        assert_eq!(&magic, b"H+");
    }
}

#[test]
fn nothing_that_a_byte_can_say_makes_the_reader_fall() {
    let others = [
        "mklabel atari mkpart extended 64KiB 900KiB mkpart logical ext2 128KiB 256KiB",
        "mklabel mac mkpart one hfs 64KiB 128KiB",
        "mklabel bsd mkpart ext2 64KiB 128KiB",
        "mklabel sun mkpart ext2 0s 1023s",
    ];
    let others = others.map(|script| parted(MIB, 512, script));
    let images = [gpt(), chained()].into_iter().chain(others);
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    for image in images {
        let bytes = image.bytes();
        let disk = Arc::new(Memory::new(bytes.clone(), 512));
        let device: Device = disk.clone();
        // The places that are read: the first 4 KiB, the records of the chain, the end.
        let mut places: Vec<u64> = (0..4096).collect();
        places.extend(RECORDS.iter().flat_map(|&lba| lba * 512 + 440..lba * 512 + 512));
        places.extend(image.size() - 33 * 512..image.size());
        places.retain(|&place| place < image.size());
        let writer = imgfs::device::BlockDevice::writer(disk.as_ref()).unwrap();
        for _ in 0..6000 {
            let changed: Vec<u64> = (0..1 + random(4)).map(|_| places[random(places.len() as u64) as usize]).collect();
            for &place in &changed {
                let value = [0, 0xff, 0x7f, 0x80, 1, 5, random(256) as u8][random(7) as usize];
                writer.write_all_at(&[value], place).unwrap();
            }
            if let Ok(Some(scan)) = volume::scan(&device) {
                assert!(scan.volumes.iter().all(|v| v.entry.start + v.device.size() <= image.size()));
                assert!(scan.table.notes.len() <= 65);
            }
            for &place in &changed {
                writer.write_all_at(&bytes[place as usize..=place as usize], place).unwrap();
            }
        }
        assert!(volume::scan(&device).unwrap().is_some());
    }
}
