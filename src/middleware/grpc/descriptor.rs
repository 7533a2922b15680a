//! Method types out of a `FileDescriptorSet`.
//!
//! Only the handful of fields that matter are read, by their numbers in `descriptor.proto`; everything else is skipped
//! by its wire type, so no generated code and no protobuf library is needed.

use std::fmt;

use super::method::GrpcType;

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
pub(super) struct Found {
    /// With its package.
    pub(super) service: String,
    pub(super) method: String,
    pub(super) kind: GrpcType,
}

/// All methods of all services in `set`.
pub(super) fn methods(set: &[u8]) -> Result<Vec<Found>, DescriptorError> {
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
                    let streams = |wanted| {
                        let mut found = method.iter().filter(|(number, _)| *number == wanted);
                        found.next_back().is_some_and(
                            |(_, value)| matches!(value, Field::Whole(value) if *value != 0),
                        )
                    };
                    found.push(Found {
                        service: name.clone(),
                        method: text(&method, 1)?
                            .ok_or_else(|| error("a method without a name", 0))?
                            .to_owned(),
                        kind: GrpcType::of(streams(5), streams(6)),
                    });
                }
            }
        }
    }
    Ok(found)
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
        [&[number << 3 | 2, bytes.len() as u8], bytes].concat()
    }

    fn sample() -> Vec<u8> {
        let method = |name: &[u8], client: u8, server: u8| {
            field(
                2,
                &[field(1, name), vec![5 << 3, client, 6 << 3, server]].concat(),
            )
        };
        let service = [
            field(1, b"S"),
            method(b"A", 0, 0),
            method(b"B", 1, 0),
            method(b"C", 0, 1),
            method(b"D", 1, 1),
        ];
        let file = [
            field(1, b"f.proto"),
            field(2, b"p.q"),
            field(6, &service.concat()),
        ]
        .concat();
        field(1, &file)
    }

    #[test]
    fn all_four_types_are_read() {
        let found = methods(&sample()).unwrap();
        let kinds: Vec<_> = found
            .iter()
            .map(|found| (&*found.service, &*found.method, found.kind))
            .collect();
        let expected = [
            ("p.q.S", "A", GrpcType::Unary),
            ("p.q.S", "B", GrpcType::ClientStream),
            ("p.q.S", "C", GrpcType::ServerStream),
            ("p.q.S", "D", GrpcType::BidiStream),
        ];
        assert_eq!(kinds, expected);
        assert_eq!(methods(&[]).unwrap(), []);
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
