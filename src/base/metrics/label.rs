use std::borrow::Cow;

/// The labels of a series: names and values, in the order they are shown.
///
/// Values may be anything; each writer escapes them as its format asks.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Labels(Vec<(Cow<'static, str>, Cow<'static, str>)>);

impl Labels {
    /// No labels.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a label.
    ///
    /// # Panics
    ///
    /// When `name` is no label name (letters, digits and `_`; neither `le` nor `__…`) or is there already.
    #[must_use]
    pub fn with(
        mut self,
        name: impl Into<Cow<'static, str>>,
        value: impl Into<Cow<'static, str>>,
    ) -> Self {
        let name = name.into();
        assert!(
            valid_name(&name) && name != "le" && !name.starts_with("__"),
            "{name:?} cannot be a label name; use letters, digits and _, neither le nor __…"
        );
        assert!(
            self.0.iter().all(|(taken, _)| *taken != name),
            "there are two labels {name:?}"
        );
        self.0.push((name, value.into()));
        self
    }

    /// Names and values.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (&**name, &**value))
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<N, V> FromIterator<(N, V)> for Labels
where
    N: Into<Cow<'static, str>>,
    V: Into<Cow<'static, str>>,
{
    /// As [`with`](Self::with), one after the other.
    fn from_iter<I: IntoIterator<Item = (N, V)>>(labels: I) -> Self {
        labels
            .into_iter()
            .fold(Self::new(), |labels, (name, value)| {
                labels.with(name, value)
            })
    }
}

/// Whether Prometheus takes `name` for a label or, but for colons, a metric.
fn valid_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes
        .next()
        .is_some_and(|first| first.is_ascii_alphabetic() || first == b'_')
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_and_values_are_not() {
        let labels = Labels::new().with("method", "\"\n\\ü").with("_x9", "");
        assert_eq!(labels.iter().count(), 2);
        for name in ["", "9x", "a-b", "le", "__name__", "ä"] {
            let refused = std::panic::catch_unwind(|| Labels::new().with(name, ""));
            assert!(refused.is_err(), "{name}");
        }
    }

    #[test]
    #[should_panic(expected = "two labels \"a\"")]
    fn a_name_twice_is_refused() {
        let _ = Labels::new().with("a", "1").with("a", "2");
    }
}
