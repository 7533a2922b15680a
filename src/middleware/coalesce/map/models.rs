//! Every interleaving of callers that join, drive, leave and are woken, with what they wait for.
//!
//! Threads do one thing each; after that everybody is polled who was woken, and nobody else: whoever then has nothing has
//! lost a wake.

use std::sync::atomic::AtomicUsize as Count;
use std::sync::{Arc, Weak};
use std::task::Wake;
use std::time::Duration;

use loom::sync::atomic::{AtomicBool, AtomicIsize, Ordering::SeqCst};
use loom::thread;

use super::super::flight::{Failure, Orphan, Verdict};
use super::super::shard::Bypass;
use super::*;
use crate::base::clock;

struct Toy;

impl Cargo for Toy {
    type Key = u8;
    type Work = Thing;
    type Shared = Thing;
    type Own = Thing;
}

/// Something foreign; all of them are counted.
struct Thing(Arc<Count>);

impl Drop for Thing {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

/// What the work of all flights waits for, with the last waker of each.
struct Source(Mutex<(bool, Vec<(u64, Waker)>)>);

/// How the work ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Shared,
    LeaderOnly,
    Panics,
}

/// All there is in a model.
struct Site {
    map: Map<Toy>,
    source: Source,
    end: End,
    things: Arc<Count>,
    /// How many flights are listed under key 0, at least.
    listed: AtomicIsize,
    this: Weak<Site>,
}

/// The waker of one.
struct Flag(AtomicBool);

/// The waker of all.
struct Bell(Weak<Site>, Claim);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Got {
    /// What nobody else has.
    Alone,
    Own,
    Shared,
    Released,
    Anew,
    Failed(Failure),
}

struct Caller {
    site: Arc<Site>,
    claim: Claim,
    flag: Arc<Flag>,
    /// The work of one who leads, and was not polled.
    work: Option<Thing>,
    got: Option<Got>,
}

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, SeqCst);
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        if let Some(site) = self.0.upgrade() {
            site.map.ring(self.1);
        }
    }
}

impl Source {
    /// Whether it is there; `waker` is woken when it is.
    fn poll(&self, id: u64, waker: &Waker) -> bool {
        let mut state = self.0.lock().expect("nobody panics");
        if !state.0 {
            state.1.retain(|(other, _)| *other != id);
            state.1.push((id, waker.clone()));
        }
        state.0
    }

    fn fill(&self) {
        self.spurious(true);
    }

    /// Wakes, with or without a reason.
    fn spurious(&self, there: bool) {
        let mut state = self.0.lock().expect("nobody panics");
        state.0 |= there;
        let wakers = std::mem::take(&mut state.1);
        drop(state);
        for (_, waker) in wakers {
            waker.wake();
        }
    }
}

impl Site {
    fn new(end: End, change: impl FnOnce(&mut Rules)) -> Arc<Self> {
        let mut rules = Rules {
            max_keys: 10,
            max_waiters: 10,
            leader_age: Duration::from_secs(3_600),
            grace: Duration::ZERO,
            orphan: None,
            remember: (Duration::ZERO, 0),
        };
        change(&mut rules);
        Arc::new_cyclic(|this| Self {
            map: Map::new(rules, 1),
            source: Source(Mutex::new((false, Vec::new()))),
            end,
            things: Arc::default(),
            listed: AtomicIsize::new(0),
            this: this.clone(),
        })
    }

    fn thing(&self) -> Thing {
        self.things.fetch_add(1, SeqCst);
        Thing(self.things.clone())
    }

    /// A caller of key 0.
    fn join(&self) -> Result<Caller, Bypass> {
        self.join_key(0)
    }

    fn join_key(&self, key: u8) -> Result<Caller, Bypass> {
        let priority = Priority::Default;
        let hash = Hashed(u64::from(key));
        let (shard, joined) = self
            .map
            .join(hash, &mut Some(key), priority, clock::now, None);
        let (ticket, work) = match joined {
            Joined::Lead(ticket, spare) => {
                let before = self.listed.fetch_add(isize::from(key == 0), SeqCst);
                assert!(key != 0 || before == 0, "a key leads to one flight");
                (ticket, Some(spare.unwrap_or_else(|| self.thing())))
            }
            Joined::Follow(ticket, _) => (ticket, None),
            Joined::Kept(_) => unreachable!("nothing is kept"),
            Joined::Alone(why) => return Err(why),
        };
        Ok(Caller {
            site: self.this.upgrade().expect("it is there"),
            claim: Claim { shard, ticket },
            flag: Arc::new(Flag(AtomicBool::new(false))),
            work,
            got: None,
        })
    }

    /// A caller that was polled once, unless it is done.
    fn comes(&self) -> Caller {
        let mut caller = self.join().expect("there is room");
        caller.poll();
        caller
    }

    /// Nothing is left of anybody.
    fn is_empty(&self) {
        let tally = self.map.tally(clock::now());
        assert_eq!((tally.flights, tally.waiters, tally.kept), (0, 0, 0));
    }

    fn unlists(&self) {
        self.listed.fetch_sub(1, SeqCst);
    }
}

impl Caller {
    fn waker(&self) -> Waker {
        self.flag.clone().into()
    }

    fn leads(&self) -> bool {
        self.claim.ticket.leader
    }

    fn poll(&mut self) -> Option<Got> {
        if self.got.is_some() {
            return self.got;
        }
        self.flag.0.store(false, SeqCst);
        let waker = self.waker();
        self.got = match self.work.take() {
            Some(work) => self.drive(work, true),
            None => match self
                .site
                .map
                .ask(self.claim, &waker, &mut Debris::default())
            {
                Asked::Drive { work, direct, .. } => self.drive(work, direct),
                Asked::Wait { .. } => None,
                Asked::Over(landed) => Some(Self::got(landed)),
            },
        };
        self.got
    }

    fn drive(&self, work: Thing, direct: bool) -> Option<Got> {
        let site = &self.site;
        let own = self.waker();
        let there = if direct {
            site.source.poll(self.claim.ticket.id, &own)
        } else {
            let bell = Arc::new(Bell(site.this.clone(), self.claim));
            site.source.poll(self.claim.ticket.id, &bell.into())
        };
        if !there {
            let mut debris = Debris::default();
            let now = clock::now;
            site.map
                .park(self.claim, work, None, &own, now, &mut debris);
            return match debris.work() {
                Some(work) => {
                    site.map.recycle(self.claim.shard, work);
                    Some(self.verdict())
                }
                None => None,
            };
        }
        let mut debris = Debris::default();
        if site.end == End::Panics {
            site.unlists();
            let others = Others::Failed(Failure::Panicked);
            let own = Some(site.thing());
            site.map
                .publish(self.claim, own, others, None, None, &mut debris);
            site.map.recycle(self.claim.shard, work);
            return Some(self.verdict());
        }
        site.unlists();
        let landing = site.map.finish(self.claim, work, &mut debris);
        if landing.alone {
            return Some(Got::Alone);
        }
        let result = site.thing();
        let (own, others) = match site.end {
            End::LeaderOnly => (landing.leader.then_some(result), Others::Released),
            _ => (None, Others::Take(result.into())),
        };
        site.map
            .publish(self.claim, own, others, None, None, &mut debris);
        Some(self.verdict())
    }

    fn verdict(&self) -> Got {
        Self::got(self.site.map.verdict(self.claim, &mut Debris::default()))
    }

    fn got(landed: Landed<Toy>) -> Got {
        match landed.verdict {
            Verdict::Own(_) => Got::Own,
            Verdict::Take(_) => Got::Shared,
            Verdict::Released => Got::Released,
            Verdict::Anew => Got::Anew,
            Verdict::Failed(why) => Got::Failed(why),
        }
    }

    /// Gives up, if it has nothing yet. Whether it took the work along.
    fn leave(mut self) -> bool {
        if self.got.is_some() {
            return false;
        }
        assert!(self.work.take().is_none(), "who drives does not leave");
        let mut debris = Debris::default();
        let left = self.site.map.leave(self.claim, &mut debris);
        let work = debris.work();
        assert_eq!(
            left == Left::Nobody,
            left != Left::Orphans && work.is_some()
        );
        if let Some(work) = work {
            self.site.map.recycle(self.claim.shard, work);
        }
        left == Left::Nobody
    }
}

/// Polls whoever was woken, until nobody is.
fn settle<const N: usize>(callers: &mut [Caller; N]) -> [Option<Got>; N] {
    while let Some(woken) = callers
        .iter_mut()
        .find(|caller| caller.got.is_none() && caller.flag.0.load(SeqCst))
    {
        woken.poll();
    }
    std::array::from_fn(|n| callers[n].got)
}

fn spawn<R: 'static>(work: impl FnOnce() -> R + 'static) -> thread::JoinHandle<R> {
    thread::spawn(work)
}

#[test]
fn a_leader_that_is_not_polled_any_more_keeps_nobody_waiting() {
    loom::model(|| {
        let site = Site::new(End::Shared, |_| {});
        let leader = site.comes();
        let other = site.clone();
        let filler = spawn(move || other.source.fill());
        let follower = site.comes();
        filler.join().unwrap();
        let [got] = settle(&mut [follower]);
        assert_eq!(got, Some(Got::Shared));
        // Its result is there when it comes.
        assert_eq!(settle(&mut [leader]), [Some(Got::Shared)]);
        site.is_empty();
    });
}

#[test]
fn a_follower_that_comes_while_the_leader_is_polled_is_woken() {
    loom::model(|| {
        let site = Site::new(End::Shared, |_| {});
        let mut leader = site.join().unwrap();
        let [first, second] = [site.clone(), site.clone()];
        let filler = spawn(move || first.source.fill());
        let follower = spawn(move || second.comes());
        leader.poll();
        filler.join().unwrap();
        let follower = follower.join().unwrap();
        let follows = !follower.leads();
        let got = settle(&mut [leader, follower]);
        match got {
            [Some(Got::Shared), Some(Got::Shared)] => assert!(follows),
            // It came when the leader was done.
            [Some(Got::Alone), Some(Got::Alone)] => assert!(!follows),
            other => panic!("{other:?}"),
        }
        site.is_empty();
    });
}

#[test]
fn whichever_of_two_drives_both_are_woken() {
    loom::model(|| {
        let site = Site::new(End::Shared, |_| {});
        let mut leader = site.comes();
        let mut follower = site.comes();
        // Both are woken for nothing, and race for the work while what it waits for comes.
        site.source.spurious(false);
        let other = site.clone();
        let filler = spawn(move || other.source.fill());
        let follower = spawn(move || {
            follower.poll();
            follower
        });
        leader.poll();
        filler.join().unwrap();
        let follower = follower.join().unwrap();
        let got = settle(&mut [leader, follower]);
        assert_eq!(got, [Some(Got::Shared); 2]);
        site.is_empty();
    });
}

#[test]
fn work_that_rings_while_it_is_driven_is_driven_again() {
    loom::model(|| {
        let site = Site::new(End::Shared, |_| {});
        let leader = site.comes();
        let mut follower = site.comes();
        site.source.spurious(false);
        let other = site.clone();
        let filler = spawn(move || {
            other.source.spurious(false);
            other.source.fill();
        });
        follower.poll();
        filler.join().unwrap();
        let got = settle(&mut [leader, follower]);
        assert_eq!(got, [Some(Got::Shared); 2]);
        site.is_empty();
    });
}

#[test]
fn a_panic_wakes_all_who_wait() {
    loom::model(|| {
        let site = Site::new(End::Panics, |_| {});
        let mut leader = site.comes();
        let first = site.comes();
        site.source.fill();
        let other = site.clone();
        let second = spawn(move || other.comes());
        leader.poll();
        let second = second.join().unwrap();
        let anew = second.leads();
        let got = settle(&mut [leader, first, second]);
        let failed = Some(Got::Failed(Failure::Panicked));
        // Who came after that panics by itself.
        let last = if anew { Some(Got::Own) } else { failed };
        assert_eq!(got, [Some(Got::Own), failed, last]);
        site.is_empty();
        // Nobody is stuck with the key.
        assert!(site.join().unwrap().leads());
    });
}

#[test]
fn the_last_to_leave_takes_the_work_along_and_frees_the_key() {
    loom::model(|| {
        let site = Site::new(End::Shared, |_| {});
        let leader = site.comes();
        let follower = site.comes();
        let third = site.comes();
        let others = [follower, third].map(|caller| spawn(move || caller.leave()));
        let mut last = usize::from(leader.leave());
        for other in others {
            last += usize::from(other.join().unwrap());
        }
        assert_eq!(last, 1, "the work leaves once");
        site.is_empty();
        site.unlists();
        let newcomer = site.join().unwrap();
        assert!(newcomer.leads());
        drop(newcomer);
    });
}

#[test]
fn whoever_comes_while_the_last_one_leaves_begins_anew_or_inherits() {
    loom::model(|| {
        let site = Site::new(End::Shared, |_| {});
        let leader = site.comes();
        let other = site.clone();
        let leaver = spawn(move || {
            // Before it is: whoever leads after that is right.
            other.unlists();
            leader.leave()
        });
        let hash = Hashed(0);
        let (_, joined) = site
            .map
            .join(hash, &mut Some(0), Priority::Default, clock::now, None);
        let (ticket, work) = match joined {
            Joined::Lead(ticket, work) => (ticket, Some(work.unwrap_or_else(|| site.thing()))),
            Joined::Follow(ticket, _) => (ticket, None),
            _ => unreachable!("there is room"),
        };
        let mut caller = Caller {
            site: site.clone(),
            claim: Claim { shard: 0, ticket },
            flag: Arc::new(Flag(AtomicBool::new(false))),
            work,
            got: None,
        };
        caller.poll();
        let nobody = leaver.join().unwrap();
        assert_eq!(nobody, caller.leads());
        site.source.fill();
        let [got] = settle(&mut [caller]);
        assert!(matches!(got, Some(Got::Alone | Got::Shared)), "{got:?}");
        site.is_empty();
    });
}

#[test]
fn keys_come_and_go_and_nothing_stays() {
    loom::model(|| {
        let site = Site::new(End::Shared, |_| {});
        let churn = |site: &Site, key: u8| {
            let mut caller = site.join_key(key).unwrap();
            caller.poll();
            caller.leave();
            let mut caller = site.join_key(3).unwrap();
            caller.poll();
            caller.leave();
        };
        let other = site.clone();
        let churner = spawn(move || churn(&other, 1));
        churn(&site, 2);
        churner.join().unwrap();
        site.is_empty();
        // What is left is work to be used again, of which there is as much as was needed at a time.
        assert!(site.things.load(SeqCst) <= 2);
        let things = site.things.clone();
        site.source.spurious(false);
        drop(site);
        assert_eq!(things.load(SeqCst), 0);
    });
}

#[test]
fn whoever_comes_when_it_is_done_has_it_or_begins_anew() {
    loom::model(|| {
        let site = Site::new(End::Shared, |_| {});
        let mut leader = site.comes();
        site.source.fill();
        let others = [site.clone(), site.clone()].map(|site| spawn(move || site.comes()));
        leader.poll();
        let [first, second] = others.map(|other| other.join().unwrap());
        let led = [&leader, &first, &second].map(|caller| caller.leads());
        let got = settle(&mut [leader, first, second]);
        for (got, led) in got.into_iter().zip(led) {
            match got {
                Some(Got::Alone) => assert!(led),
                Some(Got::Shared) => {}
                other => panic!("{other:?}"),
            }
        }
        site.is_empty();
    });
}

#[test]
fn a_result_meets_callers_that_leave() {
    loom::model(|| {
        let site = Site::new(End::Shared, |_| {});
        let mut leader = site.comes();
        let leavers = [site.comes(), site.comes()];
        site.source.fill();
        let leavers = leavers.map(|caller| spawn(move || assert!(!caller.leave())));
        leader.poll();
        for leaver in leavers {
            leaver.join().unwrap();
        }
        let [got] = settle(&mut [leader]);
        assert!(matches!(got, Some(Got::Alone | Got::Shared)), "{got:?}");
        site.is_empty();
        // Results are gone; the work is put aside.
        assert_eq!(site.things.load(SeqCst), 1);
    });
}

#[test]
fn what_is_for_the_leader_only_meets_a_leader_that_leaves() {
    loom::model(|| {
        let site = Site::new(End::LeaderOnly, |_| {});
        let leader = site.comes();
        let mut driver = site.comes();
        let third = site.comes();
        site.source.fill();
        let leaver = spawn(move || assert!(!leader.leave()));
        driver.poll();
        leaver.join().unwrap();
        let got = settle(&mut [driver, third]);
        assert_eq!(got, [Some(Got::Released); 2]);
        site.is_empty();
        assert_eq!(site.things.load(SeqCst), 1);
    });
}

#[test]
fn who_follows_a_leader_that_leaves_begins_anew_or_fails_and_nobody_else_does() {
    for orphan in [Orphan::Anew, Orphan::Fail] {
        loom::model(move || {
            let site = Site::new(End::Shared, |rules| rules.orphan = Some(orphan));
            let leader = site.comes();
            let mut driver = site.comes();
            // It drives while its leader leaves.
            site.source.spurious(false);
            let gone = Arc::new(AtomicBool::new(false));
            let (left, other) = (gone.clone(), site.clone());
            let leaver = spawn(move || {
                other.unlists();
                assert!(!leader.leave());
                left.store(true, SeqCst);
            });
            let other = site.clone();
            let newcomer = spawn(move || {
                let late = gone.load(SeqCst);
                let caller = other.comes();
                assert!(!late || caller.leads(), "it joined what is dying");
                caller
            });
            driver.poll();
            leaver.join().unwrap();
            let newcomer = newcomer.join().unwrap();
            let led = newcomer.leads();
            let mut callers = [driver, newcomer];
            let [first, second] = settle(&mut callers);
            let ended = Some(match orphan {
                Orphan::Anew => Got::Anew,
                Orphan::Fail => Got::Failed(Failure::Abandoned),
            });
            assert_eq!(first, ended);
            if !led {
                assert_eq!(second, ended);
            } else {
                assert_eq!(second, None);
                site.source.fill();
                assert_eq!(settle(&mut callers)[1], Some(Got::Alone));
            }
            site.is_empty();
        });
    }
}

#[test]
fn a_task_is_done_while_all_leave() {
    loom::model(|| {
        let site = Site::new(End::Shared, |_| {});
        let mut leader = site.join().unwrap();
        let work = leader.work.take().unwrap();
        let waker = leader.waker();
        site.map.detach(leader.claim, &waker, clock::now());
        drop(waker);
        let task = Claim {
            ticket: Ticket {
                seat: u32::MAX,
                leader: false,
                ..leader.claim.ticket
            },
            ..leader.claim
        };
        let mut follower = site.join().unwrap();
        follower.poll();
        let other = site.clone();
        let courier = spawn(move || {
            other.unlists();
            let mut debris = Debris::default();
            let landing = other.map.finish(task, work, &mut debris);
            assert!(!landing.alone);
            let others = Others::Take(other.thing().into());
            other
                .map
                .publish(task, None, others, None, None, &mut debris);
        });
        let leaver = spawn(move || assert!(!leader.leave()));
        follower.poll();
        courier.join().unwrap();
        leaver.join().unwrap();
        assert_eq!(settle(&mut [follower]), [Some(Got::Shared)]);
        site.is_empty();
        assert_eq!(site.things.load(SeqCst), 1);
    });
}

#[test]
fn three_come_and_one_of_them_goes_while_what_they_wait_for_comes() {
    loom::model(|| {
        let site = Site::new(End::Shared, |_| {});
        let mut leader = site.join().unwrap();
        let [filler, goer] = [site.clone(), site.clone()];
        let filler = spawn(move || filler.source.fill());
        let goer = spawn(move || {
            let caller = goer.comes();
            let led = caller.leads() && caller.got.is_none();
            if led {
                goer.unlists();
            }
            caller.leave();
        });
        leader.poll();
        let follower = site.comes();
        filler.join().unwrap();
        goer.join().unwrap();
        let got = settle(&mut [leader, follower]);
        for got in got {
            assert!(matches!(got, Some(Got::Alone | Got::Shared)), "{got:?}");
        }
        site.is_empty();
    });
}
