//! Keys of encrypted volumes: from a file, from a descriptor, or asked for on the terminal. Never from
//! the command line, which every user of the machine can read.

use std::fs::File;
use std::io::{IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};

use anyhow::{Context, Result, bail, ensure};
use imgfs::cache::lock;
use imgfs::encryption::Encrypted;
use imgfs::error::Error;
use imgfs::stack::Keys;
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};

use super::options::MountOptions;

/// As much as cryptsetup reads of a key file.
const MAX_LEN: u64 = 8 << 20;

#[derive(clap::Args, Clone, Debug)]
pub struct KeyArgs {
    /// Open encrypted volumes with what is in this file (- is standard input); more than one can be given
    #[arg(long, value_name = "FILE")]
    key_file: Vec<PathBuf>,
    /// The same, read from an open descriptor
    #[arg(long, value_name = "N")]
    key_fd: Option<u32>,
    /// Read once, while files of the host can still be opened
    #[arg(skip)]
    ready: OnceLock<Ready>,
}

type Terminal = Arc<Mutex<Option<Arc<File>>>>;

/// What a command has when a volume turns out to be encrypted.
#[derive(Clone, Debug)]
struct Ready {
    keys: Vec<Vec<u8>>,
    /// Where someone can be asked, until that is over.
    terminal: Terminal,
}

impl KeyArgs {
    /// Standard input is the key.
    pub fn uses_stdin(&self) -> bool {
        self.key_file.iter().any(|file| file == Path::new("-"))
    }

    /// Reads key files, and opens the terminal when there is no key and someone is there to be asked.
    /// To be called before the sandbox; once more it does nothing.
    pub fn prepare(&self, options: &MountOptions, attended: bool) -> Result<()> {
        if self.ready.get().is_some() {
            return Ok(());
        }
        let mut keys = Vec::new();
        for file in self.key_file.iter().chain(&options.key_files) {
            let key = if file == Path::new("-") {
                read(std::io::stdin())
            } else {
                File::open(file).map_err(anyhow::Error::from).and_then(read)
            };
            keys.extend(forms(key.with_context(|| format!("the key file {}", file.display()))?));
        }
        if let Some(number) = self.key_fd {
            let key = File::open(format!("/proc/self/fd/{number}")).map_err(anyhow::Error::from).and_then(read);
            keys.extend(forms(key.with_context(|| format!("--key-fd {number}"))?));
        }
        let terminal = if attended && keys.is_empty() && !options.no_key {
            File::options().read(true).write(true).open("/dev/tty").ok().map(Arc::new)
        } else {
            None
        };
        let _ = self.ready.set(Ready { keys, terminal: Arc::new(Mutex::new(terminal)) });
        Ok(())
    }

    /// Lets go of the terminal: what stays closed now is not asked for again.
    pub fn close(&self) {
        if let Some(ready) = self.ready.get() {
            lock(&ready.terminal).take();
        }
    }

    /// Where keys come from; `ask` says that the command is worth a question.
    pub fn source(&self, ask: bool) -> Option<Keys> {
        let Ready { keys, terminal } = self.ready.get()?.clone();
        if !keys.is_empty() {
            return Some(Keys(Arc::new(move |_, _| Ok(keys.clone()))));
        }
        if !ask || lock(&terminal).is_none() {
            return None;
        }
        Some(Keys(Arc::new(move |name, encrypted| {
            let open = lock(&terminal).clone();
            open.map_or_else(|| Ok(Vec::new()), |terminal| prompt(&terminal, name, encrypted))
        })))
    }
}

/// Whether there is someone to ask.
pub fn attended() -> bool {
    std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
}

fn read(mut from: impl Read) -> Result<Vec<u8>> {
    let mut key = Vec::new();
    from.by_ref().take(MAX_LEN.saturating_add(1)).read_to_end(&mut key)?;
    ensure!(key.len() as u64 <= MAX_LEN, "longer than {MAX_LEN} bytes");
    ensure!(!key.is_empty(), "it is empty");
    Ok(key)
}

/// A key as it is; and without the line's end that an editor or `echo` leaves behind a passphrase.
fn forms(key: Vec<u8>) -> Vec<Vec<u8>> {
    let line = key.strip_suffix(b"\n").map(|line| line.strip_suffix(b"\r").unwrap_or(line).to_vec());
    std::iter::once(key).chain(line.filter(|line| !line.is_empty())).collect()
}

/// Asks once for each volume; nothing leaves it closed.
fn prompt(terminal: &File, name: &str, encrypted: &Encrypted) -> imgfs::error::Result<Vec<Vec<u8>>> {
    let failed = |error: anyhow::Error| Error::io("asking for the passphrase", std::io::Error::other(error));
    let label = encrypted.label.as_ref().or(encrypted.uuid.as_ref()).map_or(String::new(), |text| format!(" {text}"));
    let passphrase =
        ask(terminal, &format!("Passphrase of {name} ({}{label}; empty: keep it closed): ", encrypted.variant));
    let passphrase = passphrase.map_err(failed)?;
    Ok(Some(passphrase).filter(|key| !key.is_empty()).into_iter().collect())
}

/// A line from the terminal that is not shown there.
fn ask(mut terminal: &File, question: &str) -> Result<Vec<u8>> {
    let before = tcgetattr(terminal)?;
    let mut quiet = before.clone();
    // Without signals: an interrupted program would leave the terminal as it is now.
    quiet.local_modes.remove(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG);
    tcsetattr(terminal, OptionalActions::Flush, &quiet)?;
    let asked = terminal.write_all(question.as_bytes());
    let line = asked.map_err(anyhow::Error::from).and_then(|()| line(&mut terminal));
    tcsetattr(terminal, OptionalActions::Flush, &before)?;
    terminal.write_all(b"\n")?;
    line
}

/// Reads up to the end of a line, with the keys that edit one.
fn line(terminal: &mut dyn Read) -> Result<Vec<u8>> {
    let mut line = Vec::new();
    let mut byte = [0];
    while terminal.read(&mut byte)? == 1 {
        match byte[0] {
            b'\r' | b'\n' | 4 => break,
            3 => bail!("interrupted"),
            8 | 0x7f => drop(line.pop()),
            0x15 => line.clear(),
            byte if line.len() < 4096 => line.push(byte),
            _ => bail!("too long"),
        }
    }
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_end_behind_a_passphrase_does_not_count() {
        assert_eq!(forms(b"secret\r\n".to_vec()), [b"secret\r\n".to_vec(), b"secret".to_vec()]);
        assert_eq!(forms(b"\0\n".to_vec()), [b"\0\n".to_vec(), b"\0".to_vec()]);
        assert_eq!(forms(b"secret".to_vec()), [b"secret".to_vec()]);
        assert_eq!(forms(b"\n".to_vec()), [b"\n".to_vec()]);
    }

    #[test]
    fn a_passphrase_can_be_edited_and_interrupted() {
        assert_eq!(line(&mut &b"wrong\x15sekret\x7f\x7f\x7fret\r more"[..]).unwrap(), b"sekret");
        assert!(line(&mut &b"abc\x03"[..]).is_err());
    }
}
