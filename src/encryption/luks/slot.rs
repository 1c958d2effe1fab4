//! The volume's key, from a passphrase and a key slot.
//!
//! ```text
//!   passphrase -> derivation -> key of the material -> decrypt -> merge the stripes -> a key
//!                                                        the digest says whether it is the volume's
//! ```
//!
//! A header can ask for any work: what it may take is bounded, by the memory before it is asked for,
//! and by the time before the work is begun.

use std::time::{Duration, Instant};

use argon2::{Algorithm, Argon2, Params, Version};

use super::FORMAT;
use super::hash::Hash;
use super::header::{Derivation, Digest, Header, Slot};
use super::spec::{self, Spec};
use crate::device::{BlockDevice, read_vec};
use crate::error::{Error, Result};

/// Key material of a slot: 4,000 stripes of 64 bytes, with room for more.
const MAX_MATERIAL: u64 = 16 << 20;
/// Bytes of a key: two of the longest that a cipher takes, with room for more.
const MAX_KEY: usize = 1024;
/// Memory that a slot may ask for, KiB: as much as cryptsetup itself allows.
const MAX_MEMORY: u64 = 4 << 20;
/// For one derivation, and for all of a volume. Slots are made to take about two seconds.
const MAX_TIME: Duration = Duration::from_secs(30);
const MAX_TOTAL: Duration = Duration::from_secs(90);
/// Rounds by which the speed of this machine is known.
const TRIAL: u32 = 20_000;
/// The same of argon2, which fills so much memory once, KiB.
const TRIAL_MEMORY: u32 = 32 << 10;

/// The key that a passphrase opens; `None` when there is no slot for it.
pub(super) fn open(device: &dyn BlockDevice, header: &Header, passphrase: &[u8]) -> Result<Option<Vec<u8>>> {
    let (slots, mut refused) = header.slots();
    let clock = Clock { start: Instant::now() };
    for slot in &slots {
        match slot.open(device, passphrase, clock) {
            Ok(Some(key)) => return Ok(Some(key)),
            Ok(None) => {}
            // Another slot may open; when none does, this is why.
            Err(error) => refused = refused.or(Some(error)),
        }
    }
    refused.map_or(Ok(None), Err)
}

/// Refuses a header of whose slots none can be tried.
pub(super) fn check(device: &dyn BlockDevice, header: &Header) -> Result<()> {
    let (slots, refused) = header.slots();
    let mut errors = slots.iter().map(|slot| slot.check(device.size()).err()).collect::<Vec<_>>();
    if errors.iter().any(Option::is_none) {
        return Ok(());
    }
    let first = refused.or_else(|| errors.iter_mut().find_map(Option::take));
    Err(first.unwrap_or_else(|| Error::unsupported(FORMAT.name, "a volume without a key slot")))
}

impl Slot {
    /// What can be known without a passphrase.
    fn check(&self, device_size: u64) -> Result<()> {
        let damaged = || Error::corrupt(FORMAT.name, "key slot (its key material)", self.at);
        let len = self.material_len().ok_or_else(damaged)?;
        self.at.checked_add(len).filter(|&end| end <= device_size).ok_or_else(damaged)?;
        spec::check(&self.cipher)?;
        Hash::named(&self.hash)?;
        self.digests.iter().try_for_each(|digest| Hash::named(&digest.hash).map(drop))?;
        match &self.derivation {
            Derivation::Pbkdf2 { hash, .. } => Hash::named(hash).map(drop),
            Derivation::Argon2 { memory, .. } => check_memory((*memory).into()),
        }
    }

    /// Bytes of the material, in whole sectors.
    fn material_len(&self) -> Option<u64> {
        let lens = [self.key_len, self.cipher_key_len];
        if lens.iter().any(|len| !(1..=MAX_KEY).contains(len)) || self.stripes == 0 {
            return None;
        }
        let len = (self.key_len as u64).checked_mul(self.stripes).filter(|&len| len <= MAX_MATERIAL)?;
        len.checked_next_multiple_of(512)
    }

    fn open(&self, device: &dyn BlockDevice, passphrase: &[u8], clock: Clock) -> Result<Option<Vec<u8>>> {
        clock.check()?;
        self.check(device.size())?;
        let mut key = vec![0; self.cipher_key_len];
        match &self.derivation {
            Derivation::Pbkdf2 { hash, iterations } => {
                pbkdf2(hash, (passphrase, &self.salt), *iterations, &mut key, clock)?;
            }
            derivation => self.argon2(derivation, passphrase, &mut key, clock)?,
        }
        let len = self.material_len().and_then(|len| usize::try_from(len).ok()).ok_or(Error::Invalid)?;
        let mut material = read_vec(device, self.at, len)?;
        Spec::new(&self.cipher, &key)?.decrypt(&mut material, 512, 0);
        let used = usize::try_from(self.stripes).ok().and_then(|stripes| self.key_len.checked_mul(stripes));
        let material = used.and_then(|used| material.get(..used)).ok_or(Error::Invalid)?;
        let key = Hash::named(&self.hash)?.merge(material, self.key_len, &|| clock.check())?;
        for digest in &self.digests {
            if digest.proves(&key, clock)? {
                return Ok(Some(key));
            }
        }
        Ok(None)
    }

    fn argon2(&self, derivation: &Derivation, passphrase: &[u8], key: &mut [u8], clock: Clock) -> Result<()> {
        let Derivation::Argon2 { kind, time, memory, lanes } = derivation else { return Err(Error::Invalid) };
        let algorithm = if kind == "argon2i" { Algorithm::Argon2i } else { Algorithm::Argon2id };
        let odd = |error: argon2::Error| Error::corrupt(FORMAT.name, format!("key slot ({kind}: {error})"), self.at);
        let run = |memory: u32, time: u32, key: &mut [u8]| {
            let params = Params::new(memory, time, *lanes, Some(key.len())).map_err(odd)?;
            Argon2::new(algorithm, Version::V0x13, params).hash_password_into(passphrase, &self.salt, key).map_err(odd)
        };
        // As little memory as the lanes can do with, and of a slot that takes more, no more than this.
        let some = TRIAL_MEMORY.max(lanes.saturating_mul(8)).min(*memory);
        if *time > 1 || some < *memory {
            let all = u64::from(*time).saturating_mul((*memory).into());
            clock.allow(some.into(), all, || run(some, 1, &mut vec![0; key.len()]))?;
        }
        run(*memory, *time, key)
    }
}

impl Digest {
    fn proves(&self, key: &[u8], clock: Clock) -> Result<bool> {
        let len = self.digest.len();
        if !(1..=MAX_KEY).contains(&len) {
            return Err(Error::corrupt(FORMAT.name, "digest (its length)", 0));
        }
        let mut digest = vec![0; len];
        pbkdf2(&self.hash, (key, &self.salt), self.iterations, &mut digest, clock)?;
        Ok(digest == self.digest)
    }
}

/// Of a passphrase and a salt.
fn pbkdf2(hash: &str, (password, salt): (&[u8], &[u8]), iterations: u32, key: &mut [u8], clock: Clock) -> Result<()> {
    let hash = Hash::named(hash)?;
    if iterations == 0 {
        return Err(Error::corrupt(FORMAT.name, "header (a derivation of no rounds)", 0));
    }
    clock.check()?;
    if iterations > TRIAL {
        clock.allow(TRIAL.into(), iterations.into(), || {
            hash.pbkdf2(password, salt, TRIAL, &mut vec![0; key.len()]);
            Ok(())
        })?;
    }
    hash.pbkdf2(password, salt, iterations, key);
    Ok(())
}

/// The time that a volume's slots have taken so far.
#[derive(Clone, Copy)]
struct Clock {
    start: Instant,
}

impl Clock {
    /// Does some rounds of the work, and refuses it when all rounds would take too long.
    fn allow(self, some: u64, all: u64, work: impl FnOnce() -> Result<()>) -> Result<()> {
        let start = Instant::now();
        work()?;
        let projected = start.elapsed().mul_f64(all as f64 / some.max(1) as f64);
        if projected > MAX_TIME {
            let (takes, most) = (projected.as_secs(), MAX_TIME.as_secs());
            let what = format!("a key slot that takes {takes} seconds to open ({most} are allowed)");
            return Err(Error::unsupported(FORMAT.name, what));
        }
        self.has(projected)
    }

    /// Refuses to go on once the time is over: for work that is short, and of which there can be much.
    fn check(self) -> Result<()> {
        self.has(Duration::ZERO)
    }

    fn has(self, time: Duration) -> Result<()> {
        if self.start.elapsed().saturating_add(time) > MAX_TOTAL {
            let what = format!("a header whose key slots take more than {} seconds to try", MAX_TOTAL.as_secs());
            return Err(Error::unsupported(FORMAT.name, what));
        }
        Ok(())
    }
}

/// Refuses a derivation that would not fit in this machine.
fn check_memory(kib: u64) -> Result<()> {
    let there = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?.to_owned();
        line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()
    });
    let limit = rustix::process::getrlimit(rustix::process::Resource::As).current.map(|bytes| bytes / 2048);
    let bound = [Some(MAX_MEMORY), there, limit].into_iter().flatten().min().unwrap_or(MAX_MEMORY);
    if kib > bound {
        let what =
            format!("a key slot that takes {} MiB of memory to open ({} MiB can be had)", kib / 1024, bound / 1024);
        return Err(Error::unsupported(FORMAT.name, what));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::memory::Memory;

    /// Each piece of this header's work is short, and there can be a thousand of them.
    #[test]
    fn work_of_few_rounds_ends_with_the_time_of_the_volume_too() {
        let over = Clock { start: Instant::now().checked_sub(MAX_TOTAL + Duration::from_secs(1)).unwrap() };
        let mut key = [0; 64];
        let digest = Digest { hash: "sha1".to_owned(), salt: vec![1; 8], iterations: 1, digest: vec![0; 20] };
        let pbkdf2 = Derivation::Pbkdf2 { hash: "sha1".to_owned(), iterations: 1 };
        let argon2 = Derivation::Argon2 { kind: "argon2id".to_owned(), time: 1, memory: 64 << 10, lanes: 1 };
        let slot = |derivation| Slot {
            derivation,
            salt: vec![1; 8],
            at: 0,
            cipher: "aes-xts-plain64".to_owned(),
            cipher_key_len: 64,
            key_len: 1,
            stripes: 100_000,
            hash: "sha1".to_owned(),
            digests: vec![digest.clone()],
        };
        let device = Memory::new(vec![0; 1 << 20], 512);
        for slot in [slot(pbkdf2), slot(argon2.clone())] {
            assert!(slot.open(&device, b"key", Clock { start: Instant::now() }).unwrap().is_none());
            slot.open(&device, b"key", over).unwrap_err();
        }
        let words = "key slots take more than 90 seconds";
        let refused = |error: Error| assert!(error.to_string().contains(words), "{error}");
        refused(digest.proves(&[1; 32], over).unwrap_err());
        refused(slot(argon2.clone()).argon2(&argon2, b"key", &mut key, over).unwrap_err());
        let merged = Hash::Sha1.merge(&[0; 1 << 20], 1, &|| over.check());
        refused(merged.unwrap_err());
    }
}
