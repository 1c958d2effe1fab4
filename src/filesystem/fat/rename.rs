//! Renaming: a node keeps its number and its contents, and at no time is without a name.

use std::sync::PoisonError;

use super::directory::Row;
use super::entry::{Entry, SLOT};
use super::name::check_new;
use super::rows::Found;
use super::state::State;
use super::write::now;
use super::{Claim, Fat};
use crate::error::{Error, Result};
use crate::filesystem::NodeId;

impl Fat {
    /// Refuses to move a directory into itself or below.
    fn check_ancestors(&self, moved: u32, target: u32) -> Result<()> {
        let claims = self.claims.lock().unwrap_or_else(PoisonError::into_inner);
        let mut key = target;
        for _ in 0..=claims.len() {
            if key == moved {
                return Err(Error::Invalid);
            }
            match claims.get(&key) {
                Some(claim) if key != 0 => key = claim.parent,
                _ => return Ok(()),
            }
        }
        Err(Error::Invalid)
    }

    pub(super) fn rename_locked(
        &self,
        state: &mut State,
        (dir, name): (NodeId, &[u8]),
        (new_dir, new_name): (NodeId, &[u8]),
        replace: bool,
    ) -> Result<()> {
        check_new(new_name)?;
        let source = self.find(state, dir, name)?.ok_or(Error::NotFound)?;
        let (new_key, _) = self.open_directory(state, new_dir)?;
        let node = source.row.node;
        let mut entry = self.entry(state, node)?;
        let target = self.find(state, new_dir, new_name)?;
        let target = target.filter(|target| (target.key, target.slot) != (source.key, source.slot));
        if source.row.directory {
            self.check_ancestors(entry.cluster, new_key)?;
        }
        if let Some(target) = &target {
            match (target.row.directory, source.row.directory) {
                _ if !replace => return Err(Error::Exists),
                (true, false) => return Err(Error::IsDirectory),
                (false, true) => return Err(Error::NotDirectory),
                (true, true) => self.require_empty(state, target.row.node)?,
                (false, false) => {}
            }
        } else if source.key == new_key && source.row.name.as_ref() == new_name {
            return Ok(());
        }
        self.reserve_entry(state, dir)?;
        self.reserve_entry(state, new_dir)?;
        self.reserve_rows(state, source.key, source.row.first..=source.slot)?;
        if let Some(target) = &target {
            self.reserve_removal(state, target, &self.entry(state, target.row.node)?)?;
        }
        if source.row.directory
            && source.key != new_key
            && let Some(at) = self.geometry.cluster_offset(entry.cluster)
        {
            self.reserve_slots(state, [at])?;
        }
        match &target {
            Some(target) if target.row.name.as_ref() == new_name => {
                self.replace_entry(state, &source, target, &mut entry)?;
            }
            None if source.key == new_key && self.rewrite(state, &source, new_name, &mut entry, false)? => {}
            _ => match (self.move_entry(state, &source, target.as_ref(), new_key, new_name, &mut entry), &target) {
                // In a full root directory there is no room but its own, or that of what it replaces, which
                // keeps its spelling then.
                (Err(Error::NoSpace), Some(target)) => self.replace_entry(state, &source, target, &mut entry)?,
                (Err(Error::NoSpace), None)
                    if source.key == new_key && self.rewrite(state, &source, new_name, &mut entry, true)? => {}
                (other, _) => other?,
            },
        }
        if source.row.directory {
            let claim = Claim { node, parent: new_key, short: entry.short };
            self.claims.lock().unwrap_or_else(PoisonError::into_inner).insert(entry.cluster, claim);
            if source.key != new_key {
                self.reparent(state, &entry, new_key)?;
            }
        }
        let now = now();
        self.touch_directory(state, dir, now);
        self.touch_directory(state, new_dir, now);
        Ok(())
    }

    /// The target's entry becomes the source's: one sector changes, and the name never is without
    /// a file.
    fn replace_entry(&self, state: &mut State, source: &Found, target: &Found, entry: &mut Entry) -> Result<()> {
        let position = self.slot_position(state, target.key, target.slot)?;
        let replaced = self.entry(state, target.row.node)?;
        (entry.short, entry.case) = (replaced.short, replaced.case);
        self.unlink(state, source, Some(position))?;
        self.drop_target(state, target, replaced)?;
        state.nodes.relocate(source.row.node, position);
        self.patch(state, position, &entry.to_bytes(self.geometry.width))?;
        let row = Row { node: source.row.node, directory: source.row.directory, ..target.row.clone() };
        self.insert_row(state, target.key, target.slot, row)
    }

    /// A replaced node loses its number's position, and then its contents.
    fn drop_target(&self, state: &mut State, target: &Found, replaced: Entry) -> Result<()> {
        state.nodes.retire(target.row.node);
        self.drop_node(state, target.row.node, replaced)
    }

    /// Writes another name over the old one when it takes as many slots, so that no second entry
    /// ever exists. Over two sectors, where a crash could leave a part of each name, only when it
    /// is to be done `anyway`. `false` when it was not done.
    fn rewrite(&self, state: &mut State, source: &Found, name: &[u8], entry: &mut Entry, anyway: bool) -> Result<bool> {
        self.settle_short_name(state, source.key, name)?;
        let directory = self.directory(state, source.key)?;
        let removed = directory.write().unwrap_or_else(PoisonError::into_inner).remove(&self.hasher, source.slot);
        let row = removed.ok_or(Error::NotFound)?;
        let old = *entry;
        let slots = self.new_slots(state, source.key, name, entry);
        let count = source.slot.saturating_sub(source.row.first).saturating_add(1);
        let first = self.slot_position(state, source.key, source.row.first)?;
        let last = self.slot_position(state, source.key, source.slot)?;
        let whole = anyway || self.same_sector(first, last);
        let slots = slots.ok().filter(|slots| u32::try_from(slots.len()) == Ok(count) && whole);
        let Some(slots) = slots else {
            *entry = old;
            self.insert_row(state, source.key, source.slot, row)?;
            return Ok(false);
        };
        if entry.short != old.short {
            state.removed_names.insert((source.key, old.short));
        }
        self.put_slots(state, source.key, source.row.first, &slots)?;
        self.insert_row(state, source.key, source.slot, Row { name: name.into(), short: entry.short, ..row })?;
        Ok(true)
    }

    /// The general case: a new entry, and then the old one, and that of the target, are removed.
    fn move_entry(
        &self,
        state: &mut State,
        source: &Found,
        target: Option<&Found>,
        key: u32,
        name: &[u8],
        entry: &mut Entry,
    ) -> Result<()> {
        let (first, slot, short) = self.link(state, key, name, entry)?;
        let position = self.slot_position(state, key, slot)?;
        for piece in first..slot {
            let at = self.slot_position(state, key, piece)?;
            if !self.same_sector(at, position) {
                let mut bytes = [0; SLOT];
                self.read_metadata(state, &mut bytes, at)?;
                state.early.push((at, bytes));
            }
        }
        self.unlink(state, source, Some(position))?;
        if let Some(target) = target {
            let replaced = self.entry(state, target.row.node)?;
            self.unlink(state, target, Some(position))?;
            self.drop_target(state, target, replaced)?;
        }
        state.nodes.relocate(source.row.node, position);
        let row = Row { name: name.into(), short, first, ..source.row.clone() };
        self.insert_row(state, key, slot, row)
    }

    /// A directory has another parent: its `..` says so.
    fn reparent(&self, state: &mut State, entry: &Entry, parent: u32) -> Result<()> {
        let Some(at) = self.geometry.cluster_offset(entry.cluster).map(|at| at.saturating_add(SLOT as u64)) else {
            return Ok(());
        };
        let mut slot = [0; SLOT];
        self.read_metadata(state, &mut slot, at)?;
        let above = Entry::parse(&slot, at, self.geometry.width)?;
        if above.short == *b"..         " {
            self.patch(state, at, &Entry { cluster: parent, ..above }.to_bytes(self.geometry.width))?;
        }
        Ok(())
    }
}
