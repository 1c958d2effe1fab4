//! stub
use super::*;
pub(super) const FORMAT: ContainerFormat = ContainerFormat {
    name: "parallels",
    snapshots: false,
    probe: |_, _| Ok(false),
    open: |_, _, _| Err(Error::Invalid),
};
