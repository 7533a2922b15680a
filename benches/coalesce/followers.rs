//! What each costs who joins a call that is out and is woken when it ends.

use tokio::runtime::Runtime;
use tower_flow::coalesce::{CoalesceLayer, OnLeaderDrop};
use tower_layer::Layer;

use crate::support::coalesce::{Crowds, List, print_followed};
use crate::support::{self, yes};

const MOST: usize = 1_000;
const CROWDS: [usize; 4] = [1, 10, 100, MOST];

pub fn print() {
    let rounds = support::rounds();
    let runtime = runtime();
    let _entered = runtime.enter();
    println!(
        "Followers of one call, driven by hand on one thread: each joins, is woken and gets its answer. Nanoseconds of a processor for each, \
         over a leader alone, medians of {rounds} rounds in turn. The floor is a list of wakers behind a lock.\n"
    );
    let once = crowds(runtime).measure(rounds, &CROWDS, 1, MOST);
    print_followed(&CROWDS, &once);
    println!("The same, where the backend wakes its caller once before it has an answer.\n");
    let twice = crowds(runtime).measure(rounds.div_ceil(2), &CROWDS, 2, MOST);
    print_followed(&CROWDS, &twice);

    let (ours, again) = (&once[1], &twice[1]);
    let most = ours.each.iter().copied().fold(0.0, f64::max);
    println!("| target | reached |");
    println!("|---|---|");
    println!(
        "| a follower: at most 250 ns | {}: {most:.0} at most |",
        yes(most <= 250.0)
    );
    println!(
        "| at most 3 polls | {}: {:.2}; {:.2} with two wakes |",
        yes(ours.polls <= 3.0 && again.polls <= 3.0),
        ours.polls,
        again.polls
    );
    println!(
        "| no allocation | {}: {:.2} |",
        yes(ours.allocations < 0.005),
        ours.allocations
    );
}

pub fn walk(name: &str, followers: usize, times: usize) {
    let runtime = runtime();
    let _entered = runtime.enter();
    crowds(runtime).walk(name, followers, times);
}

fn crowds(runtime: &'static Runtime) -> Crowds {
    let mut crowds = Crowds::default();
    crowds.add("floor", MOST, || (), List::new);
    let coalesce = || CoalesceLayer::new(|key: &u64| Some(*key));
    crowds.add("coalesce", MOST, || (), |gate| coalesce().layer(gate));
    let reissue = coalesce().on_leader_drop(OnLeaderDrop::Reissue);
    crowds.add("coalesce, Reissue", MOST, || (), |gate| reissue.layer(gate));
    let detach = coalesce().on_leader_drop(OnLeaderDrop::Detach);
    let turn = || runtime.block_on(tokio::task::yield_now());
    crowds.add("coalesce, Detach", MOST, turn, |gate| detach.layer(gate));
    crowds
}

/// One that has timers and runs tasks when it is told to.
fn runtime() -> &'static Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    Box::leak(Box::new(builder.enable_time().build().expect("a runtime")))
}
