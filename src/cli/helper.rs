//! `mount.imgfs` and `mount.fuse.imgfs`: this program under the names by which mount(8) calls it, for
//! `mount -t imgfs IMAGE MNT` and for lines of fstab.
//!
//! mount(8) says `rw` whenever nobody said `ro`. That is no wish to write: here the words `overlay` and
//! `overlay=FILE` are one. Exit status as mount(8) has it: 1 for wrong words, 32 for a mount that failed.

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::{Command, ExitCode};

use super::options::{self, MountOptions};

/// Whether the program goes by one of the names.
pub fn is_called(name: Option<&OsStr>) -> bool {
    let name = name.map(Path::new).and_then(Path::file_name);
    name.is_some_and(|name| name == "mount.imgfs" || name == "mount.fuse.imgfs")
}

/// What mount(8) asks for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Request {
    names: Vec<OsString>,
    options: Vec<String>,
    /// `-s`: words that nobody knows are left out.
    sloppy: bool,
    /// `-f`: everything but the mount.
    fake: bool,
    verbose: bool,
}

pub fn run(words: &[OsString]) -> ExitCode {
    let request = match Request::parse(words) {
        Ok(request) => request,
        Err(error) => {
            eprintln!("mount.imgfs: {error}");
            return ExitCode::from(1);
        }
    };
    match request.mount() {
        Ok(true) => ExitCode::SUCCESS,
        // It has said why.
        Ok(false) => ExitCode::from(32),
        Err(error) => {
            eprintln!("mount.imgfs: {error:#}");
            ExitCode::from(32)
        }
    }
}

impl Request {
    /// `IMAGE MNT [-sfnv] [-N NAMESPACE] [-o OPTIONS] [-t TYPE]`, in any order.
    fn parse(words: &[OsString]) -> Result<Self, String> {
        let mut request = Self::default();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let Some(flags) = word.to_str().and_then(|word| word.strip_prefix('-')).filter(|flags| !flags.is_empty())
            else {
                request.names.push(word.clone());
                continue;
            };
            for (at, flag) in flags.char_indices() {
                let attached = flags.get(at + flag.len_utf8()..).filter(|rest| !rest.is_empty());
                let mut value = || {
                    let next = attached.map(str::to_owned).or_else(|| words.next()?.to_str().map(str::to_owned));
                    next.ok_or_else(|| format!("-{flag} needs a value"))
                };
                match flag {
                    's' => request.sloppy = true,
                    'f' => request.fake = true,
                    'v' => request.verbose = true,
                    // There is no /etc/mtab to be left alone.
                    'n' => {}
                    'r' => request.options.push("ro".to_owned()),
                    'w' => {}
                    'o' => {
                        let value = value()?;
                        request.options.extend(value.split(',').filter(|word| !word.is_empty()).map(str::to_owned));
                        break;
                    }
                    't' => {
                        value()?;
                        break;
                    }
                    'N' => return Err("-N: another mount namespace is entered with nsenter(1)".to_owned()),
                    flag => return Err(format!("-{flag} is unknown")),
                }
            }
        }
        if request.names.len() != 2 {
            return Err("usage: mount.imgfs IMAGE MOUNTPOINT [-sfnv] [-o OPTIONS]".to_owned());
        }
        // See above; and mount.fuse says `dev,suid` for root, whom nobody asked.
        request.options.retain(|word| word != "rw");
        if request.sloppy {
            request.options.retain(|word| options::is_known(word));
        }
        Ok(request)
    }

    fn mount(&self) -> anyhow::Result<bool> {
        if self.fake {
            // Everything but the mount: its words as well.
            MountOptions::parse(self.options.iter().map(String::as_str))?;
        }
        self.check_loop()?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("mount").args(&self.names);
        if !self.options.is_empty() {
            command.arg("-o").arg(self.options.join(","));
        }
        if self.verbose {
            eprintln!("mount.imgfs: {command:?}");
        }
        Ok(self.fake || command.status()?.success())
    }
}

impl Request {
    /// `loop` has mount(8) make a device of the image, which belongs to root.
    fn check_loop(&self) -> anyhow::Result<()> {
        let Some(image) = self.names.first().map(Path::new) else { return Ok(()) };
        let of_loop = image.to_str().is_some_and(|name| name.starts_with("/dev/loop"));
        match std::fs::File::open(image) {
            Err(error) if of_loop && error.kind() == std::io::ErrorKind::PermissionDenied => Err(anyhow::anyhow!(
                "{}: {error}: leave out the option loop: imgfs reads the image's file by itself",
                image.display()
            )),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Request, String> {
        Request::parse(&line.split(' ').map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn words_come_in_any_order_and_rw_is_no_wish() {
        let request = parse("a.img /mnt -sfnv -o rw,noatime,uid=1,nonsense -t imgfs").unwrap();
        assert_eq!(request.names, ["a.img", "/mnt"]);
        assert_eq!(request.options, ["noatime", "uid=1"]);
        assert!(request.sloppy && request.fake && request.verbose);
        assert_eq!(parse("-o rw,overlay a.img /mnt").unwrap().options, ["overlay"]);
        assert_eq!(parse("a.img /mnt -orw,nonsense").unwrap().options, ["nonsense"]);
        assert!(parse("a.img").is_err() && parse("a.img /mnt -o").is_err() && parse("a /mnt -N 1").is_err());
    }
}
