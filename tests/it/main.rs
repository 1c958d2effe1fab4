//! Tests that need other tools: what they made is read here, and what they say is compared.

mod cli;
mod compressed;
mod containers;
mod corpus;
mod disks;
mod dmg;
mod encryption;
mod evil;
mod ewf;
mod ext;
mod fat;
mod fat_write;
mod floppy;
mod folders;
mod iso9660;
mod layers;
mod mount;
mod optical;
mod overlay;
mod partclone;
mod program;
mod rw_mount;
mod trust;
mod trust_log;
mod verbs;
mod volumes;
