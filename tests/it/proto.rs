//! The checked-in code of the protos is what the generator makes of them today.
//!
//! `TOWER_FLOW_REGENERATE=1 cargo test --features full --test it proto` writes it anew.

use std::path::{Path, PathBuf};

use crate::support;

#[test]
fn checked_in_code_is_what_the_generator_makes() {
    if !support::found("protoc") {
        return;
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (proto, gen_dir, file) in [
        (
            "examples/proto/echo.proto",
            "examples/proto",
            "tower_flow.example.v1.rs",
        ),
        (
            "examples/ingest/proto/ingest.proto",
            "examples/ingest/proto",
            "tower_flow.ingest.v1.rs",
        ),
        (
            "tests/interop/interop.proto",
            "tests/interop/gen",
            "grpc.testing.rs",
        ),
        (
            "tests/proto/shelf.proto",
            "tests/proto/gen",
            "tower_flow.test.v1.rs",
        ),
    ] {
        let made = support::scratch("proto");
        let proto = root.join(proto);
        let name = proto.file_stem().unwrap().to_str().unwrap();
        let set = made.join(format!("{name}.fds"));
        tonic_prost_build::configure()
            .out_dir(&made)
            .file_descriptor_set_path(&set)
            .compile_protos(
                std::slice::from_ref(&proto),
                &[PathBuf::from(proto.parent().unwrap())],
            )
            .unwrap();
        compare(&made.join(file), &root.join(gen_dir).join(file));
        compare(&set, &root.join(gen_dir).join(format!("{name}.fds")));
    }
}

fn compare(made: &Path, kept: &PathBuf) {
    let fresh = std::fs::read(made).unwrap();
    if std::env::var_os("TOWER_FLOW_REGENERATE").is_some() {
        std::fs::write(kept, fresh).unwrap();
    } else {
        let same = std::fs::read(kept).unwrap() == fresh;
        assert!(
            same,
            "{} is stale; run this test with TOWER_FLOW_REGENERATE=1",
            kept.display()
        );
    }
}
