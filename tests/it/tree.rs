//! The tree is the architecture: arrows point up the list base, middleware, stacks, and never sideways.

use std::path::Path;

fn sources(dir: &Path, found: &mut Vec<(String, String)>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|end| end == "rs") {
            let name = path
                .strip_prefix(Path::new(env!("CARGO_MANIFEST_DIR")).join("src"))
                .unwrap();
            found.push((
                name.to_string_lossy().into_owned(),
                std::fs::read_to_string(&path).unwrap(),
            ));
        }
    }
}

/// The code of a file: without comments, and without its unit tests, which may use what they like.
fn code(text: &str) -> String {
    let code = text.split("#[cfg(test)]").next().unwrap_or_default();
    code.lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .collect::<Vec<_>>()
        .join("\n")
}

#[test]
fn arrows_point_up_only() {
    let mut files = Vec::new();
    sources(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("src"),
        &mut files,
    );
    assert!(files.len() > 40, "the sources are there");
    let middleware: Vec<_> = [
        "timing",
        "batch",
        "coalesce",
        "grpc",
        "connection",
        "pool",
        "profile",
        "shed",
        "throttle",
    ]
    .into();
    let stacks = [
        "crate::builder",
        "crate::preset",
        "crate::admin",
        "crate::nats",
    ];
    for (name, text) in &files {
        let code = code(text);
        let uses = |what: &str| code.contains(what);
        if name.starts_with("base/") {
            for lower in &middleware {
                let used = uses(&format!("crate::{lower}::")) || uses("crate::middleware");
                assert!(!used, "{name} is of the base and uses {lower}");
            }
        }
        if name.starts_with("base/") || name.starts_with("middleware/") {
            for stack in stacks {
                assert!(!uses(stack), "{name} uses {stack}");
            }
        }
        for own in middleware
            .iter()
            .filter(|own| name.starts_with(&format!("middleware/{own}/")))
        {
            for other in middleware.iter().filter(|other| *other != own) {
                let used =
                    uses(&format!("crate::{other}")) || uses(&format!("middleware::{other}"));
                assert!(!used, "{name} uses {other}");
            }
        }
        let reads_time = uses("Instant::now()") || uses("SystemTime::now()");
        assert!(
            !reads_time || name == "base/clock.rs",
            "{name} reads the time; base/clock.rs does"
        );
    }
}
