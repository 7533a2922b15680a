//! Which metrics and labels an expression names. Whether it is one at all promtool says.

use std::collections::BTreeSet;
use std::iter::Peekable;
use std::str::Chars;

#[derive(Debug, Default)]
pub struct Names {
    pub selectors: Vec<Selector>,
    /// The labels of each `by (…)`, in order.
    pub by: Vec<Vec<String>>,
    /// Those of `on`, `without`, `ignoring` and `group_left`.
    pub matched: BTreeSet<String>,
}

#[derive(Debug)]
pub struct Selector {
    pub metric: String,
    /// Labels with what they are matched against, as written between the quotes.
    pub labels: Vec<(String, String)>,
}

const AGGREGATORS: [&str; 7] = ["sum", "min", "max", "avg", "count", "topk", "bottomk"];
const OPERATORS: [&str; 5] = ["and", "or", "unless", "bool", "offset"];

pub fn read(expr: &str) -> Names {
    let mut names = Names::default();
    let mut chars = expr.chars().peekable();
    while let Some(&c) = chars.peek() {
        if is_part(c) {
            let word = word(&mut chars);
            if c.is_ascii_digit() {
                continue;
            }
            while chars.next_if(|c| c.is_whitespace()).is_some() {}
            let next = chars.peek().copied();
            match &*word {
                "by" => names.by.push(list(&mut chars)),
                "on" | "without" | "ignoring" | "group_left" | "group_right" => {
                    names.matched.extend(list(&mut chars));
                }
                word if AGGREGATORS.contains(&word) || OPERATORS.contains(&word) => {}
                _ if next == Some('(') => {}
                _ => names.selectors.push(Selector {
                    metric: word,
                    labels: match next {
                        Some('{') => matchers(&mut chars),
                        _ => Vec::new(),
                    },
                }),
            }
        } else if c == '"' {
            string(&mut chars);
        } else if c == '[' {
            chars.by_ref().find(|c| *c == ']').unwrap();
        } else {
            chars.next();
        }
    }
    names
}

fn is_part(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | ':' | '.')
}

fn word(chars: &mut Peekable<Chars<'_>>) -> String {
    std::iter::from_fn(|| chars.next_if(|c| is_part(*c))).collect()
}

fn string(chars: &mut Peekable<Chars<'_>>) -> String {
    chars.next();
    let mut inside = String::new();
    loop {
        match chars.next().expect("a string that ends") {
            '"' => return inside,
            '\\' => inside.extend(['\\', chars.next().unwrap()]),
            c => inside.push(c),
        }
    }
}

fn matchers(chars: &mut Peekable<Chars<'_>>) -> Vec<(String, String)> {
    let mut all = Vec::new();
    loop {
        match chars.peek().copied().expect("matchers that end") {
            c if is_part(c) => all.push((word(chars), String::new())),
            '"' => all.last_mut().unwrap().1 = string(chars),
            '}' => break,
            _ => drop(chars.next()),
        }
    }
    chars.next();
    all
}

/// The words up to the end of the parenthesis.
fn list(chars: &mut Peekable<Chars<'_>>) -> Vec<String> {
    let mut words = Vec::new();
    loop {
        match chars.peek().copied().expect("a list that ends") {
            c if is_part(c) => words.push(word(chars)),
            c => {
                chars.next();
                if c == ')' {
                    return words;
                }
            }
        }
    }
}

#[test]
fn names_are_found_and_nothing_else() {
    let names = read(
        r#"topk(3, sum by (a, le) (rate(m_total{b!="x} y{", c=~"z"}[5m])) / 1.5e3) > bool 0 and on (d) l:m:rate5m"#,
    );
    let found = names.selectors.iter().map(|s| (&*s.metric, s.labels.len()));
    assert_eq!(
        found.collect::<Vec<_>>(),
        [("m_total", 2), ("l:m:rate5m", 0)]
    );
    let labels = [("b", "x} y{"), ("c", "z")].map(|(name, value)| (name.into(), value.into()));
    assert_eq!(names.selectors[0].labels, labels);
    assert_eq!(names.by, [["a", "le"]]);
    assert_eq!(names.matched, BTreeSet::from(["d".to_owned()]));
}
