//! Tests that need other tools: what they made is read here, and what they say is compared.

mod compressed;
mod containers;
mod disks;
mod ext;
mod fat;
mod fat_write;
mod iso9660;
mod overlay;
mod volumes;
