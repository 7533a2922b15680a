//! Protocol buffers, written by hand: the messages here are few and only ever written, so no generated code is needed,
//! nor a compiler for it.

/// The bytes of a message under construction.
#[derive(Debug, Default)]
pub(crate) struct Message(Vec<u8>);

// ===== impl Message =====

impl Message {
    /// What was written.
    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    /// A varint: any of the unsigned integers, an enum, a flag.
    pub(crate) fn whole(mut self, field: u64, value: u64) -> Self {
        varint(&mut self.0, field << 3);
        varint(&mut self.0, value);
        self
    }

    /// A zigzag varint: `sint32` or `sint64`.
    #[cfg(feature = "protobuf")]
    pub(crate) fn signed(self, field: u64, value: i64) -> Self {
        self.whole(field, zigzag(value))
    }

    /// A `double`.
    #[cfg(feature = "protobuf")]
    pub(crate) fn double(mut self, field: u64, value: f64) -> Self {
        varint(&mut self.0, field << 3 | 1);
        self.0.extend(value.to_le_bytes());
        self
    }

    /// A `string`.
    pub(crate) fn text(self, field: u64, text: &str) -> Self {
        self.bytes(field, text.as_bytes())
    }

    /// A message.
    pub(crate) fn nested(self, field: u64, message: Self) -> Self {
        self.bytes(field, &message.0)
    }

    /// Bytes, or packed numbers.
    pub(crate) fn bytes(mut self, field: u64, bytes: &[u8]) -> Self {
        varint(&mut self.0, field << 3 | 2);
        varint(&mut self.0, bytes.len() as u64);
        self.0.extend_from_slice(bytes);
        self
    }
}

/// Appends a varint to `out`, as in front of a delimited message and in packed numbers.
pub(crate) fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Small numbers of either sign as small numbers.
#[cfg(feature = "protobuf")]
pub(crate) fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}
