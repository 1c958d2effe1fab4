//! What every `--json` has in common: one object, with its shape and the version of that shape. The
//! members are described in docs/json.md.

use std::io::Write;

use anyhow::Result;
use imgfs::filesystem::{Attributes, Kind, Timestamp};
use imgfs::text::tamed_json;
use serde_json::{Map, Value, json};

/// Version of all shapes. Members may be added within a version; none is removed or changes its meaning.
const VERSION: u32 = 1;

/// Writes one object: `shape`, `version`, then its own members.
pub fn write(shape: &str, members: Value) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", tamed_json(&format!("{:#}", object(shape, members))))?;
    Ok(out.flush()?)
}

/// The object itself.
pub fn object(shape: &str, members: Value) -> Value {
    let mut value = json!({ "shape": shape, "version": VERSION });
    merge(&mut value, members);
    value
}

/// Adds members to an object.
pub fn merge(value: &mut Value, more: Value) {
    if let (Some(object), Value::Object(more)) = (value.as_object_mut(), more) {
        object.extend(more);
    }
}

/// A name or a path under `key`. JSON holds no arbitrary bytes: what is not UTF-8 has its bytes in
/// hexadecimal under `key_hex` as well.
pub fn name(value: &mut Value, key: &str, bytes: &[u8]) {
    let Some(object) = value.as_object_mut() else { return };
    object.insert(key.to_owned(), String::from_utf8_lossy(bytes).into());
    if std::str::from_utf8(bytes).is_err() {
        object.insert(format!("{key}_hex"), imgfs::digest::hex(bytes).into());
    }
}

/// A time in RFC 3339 with nanoseconds, UTC.
pub fn time(time: Timestamp) -> Value {
    let nanoseconds = i32::try_from(time.nanoseconds).unwrap_or(0);
    jiff::Timestamp::new(time.seconds, nanoseconds).map_or(Value::Null, |time| format!("{time:.9}").into())
}

/// What the disk records of a node; what it does not record is left out.
pub fn attributes(attributes: &Attributes) -> Value {
    let mut object = Map::new();
    let mut put = |key: &str, value: Option<Value>| {
        if let Some(value) = value {
            object.insert(key.to_owned(), value);
        }
    };
    put("type", Some(kind(attributes.kind).into()));
    put("size", Some(attributes.size.into()));
    put("allocated", attributes.blocks.map(|blocks| blocks.saturating_mul(512).into()));
    put("mode", attributes.mode.map(|mode| format!("{mode:04o}").into()));
    put("read_only", attributes.read_only.then_some(true.into()));
    put("uid", attributes.uid.map(Into::into));
    put("gid", attributes.gid.map(Into::into));
    put("links", attributes.links.map(Into::into));
    put("device", attributes.device.map(|(major, minor)| json!([major, minor])));
    put("modified", attributes.modified.map(time));
    put("accessed", attributes.accessed.map(time));
    put("changed", attributes.changed.map(time));
    put("created", attributes.created.map(time));
    Value::Object(object)
}

/// The word for a kind of node.
pub fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::File => "file",
        Kind::Directory => "dir",
        Kind::Symlink => "link",
        Kind::CharDevice => "char",
        Kind::BlockDevice => "block",
        Kind::Fifo => "fifo",
        Kind::Socket => "sock",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_not_utf_8_keeps_its_bytes() {
        let mut value = object("x", json!({}));
        name(&mut value, "path", b"caf\xe9");
        name(&mut value, "name", b"plain");
        let expected =
            json!({ "shape": "x", "version": 1, "path": "caf\u{fffd}", "path_hex": "636166e9", "name": "plain" });
        assert_eq!(value, expected);
    }

    #[test]
    fn times_have_nanoseconds_and_a_zone() {
        let stamp = Timestamp { seconds: -1, nanoseconds: 500_000_000 };
        assert_eq!(time(stamp), "1969-12-31T23:59:59.500000000Z");
        assert_eq!(time(Timestamp { seconds: 1 << 33, nanoseconds: 1 }), "2242-03-16T12:56:32.000000001Z");
    }
}
