use std::error::Error;
use std::fmt;

/// Why a batch has no destination. Nothing was sent.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DestinationError {
    /// It has no items.
    Empty,
    /// Its items have several.
    Mixed {
        /// How many items it has.
        items: usize,
        /// The first whose destination is not that of the first item.
        position: usize,
    },
}

impl fmt::Display for DestinationError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("a batch of 0 items has no destination; send none"),
            Self::Mixed { items, position } => write!(
                f,
                "item {position} of {items} has another destination than item 0; give the layer's shard_by what \
                 Destinations goes by"
            ),
        }
    }
}

impl Error for DestinationError {}
