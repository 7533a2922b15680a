//! Every interleaving of the races a gate must win.

use std::sync::Arc as StdArc;
use std::task::Wake;

use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use loom::thread;

use super::*;
use crate::base::clock;
use crate::base::priority::Priority;

struct Woken(Arc<AtomicUsize>);

impl Wake for Woken {
    fn wake(self: StdArc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

fn entry() -> Entry {
    Entry {
        priority: Priority::Default,
        partition: 0,
        deadline: None,
        until: clock::now() + std::time::Duration::from_secs(3_600),
        ghost: false,
    }
}

fn gate(limit: usize) -> Arc<Gate> {
    Arc::new(Gate::new(limit, &Queue::fifo().max(8), &[]))
}

fn let_go(gate: &Gate) {
    if gate.release(0) {
        gate.settle(clock::now(), &());
    }
}

/// Takes a slot or waits for one; whoever waits is woken, or was granted before it looked.
fn pass(gate: &Gate) -> Option<Ticket> {
    match gate.try_admit(0) {
        Ok(_) => {
            let_go(gate);
            None
        }
        Err(_) => Some(
            gate.enqueue(clock::now(), entry(), &())
                .expect("there is room"),
        ),
    }
}

#[test]
fn a_slot_freed_while_somebody_comes_to_wait_is_not_lost() {
    loom::model(|| {
        let gate = gate(1);
        gate.try_admit(0).unwrap();
        let other = gate.clone();
        let releaser = thread::spawn(move || let_go(&other));
        if let Some(ticket) = pass(&gate) {
            let woken = Arc::new(AtomicUsize::new(0));
            let waker = Waker::from(StdArc::new(Woken(woken.clone())));
            let first = gate.poll(&ticket, &waker);
            releaser.join().unwrap();
            if first.is_pending() {
                assert_eq!(woken.load(SeqCst), 1, "granted without a wake-up");
                assert!(gate.poll(&ticket, &waker).is_ready());
            }
            let_go(&gate);
        } else {
            releaser.join().unwrap();
        }
        assert_eq!(gate.occupancy().in_flight, 0);
        assert_eq!(gate.try_admit(0), Ok(1), "nobody waits any more");
    });
}

#[test]
fn a_slot_granted_to_somebody_who_goes_away_passes_on() {
    loom::model(|| {
        let gate = gate(1);
        gate.try_admit(0).unwrap();
        let now = clock::now();
        let leaver = gate.enqueue(now, entry(), &()).unwrap();
        let stayer = gate.enqueue(now, entry(), &()).unwrap();
        let other = gate.clone();
        let cancel = thread::spawn(move || other.give_up(&leaver, 0, clock::now, &()));
        let_go(&gate);
        cancel.join().unwrap();
        assert!(gate.poll(&stayer, Waker::noop()).is_ready());
        assert_eq!(gate.occupancy().in_flight, 1);
        let_go(&gate);
        assert_eq!(gate.occupancy().in_flight, 0);
    });
}

#[test]
fn a_growing_limit_and_somebody_who_comes_to_wait_do_not_miss_each_other() {
    loom::model(|| {
        let gate = gate(1);
        gate.try_admit(0).unwrap();
        let other = gate.clone();
        let grow = thread::spawn(move || other.set_limit(2, clock::now(), &()));
        let ticket = match gate.try_admit(0) {
            Ok(_) => None,
            Err(_) => Some(gate.enqueue(clock::now(), entry(), &()).unwrap()),
        };
        grow.join().unwrap();
        if let Some(ticket) = ticket {
            assert!(gate.poll(&ticket, Waker::noop()).is_ready());
        }
        assert_eq!(gate.occupancy().in_flight, 2);
    });
}

#[test]
fn nobody_is_admitted_beyond_the_limit_while_it_shrinks() {
    loom::model(|| {
        let gate = gate(2);
        let other = gate.clone();
        let shrink = thread::spawn(move || other.set_limit(1, clock::now(), &()));
        let third = gate.clone();
        let admit = thread::spawn(move || third.try_admit(0).is_ok());
        let first = gate.try_admit(0).is_ok();
        let second = admit.join().unwrap();
        shrink.join().unwrap();
        let occupancy = gate.occupancy();
        assert_eq!(occupancy.limit, 1, "the change is not lost to an admission");
        assert_eq!(
            occupancy.in_flight,
            usize::from(first) + usize::from(second)
        );
        assert!(first || second);
        // Whatever was admitted before the shrink drains; then one at a time.
        for _ in 0..occupancy.in_flight {
            let_go(&gate);
        }
        assert_eq!(gate.try_admit(0), Ok(1));
        assert!(gate.try_admit(0).is_err());
    });
}

#[test]
fn two_who_pass_through_one_slot_both_do() {
    loom::model(|| {
        let gate = gate(1);
        let other = gate.clone();
        let passer = thread::spawn(move || {
            if let Some(ticket) = pass(&other) {
                while other.poll(&ticket, Waker::noop()).is_pending() {
                    thread::yield_now();
                }
                let_go(&other);
            }
        });
        if let Some(ticket) = pass(&gate) {
            while gate.poll(&ticket, Waker::noop()).is_pending() {
                thread::yield_now();
            }
            let_go(&gate);
        }
        passer.join().unwrap();
        assert_eq!(gate.occupancy().in_flight, 0);
        assert_eq!(gate.try_admit(0), Ok(1));
    });
}
