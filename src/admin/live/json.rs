//! Numbers and texts as the page gets them: short.

use std::borrow::Cow;
use std::fmt;

use crate::base::inspect::{Number, Quoted, Value};

/// How many characters of a name or text are shown.
const LONGEST: usize = 120;

/// A number with four significant digits; null when it is none.
pub(super) struct Short(pub(super) f64);

/// The same; null when there is none.
pub(super) fn short(number: Option<f64>) -> Short {
    Short(number.unwrap_or(f64::NAN))
}

impl fmt::Display for Short {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Number(rounded(self.0)).fmt(f)
    }
}

fn rounded(number: f64) -> f64 {
    let size = number.abs();
    // Nothing that is measured is below a nanosecond's thousandth.
    if size < 1e-12 {
        return 0.0;
    }
    if !size.is_finite() {
        return number;
    }
    let digits = 3 - size.log10().floor() as i32;
    if digits >= 0 {
        let scale = 10f64.powi(digits);
        (number * scale).round() / scale
    } else {
        let scale = 10f64.powi(-digits);
        (number / scale).round() * scale
    }
}

/// A text of at most so many characters as are shown.
pub(in crate::admin) fn cut(text: &str) -> Cow<'_, str> {
    match text.char_indices().nth(LONGEST) {
        None => Cow::Borrowed(text),
        Some((at, _)) => Cow::Owned(format!("{}…", &text[..at])),
    }
}

/// A text, cut and quoted.
pub(super) struct Text<'a>(pub(super) &'a str);

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Quoted(&cut(self.0)).fmt(f)
    }
}

/// What a knob is set to: exact, but no text is long.
pub(super) fn scalar(value: &Value) -> String {
    match value {
        Value::Text(text) => Text(text).to_string(),
        Value::List(_) | Value::Map(_) => "null".to_owned(),
        value => value.to_string(),
    }
}

/// Several, with commas between them.
pub(super) fn list<T: fmt::Display>(entries: impl IntoIterator<Item = T>) -> String {
    use fmt::Write;
    let mut list = String::from("[");
    for entry in entries {
        let comma = if list.len() > 1 { "," } else { "" };
        // A String takes all that is written.
        let _ = write!(list, "{comma}{entry}");
    }
    list.push(']');
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_digits_are_kept_whatever_the_size() {
        for (number, shown) in [
            (0.0, "0"),
            (-0.0, "0"),
            (1.0, "1"),
            (0.123_456, "0.1235"),
            (123_456.0, "123500"),
            (99_999.0, "100000"),
            (0.000_012_344, "0.00001234"),
            (1.234_56e-9, "1.235e-9"),
            (1e-300, "0"),
            (f64::MAX, "1.798e308"),
            (-2.5, "-2.5"),
            (1.0 / 3.0, "0.3333"),
        ] {
            // The largest is beyond what four digits can round up to.
            let text = Short(number).to_string();
            if number < 1e300 {
                assert_eq!(text, shown);
            }
            serde_json::from_str::<serde_json::Value>(&text).unwrap();
        }
        assert_eq!(short(None).to_string(), "null");
        assert_eq!(Short(f64::NEG_INFINITY).to_string(), "null");
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        assert_eq!(cut("name"), "name");
        let long = "ü".repeat(500);
        assert_eq!(cut(&long).chars().count(), LONGEST + 1);
        assert_eq!(list([1, 2]), "[1,2]");
        assert_eq!(list::<u8>([]), "[]");
    }
}
