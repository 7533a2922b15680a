//! What the write-ahead file is made of: records, each with its length and a checksum.
//!
//! ```text
//! file:   TFWAL001  record  record  record …
//! record: length of the body (u32)  CRC-32 of the body (u32)  body
//! body:   1  seq (u64)  length of the id (u16)  id  payload      an item
//!         2  seq (u64)                                            it was processed
//!         3  id                                                   an item that was processed long ago had this id
//! ```
//!
//! Numbers are little-endian. No body is empty, so that zeros are no record.

/// What a file begins with.
pub(super) const MAGIC: &[u8; 8] = b"TFWAL001";

const HEAD: usize = 8;

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Record<'a> {
    Item {
        seq: u64,
        id: &'a str,
        payload: &'a [u8],
    },
    Done {
        seq: u64,
    },
    Seen {
        id: &'a str,
    },
}

// ===== impl Record =====

impl<'a> Record<'a> {
    /// Appends it to `to`.
    pub(super) fn encode(&self, to: &mut Vec<u8>) {
        let start = to.len();
        to.extend([0; HEAD]);
        match self {
            Self::Item { seq, id, payload } => {
                to.push(1);
                to.extend(seq.to_le_bytes());
                to.extend((id.len() as u16).to_le_bytes());
                to.extend(id.as_bytes());
                to.extend(*payload);
            }
            Self::Done { seq } => {
                to.push(2);
                to.extend(seq.to_le_bytes());
            }
            Self::Seen { id } => {
                to.push(3);
                to.extend(id.as_bytes());
            }
        }
        let body = &to[start + HEAD..];
        let (length, sum) = (body.len() as u32, crc32(body));
        to[start..start + 4].copy_from_slice(&length.to_le_bytes());
        to[start + 4..start + HEAD].copy_from_slice(&sum.to_le_bytes());
    }

    /// The record `bytes` begin with, and its length; none when there is no whole and sound one.
    pub(super) fn decode(bytes: &'a [u8]) -> Option<(Self, usize)> {
        let (length, rest) = bytes.split_first_chunk::<4>()?;
        let (sum, rest) = rest.split_first_chunk::<4>()?;
        let length = u32::from_le_bytes(*length) as usize;
        let body = rest.get(..length)?;
        if crc32(body) != u32::from_le_bytes(*sum) {
            return None;
        }
        Some((Self::of(body)?, HEAD + length))
    }

    fn of(body: &'a [u8]) -> Option<Self> {
        let (kind, rest) = body.split_first()?;
        if *kind == 3 {
            let id = str::from_utf8(rest).ok()?;
            return Some(Self::Seen { id });
        }
        let (seq, rest) = rest.split_first_chunk::<8>()?;
        let seq = u64::from_le_bytes(*seq);
        match kind {
            1 => {
                let (length, rest) = rest.split_first_chunk::<2>()?;
                let (id, payload) = rest.split_at_checked(u16::from_le_bytes(*length).into())?;
                let id = str::from_utf8(id).ok()?;
                Some(Self::Item { seq, id, payload })
            }
            2 => rest.is_empty().then_some(Self::Done { seq }),
            _ => None,
        }
    }
}

/// That of Ethernet and zip.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |sum: u32, byte: &u8| TABLE[usize::from(sum as u8 ^ byte)] ^ (sum >> 8);
    !bytes.iter().fold(!0, step)
}

const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut n = 0;
    while n < 256 {
        let mut entry = n as u32;
        let mut bit = 0;
        while bit < 8 {
            entry = (entry >> 1) ^ if entry & 1 == 1 { 0xEDB8_8320 } else { 0 };
            bit += 1;
        }
        table[n] = entry;
        n += 1;
    }
    table
};
