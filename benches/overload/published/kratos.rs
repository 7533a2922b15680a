//! go-kratos/aegis at e0742c6, `ratelimit/bbr/bbr.go`.

use std::collections::VecDeque;

use super::{Algorithm, Sample};
use crate::machine;

/// Refuses above the most completions of a bucket times the least mean round
/// trip of one (100 buckets in 10 s), but only while the processor's use, read each 500 ms and averaged with 0.95,
/// is 80 % or was a second ago.
#[derive(Debug)]
pub struct KratosBbr {
    /// Full buckets of 100 ms: completions, and their mean round trip in milliseconds.
    buckets: VecDeque<(f64, f64)>,
    /// The number of the bucket in use, its completions and the sum of their round trips.
    bucket: u64,
    count: f64,
    sum: f64,
    most: f64,
    /// The processor's use, from 0 to 1000, when it was last read and what had been worked by then.
    used: f64,
    read: f64,
    worked: (f64, f64),
    dropping: Option<f64>,
}

impl Default for KratosBbr {
    fn default() -> Self {
        Self {
            buckets: VecDeque::new(),
            bucket: 0,
            count: 0.0,
            sum: 0.0,
            most: f64::INFINITY,
            used: 0.0,
            read: 0.0,
            worked: (0.0, 0.0),
            dropping: None,
        }
    }
}

impl KratosBbr {
    fn pass_time(&mut self, now: f64) {
        if now >= self.read + 0.5 {
            let (worked, manned) = machine::worked();
            let used = (worked - self.worked.0) / (manned - self.worked.1).max(1e-9);
            self.worked = (worked, manned);
            // A quiet stretch holds several readings.
            while self.read + 0.5 <= now {
                self.read += 0.5;
                self.used = (self.used * 0.95 + 1000.0 * used.min(1.0) * 0.05).floor();
            }
        }
        let bucket = (now * 10.0) as u64;
        if bucket == self.bucket {
            return;
        }
        let mean = match self.count > 0.0 {
            true => self.sum / self.count,
            false => f64::INFINITY,
        };
        self.buckets.push_back((self.count, mean));
        (self.count, self.sum) = (0.0, 0.0);
        for _ in self.bucket + 1..bucket.min(self.bucket + 100) {
            self.buckets.push_back((0.0, f64::INFINITY));
        }
        while self.buckets.len() > 99 {
            self.buckets.pop_front();
        }
        self.bucket = bucket;
        let passed = self.buckets.iter().map(|bucket| bucket.0);
        let took = self.buckets.iter().map(|bucket| bucket.1);
        let passed = passed.fold(1.0, f64::max);
        let took = took.fold(f64::INFINITY, f64::min).ceil().max(1.0);
        self.most = (passed * took * 10.0 / 1000.0).floor();
    }
}

impl Algorithm for KratosBbr {
    fn refuses(&mut self, now: f64, in_flight: usize) -> bool {
        self.pass_time(now);
        let over = in_flight > 1 && in_flight as f64 > self.most;
        if self.used < 800.0 {
            return match self.dropping {
                Some(since) if now - since <= 1.0 => over,
                _ => {
                    self.dropping = None;
                    false
                }
            };
        }
        if over && self.dropping.is_none() {
            self.dropping = Some(now);
        }
        over
    }

    fn ended(&mut self, sample: Sample) {
        self.pass_time(sample.now);
        self.count += 1.0;
        self.sum += (sample.round_trip() * 1000.0).ceil();
    }
}
