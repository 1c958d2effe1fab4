//! What an overlay learns of its base after it was made: the hash of all of it, and another base that
//! it is to have.

use std::path::Path;
use std::sync::PoisonError;

use super::binding::{FACTS, FULL_AT, STATE_AT, State, Whole, stat};
use super::commit::set_field;
use super::header::Header;
use super::store::HostStore;
use super::{Base, Binding, Hash, Overlay};
use crate::error::{Error, Result};

/// A base larger than this is not hashed unasked: it would be read for minutes, at every mount that ends before.
const LARGEST: u64 = 16 << 30;

/// The hash of a whole base, and the base that it is of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Learned {
    hash: Hash,
    base: Binding,
}

impl Overlay {
    /// Whether the hash of the whole base is not known, and could be found out.
    pub fn learns(&self) -> bool {
        self.binding().is_some_and(|binding| binding.state == State::Bound) && self.base.size() <= LARGEST
    }

    /// Hashes the whole base, and remembers the hash: that of a base which is known already costs nothing. `go_on` is
    /// asked before each piece, with the bytes that are done; `None` when it ends it, or the base changed meanwhile.
    pub fn hash_base(&self, go_on: &mut dyn FnMut(u64) -> bool) -> Result<Option<Hash>> {
        if let Some(hash) = self.binding().and_then(|binding| binding.full_hash()) {
            return Ok(Some(hash));
        }
        let mut whole = Whole::default();
        while whole.done < self.base.size() {
            if !go_on(whole.done) {
                return Ok(None);
            }
            whole.step(self.base.as_ref(), u64::MAX)?;
        }
        let Some(Learned { hash, .. }) = self.learned(whole) else { return Ok(None) };
        if self.unwritable.is_none() {
            self.set_full(&hash)?;
        }
        Ok(Some(hash))
    }

    /// What a hash of the whole base says, unless the base is not the one any more that the overlay is bound to.
    pub(super) fn learned(&self, whole: Whole) -> Option<Learned> {
        let base = self.binding().filter(|binding| binding.state == State::Bound)?;
        let unchanged = stat(&self.base_path).is_ok_and(|facts| facts == (base.file_size, base.mtime));
        (unchanged && whole.done == self.base.size()).then(|| Learned { hash: whole.finish(), base })
    }

    /// Compares all of the base with its hash, where that is known: what opening an overlay does only after the base
    /// was touched.
    pub fn verify_whole_base(&self, progress: &mut dyn FnMut(u64, u64)) -> Result<()> {
        let Some(full) = self.binding().and_then(|binding| binding.full_hash()) else { return Ok(()) };
        let mut whole = Whole::default();
        while whole.step(self.base.as_ref(), u64::MAX)? {
            progress(whole.done, self.base.size());
        }
        if whole.finish() == full {
            return Ok(());
        }
        let why = "it is not this overlay's base, or was changed since the overlay was made: its SHA-256 is another";
        let error =
            Error::io(self.base_path.display().to_string(), std::io::Error::new(std::io::ErrorKind::InvalidData, why));
        if !self.options.force {
            return Err(error);
        }
        log::warn!("{error}; used all the same, as was asked");
        Ok(())
    }

    pub(super) fn set_full(&self, hash: &Hash) -> Result<()> {
        self.set_field(FULL_AT, hash)?;
        if let Some(binding) = &mut *self.binding.lock().unwrap_or_else(PoisonError::into_inner) {
            binding.full = *hash;
        }
        self.set_state(State::BoundHashed)
    }

    /// Takes a base that is not the one that the overlay was made for, as was asked. From then on it is, where the
    /// overlay can be written to: what is written next is written over this one.
    pub(super) fn take(&self, error: &Error, base: &Base) -> Result<()> {
        let rebound = match self.binding() {
            Some(old) if !self.options.read_only && old.state != State::Copying => self.bind(&old, base)?,
            _ => false,
        };
        if rebound {
            log::warn!("{error}; used all the same, as was asked, and it is this overlay's base from now on");
        } else {
            log::warn!("{error}; used all the same, as was asked for this once");
        }
        Ok(())
    }

    /// Whether the overlay is bound to this base now: never to a disk of another size.
    fn bind(&self, old: &Binding, base: &Base) -> Result<bool> {
        let new = Binding { created: old.created, ..Binding::of(base)? };
        if new.disk_size != old.disk_size {
            return Ok(false);
        }
        // Until all is there, neither the old hash nor the new one counts.
        self.set_state(State::Bound)?;
        let bytes = new.to_bytes();
        self.set_field(FACTS.start as u64, bytes.get(FACTS).ok_or(Error::Invalid)?)?;
        self.set_state(new.state)?;
        *self.binding.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(Binding { format: old.format.clone(), version: old.version.clone(), ..new });
        Ok(true)
    }
}

/// Writes into an overlay what was learned of its base while it was only looked at. `false` when somebody else uses
/// the overlay, or it belongs to another base by now: it is learned another time.
pub fn remember(overlay: &Path, learned: &Learned) -> Result<bool> {
    let Ok(store) = HostStore::open(overlay) else { return Ok(false) };
    let Some((at, bytes)) = Header::read(&store)?.binding else { return Ok(false) };
    if Binding::parse(&bytes)? != learned.base {
        return Ok(false);
    }
    set_field(&store, at, FULL_AT, &learned.hash)?;
    set_field(&store, at, STATE_AT, &[State::BoundHashed.to_byte()])?;
    Ok(true)
}
