//! Which connection takes a request, who waits, and when another connection is made. No clock, no task, no socket.

use std::collections::VecDeque;
use std::time::Duration;

use crate::base::clock::Instant;

/// # Invariants
///
/// There are at most `connections` lines, those being dialled included; when that limit is lowered, the lines beyond it
/// retire: they are granted no more, and [`retired`](Core::retired) tells when nothing is in flight on one. A line
/// carries at most `in_flight` requests, and each counts from when it was granted until its release. Nobody waits while
/// a line that is up and stays has room, once [`grant`](Core::grant) had nothing more to say.
#[derive(Debug)]
pub(super) struct Core {
    limits: Limits,
    lines: Vec<Line>,
    queue: VecDeque<u64>,
    /// So many lines are wanted, asked for or not.
    warm: usize,
    failed: Option<Failed>,
    closed: bool,
    next: u64,
    turn: u64,
    pub(super) counts: Counts,
}

#[derive(Debug, Clone)]
pub(super) struct Limits {
    pub(super) connections: usize,
    /// On one connection.
    pub(super) in_flight: usize,
    /// So many on each, and another connection is made.
    pub(super) scale_at: usize,
    pub(super) waiting: usize,
    pub(super) backoff: (Duration, Duration),
}

#[derive(Debug, Clone, Copy)]
struct Line {
    id: u64,
    state: LineState,
    in_flight: usize,
    /// When it was picked last.
    turn: u64,
    served: u64,
    /// It is one too many.
    retires: bool,
}

/// How long no dial follows one that failed at least, whatever the back-off: else it would be tried without end.
const SOONEST: Duration = Duration::from_millis(1);

/// What a connection is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum LineState {
    Dialling,
    Up,
    /// It lost its server, and looks for one by itself.
    Down,
}

/// Dials fail: until when none is begun, and how many did in a row.
#[derive(Debug, Clone, Copy)]
struct Failed {
    until: Instant,
    streak: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    /// On this line.
    Granted(u64),
    /// Under this ticket.
    Queued(u64),
    /// So many wait already.
    Full(usize),
    /// The next dial is so far away, and nothing else could serve it.
    BackingOff(Duration),
    Closed,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) dials: u64,
    pub(super) created: u64,
    pub(super) failed: u64,
    /// Lines that closed for good.
    pub(super) gone: u64,
    /// How often a line lost its server.
    pub(super) lost: u64,
    pub(super) acquired: u64,
    pub(super) released: u64,
    pub(super) queued: u64,
    pub(super) refused: u64,
}

/// A line, to be shown.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen {
    pub(super) id: u64,
    pub(super) state: LineState,
    pub(super) in_flight: usize,
    pub(super) served: u64,
    #[cfg(test)]
    pub(super) retires: bool,
}

impl Core {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            lines: Vec::new(),
            queue: VecDeque::new(),
            warm: 0,
            failed: None,
            closed: false,
            next: 0,
            turn: 0,
            counts: Counts::default(),
        }
    }

    pub(super) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Changes the limits; requests in flight beyond them end as they will.
    pub(super) fn limit(&mut self, change: impl FnOnce(&mut Limits)) {
        change(&mut self.limits);
        self.settle();
    }

    /// Decides which lines are too many: those that are down first, then those with least to do.
    fn settle(&mut self) {
        let stay = self.limits.connections;
        self.lines.iter_mut().for_each(|line| line.retires = false);
        if self.lines.len() <= stay {
            return;
        }
        let mut order: Vec<_> = (0..self.lines.len()).collect();
        order.sort_by_key(|at| {
            let line = &self.lines[*at];
            let worth = match line.state {
                LineState::Up => 2,
                LineState::Dialling => 1,
                LineState::Down => 0,
            };
            std::cmp::Reverse((worth, line.in_flight))
        });
        for at in order.split_off(stay) {
            self.lines[at].retires = true;
        }
    }

    /// Whether some retire.
    pub(super) fn has_too_many(&self) -> bool {
        self.lines.len() > self.limits.connections
    }

    /// A line that is one too many and carries nothing: it is out, and to be closed.
    pub(super) fn retired(&mut self) -> Option<u64> {
        let ends =
            |line: &Line| line.retires && line.in_flight == 0 && line.state != LineState::Dialling;
        let id = self.lines.iter().find(|line| ends(line))?.id;
        self.gone(id);
        Some(id)
    }

    /// A request comes.
    pub(super) fn ask(&mut self, now: Instant) -> Asked {
        if self.closed {
            self.counts.refused += 1;
            return Asked::Closed;
        }
        // Those who wait go first; they do only while nothing has room.
        if self.queue.is_empty()
            && let Some(id) = self.pick()
        {
            return Asked::Granted(id);
        }
        if self.lines.is_empty()
            && let Some(failed) = self.failed.filter(|failed| failed.until > now)
        {
            self.counts.refused += 1;
            return Asked::BackingOff(failed.until - now);
        }
        if self.queue.len() >= self.limits.waiting {
            self.counts.refused += 1;
            return Asked::Full(self.queue.len());
        }
        self.counts.queued += 1;
        let ticket = self.id();
        self.queue.push_back(ticket);
        Asked::Queued(ticket)
    }

    /// The next who waits and may go on, and on which line.
    pub(super) fn grant(&mut self) -> Option<(u64, u64)> {
        if self.queue.is_empty() {
            return None;
        }
        let id = self.pick()?;
        let ticket = self.queue.pop_front()?;
        Some((ticket, id))
    }

    /// The least loaded line that is up and has room; of several, the one picked longest ago.
    fn pick(&mut self) -> Option<u64> {
        let max = self.limits.in_flight;
        let free = self
            .lines
            .iter_mut()
            .filter(|line| line.is_usable() && line.in_flight < max);
        let line = free.min_by_key(|line| (line.in_flight, line.turn))?;
        self.turn += 1;
        line.turn = self.turn;
        line.in_flight += 1;
        line.served += 1;
        self.counts.acquired += 1;
        Some(line.id)
    }

    /// A line to dial now, if another is wanted. It counts from now on.
    pub(super) fn dial(&mut self, now: Instant) -> Option<u64> {
        let backing_off = self.failed.is_some_and(|failed| failed.until > now);
        if self.closed || backing_off || self.lines.len() >= self.limits.connections {
            return None;
        }
        let (up, dialling) = (self.count(LineState::Up), self.count(LineState::Dialling));
        let least = self
            .lines
            .iter()
            .filter(|line| line.state == LineState::Up)
            .map(|line| line.in_flight)
            .min();
        let crowded = least.is_some_and(|least| least >= self.limits.scale_at);
        // A line that is down looks for a server already, and would find whatever another finds.
        let lacking = up == 0 && dialling == 0 && self.lines.is_empty() && !self.queue.is_empty();
        // A line with room is about to be granted.
        let full = least.is_some_and(|least| least >= self.limits.in_flight);
        let beyond = full && self.queue.len() > dialling.saturating_mul(self.limits.in_flight);
        let wanted =
            lacking || (dialling == 0 && (crowded || beyond)) || self.lines.len() < self.warm;
        if !wanted {
            return None;
        }
        let id = self.id();
        self.counts.dials += 1;
        self.lines.push(Line {
            id,
            state: LineState::Dialling,
            in_flight: 0,
            turn: self.turn,
            served: 0,
            retires: false,
        });
        Some(id)
    }

    /// The dial of `id` succeeded. Whether it is wanted still.
    pub(super) fn dialled(&mut self, id: u64) -> bool {
        self.failed = None;
        self.counts.created += 1;
        self.set(id, LineState::Up)
    }

    /// The dial of `id` failed. Whom nothing else will serve is to be told; they are out of the queue.
    pub(super) fn dial_failed(&mut self, now: Instant, id: u64) -> Vec<u64> {
        self.counts.failed += 1;
        self.lines.retain(|line| line.id != id);
        self.settle();
        let streak = self.failed.map_or(0, |failed| failed.streak);
        let (first, longest) = self.limits.backoff;
        let pause = first
            .saturating_mul(2u32.saturating_pow(streak))
            .min(longest)
            .max(SOONEST);
        self.failed = Some(Failed {
            until: now + pause,
            streak: streak.saturating_add(1),
        });
        match self.lines.is_empty() {
            true => self.queue.drain(..).collect(),
            false => Vec::new(),
        }
    }

    /// The line is connected, or is not. Whether that is news.
    pub(super) fn see(&mut self, id: u64, up: bool) -> bool {
        let line = self.lines.iter().find(|line| line.id == id);
        let Some(line) = line.filter(|line| line.state != LineState::Dialling) else {
            return false;
        };
        let state = [LineState::Down, LineState::Up][usize::from(up)];
        if line.state == state {
            return false;
        }
        self.counts.lost += u64::from(!up);
        self.set(id, state)
    }

    /// The line closed for good: another may take its place.
    pub(super) fn gone(&mut self, id: u64) {
        let before = self.lines.len();
        self.lines.retain(|line| line.id != id);
        self.counts.gone += (before - self.lines.len()) as u64;
        self.settle();
    }

    /// A request that was granted `id` ended, or was not begun.
    pub(super) fn release(&mut self, id: u64) {
        self.counts.released += 1;
        if let Some(line) = self.lines.iter_mut().find(|line| line.id == id) {
            line.in_flight -= 1;
        }
    }

    /// Whoever has `ticket` waits no more.
    pub(super) fn leave(&mut self, ticket: u64) {
        self.queue.retain(|waiting| *waiting != ticket);
    }

    /// So many lines are wanted from now on; asking again tries again at once.
    pub(super) fn warm(&mut self, lines: usize) {
        self.warm = lines.min(self.limits.connections);
        self.failed = None;
    }

    /// Nothing more is let in. Those who wait are to be told.
    pub(super) fn close(&mut self) -> Vec<u64> {
        self.closed = true;
        self.queue.drain(..).collect()
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    /// Whether there are connections and all have lost their server: whoever comes now can only wait.
    pub(super) fn is_down(&self) -> bool {
        let mut stay = self.lines.iter().filter(|line| !line.retires);
        !self.lines.is_empty() && stay.all(|line| line.state == LineState::Down)
    }

    /// Whether somebody waits for what no event will tell: that a server is back, or that a dial may follow a failed
    /// one.
    pub(super) fn is_stranded(&self) -> bool {
        let dials = self
            .lines
            .iter()
            .any(|line| line.state == LineState::Dialling);
        let none = self.lines.is_empty();
        let down = self.lines.iter().any(|line| line.state == LineState::Down);
        !self.queue.is_empty() && !dials && (none || down)
    }

    pub(super) fn lines(&self) -> impl Iterator<Item = Seen> {
        self.lines.iter().map(|line| Seen {
            id: line.id,
            state: line.state,
            in_flight: line.in_flight,
            served: line.served,
            #[cfg(test)]
            retires: line.retires,
        })
    }

    pub(super) fn count(&self, state: LineState) -> usize {
        self.lines.iter().filter(|line| line.state == state).count()
    }

    /// Granted and not released, on lines that are gone too.
    pub(super) fn in_flight(&self) -> usize {
        (self.counts.acquired - self.counts.released) as usize
    }

    pub(super) fn waiting(&self) -> usize {
        self.queue.len()
    }

    fn set(&mut self, id: u64, state: LineState) -> bool {
        let line = self.lines.iter_mut().find(|line| line.id == id);
        line.map(|line| line.state = state).is_some()
    }

    fn id(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

impl Line {
    fn is_usable(&self) -> bool {
        self.state == LineState::Up && !self.retires
    }
}

impl LineState {
    pub(super) const ALL: [Self; 3] = [Self::Dialling, Self::Up, Self::Down];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Dialling => "dialling",
            Self::Up => "up",
            Self::Down => "down",
        }
    }
}
