//! scratch
#![allow(missing_docs, unreachable_pub, missing_debug_implementations)]
mod machine;
use machine::*;
use tower::Layer;
use tower_flow::shed::{Ask, ShedLayer};

fn main() {
    let mk = || {
        let layer = ShedLayer::adaptive()
            .triage_by(|job: &Job| Ask::new().deadline(job.deadline).priority(job.priority));
        tower::util::BoxCloneService::new(layer.layer(Machine))
    };
    for dist in Dist::ALL {
        for size in [4, 16, 128] {
            for load in [0.5, 0.9, 2.0, 10.0] {
                let s = Scenario::step(dist, size, load, 11, 20.0);
                let t = std::time::Instant::now();
                let ends = run(s, mk);
                let sc = score(&ends, &s, 15.0, s.until - 1.0);
                println!(
                    "{:9} {size:3} {load:4} goodput {:.3} p50 {:.0} p99 {:.0} rej {:.1} rec {:.1} n {} {:.2}s",
                    dist.name(),
                    sc.goodput,
                    sc.p50,
                    sc.p99,
                    sc.rejected,
                    recovery(&ends, &s, 10.0, s.until - 1.0, load.min(1.0)),
                    ends.len(),
                    t.elapsed().as_secs_f64()
                );
            }
        }
    }
}
