//! Everybody who stands in the table.

use tower::util::BoxCloneService;
use tower::{Layer, ServiceBuilder};
use tower_flow::shed::limit::{Aimd, Gradient2, Limit, Vegas};
use tower_flow::shed::{Ask, ShedLayer};

use crate::machine::{Job, Machine, Policy};
use crate::{published, resilience};

/// A policy: what it is called, and how to make one for a server with so many workers. Only those that say so in
/// their names look at the number.
#[derive(Clone, Copy)]
pub struct Entry {
    pub name: &'static str,
    pub make: fn(usize) -> Policy,
}

/// The one with the targets.
pub const OURS: &str = "tower-flow";
/// tower's own layers, told how large the server is.
pub const TOWER: &str = "tower LoadShed + ConcurrencyLimit(2C)";

/// Ours first.
pub const ALL: [Entry; 18] = [
    entry(OURS, |_| flow(ShedLayer::adaptive())),
    entry("tower-flow, fixed(2C)", |size| {
        flow(ShedLayer::fixed(2 * size))
    }),
    entry("tower-flow, Aimd", |_| with(Aimd::default())),
    entry("tower-flow, Gradient2", |_| with(Gradient2::default())),
    entry("tower-flow, Vegas", |_| with(Vegas::default())),
    entry("none", |_| BoxCloneService::new(Machine)),
    entry(TOWER, |size| tower(2 * size)),
    entry("tower LoadShed + ConcurrencyLimit(64)", |_| tower(64)),
    entry("tower-resilience Aimd", |_| resilience::aimd_waiting()),
    entry("LoadShed + tower-resilience Aimd", |_| resilience::aimd()),
    entry("LoadShed + tower-resilience Vegas", |_| resilience::vegas()),
    entry("LoadShed + tower-resilience Gradient2", |_| {
        resilience::gradient2()
    }),
    entry("Netflix AIMD", |_| {
        published::gate::<published::NetflixAimd>()
    }),
    entry("Netflix Vegas", |_| {
        published::gate::<published::NetflixVegas>()
    }),
    entry("Netflix Gradient2, windowed", |_| {
        published::gate::<published::NetflixGradient2>()
    }),
    entry("Envoy adaptive_concurrency", |_| {
        published::gate::<published::Envoy>()
    }),
    entry("Vector ARC", |_| published::gate::<published::VectorArc>()),
    entry("Kratos BBR", |_| published::gate::<published::KratosBbr>()),
];

const fn entry(name: &'static str, make: fn(usize) -> Policy) -> Entry {
    Entry { name, make }
}

fn with(limit: impl Limit + Clone + Sync) -> Policy {
    flow(ShedLayer::new(limit))
}

/// Our layer, told of nothing but deadlines and priorities.
fn flow(layer: ShedLayer) -> Policy {
    fn ask(job: &Job) -> Ask<'_> {
        Ask::new().deadline(job.deadline).priority(job.priority)
    }
    BoxCloneService::new(layer.triage_by(ask).layer(Machine))
}

fn tower(limit: usize) -> Policy {
    let layers = ServiceBuilder::new().load_shed().concurrency_limit(limit);
    BoxCloneService::new(layers.service(Machine))
}
