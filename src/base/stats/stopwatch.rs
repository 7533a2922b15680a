use std::time::Duration;

use crate::base::clock::Instant;

/// One request's time, split into phases. Pure: every moment is passed in.
///
/// Between the first byte and the end the response is either waiting for its producer (the inner body was asked and
/// had nothing) or for its consumer (nobody asked; with hyper that is flow control, so a slow peer). What the inner
/// body computes inside its own poll counts as the consumer's.
#[derive(Debug, Clone, Copy)]
pub struct Stopwatch {
    start: Instant,
    first: Option<Instant>,
    waiting: Option<Instant>,
    produced: Duration,
}

/// What a [`Stopwatch`] measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Phases {
    /// From the start to the first byte, if one came.
    pub first: Option<Duration>,
    /// From the start to the end.
    pub total: Duration,
    /// After the first byte: spent waiting for the producer.
    pub producer: Duration,
    /// After the first byte: the rest.
    pub consumer: Duration,
}

impl Stopwatch {
    /// Starts at `now`.
    #[inline]
    pub fn start(now: Instant) -> Self {
        Self {
            start: now,
            first: None,
            waiting: None,
            produced: Duration::ZERO,
        }
    }

    /// When it started.
    pub fn started(&self) -> Instant {
        self.start
    }

    /// Whether the first byte is still to come.
    #[inline]
    pub fn awaits_first(&self) -> bool {
        self.first.is_none()
    }

    /// The first byte came. Later ones are nothing special.
    #[inline]
    pub fn first(&mut self, now: Instant) {
        self.first.get_or_insert(now);
    }

    /// The producer was asked and has nothing yet. `now` is asked only where it matters.
    #[inline]
    pub fn pending(&mut self, now: impl FnOnce() -> Instant) {
        if self.waiting.is_none() && self.first.is_some() {
            self.waiting = Some(now());
        }
    }

    /// The producer delivered. `now` is asked only where it matters.
    #[inline]
    pub fn delivered(&mut self, now: impl FnOnce() -> Instant) {
        if let Some(since) = self.waiting.take() {
            self.produced += now().saturating_duration_since(since);
        }
    }

    /// It is over.
    #[inline]
    pub fn stop(mut self, now: Instant) -> Phases {
        self.delivered(|| now);
        let body = self
            .first
            .map_or(Duration::ZERO, |first| now.saturating_duration_since(first));
        Phases {
            first: self
                .first
                .map(|first| first.saturating_duration_since(self.start)),
            total: now.saturating_duration_since(self.start),
            producer: self.produced,
            consumer: body.saturating_sub(self.produced),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::clock;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn phases_add_up() {
        let start = clock::now();
        let mut watch = Stopwatch::start(start);
        watch.pending(|| unreachable!("before the first byte all time is the producer's"));
        watch.first(start + ms(10));
        watch.pending(|| start + ms(12));
        watch.pending(|| unreachable!("it waits already"));
        watch.delivered(|| start + ms(20));
        watch.delivered(|| unreachable!("nobody waits"));
        watch.pending(|| start + ms(25));
        let phases = watch.stop(start + ms(30));
        let expected = Phases {
            first: Some(ms(10)),
            total: ms(30),
            producer: ms(13),
            consumer: ms(7),
        };
        assert_eq!(phases, expected);
    }

    #[test]
    fn without_a_first_byte_there_are_no_stalls() {
        let start = clock::now();
        let phases = Stopwatch::start(start).stop(start + ms(5));
        let none = Duration::ZERO;
        assert_eq!(
            phases,
            Phases {
                first: None,
                total: ms(5),
                producer: none,
                consumer: none
            }
        );
    }
}
