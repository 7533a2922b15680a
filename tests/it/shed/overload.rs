//! A server of a known size under load, through the real layer and tokio's paused time: tests 11 to 14. The whole
//! table is `cargo bench --bench overload`.

#[path = "../../../benches/overload/machine.rs"]
#[allow(dead_code)]
mod machine;

use machine::{Dist, End, Job, Machine, Policy, Scenario, recovery, run, score, watched};
use tower::Layer;
use tower::util::BoxCloneService;
use tower_flow::priority::Priority;
use tower_flow::shed::{Ask, ShedLayer};

fn ask(job: &Job) -> Ask<'_> {
    Ask::new().deadline(job.deadline).priority(job.priority)
}

/// The default, told of nothing but priorities and deadlines.
fn ours() -> Policy {
    let layer = ShedLayer::adaptive().triage_by(ask);
    BoxCloneService::new(layer.layer(Machine))
}

fn goodput(scenario: Scenario) -> f64 {
    let ends = run(scenario, ours);
    score(
        &ends,
        &scenario,
        scenario.step_at + 5.0,
        scenario.until - 1.0,
    )
    .goodput
}

fn mean(values: impl IntoIterator<Item = f64>) -> f64 {
    let values: Vec<_> = values.into_iter().collect();
    values.iter().sum::<f64>() / values.len() as f64
}

// ===== 11 =====

#[test]
fn ten_quiet_minutes_move_no_limit_far_and_a_step_is_taken_at_once() {
    let mut scenario = Scenario::step(Dist::Exp, 16, 2.0, 7, 20.0);
    scenario.before = 0.1;
    scenario.step_at = 600.0;
    scenario.until += 590.0;
    let layer = ShedLayer::adaptive().triage_by(ask);
    let handle = layer.handle();
    let (mut least, mut most) = (usize::MAX, 0);
    let mut next = 10.0;
    let ends = watched(
        scenario,
        || BoxCloneService::new(layer.layer(Machine)),
        |now| {
            if now >= next && now < 600.0 {
                next += 1.0;
                let limit = handle.snapshot().limit;
                (least, most) = (least.min(limit), most.max(limit));
            }
        },
    );
    // It starts at what the algorithm starts with; nothing is learned from a service that has nothing to do.
    assert!(least >= 16 && most <= 64, "{least} to {most}");
    let back = recovery(&ends, &scenario, 600.0, scenario.until - 1.0, 1.0);
    assert!(back < 2.0, "{back} s to 90 %");
}

// ===== 12 =====

#[test]
fn the_floor_is_measured_without_the_bias_of_those_who_finish_first() {
    let scenario = Scenario::step(Dist::Exp, 128, 2.0, 3, 30.0);
    let layer = ShedLayer::adaptive().triage_by(ask);
    let handle = layer.handle();
    let mut floors = Vec::new();
    let mut next = 20.0;
    let ends = watched(
        scenario,
        || BoxCloneService::new(layer.layer(Machine)),
        |now| {
            if now >= next {
                next += 1.0;
                floors.push(
                    handle
                        .snapshot()
                        .floor
                        .map_or(0.0, |floor| floor.as_secs_f64()),
                );
            }
        },
    );
    for floor in &floors {
        let off = (floor / machine::MEAN - 1.0).abs();
        assert!(
            off < 0.15,
            "a floor of {floor} where the service takes 0.05: {floors:?}"
        );
    }
    let goodput = score(&ends, &scenario, 15.0, 39.0).goodput;
    assert!(goodput >= 0.97, "{goodput}");
}

// ===== 13 =====

#[test]
fn goodput_holds_at_twice_and_ten_times_the_capacity_whatever_its_size() {
    for (dist, size, least) in [
        (Dist::Exp, 4, 0.95),
        (Dist::Exp, 16, 0.96),
        (Dist::Exp, 128, 0.97),
        (Dist::Lowvar, 16, 0.96),
        (Dist::Bimodal, 16, 0.93),
        (Dist::Lognormal, 16, 0.90),
    ] {
        for load in [2.0, 10.0] {
            // Few seeds and short runs here; the bench has ten of thirty seconds.
            let seeds = if size == 128 { 1..2 } else { 1..4 };
            let goodput =
                mean(seeds.map(|seed| goodput(Scenario::step(dist, size, load, seed, 20.0))));
            assert!(goodput >= least, "{dist:?} on {size} at {load}x: {goodput}");
        }
    }
}

#[test]
fn nobody_is_refused_at_half_load() {
    for dist in Dist::ALL {
        let scenario = Scenario::step(dist, 16, 0.5, 5, 20.0);
        let ends = run(scenario, ours);
        let score = score(&ends, &scenario, 0.0, scenario.until - 1.0);
        assert_eq!(score.rejected, 0.0, "{dist:?}");
    }
}

#[test]
fn a_cold_start_into_twice_the_capacity_and_a_server_that_halves_are_found_within_two_seconds() {
    for size in [4, 16, 128] {
        let mut scenario = Scenario::step(Dist::Exp, size, 2.0, 9, 15.0);
        scenario.before = 2.0;
        scenario.step_at = 0.0;
        scenario.until = 15.0;
        let ends = run(scenario, ours);
        let cold = recovery(&ends, &scenario, 0.0, 14.0, 1.0);
        assert!(cold <= 2.0, "{cold} s from cold with {size} workers");
    }
    let mut scenario = Scenario::step(Dist::Exp, 16, 0.9, 4, 60.0);
    scenario.halved = Some((30.0, 50.0));
    let ends = run(scenario, ours);
    let trough = score(&ends, &scenario, 32.0, 49.0).goodput;
    assert!(trough >= 0.5 * 0.95, "{trough} of 0.5");
    let back = recovery(&ends, &scenario, 50.0, scenario.until - 1.0, 0.9);
    assert!(back <= 2.0, "{back} s after the workers came back");
}

#[test]
fn the_number_of_clones_changes_nothing() {
    let of = |clones| {
        let mut scenario = Scenario::step(Dist::Exp, 16, 2.0, 2, 15.0);
        scenario.clones = clones;
        goodput(scenario)
    };
    for clones in [1, 100, 1_000] {
        let goodput = of(clones);
        assert!(goodput >= 0.95, "{goodput} with {clones} clones");
    }
    // The control: tower's layers hand slots to clones that were shed and stay idle.
    let mut scenario = Scenario::step(Dist::Exp, 16, 2.0, 2, 15.0);
    scenario.clones = 1_000;
    let tower = || {
        let layers = tower::ServiceBuilder::new()
            .load_shed()
            .concurrency_limit(32);
        BoxCloneService::new(layers.service(Machine))
    };
    let ends = run(scenario, tower);
    let goodput = score(&ends, &scenario, 15.0, 24.0).goodput;
    assert!(goodput < 0.2, "{goodput}");
}

// ===== 14 =====

fn served(ends: &[End], critical: bool, from: f64, to: f64) -> (f64, f64) {
    let asked: Vec<_> = ends
        .iter()
        .filter(|end| end.critical == critical && (from..to).contains(&end.arrived))
        .collect();
    let mut latencies: Vec<_> = asked
        .iter()
        .filter_map(|end| end.latency)
        .filter(|latency| *latency < machine::PATIENCE)
        .collect();
    latencies.sort_by(f64::total_cmp);
    let p99 = latencies[latencies.len() * 99 / 100];
    (latencies.len() as f64 / asked.len() as f64, p99)
}

#[test]
fn what_is_critical_is_served_at_three_times_the_capacity() {
    let mut scenario = Scenario::step(Dist::Exp, 16, 3.0, 6, 30.0);
    scenario.critical = 0.2;
    let ends = run(scenario, ours);
    let (kept, p99) = served(&ends, true, 15.0, 39.0);
    let unloaded = Dist::Exp.p99();
    assert!(kept >= 0.99, "{kept} of the critical were served");
    assert!(
        p99 < 1.5 * unloaded,
        "{p99} s against {unloaded} s unloaded"
    );
    let (others, _) = served(&ends, false, 15.0, 39.0);
    assert!(others < 0.3, "the rest gives way");
}

#[test]
fn a_partition_gets_its_share_and_lends_what_it_does_not_use() {
    // Those who are marked belong to the partition, which is guaranteed 30 %; the rest is everybody else.
    fn tenant(job: &Job) -> Ask<'_> {
        let ask = Ask::new().deadline(job.deadline);
        match job.priority {
            Priority::Critical => ask.partition("quiet"),
            _ => ask,
        }
    }
    let layer = || {
        ShedLayer::adaptive()
            .partition("quiet", 0.3)
            .triage_by(tenant)
    };
    let policy = || BoxCloneService::new(layer().layer(Machine));
    // 20 % of 3x is 60 % of the capacity, twice the share: it gets the share at least.
    let mut scenario = Scenario::step(Dist::Exp, 16, 3.0, 8, 30.0);
    scenario.critical = 0.2;
    let share = |ends: &[End]| served(ends, true, 15.0, 39.0).0 * scenario.critical * 3.0;
    let got = share(&run(scenario, policy));
    assert!(
        got >= 0.3 * 0.95,
        "{got} of the capacity where 0.3 are guaranteed"
    );
    // 5 % of 3x is half of its share: all of it is served, and the other half lent.
    scenario.critical = 0.05;
    let ends = run(scenario, policy);
    let (kept, _) = served(&ends, true, 15.0, 39.0);
    assert!(kept >= 0.95, "{kept} of what stays below the share");
    let all = score(&ends, &scenario, 15.0, 39.0).goodput;
    assert!(all >= 0.95, "{all}");
}

// ===== what time does =====

#[test]
fn minutes_of_overload_leave_floor_and_limit_where_they_are() {
    for dist in [Dist::Constant, Dist::Lowvar] {
        let scenario = Scenario::step(dist, 16, 2.0, 1, 240.0);
        let layer = ShedLayer::adaptive().triage_by(ask);
        let handle = layer.handle();
        let (mut floor, mut limit, mut next) = (0.0f64, 0, 20.0);
        let ends = watched(
            scenario,
            || BoxCloneService::new(layer.layer(Machine)),
            |now| {
                if now >= next {
                    next += 1.0;
                    let snapshot = handle.snapshot();
                    floor = floor.max(snapshot.floor.map_or(0.0, |floor| floor.as_secs_f64()));
                    limit = limit.max(snapshot.limit);
                }
            },
        );
        assert!(floor < 1.2 * machine::MEAN, "{dist:?}: a floor of {floor}");
        assert!(limit <= 32, "{dist:?}: a limit of {limit}");
        let last = score(&ends, &scenario, 190.0, 249.0).goodput;
        assert!(last >= 0.97, "{dist:?}: {last} in the last minute");
    }
}

#[test]
fn near_the_capacity_few_are_refused_and_far_beyond_it_those_let_in_are_fast() {
    for (dist, most) in [(Dist::Exp, 1.5), (Dist::Lowvar, 1.5), (Dist::Bimodal, 4.0)] {
        let refused = mean((1..4).map(|seed| {
            let scenario = Scenario::step(dist, 16, 0.9, seed, 30.0);
            score(&run(scenario, ours), &scenario, 15.0, 39.0).rejected
        }));
        assert!(refused <= most, "{dist:?}: {refused} % refused at 0.9x");
        for load in [5.0, 10.0] {
            let scenario = Scenario::step(dist, 16, load, 1, 20.0);
            let p99 = score(&run(scenario, ours), &scenario, 15.0, 29.0).p99;
            let least = 1e3 * dist.p99() + 100.0;
            assert!(
                p99 <= least,
                "{dist:?} at {load}x: {p99} ms, {least} wanted"
            );
        }
    }
}

#[test]
fn a_cold_start_that_goes_too_far_is_taken_back_within_seconds() {
    // Two workers that need 50 ms each under ten times their load: what is let in at first takes longer than callers
    // wait, so nothing at all comes back to learn from.
    let mut scenario = Scenario::step(Dist::Lowvar, 2, 10.0, 3, 12.0);
    (scenario.before, scenario.step_at, scenario.until) = (10.0, 0.0, 12.0);
    let ends = run(scenario, ours);
    let cold = recovery(&ends, &scenario, 0.0, 11.0, 1.0);
    assert!(cold <= 2.5, "{cold} s");
}
