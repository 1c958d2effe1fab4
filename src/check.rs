//! What an image says about itself that can be proven: checksums, digests, copies that must agree.
//!
//! A decoder only names its checks, with what is needed to make them; whoever asks (`imgfs verify`)
//! makes them. A check that a decoder compares anyway, when it opens something, comes with its outcome.

use crate::device::Device;
use crate::digest::Algorithm;
use crate::error::Result;

/// One check.
pub struct Check {
    /// What is compared: `stored MD5`, `header checksum`.
    pub what: String,
    /// Where that is: `byte 512`, `chunks 0 to 63`.
    pub place: String,
    /// How it is proven.
    pub proof: Proof,
}

/// A check that a decoder makes by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// What was compared.
    pub what: String,
    /// Where it is.
    pub place: String,
    /// What is wrong.
    pub fault: Option<String>,
}

/// How a check is made.
pub enum Proof {
    /// It was made already; what was found when it failed.
    Known(Option<String>),
    /// The device's bytes have this digest.
    Digest {
        /// Kind of digest.
        algorithm: Algorithm,
        /// What the image says.
        expected: Vec<u8>,
        /// The bytes it is about.
        device: Device,
    },
    /// Decoding compares checksums: every byte of the device has to be readable.
    Reads(Device),
    /// Everything else. Gives what is wrong, one sentence each, at most [`MAX_FAULTS`].
    Walk(Walk),
}

/// A check that takes its time. The error is for what could not be read.
pub type Walk = Box<dyn Fn() -> Result<Vec<String>> + Send + Sync>;

/// More faults than anyone reads.
pub const MAX_FAULTS: usize = 100;

impl Check {
    /// A check that was made.
    pub fn known(what: impl Into<String>, place: impl Into<String>, fault: Option<String>) -> Self {
        Self { what: what.into(), place: place.into(), proof: Proof::Known(fault) }
    }

    /// A digest to be compared.
    pub fn digest(
        what: impl Into<String>,
        place: impl Into<String>,
        (algorithm, expected): (Algorithm, &[u8]),
        device: Device,
    ) -> Self {
        let proof = Proof::Digest { algorithm, expected: expected.to_vec(), device };
        Self { what: what.into(), place: place.into(), proof }
    }

    /// A device to be read to its end.
    pub fn reads(what: impl Into<String>, place: impl Into<String>, device: Device) -> Self {
        Self { what: what.into(), place: place.into(), proof: Proof::Reads(device) }
    }

    /// A check of another kind.
    pub fn walk(what: impl Into<String>, place: impl Into<String>, walk: Walk) -> Self {
        Self { what: what.into(), place: place.into(), proof: Proof::Walk(walk) }
    }
}
