//! What a request's target says beyond its path.

/// The pairs of a query, decoded; nothing when it is malformed.
pub(super) fn pairs(query: &str) -> Option<Vec<(String, String)>> {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let plain = |text: &str| decoded(&text.replace('+', " "));
            Some((plain(key)?, plain(value)?))
        })
        .collect()
}

/// What percent-encoded text says; nothing when it is malformed or no UTF-8.
pub(super) fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let mut digit = || char::from(rest.next()?).to_digit(16);
                (digit()? * 16 + digit()?) as u8
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_encoded_comes_out() {
        assert_eq!(
            decoded("%2Fshop.Orders%2fPlace").as_deref(),
            Some("/shop.Orders/Place")
        );
        assert_eq!(decoded("a+b%20%C3%BC").as_deref(), Some("a+b ü"));
        assert_eq!(decoded("").as_deref(), Some(""));
        for bad in ["%", "%2", "%zz", "%+1", "%ff", "a%c3", "%-1"] {
            assert_eq!(decoded(bad), None, "{bad}");
        }
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        assert_eq!(
            pairs("seconds=5&&format=svg&x&a+b=%26%3D="),
            Some(vec![
                pair("seconds", "5"),
                pair("format", "svg"),
                pair("x", ""),
                pair("a b", "&==")
            ])
        );
        assert_eq!(pairs(""), Some(vec![]));
        assert_eq!(pairs("a=%ff"), None);
    }
}
