//! What a layer shows of itself while it runs: all that the live endpoint reads.

mod shape;

use std::borrow::Cow;
use std::fmt::{self, Debug};
use std::io;
use std::sync::Arc;

use super::error::BoxError;
use super::metrics::Families;

pub use super::cost::{Cost, Toll};
pub use shape::{Column, HotPath, Overhead, Reading, Role, Table, Unit, Vital};

/// Live numbers of a layer. A layer's handle implements it; [`Flow::attach`](crate::Flow::attach) takes it.
///
/// All that tell something run on every scrape or page update. They may sum and sort, but must neither block nor wait.
pub trait Inspect: Debug + Send + Sync + 'static {
    /// The layer's kind, the feature's name: `timing`, `grpc`.
    fn kind(&self) -> &'static str;

    /// The name of this one among its kind.
    fn name(&self) -> Cow<'_, str>;

    /// Its numbers now. Keys stay the same from release to release.
    fn snapshot(&self) -> Value;

    /// Adds its metric families.
    fn collect(&self, families: &mut Families);

    /// What can be changed while it runs. Default: nothing.
    fn knobs(&self) -> Vec<Knob> {
        Vec::new()
    }

    /// Sets the knob called `name`.
    ///
    /// # Errors
    ///
    /// When there is no such knob, or it cannot be set `to` this.
    fn turn(&self, name: &str, to: &Value) -> Result<(), BoxError> {
        Err(format!(
            "{} {:?} has no knob {name:?} to set to {to}",
            self.kind(),
            self.name()
        )
        .into())
    }

    /// The few numbers that matter most, for the live page's tiles and its series. Default: none.
    ///
    /// It runs every second while somebody may look: read counters, no more.
    fn vitals(&self) -> Vec<Vital> {
        Vec::new()
    }

    /// Which lists of the [`snapshot`](Self::snapshot) the live page shows as tables. Default: none.
    fn tables(&self) -> &'static [Table] {
        &[]
    }

    /// Where the time went. Default: not known here.
    fn hot(&self) -> Vec<HotPath> {
        Vec::new()
    }

    /// What its own code costs. Default: not known.
    fn cost(&self) -> Option<&Cost> {
        None
    }

    /// Writes the window of `route` as an HdrHistogram interval log.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::NotFound`] when it keeps none for such a route, as by default; else what `to` failed with.
    fn interval_log(&self, route: &str, to: &mut dyn io::Write) -> io::Result<()> {
        let _ = to;
        let message = format!(
            "{} {:?} keeps no log of {route:?}",
            self.kind(),
            self.name()
        );
        Err(io::Error::new(io::ErrorKind::NotFound, message))
    }
}

/// Something of a layer that can be changed while it runs.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Knob {
    /// Its name, for [`Inspect::turn`].
    pub name: &'static str,
    /// What it does, in a sentence.
    pub help: &'static str,
    /// What it is set to: a flag takes flags, a number or null takes numbers, and null where that means "by itself".
    pub value: Value,
}

impl Knob {
    /// A knob that is set to `value`.
    pub fn new(name: &'static str, help: &'static str, value: impl Into<Value>) -> Self {
        let value = value.into();
        Self { name, help, value }
    }
}

impl<T: Inspect> Inspect for Arc<T> {
    fn kind(&self) -> &'static str {
        (**self).kind()
    }

    fn name(&self) -> Cow<'_, str> {
        (**self).name()
    }

    fn snapshot(&self) -> Value {
        (**self).snapshot()
    }

    fn collect(&self, families: &mut Families) {
        (**self).collect(families);
    }

    fn knobs(&self) -> Vec<Knob> {
        (**self).knobs()
    }

    fn turn(&self, name: &str, to: &Value) -> Result<(), BoxError> {
        (**self).turn(name, to)
    }

    fn vitals(&self) -> Vec<Vital> {
        (**self).vitals()
    }

    fn tables(&self) -> &'static [Table] {
        (**self).tables()
    }

    fn hot(&self) -> Vec<HotPath> {
        (**self).hot()
    }

    fn cost(&self) -> Option<&Cost> {
        (**self).cost()
    }

    fn interval_log(&self, route: &str, to: &mut dyn io::Write) -> io::Result<()> {
        (**self).interval_log(route, to)
    }
}

/// A snapshot: what JSON can say.
///
/// ```
/// use tower_flow::inspect::Value;
///
/// let value = Value::map([("limit", Value::from(64u64)), ("busy", Value::from(true))]);
/// assert_eq!(value.get("limit"), Some(&Value::Whole(64)));
/// ```
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Nothing to say.
    Null,
    /// Yes or no.
    Flag(bool),
    /// A count.
    Whole(u64),
    /// A measure; `NaN` and infinities are shown as null.
    Number(f64),
    /// Text.
    Text(String),
    /// Several, in order.
    List(Vec<Value>),
    /// Named ones, in order.
    Map(Vec<(Cow<'static, str>, Value)>),
}

impl Value {
    /// A map.
    pub fn map<K: Into<Cow<'static, str>>>(entries: impl IntoIterator<Item = (K, Value)>) -> Self {
        Self::Map(
            entries
                .into_iter()
                .map(|(key, value)| (key.into(), value))
                .collect(),
        )
    }

    /// A list.
    pub fn list(entries: impl IntoIterator<Item = Value>) -> Self {
        Self::List(entries.into_iter().collect())
    }

    /// The value under `key`, when this is a map that has it.
    pub fn get(&self, key: &str) -> Option<&Self> {
        match self {
            Self::Map(entries) => entries
                .iter()
                .find(|(name, _)| name == key)
                .map(|(_, value)| value),
            _ => None,
        }
    }
}

macro_rules! from {
    ($($from:ty => $variant:ident),*) => {$(
        impl From<$from> for Value {
            fn from(value: $from) -> Self {
                Self::$variant(value.into())
            }
        }
    )*};
}

from!(bool => Flag, u64 => Whole, u32 => Whole, f64 => Number, String => Text, &str => Text);

impl From<usize> for Value {
    fn from(value: usize) -> Self {
        Self::Whole(value as u64)
    }
}

impl<T: Into<Self>> From<Option<T>> for Value {
    /// Null for `None`.
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}

impl From<std::time::Duration> for Value {
    /// In seconds.
    fn from(value: std::time::Duration) -> Self {
        Self::Number(value.as_secs_f64())
    }
}

impl fmt::Display for Value {
    /// As JSON, on one line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Flag(flag) => write!(f, "{flag}"),
            Self::Whole(number) => write!(f, "{number}"),
            Self::Number(number) => Number(*number).fmt(f),
            Self::Text(text) => Quoted(text).fmt(f),
            Self::List(entries) => {
                f.write_str("[")?;
                for (index, value) in entries.iter().enumerate() {
                    f.write_str(if index == 0 { "" } else { "," })?;
                    fmt::Display::fmt(value, f)?;
                }
                f.write_str("]")
            }
            Self::Map(entries) => {
                f.write_str("{")?;
                for (index, (key, value)) in entries.iter().enumerate() {
                    f.write_str(if index == 0 { "" } else { "," })?;
                    Quoted(key).fmt(f)?;
                    f.write_str(":")?;
                    fmt::Display::fmt(value, f)?;
                }
                f.write_str("}")
            }
        }
    }
}

/// Text as JSON.
pub(crate) struct Quoted<'a>(pub(crate) &'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\"")?;
        let mut rest = self.0;
        while let Some(at) = rest.bytes().position(special) {
            let (plain, special) = rest.split_at(at);
            f.write_str(plain)?;
            let mut chars = special.chars();
            match chars.next() {
                Some('"') => f.write_str("\\\"")?,
                Some('\\') => f.write_str("\\\\")?,
                Some(char) if char.is_ascii() || is_hidden(char) => {
                    write!(f, "\\u{:04x}", char as u32)?;
                }
                Some(char) => write!(f, "{char}")?,
                None => {}
            }
            rest = chars.as_str();
        }
        f.write_str(rest)?;
        f.write_str("\"")
    }
}

/// Whether a character that begins so may have to be escaped: some by the standard, the others so that no page takes a
/// name for markup, and no terminal for a command.
fn special(byte: u8) -> bool {
    // All that are hidden begin with one of the last three, as do many that are not.
    matches!(
        byte,
        b'"' | b'\\' | 0..0x20 | 0x7f | b'<' | b'>' | b'&' | 0xc2 | 0xd8 | 0xe2
    )
}

/// Whether a character shows nothing itself but changes what others show: it controls a terminal, ends a line, or turns
/// the direction of text.
pub(crate) fn is_hidden(char: char) -> bool {
    char.is_control()
        || matches!(
            char,
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
        )
}

/// A number as JSON; null when it is none.
pub(crate) struct Number(pub(crate) f64);

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = self.0;
        match number.abs() {
            0.0 => f.write_str("0"),
            // Without an exponent it could be hundreds of digits long.
            1e-5..1e16 => write!(f, "{number}"),
            size if size.is_finite() => write!(f, "{number:e}"),
            _ => f.write_str("null"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_json_whatever_the_text() {
        let hostile = "a\"\\\n\0</script>\u{2028}\u{9b}\u{202e}\u{61c}\u{2066}ü…😈";
        let value = Value::map([
            (hostile.to_owned(), Value::from(hostile)),
            (
                "n".to_owned(),
                Value::list([Value::Null, 1.5.into(), f64::NAN.into(), 7u64.into()]),
            ),
        ]);
        let text = value.to_string();
        assert!(!text.contains('<') && !text.contains(is_hidden), "{text}");
        assert!(text.contains("ü…😈"), "{text}");
        let parsed: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(parsed[hostile], hostile);
        assert_eq!(parsed["n"].to_string(), "[null,1.5,null,7]");
    }

    #[test]
    fn numbers_are_short_and_lose_nothing() {
        for number in [
            0.0,
            -0.0,
            1.0,
            0.1,
            1e-5,
            9.9e-6,
            1e15,
            1e16,
            1.5e300,
            -2e-300,
            f64::MIN_POSITIVE,
            f64::MAX,
        ] {
            let text = Value::from(number).to_string();
            assert!(text.len() < 26, "{text}");
            assert_eq!(
                serde_json::from_str::<f64>(&text).unwrap(),
                number,
                "{text}"
            );
        }
        assert_eq!(Value::from(f64::INFINITY).to_string(), "null");
        assert_eq!(Value::from(Some(3usize)), Value::Whole(3));
        assert_eq!(Value::from(None::<f64>), Value::Null);
    }
}
