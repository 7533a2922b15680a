//! tower-flow's layers beside the published peers, as one Markdown document.
//!
//! `cargo run --release --manifest-path benches/peers/Cargo.toml`

mod cpu;
mod e2e;
mod echo;
mod floor;
mod layers;
#[path = "../../support/mod.rs"]
mod support;

#[global_allocator]
static ALLOCATOR: support::Counting = support::Counting;

fn main() {
    println!("# tower-flow and its peers\n");
    layers::print();
    println!();
    e2e::print();
}
