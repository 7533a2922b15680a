//! What a `FileDescriptorSet` says of methods: who streams, and whether calls have side effects.
//!
//! Only the handful of fields that matter are read, by their numbers in `descriptor.proto`; everything else is skipped
//! by its wire type, so no generated code and no protobuf library is needed.

use std::fmt;

/// Bytes that are no `FileDescriptorSet`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DescriptorError {
    message: &'static str,
    /// How many bytes were left to read where it happened.
    left: usize,
}

impl fmt::Display for DescriptorError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "not a FileDescriptorSet: {} with {} bytes left; pass what protoc --descriptor_set_out wrote",
            self.message, self.left
        )
    }
}

impl std::error::Error for DescriptorError {}

/// A method found in a descriptor set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    /// With its package.
    pub(crate) service: String,
    pub(crate) method: String,
    pub(crate) client_streams: bool,
    pub(crate) server_streams: bool,
    /// Its `idempotency_level` is `NO_SIDE_EFFECTS`. `IDEMPOTENT` says less: such a call changes something.
    #[cfg_attr(not(feature = "coalesce"), allow(dead_code))] // Only coalescing asks.
    pub(crate) safe: bool,
}

/// All methods of all services in `set`.
pub(crate) fn methods(set: &[u8]) -> Result<Vec<Found>, DescriptorError> {
    let mut found = Vec::new();
    for (number, file) in fields(set)? {
        if let (1, Field::Bytes(file)) = (number, file) {
            let file = fields(file)?;
            let package = text(&file, 2)?.unwrap_or_default();
            for service in nested(&file, 6) {
                let service = fields(service)?;
                let name =
                    text(&service, 1)?.ok_or_else(|| error("a service without a name", 0))?;
                let name = if package.is_empty() {
                    name.to_owned()
                } else {
                    format!("{package}.{name}")
                };
                for method in nested(&service, 2) {
                    let method = fields(method)?;
                    found.push(Found {
                        service: name.clone(),
                        method: text(&method, 1)?
                            .ok_or_else(|| error("a method without a name", 0))?
                            .to_owned(),
                        client_streams: whole(&method, 5).is_some_and(|flag| flag != 0),
                        server_streams: whole(&method, 6).is_some_and(|flag| flag != 0),
                        safe: is_safe(&method),
                    });
                }
            }
        }
    }
    Ok(found)
}

/// Whether a method's options say `NO_SIDE_EFFECTS`. Options may come in parts, of which the last to speak is right.
///
/// What people extend options with is theirs: options that cannot be read promise nothing, and are no error.
fn is_safe(method: &Fields<'_>) -> bool {
    const NO_SIDE_EFFECTS: u64 = 1;
    let mut level = None;
    for options in nested(method, 4) {
        let Ok(options) = fields(options) else {
            return false;
        };
        level = whole(&options, 34).or(level);
    }
    level == Some(NO_SIDE_EFFECTS)
}

enum Field<'a> {
    Whole(u64),
    Bytes(&'a [u8]),
    Fixed,
}

type Fields<'a> = Vec<(u64, Field<'a>)>;

fn fields(mut bytes: &[u8]) -> Result<Fields<'_>, DescriptorError> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes)?;
        let value = match key & 7 {
            0 => Field::Whole(varint(&mut bytes)?),
            1 => skip(&mut bytes, 8).map(|_| Field::Fixed)?,
            2 => {
                let length = varint(&mut bytes)?;
                Field::Bytes(skip(
                    &mut bytes,
                    usize::try_from(length).unwrap_or(usize::MAX),
                )?)
            }
            5 => skip(&mut bytes, 4).map(|_| Field::Fixed)?,
            _ => return Err(error("a field of an unknown wire type", bytes.len())),
        };
        fields.push((key >> 3, value));
    }
    Ok(fields)
}

fn nested<'a>(fields: &'a Fields<'a>, wanted: u64) -> impl Iterator<Item = &'a [u8]> {
    fields
        .iter()
        .filter_map(move |(number, field)| match field {
            Field::Bytes(bytes) if *number == wanted => Some(*bytes),
            _ => None,
        })
}

/// The last value of a field, which is the one that counts.
fn whole(fields: &Fields<'_>, wanted: u64) -> Option<u64> {
    fields.iter().rev().find_map(|(number, field)| match field {
        Field::Whole(value) if *number == wanted => Some(*value),
        _ => None,
    })
}

fn text<'a>(fields: &Fields<'a>, wanted: u64) -> Result<Option<&'a str>, DescriptorError> {
    let found = fields.iter().rev().find_map(|(number, field)| match field {
        Field::Bytes(bytes) if *number == wanted => Some(*bytes),
        _ => None,
    });
    found
        .map(|bytes| {
            std::str::from_utf8(bytes).map_err(|_| error("a name that is no UTF-8", bytes.len()))
        })
        .transpose()
}

fn skip<'a>(bytes: &mut &'a [u8], length: usize) -> Result<&'a [u8], DescriptorError> {
    let (taken, rest) = bytes
        .split_at_checked(length)
        .ok_or_else(|| error("a field longer than what is left", bytes.len()))?;
    *bytes = rest;
    Ok(taken)
}

fn varint(bytes: &mut &[u8]) -> Result<u64, DescriptorError> {
    let mut value = 0;
    for shift in (0..70).step_by(7) {
        let (byte, rest) = bytes
            .split_first()
            .ok_or_else(|| error("a number cut short", 0))?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(error("a number too long", bytes.len()))
}

fn error(message: &'static str, left: usize) -> DescriptorError {
    DescriptorError { message, left }
}

#[cfg(test)]
mod tests {
    use super::*;

    use proptest::prelude::*;

    fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
        let length = [bytes.len() as u8 | 0x80, (bytes.len() >> 7) as u8];
        [&[number << 3 | 2], &length[..], bytes].concat()
    }

    fn set(methods: &[Vec<u8>]) -> Vec<u8> {
        let service = [field(1, b"S"), methods.concat()].concat();
        let file = [field(1, b"f.proto"), field(2, b"p.q"), field(6, &service)];
        field(1, &file.concat())
    }

    fn method(name: &[u8], rest: &[u8]) -> Vec<u8> {
        field(2, &[&field(1, name), rest].concat())
    }

    fn sample() -> Vec<u8> {
        let streams = |name, client, server| method(name, &[5 << 3, client, 6 << 3, server]);
        set(&[
            streams(b"A", 0, 0),
            streams(b"B", 1, 0),
            streams(b"C", 0, 1),
            streams(b"D", 1, 1),
        ])
    }

    /// The options of a method: `deprecated` and a level.
    fn level(level: u8) -> Vec<u8> {
        field(4, &[0x88, 0x02, 1, 0x90, 0x02, level])
    }

    #[test]
    fn all_four_types_are_read() {
        let found = methods(&sample()).unwrap();
        let kinds: Vec<_> = found
            .iter()
            .map(|found| {
                let streams = (found.client_streams, found.server_streams);
                (&*found.service, &*found.method, streams)
            })
            .collect();
        let expected = [
            ("p.q.S", "A", (false, false)),
            ("p.q.S", "B", (true, false)),
            ("p.q.S", "C", (false, true)),
            ("p.q.S", "D", (true, true)),
        ];
        assert_eq!(kinds, expected);
        assert_eq!(methods(&[]).unwrap(), []);
    }

    #[test]
    fn only_no_side_effects_is_safe() {
        let in_parts = [level(2), field(4, &[0x88, 0x02, 1]), level(1)].concat();
        let taken_back = [level(1), level(0)].concat();
        let group = field(4, &[0x90, 0x02, 1, 0x0b]);
        let set = set(&[
            method(b"none", &[]),
            method(b"unknown", &level(0)),
            method(b"safe", &level(1)),
            method(b"idempotent", &level(2)),
            method(b"in parts", &in_parts),
            method(b"taken back", &taken_back),
            method(b"of an extension", &field(4, &[0x98, 0x02, 1])),
            method(b"unreadable", &group),
            method(b"cut short", &field(4, &[0x90, 0x02])),
        ]);
        let found = methods(&set).unwrap();
        assert_eq!(found.len(), 9);
        let safe: Vec<_> = found.iter().filter(|found| found.safe).collect();
        assert_eq!(safe.len(), 2);
        assert_eq!((&*safe[0].method, &*safe[1].method), ("safe", "in parts"));
    }

    #[test]
    fn garbage_says_what_is_wrong() {
        let error = methods(b"\x0a\xff").unwrap_err().to_string();
        assert!(
            error.starts_with("not a FileDescriptorSet: a number cut short"),
            "{error}"
        );
        let error = methods(b"\x0a\x09abc").unwrap_err().to_string();
        assert!(
            error.contains("longer than what is left with 3 bytes"),
            "{error}"
        );
        assert!(methods(b"\x0f").is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), cut in 0usize..60, at in any::<prop::sample::Index>(), with in any::<u8>()) {
            let _ = methods(&bytes);
            let mut bytes = sample();
            bytes.truncate(cut.min(bytes.len()).max(1));
            let at = at.index(bytes.len());
            bytes[at] = with;
            let _ = methods(&bytes);
        }
    }
}
