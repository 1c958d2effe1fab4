//! Encrypted volumes: what cryptsetup, qemu-img and Windows made, opened with their passphrases.
//!
//! Packages: cryptsetup-bin, qemu-utils, e2fsprogs, fdisk.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use imgfs::device::Device;
use imgfs::device::file::HostFile;
use imgfs::device::window::Window;
use imgfs::encryption::{describe, unlock};
use imgfs::error::Error;
use imgfs::stack::{Image, Keys, Options, Tree};
use sha2::{Digest, Sha256};

use super::disks::{MIB, Numbers, Scratch, assert_disk, disk, hash};

const PACKAGES: &str = "cryptsetup-bin, qemu-utils, e2fsprogs, fdisk";
/// The passphrase in the file `pw`, as the options of both tools want it.
const QEMU_KEY: &str = "--object secret,id=s,file=pw -o key-secret=s,iter-time=10";

/// A header that cryptsetup can convert, as qemu's it cannot.
const LUKS_1: &str = "format() { rm -f $1; truncate -s $2 $1; cryptsetup luksFormat -q --type luks1 --key-size 512 \
    --pbkdf-force-iterations 1000 $1 pw; }";

fn device(path: &Path) -> Device {
    Arc::new(HostFile::open(path).unwrap())
}

/// Opens a volume with a passphrase, and compares its bytes.
fn assert_opens(path: &Path, key: &[u8], expected: &[u8]) {
    let before = hash(path);
    let what = path.display().to_string();
    let device = device(path);
    assert!(unlock(&device, None).unwrap().is_none(), "{what} opens without a key");
    assert!(unlock(&device, Some(b"wrong")).unwrap().is_none(), "{what} opens with another key");
    let plain = unlock(&device, Some(key)).unwrap().unwrap_or_else(|| panic!("{what}: the key does not fit"));
    // What lies behind the bytes that were encrypted is nobody's.
    let plain = Window::new(plain, 0, expected.len() as u64).unwrap();
    assert_disk(&what, &plain, expected);
    assert_eq!(hash(path), before, "{what} was changed");
}

fn facts(path: &Path) -> (String, String) {
    let encrypted = describe(device(path).as_ref()).unwrap().unwrap();
    let facts: Vec<String> = encrypted.facts.iter().map(|(name, value)| format!("{name}: {value}")).collect();
    (format!("{} {}", encrypted.variant, encrypted.uuid.unwrap_or_default()), facts.join("\n"))
}

#[test]
fn luks_of_both_versions_gives_the_bytes_that_qemu_and_cryptsetup_encrypted() {
    let scratch = Scratch::new();
    scratch.write("pw", b"correct horse");
    scratch.write("second", b"battery\nstaple");
    for size in [8 * MIB, 10 * MIB + 1536] {
        let bytes = disk(size);
        scratch.write("base.raw", &bytes);
        scratch.sh(
            PACKAGES,
            &format!(
                "rm -f one* two*; qemu-img convert -O luks {QEMU_KEY} base.raw one
                qemu-img convert -O luks {QEMU_KEY},cipher-alg=aes-128 base.raw one128
                {LUKS_1}; format two $(({size} + (2 << 20)))
                qemu-img convert -n --object secret,id=s,file=pw --target-image-opts base.raw \
                    driver=luks,key-secret=s,file.driver=file,file.filename=two
                cryptsetup convert -q --type luks2 two
                cp two two2
                cryptsetup luksAddKey -q --key-file pw --pbkdf argon2id --pbkdf-memory 65536 \
                    --pbkdf-force-iterations 4 two2 second
                cp two2 two3
                cryptsetup luksKillSlot -q --key-file second two3 0"
            ),
        );
        for (name, key) in [
            ("one", "correct horse"),
            ("one128", "correct horse"),
            ("two", "correct horse"),
            ("two2", "battery\nstaple"),
            ("two2", "correct horse"),
            ("two3", "battery\nstaple"),
        ] {
            assert_opens(&scratch.path(name), key.as_bytes(), &bytes);
        }
        assert!(unlock(&device(&scratch.path("two3")), Some(b"correct horse")).unwrap().is_none());
    }
    let uuid = scratch.sh(PACKAGES, "cryptsetup luksUUID one").trim().to_owned();
    let (name, said) = facts(&scratch.path("one"));
    assert_eq!(name, format!("LUKS1 {uuid}"));
    assert!(said.contains("cipher: aes-xts-plain64") && said.contains("key: 512 bits"), "{said}");
    assert!(said.contains("key slots in use: 1"), "{said}");
    let uuid = scratch.sh(PACKAGES, "cryptsetup luksUUID two2").trim().to_owned();
    let (name, said) = facts(&scratch.path("two2"));
    assert_eq!(name, format!("LUKS2 {uuid}"));
    assert!(said.contains("pbkdf2") && said.contains("argon2id"), "{said}");
}

#[test]
fn luks_2_in_sectors_of_4096_bytes_gives_the_bytes_that_were_there_before() {
    let scratch = Scratch::new();
    scratch.write("pw", b"correct horse");
    let bytes = disk(16 * MIB);
    scratch.write("volume", &bytes);
    scratch.sh(
        PACKAGES,
        "truncate -s +32M volume; cryptsetup reencrypt -q --encrypt --type luks2 --sector-size 4096 \
            --label secrets --pbkdf argon2i --pbkdf-memory 32768 --pbkdf-force-iterations 4 \
            --reduce-device-size 32M --key-file pw volume < /dev/null",
    );
    let expected = bytes;
    assert_opens(&scratch.path("volume"), b"correct horse", &expected);
    assert_eq!(describe(device(&scratch.path("volume")).as_ref()).unwrap().unwrap().label.unwrap(), "secrets");
    // With its first header damaged, the second one serves; with both, there is no volume to open.
    let mut image = std::fs::read(scratch.path("volume")).unwrap();
    image[5000] ^= 1;
    assert_opens(&scratch.write("damaged", &image), b"correct horse", &expected);
    image[..4096].fill(0);
    assert_opens(&scratch.write("damaged", &image), b"correct horse", &expected);
    let notes = describe(device(&scratch.path("damaged")).as_ref()).unwrap().unwrap().notes;
    assert!(notes.iter().any(|note| note.contains("second")), "{notes:?}");
    image[0x4000 + 5000] ^= 1;
    assert!(describe(device(&scratch.write("damaged", &image)).as_ref()).unwrap().is_none());
}

#[test]
fn luks_of_each_cipher_mode_iv_and_hash_gives_the_bytes_that_qemu_encrypted() {
    let scratch = Scratch::new();
    scratch.write("pw", b"correct horse");
    let bytes = disk((300 << 10) + 512);
    scratch.write("base.raw", &bytes);
    let check = |cipher: &str, mode: &str, vector: &str| {
        let (name, said) = facts(&scratch.path("volume"));
        assert!(name.starts_with("LUKS1") && said.contains(&format!("cipher: {cipher}-{mode}-{vector}")), "{said}");
        assert_opens(&scratch.path("volume"), b"correct horse", &bytes);
    };
    // Headers that cryptsetup makes without the kernel's ciphers, and quickly.
    for (mode, vector, bits, hash) in [
        ("cbc", "essiv:sha256", 256, "sha1"),
        ("cbc", "essiv:sha256", 128, "sha512"),
        ("cbc", "plain64", 256, "ripemd160"),
        ("cbc", "plain", 128, "sha256"),
        ("xts", "plain", 512, "sha224"),
        ("xts", "essiv:sha256", 256, "sha384"),
    ] {
        scratch.sh(
            PACKAGES,
            &format!(
                "rm -f volume; truncate -s 3M volume; cryptsetup luksFormat -q --type luks1 --key-size {bits} \
                    --cipher aes-{mode}-{vector} --hash {hash} --pbkdf-force-iterations 1000 volume pw
                qemu-img convert -n --object secret,id=s,file=pw --target-image-opts base.raw \
                    driver=luks,key-secret=s,file.driver=file,file.filename=volume"
            ),
        );
        check("aes", mode, vector);
    }
    // The others take qemu a second or two each.
    for (cipher, mode, vector, hash) in [
        ("serpent-256", "xts", "plain64", "sha256"),
        ("serpent-128", "cbc", "essiv,ivgen-hash-alg=sha256", "sha1"),
        ("twofish-256", "xts", "plain64", "sha512"),
        ("twofish-128", "cbc", "plain64", "md5"),
    ] {
        scratch.sh(
            PACKAGES,
            &format!(
                "rm -f volume; qemu-img convert -O luks \
                    {QEMU_KEY},cipher-alg={cipher},cipher-mode={mode},ivgen-alg={vector},hash-alg={hash} base.raw volume"
            ),
        );
        let (cipher, _) = cipher.split_once('-').unwrap();
        check(cipher, mode, &vector.replace(",ivgen-hash-alg=", ":"));
    }
}

#[test]
fn luks_of_each_hash_that_cryptsetup_derives_keys_with_opens() {
    let scratch = Scratch::new();
    scratch.write("pw", b"correct horse");
    let bytes = disk(512 << 10);
    for (hash, cipher, bits, size) in [
        ("sha1", "aes-cbc-essiv:sha256", 256, 512),
        ("sha512", "aes-cbc-plain64", 128, 4096),
        ("ripemd160", "aes-cbc-plain", 256, 4096),
        ("whirlpool", "aes-xts-plain64", 256, 1024),
        ("sha256", "aes-cbc-essiv:sha256", 256, 4096),
        ("sha384", "aes-xts-essiv:sha256", 512, 512),
    ] {
        scratch.write("volume", &bytes);
        scratch.sh(
            PACKAGES,
            &format!(
                "truncate -s +32M volume; cryptsetup reencrypt -q --encrypt --type luks2 --sector-size {size} \
                    --cipher {cipher} --key-size {bits} --hash {hash} --pbkdf pbkdf2 --pbkdf-force-iterations 1000 \
                    --reduce-device-size 32M --key-file pw volume < /dev/null"
            ),
        );
        let (_, said) = facts(&scratch.path("volume"));
        assert!(said.contains(&format!("cipher: {cipher}")) && said.contains(&format!("sectors: {size}")), "{said}");
        assert_opens(&scratch.path("volume"), b"correct horse", &bytes);
    }
    // Version 1, of the one hash that qemu does not know.
    scratch.sh(
        PACKAGES,
        "rm -f volume; truncate -s 3M volume; cryptsetup luksFormat -q --type luks1 --hash whirlpool \
            --pbkdf-force-iterations 1000 volume pw",
    );
    let volume = device(&scratch.path("volume"));
    assert!(unlock(&volume, Some(b"wrong")).unwrap().is_none());
    assert!(unlock(&volume, Some(b"correct horse")).unwrap().is_some());
}

/// The header of a LUKS2 volume with other JSON, and the checksum of that.
fn with_json(image: &[u8], change: &dyn Fn(String) -> String) -> Vec<u8> {
    let mut image = image.to_vec();
    let json = String::from_utf8(image[4096..16_384].to_vec()).unwrap();
    let mut json = change(json.trim_end_matches('\0').to_owned()).into_bytes();
    json.resize(12_288, 0);
    image[4096..16_384].copy_from_slice(&json);
    image[448..512].fill(0);
    let sum = Sha256::digest(&image[..16_384]);
    image[448..480].copy_from_slice(&sum);
    image
}

#[test]
fn camellia_gives_the_bytes_that_openssl_encrypted() {
    let scratch = Scratch::new();
    scratch.write("pw", b"correct horse");
    scratch.write("key", &[0x5a; 32]);
    let bytes = disk(64 << 10);
    scratch.write("base.raw", &bytes);
    // A header with a known key; each sector has its number as its IV.
    scratch.sh(
        "cryptsetup-bin, openssl",
        "truncate -s 16M volume; cryptsetup luksFormat -q --type luks2 --cipher aes-cbc-plain64 --key-size 256 \
            --volume-key-file key --pbkdf pbkdf2 --pbkdf-force-iterations 1000 --sector-size 512 \
            --luks2-keyslots-size 512k --offset 8192 volume pw
        for i in $(seq 0 127); do
            dd if=base.raw bs=512 skip=$i count=1 status=none | openssl enc -camellia-256-cbc -nopad \
                -K $(printf '5a%.0s' $(seq 32)) -iv $(printf '%02x%030d' $i 0)
        done | dd of=volume bs=512 seek=8192 conv=notrunc status=none; truncate -s $(((8192 + 128) * 512)) volume",
    );
    let image = std::fs::read(scratch.path("volume")).unwrap();
    let segment = "\"encryption\":\"aes-cbc-plain64\",\"sector_size\"";
    let image = with_json(&image, &|json| {
        assert!(json.contains(segment), "{json}");
        json.replace(segment, &segment.replace("aes", "camellia"))
    });
    assert_opens(&scratch.write("volume", &image), b"correct horse", &bytes);
}

#[test]
fn of_several_slots_the_one_that_is_understood_opens_the_volume() {
    let scratch = Scratch::new();
    scratch.write("pw", b"correct horse");
    scratch.write("second", b"battery staple");
    scratch.write("third", b"x");
    let bytes = disk(MIB);
    scratch.write("volume", &bytes);
    scratch.sh(
        PACKAGES,
        "truncate -s +32M volume; cryptsetup reencrypt -q --encrypt --type luks2 --pbkdf pbkdf2 \
            --pbkdf-force-iterations 1000 --reduce-device-size 32M --key-file pw volume < /dev/null
        cryptsetup luksAddKey -q --key-file pw --pbkdf argon2i --pbkdf-memory 32768 --pbkdf-force-iterations 4 \
            volume second
        cryptsetup luksAddKey -q --key-file pw --pbkdf pbkdf2 --hash sha512 --pbkdf-force-iterations 1000 \
            --keyslot-cipher aes-cbc-essiv:sha256 --keyslot-key-size 256 volume third
        cryptsetup config -q --key-slot 2 --priority prefer volume",
    );
    let path = scratch.path("volume");
    for key in [&b"correct horse"[..], b"battery staple", b"x"] {
        assert_opens(&path, key, &bytes);
    }
    // Slots that nobody can try: one of a derivation, and one of a cipher, to come.
    let image = std::fs::read(&path).unwrap();
    let odd = with_json(&image, &|json| {
        json.replacen("\"argon2i\"", "\"balloon\"", 1).replacen("\"aes-cbc-essiv:sha256\"", "\"aes-hctr2-plain64\"", 1)
    });
    let device = device(&scratch.write("odd", &odd));
    assert!(unlock(&device, Some(b"correct horse")).unwrap().is_some());
    let said = unlock(&device, Some(b"battery staple")).err().unwrap().to_string();
    assert!(said.contains("derivation balloon is not supported"), "{said}");
}

#[test]
fn a_header_without_its_volume_is_refused_by_that_name() {
    let scratch = Scratch::new();
    scratch.write("pw", b"x");
    scratch.sh(
        PACKAGES,
        "truncate -s 4M data one two; o='--pbkdf pbkdf2 --pbkdf-force-iterations 1000'
        cryptsetup luksFormat -q --type luks1 --header one --pbkdf-force-iterations 1000 data pw
        cryptsetup luksFormat -q --type luks2 --header two --pbkdf pbkdf2 --pbkdf-force-iterations 1000 data pw
        truncate -s 20M whole
        cryptsetup luksFormat -q --type luks2 --pbkdf pbkdf2 --pbkdf-force-iterations 1000 whole pw
        cryptsetup luksHeaderBackup whole --header-backup-file backup",
    );
    for name in ["one", "two", "backup"] {
        let path = scratch.path(name);
        assert!(describe(device(&path).as_ref()).unwrap().is_some(), "{name}");
        let said = unlock(&device(&path), Some(b"x")).err().unwrap().to_string();
        assert!(said.contains("a header alone"), "{name}: {said}");
    }
}

#[test]
fn what_is_not_supported_is_named_and_what_a_header_may_ask_for_is_bounded() {
    let scratch = Scratch::new();
    scratch.write("pw", b"x");
    scratch.sh(
        PACKAGES,
        &format!(
            "truncate -s 32M hash memory
            qemu-img create -q -f luks {QEMU_KEY},cipher-alg=cast5-128,cipher-mode=cbc,ivgen-alg=plain64 cast 8M
            cryptsetup luksFormat -q --type luks1 --hash sha3-256 --pbkdf-force-iterations 1000 hash pw
            cryptsetup luksFormat -q --type luks2 --pbkdf-memory 32768 --pbkdf-force-iterations 4 memory pw"
        ),
    );
    let refused = |name: &str| match unlock(&device(&scratch.path(name)), Some(b"x")) {
        Err(error) => error.to_string(),
        Ok(_) => panic!("{name} was tried"),
    };
    assert!(refused("cast").contains("the cipher cast5-cbc-plain64 is not supported"), "{}", refused("cast"));
    assert!(refused("hash").contains("the hash sha3-256 is not supported"), "{}", refused("hash"));
    // A derivation that takes more memory than there is, and one that takes years.
    let header = std::fs::read(scratch.path("memory")).unwrap();
    let change = |from: &str, to: &str| {
        let image = with_json(&header, &|json| {
            assert!(json.contains(from), "{json}");
            json.replacen(from, to, 1)
        });
        scratch.write("changed", &image);
        refused("changed")
    };
    let said = change("\"memory\":32768", "\"memory\":99000000");
    assert!(said.contains("MiB of memory to open"), "{said}");
    let said = change("\"time\":4", "\"time\":4000000000");
    assert!(said.contains("seconds to open"), "{said}");
    let said = change("\"stripes\":4000", "\"stripes\":99000000");
    assert!(said.contains("key material"), "{said}");
    let said = change("\"config\":{", "\"config\":{\"requirements\":{\"mandatory\":[\"online-reencrypt-v2\"]},");
    assert!(said.contains("reencryption that is not finished"), "{said}");
    let said = change("\"type\":\"crypt\"", "\"type\":\"hw-opal\"");
    assert!(said.contains("a segment of the type hw-opal"), "{said}");
    let said = change(
        "\"encryption\":\"aes-xts-plain64\",\"sector_size\"",
        "\"encryption\":\"aes-adiantum-plain64\",\"sector_size\"",
    );
    assert!(said.contains("the cipher aes-adiantum-plain64 is not supported"), "{said}");
}

/// A disk of two partitions, the second of which is a LUKS volume with an ext4 file system.
fn partitioned(scratch: &Scratch) {
    scratch.write("pw", b"correct horse");
    scratch.sh(
        PACKAGES,
        &format!(
            "mkdir -p tree/home; echo secret > tree/home/diary; mke2fs -q -F -t ext4 -L vault -d tree fs.img 8M
            qemu-img convert -O luks {QEMU_KEY} fs.img luks; truncate -s 20M disk.img
            mke2fs -q -F -t ext2 -L open small.img 2M
            printf 'label: dos\\nstart=2048,size=4096\\nstart=8192,type=83\\n' | sfdisk -q disk.img
            dd if=small.img of=disk.img bs=512 seek=2048 conv=notrunc status=none
            dd if=luks of=disk.img bs=512 seek=8192 conv=notrunc status=none"
        ),
    );
}

fn open(path: &Path, keys: Option<&'static [&'static [u8]]>) -> Result<Image, Error> {
    let source = move |_: &str, _: &_| Ok(keys.unwrap_or_default().iter().map(|key| key.to_vec()).collect());
    let keys = keys.map(|_| Keys(Arc::new(source)));
    Image::open(path, &Options { keys, ..Options::default() })
}

#[test]
fn an_encrypted_partition_is_shown_by_name_and_with_a_key_as_its_files() {
    let scratch = Scratch::new();
    partitioned(&scratch);
    let path = scratch.path("disk.img");
    let names = |image: &Image| image.parts.iter().map(|part| part.name.clone()).collect::<Vec<_>>().join(" ");
    for locked in [open(&path, None).unwrap(), open(&path, Some(&[])).unwrap()] {
        assert_eq!(names(&locked), "disk p1 p2");
        assert!(matches!(&locked.part("p2").unwrap().tree, Tree::Encrypted(known) if known.variant == "LUKS1"));
    }
    let image = open(&path, Some(&[b"wrong", b"correct horse"])).unwrap();
    assert_eq!(names(&image), "disk p1 p2 p2.plain");
    let plain = image.part("p2").unwrap();
    assert_eq!(plain.name, "p2.plain");
    assert_eq!(image.main_part().unwrap().name, "p2.plain");
    let expected = std::fs::read(scratch.path("fs.img")).unwrap();
    let mut bytes = vec![0; expected.len()];
    plain.device.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes == expected);
    let forest = image.forest();
    for name in ["/p2.img", "/p2.plain.img", "/p2/home/diary", "/by-label/vault", "/by-label/open"] {
        forest.find(name.as_bytes()).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    let said = open(&path, Some(&[b"wrong"])).err().unwrap().to_string();
    assert!(said.starts_with("p2 (LUKS1): ") && said.contains("does not open it"), "{said}");
}

fn imgfs(scratch: &Scratch, arguments: &str) -> Output {
    let program = super::program::imgfs();
    let script = format!("exec '{}' {arguments}", program.get_program().display());
    Command::new("bash").args(["-c", &script]).current_dir(scratch.path("")).stdin(Stdio::null()).output().unwrap()
}

#[test]
fn the_commands_take_a_key_from_a_file_a_descriptor_and_standard_input() {
    let scratch = Scratch::new();
    partitioned(&scratch);
    scratch.write("line", b"correct horse\n");
    for key in ["--key-file pw", "--key-file line", "--key-fd 7 7< pw", "--key-file - < line", "-o keyfile=pw"] {
        let output = imgfs(&scratch, &format!("cat disk.img:/files/home/diary {key}"));
        assert_eq!(String::from_utf8_lossy(&output.stdout), "secret\n", "{key}: {output:?}");
    }
    let output = imgfs(&scratch, "info disk.img");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && said.contains("LUKS1, encrypted, UUID"), "{said}");
    let output = imgfs(&scratch, "info --json --key-file pw disk.img");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("\"encryption\"") && said.contains("p2.plain"), "{said}");
    let output = imgfs(&scratch, "ls --key-file disk.img disk.img");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1));
    assert!(said.lines().count() == 1 && said.contains("key file disk.img: longer than"), "{said}");
    scratch.write("bad", b"no");
    let output = imgfs(&scratch, "ls --key-file bad disk.img");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1));
    assert!(said.lines().count() == 1 && said.contains("does not open it"), "{said}");
}

#[test]
fn damaged_headers_are_errors_and_nothing_worse() {
    let scratch = Scratch::new();
    scratch.write("pw", b"x");
    scratch.sh(
        PACKAGES,
        &format!(
            "qemu-img create -q -f luks {QEMU_KEY} one 1M; {LUKS_1}; format two 4M; cryptsetup convert -q --type luks2 two"
        ),
    );
    let mut numbers = Numbers(5);
    for (name, header) in [("one", 592), ("two", 8192)] {
        let image = std::fs::read(scratch.path(name)).unwrap();
        for _ in 0..300 {
            let mut broken = image.clone();
            for _ in 0..=numbers.below(2) {
                broken[numbers.below(header) as usize] = numbers.next() as u8;
            }
            if name == "two" {
                // Past the checksum, where it becomes interesting; of the first header alone.
                broken[448..512].fill(0);
                let sum = Sha256::digest(&broken[..16_384]);
                broken[448..480].copy_from_slice(&sum);
            }
            let path = scratch.write("case", &broken);
            let _ = describe(device(&path).as_ref());
            let _ = unlock(&device(&path), None);
        }
        for len in [0, 6, 100, 591, 592, 4096, 16_000, 40_000] {
            let path = scratch.write("case", &image[..len]);
            let _ = unlock(&device(&path), Some(b"x"));
        }
    }
}

/// The images of cryptsetup's own tests, made by Windows: `tests/bitlk-images.tar.xz`, unpacked.
#[test]
fn bitlocker_volumes_of_windows_have_the_hashes_that_cryptsetup_recorded() {
    let Some(folder) = std::env::var_os("IMGFS_BITLOCKER").map(std::path::PathBuf::from) else {
        println!("skipped: IMGFS_BITLOCKER names no folder with cryptsetup's images of BitLocker volumes");
        return;
    };
    let text = std::fs::read_to_string(folder.join("images.conf")).unwrap();
    let mut compared = 0;
    for section in text.split('[').skip(1) {
        let (name, fields) = section.split_once(']').unwrap();
        let field = |name: &str| {
            fields
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
                .map(|value| value.trim().to_owned())
        };
        let device = device(&folder.join(format!("{name}.img")));
        let known = describe(device.as_ref()).unwrap().unwrap_or_else(|| panic!("{name} is not known"));
        assert_eq!(known.uuid, field("GUID"), "{name}");
        let mut keys: Vec<Vec<u8>> =
            ["PW", "RP"].iter().filter_map(|name| field(name)).map(String::into_bytes).collect();
        let startup = field("SK_VMK_GUID").map(|guid| folder.join(format!("{}.BEK", guid.to_uppercase())));
        keys.extend(startup.and_then(|path| std::fs::read(path).ok()));
        if name.ends_with("eow") {
            let said = unlock(&device, Some(&keys[0])).err().unwrap().to_string();
            assert!(said.contains("encrypted only where it is written to"), "{said}");
            continue;
        }
        let clear = unlock(&device, None).unwrap();
        let opened = keys.iter().filter_map(|key| unlock(&device, Some(key)).unwrap());
        for plain in opened.chain(clear) {
            let mut bytes = vec![0; plain.size() as usize];
            plain.read_exact_at(&mut bytes, 0).unwrap();
            let found: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
            // For some, cryptsetup itself has no answer.
            match field("SHA256SUM").filter(|sum| !sum.is_empty()) {
                Some(sum) => assert_eq!(found, sum, "{name}"),
                None => assert_eq!(&bytes[3..11], b"NTFS    ", "{name}"),
            }
            compared += 1;
        }
    }
    assert!(compared > 20, "{compared}");
}
