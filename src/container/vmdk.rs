//! stub
use super::*;
pub(super) const FORMAT: ContainerFormat =
    ContainerFormat { name: "vmdk", snapshots: false, probe: |_, _| Ok(false), open: |_, _, _| Err(Error::Invalid) };
pub(super) const OVA: ContainerFormat =
    ContainerFormat { name: "ova", snapshots: false, probe: |_, _| Ok(false), open: |_, _, _| Err(Error::Invalid) };
