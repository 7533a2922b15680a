//! Tasks that are driven by whoever waits for them.
//!
//! # Invariants
//!
//! - A task is in the crew's hands, or taken out by the one who polls it; never polled by two.
//! - A task that is woken is in the line of those that are `ready`, or is noted while it is taken out and put there when it
//!   is back. Once it is there all who wait are woken, since nobody knows which of them will be polled.

use std::collections::VecDeque;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Wake, Waker};

use crate::base::executor::Task;

/// Wakes all who wait.
pub(super) trait Rouse: Send + Sync {
    fn rouse(&self);
}

pub(super) struct Crew {
    waiters: Weak<dyn Rouse>,
    tasks: Mutex<Tasks>,
}

#[derive(Default)]
struct Tasks {
    places: Vec<Place>,
    free: Vec<usize>,
    ready: VecDeque<usize>,
}

enum Place {
    Free,
    /// Nobody polls it; it may be in the line.
    Here {
        task: Task,
        waker: Waker,
        ready: bool,
    },
    Out {
        woken: bool,
    },
}

/// Wakes a task. Kept by a stranger for too long, it wakes whatever is in that place by then, which does no harm.
struct Bell {
    crew: Weak<Crew>,
    place: usize,
}

impl Crew {
    pub(super) fn new(waiters: Weak<dyn Rouse>) -> Arc<Self> {
        Arc::new(Self {
            waiters,
            tasks: Mutex::default(),
        })
    }

    pub(super) fn add(self: &Arc<Self>, task: Task) {
        let mut tasks = self.lock();
        let place = tasks.free.pop().unwrap_or(tasks.places.len());
        let bell = Arc::new(Bell {
            crew: Arc::downgrade(self),
            place,
        });
        let here = Place::Here {
            task,
            waker: bell.into(),
            ready: true,
        };
        match tasks.places.get_mut(place) {
            Some(free) => *free = here,
            None => tasks.places.push(here),
        }
        tasks.ready.push_back(place);
        drop(tasks);
        self.rouse();
    }

    /// Polls the tasks that are ready, each once. Whether there were any.
    ///
    /// Of those that are ready again all who wait are told, whoever drives among them.
    pub(super) fn drive(self: &Arc<Self>) -> bool {
        let turns = self.lock().ready.len();
        for _ in 0..turns {
            self.turn();
        }
        turns > 0
    }

    fn turn(self: &Arc<Self>) {
        let mut tasks = self.lock();
        let Some(place) = tasks.ready.pop_front() else {
            return;
        };
        let out = Place::Out { woken: false };
        let Place::Here {
            mut task, waker, ..
        } = mem::replace(&mut tasks.places[place], out)
        else {
            unreachable!("what is in the line is here");
        };
        drop(tasks);
        let polled = catch_unwind(AssertUnwindSafe(|| {
            task.as_mut().poll(&mut Context::from_waker(&waker))
        }));
        if let Ok(Poll::Pending) = polled {
            let mut tasks = self.lock();
            let woken = matches!(tasks.places[place], Place::Out { woken: true });
            tasks.places[place] = Place::Here {
                task,
                waker,
                ready: woken,
            };
            if woken {
                tasks.ready.push_back(place);
                drop(tasks);
                self.rouse();
            }
            return;
        }
        // What a task leaves behind is told by its guards, a panic too.
        let _panicked = catch_unwind(AssertUnwindSafe(|| drop(task)));
        let mut tasks = self.lock();
        tasks.places[place] = Place::Free;
        tasks.free.push(place);
    }

    fn rouse(&self) {
        if let Some(waiters) = self.waiters.upgrade() {
            waiters.rouse();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Tasks> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let Some(crew) = self.crew.upgrade() else {
            return;
        };
        let mut tasks = crew.lock();
        match &mut tasks.places[self.place] {
            Place::Here { ready, .. } if !*ready => {
                *ready = true;
                tasks.ready.push_back(self.place);
            }
            Place::Out { woken } => {
                // Whoever polls it will tell.
                *woken = true;
                return;
            }
            Place::Here { .. } | Place::Free => return,
        }
        drop(tasks);
        crew.rouse();
    }
}
