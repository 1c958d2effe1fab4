//! What exFAT says about itself: checksums of both boot regions, of the up-case table and of every entry set,
//! hashes of names, and that the bitmap has every cluster of a file, once.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use super::boot::{FIRST_CLUSTER, region_fault};
use super::directory::{Directory, Item, MAX_LEN, Row};
use super::entry::name_hash;
use super::table::Chain;
use super::{Exfat, ROOT};
use crate::check::{Check, MAX_FAULTS};
use crate::error::{Error, Result};
use crate::filesystem::NodeId;

/// All checks of a volume.
pub(super) fn checks(exfat: &Exfat) -> Vec<Check> {
    let mut checks = Vec::new();
    let size = exfat.geometry.sector_size;
    for (what, at) in [("boot region checksum", 0), ("backup boot region checksum", size.saturating_mul(12))] {
        let fault = region_fault(exfat.device.as_ref(), at, size).unwrap_or_else(|error| Some(error.to_string()));
        checks.push(Check::known(what, format!("byte {at}"), fault));
    }
    checks.push(Check::known("up-case table checksum", "root directory", exfat.up_case_fault.clone()));
    let (device, options) = (exfat.device.clone(), exfat.options.clone());
    let walk = Box::new(move || Audit::over(&Exfat::open(device.clone(), &options)?));
    checks.push(Check::walk("entry sets, names and clusters against the bitmap", "every directory", walk));
    checks
}

/// A visit to every node.
struct Audit<'a> {
    exfat: &'a Exfat,
    /// First cluster and count of what is in use, by neighbours.
    used: BTreeMap<u32, u32>,
    /// Directories to be visited; each has clusters of its own, or it is a fault and not visited.
    waiting: Vec<NodeId>,
    faults: Vec<String>,
}

impl<'a> Audit<'a> {
    fn over(exfat: &'a Exfat) -> Result<Vec<String>> {
        let mut audit = Audit { exfat, used: BTreeMap::new(), waiting: Vec::new(), faults: Vec::new() };
        let end = u64::from(exfat.root.chain.count).saturating_mul(exfat.geometry.cluster_size);
        audit.clusters(&exfat.root.chain, end, "the root directory")?;
        match &exfat.bitmap {
            Ok(bitmap) => {
                for (first, count) in bitmap.runs() {
                    audit.run(first, count, "the allocation bitmap")?;
                }
            }
            Err(error) => audit.faults.push(error.to_string()),
        }
        audit.waiting.push(ROOT);
        while let Some(node) = audit.waiting.pop().filter(|_| audit.faults.len() < MAX_FAULTS) {
            match exfat.directory(node) {
                Ok(directory) => audit.directory(&directory)?,
                Err(error) => audit.fault(error)?,
            }
        }
        audit.faults.truncate(MAX_FAULTS);
        Ok(audit.faults)
    }

    /// Damage is a fault; what the host failed to read ends the check.
    fn fault(&mut self, error: Error) -> Result<()> {
        if matches!(error, Error::Io { .. }) {
            return Err(error);
        }
        self.faults.push(error.to_string());
        Ok(())
    }

    fn directory(&mut self, directory: &Directory) -> Result<()> {
        let mut outcome = Ok(());
        let scanned = self.exfat.scan(directory, 0, &mut |item| {
            let Item::Row(row) = item else { return ControlFlow::Continue(()) };
            outcome = self.row(&row);
            if outcome.is_err() || self.faults.len() >= MAX_FAULTS {
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        });
        outcome?;
        // That of a row was said with it.
        let said = |error: &Error| self.faults.contains(&error.to_string());
        match scanned {
            Err(error) if !said(&error) => self.fault(error),
            _ => Ok(()),
        }
    }

    fn row(&mut self, row: &Row) -> Result<()> {
        if let Some(error) = &row.damage {
            return self.fault(error.clone());
        }
        let (file, at) = (&row.file, row.node.0);
        if name_hash(&file.name, &self.exfat.up_case) != file.name_hash {
            self.faults.push(format!("the hash of the name at byte {at} is wrong"));
        }
        let stream = file.stream;
        let len = if file.is_directory() { stream.size.min(MAX_LEN) } else { stream.size };
        let before = self.faults.len();
        if stream.contiguous {
            self.clusters(&self.exfat.table.run(stream.first, len, at), len, &format!("the set at byte {at}"))?;
        } else if len > 0 {
            // One more than it needs would be too many.
            let most = len.saturating_add(self.exfat.geometry.cluster_size);
            let chain = self.exfat.table.chain(stream.first, len, most, at);
            self.clusters(&chain, len, &format!("the set at byte {at}"))?;
            if u64::from(chain.count) > self.exfat.geometry.clusters_of(len) {
                self.faults.push(format!("the set at byte {at}: its chain is longer than what it has"));
            }
        }
        if file.is_directory() && before == self.faults.len() {
            self.waiting.push(row.node);
        }
        Ok(())
    }

    /// Notes the clusters of the first `len` bytes of a chain.
    fn clusters(&mut self, chain: &Chain, len: u64, whose: &str) -> Result<()> {
        if let Some(error) = &chain.damage {
            self.fault(error.clone())?;
        }
        let mut left = u32::try_from(self.exfat.geometry.clusters_of(len)).unwrap_or(u32::MAX);
        for (first, count) in chain.runs() {
            self.run(first, count.min(left), whose)?;
            left = left.saturating_sub(count);
        }
        Ok(())
    }

    /// Notes a run of clusters: they are no one else's, and the bitmap has them.
    fn run(&mut self, first: u32, count: u32, whose: &str) -> Result<()> {
        if count == 0 || self.faults.len() >= MAX_FAULTS {
            return Ok(());
        }
        let end = first.saturating_add(count);
        let before = self.used.range(..end).next_back().map(|(&start, &count)| (start, start.saturating_add(count)));
        if let Some((start, _)) = before.filter(|&(_, before)| before > first) {
            let cluster = start.max(first);
            self.faults.push(format!("{whose}: cluster {cluster} is another's as well"));
            return Ok(());
        }
        match before {
            Some((start, end)) if end == first => {
                self.used.entry(start).and_modify(|len| *len = len.saturating_add(count));
            }
            _ => {
                self.used.insert(first, count);
            }
        }
        let Ok(bitmap) = &self.exfat.bitmap else { return Ok(()) };
        let mut free = None;
        let bits = bitmap.each(self.exfat, first.max(FIRST_CLUSTER), count, |cluster, used| {
            free = (!used).then_some(cluster);
            used
        });
        if let Some(cluster) = free {
            self.faults.push(format!("{whose}: cluster {cluster} is free in the bitmap"));
        }
        bits.or_else(|error| self.fault(error))
    }
}
