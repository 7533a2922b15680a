//! How much a request matters.
//!
//! A [`Priority`] travels in the request's extensions; a server reads it from a header the caller sets. Layers that
//! refuse work refuse the lowest first.
//!
//! ```
//! use tower_flow::priority::Priority;
//!
//! let mut req = http::Request::new(());
//! req.headers_mut().insert("x-priority", http::HeaderValue::from_static("sheddable"));
//! assert_eq!(Priority::of(&req, "x-priority"), Priority::Sheddable);
//!
//! req.extensions_mut().insert(Priority::Critical);
//! assert_eq!(Priority::of(&req, "x-priority"), Priority::Critical, "an extension wins over a header");
//! ```

use std::fmt;
use std::str::FromStr;

/// Four levels, ordered: the greater one is served first and refused last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Priority {
    /// Nobody waits for it: prefetch, refresh.
    BestEffort,
    /// It can be done later or not at all: batch, analytics.
    Sheddable,
    /// Ordinary traffic.
    #[default]
    Default,
    /// A person waits, or money moves.
    Critical,
}

/// A text that names no [`Priority`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct UnknownPriority;

// ===== impl Priority =====

impl Priority {
    /// All levels, lowest first.
    pub const ALL: [Self; 4] = [
        Self::BestEffort,
        Self::Sheddable,
        Self::Default,
        Self::Critical,
    ];

    /// The priority of `req`: its extension, else the header `name`, else [`Priority::Default`].
    ///
    /// A header with an unknown or unreadable value counts as absent: a peer cannot hurt by what it writes there.
    pub fn of<B>(req: &http::Request<B>, name: &str) -> Self {
        if let Some(priority) = req.extensions().get::<Self>() {
            return *priority;
        }
        req.headers()
            .get(name)
            .and_then(|value| value.to_str().ok())
            .and_then(|text| text.parse().ok())
            .unwrap_or_default()
    }

    /// The name in headers and labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BestEffort => "best-effort",
            Self::Sheddable => "sheddable",
            Self::Default => "default",
            Self::Critical => "critical",
        }
    }
}

impl FromStr for Priority {
    type Err = UnknownPriority;

    fn from_str(text: &str) -> Result<Self, UnknownPriority> {
        let text = text.trim();
        Self::ALL
            .into_iter()
            .find(|level| text.eq_ignore_ascii_case(level.as_str()))
            .ok_or(UnknownPriority)
    }
}

impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

// ===== impl UnknownPriority =====

impl fmt::Display for UnknownPriority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a priority; use critical, default, sheddable or best-effort")
    }
}

impl std::error::Error for UnknownPriority {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_levels_are_ordered() {
        for level in Priority::ALL {
            assert_eq!(level.as_str().parse(), Ok(level));
            assert_eq!(level.to_string().to_uppercase().parse(), Ok(level));
        }
        assert!(Priority::ALL.is_sorted());
        assert_eq!("urgent".parse::<Priority>(), Err(UnknownPriority));
    }

    #[test]
    fn garbage_headers_count_as_absent() {
        for value in [&b"\xff\xfe"[..], b"", b"9", b"critical;q=1"] {
            let mut req = http::Request::new(());
            req.headers_mut()
                .insert("x-priority", http::HeaderValue::from_bytes(value).unwrap());
            assert_eq!(Priority::of(&req, "x-priority"), Priority::Default);
        }
    }
}
