//! Many fields written as one text, equal only when all of them are.
//!
//! Every field carries its length or its end, so that no two lists of fields read the same. A key is compared and hashed
//! as one piece, costs one allocation, and holds nothing of the buffers its request came in.

use std::fmt;

use http::{HeaderMap, HeaderName};

/// The fields, for good. Shows how long they are and not what they say: there may be credentials in them.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Exact(Vec<u8>);

/// Writes the fields, always in the same order.
pub(super) struct Writer(Vec<u8>);

impl Writer {
    /// Bytes a field takes beside its own, at most.
    pub(super) const FRAME: usize = 9;

    /// With room for as much. More is possible and costs a move.
    pub(super) fn new(room: usize) -> Self {
        Self(Vec::with_capacity(room))
    }

    /// What is one of a few.
    pub(super) fn tag(&mut self, tag: u8) {
        self.0.push(tag);
    }

    /// A field, as it is.
    pub(super) fn field(&mut self, field: &[u8]) {
        self.0.push(1);
        self.0
            .extend_from_slice(&(field.len() as u64).to_le_bytes());
        self.0.extend_from_slice(field);
    }

    /// A field in which upper case is lower case.
    pub(super) fn lower(&mut self, field: &[u8]) {
        self.field(field);
        let start = self.0.len() - field.len();
        self.0[start..].make_ascii_lowercase();
    }

    /// A field that is not there, which differs from one that is empty. Also the end of a list of fields.
    pub(super) fn absent(&mut self) {
        self.0.push(0);
    }

    /// All values of a header, in their order.
    pub(super) fn values(&mut self, headers: &HeaderMap, name: &HeaderName) {
        for value in headers.get_all(name) {
            self.field(value.as_bytes());
        }
        self.absent();
    }

    /// How many bytes were written.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn finish(self) -> Exact {
        Exact(self.0)
    }
}

impl fmt::Debug for Exact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use proptest::prelude::*;

    fn written(fields: &[Option<Vec<u8>>]) -> Exact {
        let mut writer = Writer::new(8);
        for field in fields {
            match field {
                Some(field) => writer.field(field),
                None => writer.absent(),
            }
        }
        writer.finish()
    }

    fn fields() -> impl Strategy<Value = Vec<Option<Vec<u8>>>> {
        let bytes = proptest::collection::vec(prop_oneof![Just(0u8), Just(1), any::<u8>()], 0..12);
        proptest::collection::vec(proptest::option::of(bytes), 0..6)
    }

    proptest! {
        #[test]
        fn lists_are_equal_only_when_their_fields_are(a in fields(), b in fields()) {
            prop_assert_eq!(written(&a) == written(&b), a == b);
            let mut moved = a.clone();
            if let Some(Some(first)) = moved.first_mut() {
                // A byte goes from the end of one field to the start of the next.
                if let Some(byte) = first.pop() {
                    moved.insert(1, Some(vec![byte]));
                    prop_assert_ne!(written(&a), written(&moved));
                }
            }
        }
    }

    #[test]
    fn debug_tells_nothing() {
        let exact = written(&[Some(b"Bearer secret".to_vec())]);
        assert_eq!(format!("{exact:?}"), "22 bytes");
    }
}
