//! Several headers in one look.

use http::{HeaderMap, HeaderValue};

/// Up to this many headers, walking over them is cheaper than hashing a name.
const FEW: usize = 12;

/// The first values of `names`, which are lower case.
///
/// Inlined, so that each comparison is with a text of known length.
#[inline(always)]
pub(crate) fn find<'a, const N: usize>(
    headers: &'a HeaderMap,
    names: [&'static str; N],
) -> [Option<&'a HeaderValue>; N] {
    let mut found = [None; N];
    if headers.len() <= FEW {
        for (name, value) in headers {
            let name = name.as_str();
            for (wanted, found) in names.iter().zip(&mut found) {
                if name == *wanted && found.is_none() {
                    *found = Some(value);
                }
            }
        }
    } else {
        for (wanted, found) in names.iter().zip(&mut found) {
            *found = headers.get(*wanted);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_and_many_are_found_alike() {
        let mut headers = HeaderMap::new();
        headers.append("a", HeaderValue::from_static("1"));
        headers.append("a", HeaderValue::from_static("2"));
        for n in 0..2 * FEW {
            let [a, b] = find(&headers, ["a", "b"]);
            assert_eq!(a.unwrap(), "1");
            assert_eq!(b, None);
            let name = http::HeaderName::from_bytes(format!("x-{n}").as_bytes()).unwrap();
            headers.append(name, HeaderValue::from_static(""));
        }
    }
}
