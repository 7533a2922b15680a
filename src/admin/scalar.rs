//! A JSON scalar: what a knob can be set to.

use crate::base::inspect::Value;

/// Reads `null`, a flag, a number or a string; nothing when it is anything else.
pub(super) fn scalar(text: &[u8]) -> Option<Value> {
    let text = std::str::from_utf8(text).ok()?;
    let text = text.trim_matches([' ', '\t', '\r', '\n']);
    match text {
        "null" => Some(Value::Null),
        "true" => Some(Value::Flag(true)),
        "false" => Some(Value::Flag(false)),
        _ => match text.strip_prefix('"') {
            Some(rest) => string(rest.strip_suffix('"')?).map(Value::Text),
            None => number(text),
        },
    }
}

fn number(text: &str) -> Option<Value> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let whole = digits.find(|char: char| !char.is_ascii_digit());
    let (whole, rest) = digits.split_at(whole.unwrap_or(digits.len()));
    // Rust reads more than JSON writes: "01", ".5", "1.", "inf".
    if whole.is_empty() || (whole.len() > 1 && whole.starts_with('0')) {
        return None;
    }
    let (fraction, exponent) = match rest.find(['e', 'E']) {
        Some(at) => (&rest[..at], Some(&rest[at + 1..])),
        None => (rest, None),
    };
    let some_digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let fraction_fits = fraction.is_empty() || fraction.strip_prefix('.').is_some_and(some_digits);
    let exponent_fits = exponent
        .is_none_or(|exponent| some_digits(exponent.strip_prefix(['+', '-']).unwrap_or(exponent)));
    if !fraction_fits || !exponent_fits {
        return None;
    }
    if let Ok(whole) = text.parse::<u64>() {
        return Some(Value::Whole(whole));
    }
    let number = text.parse::<f64>().ok()?;
    // However it is written, 1e3 is a count. Above, not all whole numbers are there.
    if (0.0..=9_007_199_254_740_992.0).contains(&number) && number.fract() == 0.0 {
        return Some(Value::Whole(number as u64));
    }
    number.is_finite().then_some(Value::Number(number))
}

/// What is between the quotes.
fn string(text: &str) -> Option<String> {
    let mut string = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(char) = chars.next() {
        string.push(match char {
            '"' | '\0'..='\u{1f}' => return None,
            '\\' => match chars.next()? {
                same @ ('"' | '\\' | '/') => same,
                'b' => '\u{8}',
                'f' => '\u{c}',
                'n' => '\n',
                'r' => '\r',
                't' => '\t',
                'u' => {
                    let first = unit(&mut chars)?;
                    let pair = match first {
                        0xd800..0xdc00 => {
                            (chars.next()? == '\\' && chars.next()? == 'u').then_some(())?;
                            vec![first, unit(&mut chars)?]
                        }
                        _ => vec![first],
                    };
                    let mut decoded = char::decode_utf16(pair);
                    let char = decoded.next()?.ok()?;
                    decoded.next().is_none().then_some(char)?
                }
                _ => return None,
            },
            char => char,
        });
    }
    Some(string)
}

fn unit(chars: &mut std::str::Chars<'_>) -> Option<u16> {
    let mut unit = 0;
    for _ in 0..4 {
        unit = unit * 16 + chars.next()?.to_digit(16)? as u16;
    }
    Some(unit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn scalars_are_read_and_nothing_else() {
        for (text, value) in [
            ("null", Value::Null),
            (" true\n", Value::Flag(true)),
            ("64", Value::Whole(64)),
            ("0", Value::Whole(0)),
            ("18446744073709551615", Value::Whole(u64::MAX)),
            (
                "18446744073709551616",
                Value::Number(18_446_744_073_709_551_616.0),
            ),
            ("-1", Value::Number(-1.0)),
            ("0.25", Value::Number(0.25)),
            ("1e3", Value::Whole(1000)),
            ("2.0", Value::Whole(2)),
            ("-0", Value::Whole(0)),
            ("2.5E-1", Value::Number(0.25)),
            ("\"\"", Value::from("")),
            (
                r#""a\"\\\/\n\u00fc\ud83d\ude08""#,
                Value::from("a\"\\/\nü😈"),
            ),
        ] {
            assert_eq!(scalar(text.as_bytes()), Some(value), "{text}");
        }
        for bad in [
            "",
            " ",
            "nul",
            "True",
            "01",
            ".5",
            "1.",
            "+1",
            "1e",
            "1e+",
            "--1",
            "inf",
            "NaN",
            "1e999",
            "0x10",
            "1_000",
            "[]",
            "{}",
            "\"",
            "\"a",
            "\"a\"b\"",
            "\"\\x\"",
            "\"\\u12\"",
            "\"\\ud83d\"",
            "\"\\ude08\"",
            "\"\\ud83d\\u0041\"",
            "\"\n\"",
            "1 2",
            "\"\\\"",
        ] {
            assert_eq!(scalar(bad.as_bytes()), None, "{bad}");
        }
        assert_eq!(scalar(b"\xff"), None);
    }

    proptest! {
        #[test]
        fn it_reads_what_others_read(text in "[-+0-9.eE\"\\\\u dnulltrfas]{0,12}") {
            let theirs = serde_json::from_str::<serde_json::Value>(&text).ok();
            let theirs = theirs.filter(|value| !value.is_object() && !value.is_array());
            let ours = scalar(text.as_bytes());
            prop_assert_eq!(ours.is_some(), theirs.is_some(), "{}", text);
        }

        #[test]
        fn every_text_comes_back(text in ".{0,40}") {
            let quoted = Value::from(&*text).to_string();
            prop_assert_eq!(scalar(quoted.as_bytes()), Some(Value::from(&*text)));
        }
    }
}
