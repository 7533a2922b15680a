//! Every interleaving of a request's end with what its connection's driver does.

use std::sync::Arc as StdArc;
use std::task::{Context, Wake, Waker};

use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use loom::thread;

use super::*;

/// hyper's sender, as far as a link looks at it.
struct Sender(Arc<AtomicBool>);

impl Ready for Sender {
    fn ready(&self) -> bool {
        self.0.load(SeqCst)
    }
}

struct Woken(Arc<AtomicUsize>);

impl Wake for Woken {
    fn wake(self: StdArc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

/// A connection with what there is to know of it.
#[derive(Clone)]
struct Wire {
    link: Arc<Link<Sender>>,
    /// What hyper says.
    ready: Arc<AtomicBool>,
    /// The request's answer is there.
    answer: Arc<AtomicBool>,
    /// The answer was taken, or given up.
    taken: Arc<AtomicBool>,
    /// How often the connection was said to be free.
    freed: Arc<AtomicUsize>,
    woken: Arc<AtomicUsize>,
}

impl Wire {
    /// One that is open and carries a request, which hyper has not read yet: it still says that it is ready.
    fn sent() -> Self {
        let wire = Self {
            link: Arc::new(Link::new()),
            ready: Arc::new(AtomicBool::new(true)),
            answer: Arc::new(AtomicBool::new(false)),
            taken: Arc::new(AtomicBool::new(false)),
            freed: Arc::new(AtomicUsize::new(0)),
            woken: Arc::new(AtomicUsize::new(0)),
        };
        wire.link.open(Sender(wire.ready.clone()));
        assert!(wire.sends(|_| ()));
        wire
    }

    /// hyper was polled and is `ready` or not; the driver looks at the link.
    fn polled(&self, ready: bool) -> Turn {
        self.ready.store(ready, SeqCst);
        let waker = Waker::from(StdArc::new(Woken(self.woken.clone())));
        let turn = self.link.turn(&mut Context::from_waker(&waker), false);
        if turn == Turn::Freed {
            assert!(self.taken.load(SeqCst), "freed under its request");
            self.freed.fetch_add(1, SeqCst);
        }
        turn
    }

    /// The requester has its answer, or gives it up.
    fn takes(&self) {
        self.taken.store(true, SeqCst);
        if self.link.answered(|_| {}).is_none() {
            self.freed.fetch_add(1, SeqCst);
        }
    }

    /// Whether something can be sent.
    fn sends(&self, how: impl FnOnce(&mut Sender)) -> bool {
        self.link.with((), |sender, ()| how(sender)).is_ok()
    }

    fn awaits(&self) {
        while !self.answer.load(SeqCst) {
            thread::yield_now();
        }
    }
}

#[test]
fn a_connection_is_freed_once_whichever_comes_second() {
    loom::model(|| {
        let wire = Wire::sent();
        wire.polled(false);
        let driven = wire.clone();
        let driver = thread::spawn(move || driven.polled(true));
        wire.takes();
        driver.join().unwrap();
        assert_eq!(wire.freed.load(SeqCst), 1);
        assert_eq!(wire.polled(true), Turn::Wait, "and not once more");
        assert_eq!(wire.freed.load(SeqCst), 1);
    });
}

#[test]
fn a_connection_that_says_it_is_ready_is_not_freed_before_its_answer_was_taken() {
    loom::model(|| {
        let wire = Wire::sent();
        let driven = wire.clone();
        let driver = thread::spawn(move || {
            // Not read yet; read and answered; ready for another.
            driven.polled(true);
            driven.ready.store(false, SeqCst);
            driven.answer.store(true, SeqCst);
            driven.polled(false);
            driven.polled(true);
        });
        wire.awaits();
        wire.takes();
        driver.join().unwrap();
        assert_eq!(wire.freed.load(SeqCst), 1);
    });
}

#[test]
fn a_connection_taken_again_as_soon_as_it_is_free_is_freed_once_for_each_request() {
    loom::model(|| {
        let wire = Wire::sent();
        wire.polled(false);
        let driven = wire.clone();
        let driver = thread::spawn(move || driven.polled(true));
        let next = wire.clone();
        let second = thread::spawn(move || {
            // Granted as soon as the first is over.
            while next.freed.load(SeqCst) == 0 {
                thread::yield_now();
            }
            next.taken.store(false, SeqCst);
            assert!(next.sends(|sender| sender.0.store(false, SeqCst)));
        });
        wire.takes();
        driver.join().unwrap();
        second.join().unwrap();
        assert_eq!(
            wire.freed.load(SeqCst),
            1,
            "the second request is under way"
        );
        // It is answered, and its body ends after that.
        wire.takes();
        assert_eq!(wire.freed.load(SeqCst), 1);
        assert_eq!(wire.polled(true), Turn::Freed);
        assert_eq!(wire.freed.load(SeqCst), 2);
    });
}

#[test]
fn a_connection_told_to_stop_is_freed_once_at_most_and_its_driver_hears_of_it() {
    loom::model(|| {
        let wire = Wire::sent();
        wire.polled(false);
        let driven = wire.clone();
        let driver = thread::spawn(move || driven.polled(true));
        let stopped = wire.clone();
        let stop = thread::spawn(move || stopped.link.stop());
        wire.takes();
        let turn = driver.join().unwrap();
        stop.join().unwrap();
        assert!(wire.freed.load(SeqCst) <= 1);
        if turn != Turn::Stop {
            assert_eq!(wire.woken.load(SeqCst), 1, "it sleeps for ever");
        }
        assert!(!wire.sends(|_| ()), "nothing is sent any more");
        assert!(wire.link.answered(|_| {}).is_some());
        assert_eq!(wire.polled(true), Turn::Stop);
    });
}

#[test]
fn a_connection_that_ended_is_never_free() {
    loom::model(|| {
        let wire = Wire::sent();
        wire.polled(false);
        let driven = wire.clone();
        let driver = thread::spawn(move || {
            driven.link.end();
            assert!(!driven.sends(|_| ()));
        });
        wire.takes();
        driver.join().unwrap();
        assert_eq!(wire.freed.load(SeqCst), 0);
        assert_eq!(wire.polled(true), Turn::Wait);
    });
}

/// HTTP/2: the last stream ends while something beside it goes on, which ends at any moment.
#[test]
fn a_connection_that_trails_is_idle_once_when_its_work_is_done() {
    loom::model(|| {
        let link = Arc::new(Link::<Sender>::new());
        let freed = Arc::new(AtomicUsize::new(0));
        let turn = |link: &Link<Sender>, freed: &AtomicUsize, working| {
            if link.turn(&mut Context::from_waker(Waker::noop()), working) == Turn::Freed {
                freed.fetch_add(1, SeqCst);
            }
        };
        turn(&link, &freed, true);
        let driver = thread::spawn({
            let (link, freed) = (link.clone(), freed.clone());
            move || turn(&link, &freed, false)
        });
        if !link.working() || link.trails() {
            freed.fetch_add(1, SeqCst);
        }
        driver.join().unwrap();
        turn(&link, &freed, false);
        assert_eq!(freed.load(SeqCst), 1);
    });
}
