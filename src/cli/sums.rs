//! Digests that stand beside an image: `IMAGE.sha256`, lists as `sha256sum` writes them, and the
//! manifests of a BagIt bag (RFC 8493) that the image lies in.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result};
use imgfs::digest::{Algorithm, unhex};

/// A list of more: a million files.
const MAX_LIST: u64 = 128 << 20;
/// A bag that lies further up than this is not looked for.
const MAX_LEVELS: usize = 16;

/// A digest that someone wrote down.
pub struct Stored {
    /// What it is: `SHA256`.
    pub what: String,
    /// The list.
    pub list: String,
    /// The digest, or why there is none.
    pub digest: Result<(Algorithm, Vec<u8>), String>,
}

/// Everything that is said about an image beside it.
pub fn beside(image: &Path) -> Result<Vec<Stored>> {
    let absolute = std::path::absolute(image)?;
    let Some(folder) = absolute.parent() else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for (list, kind) in lists(&absolute) {
        found.extend(read(&list, kind, &|path| leads_to(folder, path, &absolute)));
    }
    found.extend(in_bag(&absolute)?);
    Ok(found)
}

/// The names of the lists beside an image, whether or not they say anything of it.
pub fn lists_beside(image: &Path) -> Result<Vec<String>> {
    let name = |(list, _): (PathBuf, Kind)| list.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok(lists(&std::path::absolute(image)?).into_iter().map(name).collect())
}

fn lists(image: &Path) -> Vec<(PathBuf, Kind)> {
    let (Some(folder), Some(name)) = (image.parent(), image.file_name()) else { return Vec::new() };
    let mut lists: Vec<_> = match std::fs::read_dir(folder) {
        Ok(rows) => rows.filter_map(|row| Some(row.ok()?.path())).collect(),
        // A folder that may be entered and not listed.
        Err(_) => Vec::new(),
    };
    lists.sort();
    let known = |list: PathBuf| {
        let kind = Kind::of(list.file_name()?.as_encoded_bytes(), name.as_encoded_bytes())?;
        Some((list, kind))
    };
    lists.into_iter().filter_map(known).collect()
}

/// Whether a path in a list of this folder is the image's.
fn leads_to(folder: &Path, path: &[u8], image: &Path) -> bool {
    let named = without_dots(&folder.join(OsStr::from_bytes(path)));
    named == without_dots(image) || image.canonicalize().is_ok_and(|real| named == real)
}

/// A path without `.` and `..`, as it is written: what is there is not looked at.
fn without_dots(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => drop(out.pop()),
            part => out.push(part),
        }
    }
    out
}

/// What a file beside the image is, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// `IMAGE.sha256`: it is about the image, whatever name it has in it.
    Own(Algorithm),
    /// A list of files; the digest, where the name says which.
    List(Option<Algorithm>),
}

impl Kind {
    fn of(list: &[u8], image: &[u8]) -> Option<Self> {
        let text = String::from_utf8_lossy(list).to_ascii_lowercase();
        if let Some(rest) = list.strip_prefix(image).and_then(|rest| rest.strip_prefix(b".")) {
            let word = String::from_utf8_lossy(rest).to_ascii_lowercase();
            let word = word.strip_suffix(".txt").unwrap_or(&word).trim_end_matches("sum");
            return Algorithm::from_name(word).map(Self::Own);
        }
        let word = text.strip_suffix(".txt").or_else(|| text.strip_suffix(".asc")).unwrap_or(&text);
        if matches!(word, "checksum" | "checksums") {
            return Some(Self::List(None));
        }
        let digest = word.strip_suffix("sums").or_else(|| word.strip_suffix("sum"));
        if let Some(algorithm) = digest.and_then(Algorithm::from_name) {
            return Some(Self::List(Some(algorithm)));
        }
        // `disk.md5` beside `disk.img`, where it names the image.
        let stem = image.iter().rposition(|&byte| byte == b'.').and_then(|dot| image.get(..dot))?;
        let rest = list.strip_prefix(stem).and_then(|rest| rest.strip_prefix(b"."))?;
        Algorithm::from_name(&String::from_utf8_lossy(rest)).map(|algorithm| Self::List(Some(algorithm)))
    }
}

/// A name without what leads to the list's own folder.
fn plain(path: &[u8]) -> &[u8] {
    path.strip_prefix(b"./").unwrap_or(path)
}

/// The rows of a list that are about the image.
fn read(list: &Path, kind: Kind, is_image: &dyn Fn(&[u8]) -> bool) -> Vec<Stored> {
    let shown = list.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let stored = |digest: Result<(Algorithm, Vec<u8>), String>| {
        let name = digest.as_ref().map_or_else(|_| "digest".to_owned(), |(known, _)| known.name().to_uppercase());
        Stored { what: name, list: shown.clone(), digest }
    };
    let text = match contents(list) {
        Ok(text) => text,
        Err(error) => return vec![stored(Err(format!("{error:#}")))],
    };
    let mut found = Vec::new();
    let mut rows = 0u32;
    for line in text.split(|&byte| byte == b'\n') {
        let Some(row) = Row::parse(line, kind) else {
            if damaged(line).is_some_and(|path| matches!(kind, Kind::List(_)) && is_image(path)) {
                found.push(stored(Err("the row about it has no whole digest".to_owned())));
            }
            continue;
        };
        rows += 1;
        let about = match (&row.path, kind) {
            (Some(path), Kind::List(_)) => is_image(path),
            (None, Kind::List(_)) => false,
            (_, Kind::Own(_)) => true,
        };
        if about {
            found.push(stored(Ok((row.algorithm, row.digest))));
        }
    }
    if rows == 0 && matches!(kind, Kind::Own(_)) {
        found.push(stored(Err("there is no digest in it".to_owned())));
    }
    // A file of the image's own name with several rows names others too: then names count.
    if let (Kind::Own(algorithm), 2..) = (kind, found.len()) {
        return read(list, Kind::List(Some(algorithm)), is_image);
    }
    found
}

fn contents(list: &Path) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    let file = File::open(list)?;
    anyhow::ensure!(file.metadata()?.is_file(), "it is no file");
    file.take(MAX_LIST + 1).read_to_end(&mut text)?;
    anyhow::ensure!(text.len() as u64 <= MAX_LIST, "it is too large for a list of digests");
    // Editors of Windows put a mark of UTF-8 in front.
    if text.starts_with(b"\xef\xbb\xbf") {
        text.drain(..3);
    }
    Ok(text)
}

/// The path of a row whose digest was cut or has something else in it.
fn damaged(line: &[u8]) -> Option<&[u8]> {
    let line = line.trim_ascii();
    let (word, path) = line.split_at(line.iter().position(u8::is_ascii_whitespace)?);
    let path = path.trim_ascii_start();
    // A word of a comment is shorter.
    let is_digest = word.len() >= 16 && word.iter().all(u8::is_ascii_alphanumeric);
    is_digest.then(|| path.strip_prefix(b"*").unwrap_or(path))
}

/// One digest of a list.
struct Row {
    algorithm: Algorithm,
    digest: Vec<u8>,
    path: Option<Vec<u8>>,
}

impl Row {
    /// `DIGEST  path`, `DIGEST *path`, `ALGORITHM (path) = DIGEST`, a digest alone; blanks may come first.
    fn parse(line: &[u8], kind: Kind) -> Option<Self> {
        let line = line.strip_suffix(b"\r").unwrap_or(line).trim_ascii_start();
        let (escaped, line) = match line.strip_prefix(b"\\") {
            Some(rest) => (true, rest),
            None => (false, line),
        };
        let name = |path: &[u8]| if escaped { unescaped(path) } else { path.to_vec() };
        if let Some(row) = Self::tagged(line, &name) {
            return Some(row);
        }
        let end = line.iter().position(|byte| byte.is_ascii_whitespace()).unwrap_or(line.len());
        let (digits, rest) = line.split_at(end);
        let digest = unhex(std::str::from_utf8(digits).ok()?)?;
        let named = match kind {
            Kind::Own(algorithm) | Kind::List(Some(algorithm)) => Some(algorithm),
            Kind::List(None) => None,
        };
        let algorithm = named.filter(|named| named.size() == digest.len()).or(match digest.len() {
            16 => Some(Algorithm::Md5),
            20 => Some(Algorithm::Sha1),
            32 => Some(Algorithm::Sha256),
            64 => Some(Algorithm::Sha512),
            _ => None,
        })?;
        let rest = rest.trim_ascii_start();
        let path = rest.strip_prefix(b"*").unwrap_or(rest);
        Some(Self { algorithm, digest, path: (!path.is_empty()).then(|| name(path)) })
    }

    /// As coreutils and BSD write it, or openssl: without the blanks around the path, and `SHA2-256`.
    fn tagged(line: &[u8], name: &dyn Fn(&[u8]) -> Vec<u8>) -> Option<Self> {
        let open = line.iter().position(|&byte| byte == b'(')?;
        let close = line.iter().rposition(|&byte| byte == b')')?;
        let word = std::str::from_utf8(line.get(..open)?).ok()?.trim_ascii_end();
        let algorithm = match word.strip_prefix("SHA2-") {
            Some(bits) => Algorithm::from_name(&format!("sha{bits}"))?,
            None => Algorithm::from_name(word)?,
        };
        let digest = line.get(close + 1..)?.trim_ascii_start().strip_prefix(b"=")?;
        let digest = unhex(std::str::from_utf8(digest).ok()?.trim())?;
        let path = line.get(open + 1..close)?;
        (digest.len() == algorithm.size()).then(|| Self { algorithm, digest, path: Some(name(path)) })
    }
}

/// `\n`, `\r`, `\\`, as the tools of GNU write them.
fn unescaped(path: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut bytes = path.iter();
    while let Some(&byte) = bytes.next() {
        out.push(match byte {
            b'\\' => match bytes.next() {
                Some(b'n') => b'\n',
                Some(b'r') => b'\r',
                Some(&other) => other,
                None => b'\\',
            },
            byte => byte,
        });
    }
    out
}

/// The top folder of the bag that an image lies in.
pub fn bag_of(image: &Path) -> Option<PathBuf> {
    let absolute = std::path::absolute(image).ok()?;
    let mut above = absolute.ancestors().skip(1).take(MAX_LEVELS);
    above.find(|folder| folder.join("bagit.txt").is_file()).map(Path::to_owned)
}

/// The manifests of the bag that the image lies in.
fn in_bag(image: &Path) -> Result<Vec<Stored>> {
    let Some(bag) = bag_of(image) else { return Ok(Vec::new()) };
    let within = image.strip_prefix(&bag).context("the bag's folder")?.as_os_str().as_encoded_bytes().to_vec();
    let mut found = Vec::new();
    for algorithm in Algorithm::ALL {
        for kind in ["manifest", "tagmanifest"] {
            let list = bag.join(format!("{kind}-{}.txt", algorithm.name()));
            if list.is_file() {
                found.extend(read(&list, Kind::List(Some(algorithm)), &|path| plain(&decoded(path)) == within));
            }
        }
    }
    Ok(found)
}

/// RFC 8493, section 2.1.3: line ends and the percent sign itself are percent-encoded.
fn decoded(path: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((&first, later)) = rest.split_first() {
        let code = rest.get(..3).map(<[u8]>::to_ascii_uppercase);
        let byte = match code.as_deref() {
            Some(b"%0A") => b'\n',
            Some(b"%0D") => b'\r',
            Some(b"%25") => b'%',
            _ => {
                out.push(first);
                rest = later;
                continue;
            }
        };
        out.push(byte);
        rest = rest.get(3..).unwrap_or_default();
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_known_by_their_names() {
        let kind = |list: &str| Kind::of(list.as_bytes(), b"disk.img");
        assert_eq!(kind("disk.img.sha256"), Some(Kind::Own(Algorithm::Sha256)));
        assert_eq!(kind("disk.img.MD5.txt"), Some(Kind::Own(Algorithm::Md5)));
        assert_eq!(kind("disk.img.sha1sum"), Some(Kind::Own(Algorithm::Sha1)));
        assert_eq!(kind("SHA256SUMS"), Some(Kind::List(Some(Algorithm::Sha256))));
        assert_eq!(kind("md5sum.txt"), Some(Kind::List(Some(Algorithm::Md5))));
        assert_eq!(kind("B3SUMS"), Some(Kind::List(Some(Algorithm::Blake3))));
        assert_eq!(kind("CHECKSUM"), Some(Kind::List(None)));
        assert_eq!(kind("disk.md5"), Some(Kind::List(Some(Algorithm::Md5))));
        assert_eq!((kind("disk.img.txt"), kind("disk.img"), kind("SHA256SUMS.gpg")), (None, None, None));
    }

    #[test]
    fn a_path_in_a_list_counts_from_the_folder_of_the_list() {
        let is = |path: &str| leads_to(Path::new("/a/b"), path.as_bytes(), Path::new("/a/c/../b/d.img"));
        assert!(is("d.img") && is("./d.img") && is("../b/d.img") && is("/a/b/d.img") && is("/a//b/./d.img"));
        assert!(!is("../d.img") && !is("/b/d.img") && !is("b/d.img") && !is("d.imgs") && !is("D.IMG"));
    }

    #[test]
    fn rows_of_every_tool_are_read() {
        let md5 = "900150983cd24fb0d6963f7d28e17f72";
        let parse = |line: &str, kind| {
            let row = Row::parse(line.as_bytes(), kind).unwrap();
            (row.algorithm, row.path.map(|path| String::from_utf8(path).unwrap()))
        };
        let list = Kind::List(None);
        assert_eq!(parse(&format!("{md5}  a b.img"), list), (Algorithm::Md5, Some("a b.img".to_owned())));
        assert_eq!(parse(&format!("{md5} *x\r"), list), (Algorithm::Md5, Some("x".to_owned())));
        assert_eq!(parse(&format!("MD5 (a (1).img) = {md5}"), list), (Algorithm::Md5, Some("a (1).img".to_owned())));
        assert_eq!(parse(&format!("MD5(a (1).img)= {md5}"), list), (Algorithm::Md5, Some("a (1).img".to_owned())));
        assert_eq!(parse(&format!("MD5 (x)= {md5}"), list), (Algorithm::Md5, Some("x".to_owned())));
        assert_eq!(parse(&format!("SHA2-256(x)= {md5}{md5}"), list), (Algorithm::Sha256, Some("x".to_owned())));
        assert_eq!(parse(&format!(" \t{md5}  x"), list), (Algorithm::Md5, Some("x".to_owned())));
        assert_eq!(parse(&format!("\\{md5}  a\\\\b\\n"), list), (Algorithm::Md5, Some("a\\b\n".to_owned())));
        assert_eq!(parse(md5, Kind::Own(Algorithm::Md5)), (Algorithm::Md5, None));
        let long = "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85  x";
        assert_eq!(parse(long, Kind::List(Some(Algorithm::Blake3))).0, Algorithm::Blake3);
        assert_eq!(parse(long, list).0, Algorithm::Sha256);
        assert!(Row::parse(b"-----BEGIN PGP SIGNED MESSAGE-----", list).is_none());
        assert!(Row::parse(b"abcd  x", list).is_none());
        assert_eq!(decoded(b"data/a%0ab%250A%2525"), b"data/a\nb%0A%25");
    }
}
