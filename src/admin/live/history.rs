//! The last five minutes of every measure.

use std::collections::VecDeque;
use std::time::Duration;

use super::measure::{Key, Measured};
use crate::base::clock::Instant;

/// How many points are kept,
const POINTS: usize = 300;
/// and how long.
const SPAN: Duration = Duration::from_secs(300);
/// How many measures there are at most: the first ones that come.
const MOST: usize = 96;

/// A ring of points for each measure.
///
/// # Invariants
///
/// Every series has as many values, and limits, as there are times. Series stay in the order of their layers and keys;
/// none ever goes.
#[derive(Debug, Default)]
pub(super) struct History {
    at: VecDeque<Instant>,
    series: Vec<Series>,
    /// How many measures there was no room for at the last point.
    unshown: usize,
}

/// One measure.
#[derive(Debug)]
pub(super) struct Series {
    pub(super) layer: usize,
    pub(super) key: Key,
    /// `NaN` where nothing is known.
    values: VecDeque<f32>,
    /// What it might at most be, likewise.
    limits: VecDeque<f32>,
}

impl History {
    /// Adds a point: the measures of each layer. Whether there are new ones among them.
    pub(super) fn push(&mut self, now: Instant, layers: &[Vec<Measured>]) -> bool {
        let known = self.series.len();
        self.unshown = 0;
        for (layer, measured) in layers.iter().enumerate() {
            for measured in measured {
                if !self.know(layer, measured.key) {
                    self.unshown += 1;
                }
            }
        }
        self.at.push_back(now);
        for series in &mut self.series {
            let layer = layers.get(series.layer);
            let now = layer.and_then(|layer| layer.iter().find(|m| m.key == series.key));
            let kept = |number: Option<f64>| number.map_or(f32::NAN, |number| number as f32);
            let value = now.and_then(|measured| measured.value);
            series.values.push_back(kept(value));
            let limit = now.and_then(|measured| measured.of);
            series.limits.push_back(kept(limit));
        }
        while self.at.len() > POINTS || self.is_over(now) {
            self.at.pop_front();
            for series in &mut self.series {
                series.values.pop_front();
                series.limits.pop_front();
            }
        }
        self.series.len() > known
    }

    fn is_over(&self, now: Instant) -> bool {
        let oldest = self.at.front();
        oldest.is_some_and(|oldest| now.saturating_duration_since(*oldest) > SPAN)
    }

    /// Whether there is, or now is, a series of it.
    fn know(&mut self, layer: usize, key: Key) -> bool {
        let place = self
            .series
            .binary_search_by_key(&(layer, key), |series| (series.layer, series.key));
        let Err(place) = place else { return true };
        let room = self.series.len() < MOST;
        if room {
            let values: VecDeque<_> = self.at.iter().map(|_| f32::NAN).collect();
            let series = Series {
                layer,
                key,
                limits: values.clone(),
                values,
            };
            self.series.insert(place, series);
        }
        room
    }

    /// How many measures there is no room for.
    pub(super) fn unshown(&self) -> usize {
        self.unshown
    }

    /// All measures, in their order.
    pub(super) fn series(&self) -> &[Series] {
        &self.series
    }

    /// When the points were, in seconds before `now`: none is above 0.
    pub(super) fn at(&self, now: Instant) -> impl Iterator<Item = f64> {
        let tenths = move |at: &Instant| {
            let ago = now.saturating_duration_since(*at).as_secs_f64();
            (ago * 10.0).round() / -10.0
        };
        self.at.iter().map(tenths)
    }
}

impl Series {
    /// All points, oldest first.
    pub(super) fn values(&self) -> impl Iterator<Item = Option<f64>> {
        self.values.iter().map(known)
    }

    /// What it might at most be at each; nothing when that was never known.
    pub(super) fn limits(&self) -> Option<impl Iterator<Item = Option<f64>>> {
        let limits = self.limits.iter().map(known);
        limits
            .clone()
            .any(|limit| limit.is_some())
            .then_some(limits)
    }

    /// The last point.
    pub(super) fn last(&self) -> Option<f64> {
        self.values.back().and_then(known)
    }

    /// What it may at most be now.
    pub(super) fn limit(&self) -> Option<f64> {
        self.limits.back().and_then(known)
    }
}

fn known(number: &f32) -> Option<f64> {
    Some(f64::from(*number)).filter(|number| number.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(key: Key, value: f64) -> Measured {
        Measured {
            key,
            value: Some(value),
            of: None,
        }
    }

    #[test]
    fn it_keeps_five_minutes_and_the_order_of_layers() {
        let start = crate::clock::now();
        let mut history = History::default();
        let second = |n: u64| start + Duration::from_secs(n);
        assert!(history.push(second(0), &[vec![], vec![measured(Key::P50, 0.0)]]));
        for n in 1..=400 {
            let later = vec![measured(Key::Waiting, n as f64)];
            let first = if n > 200 { later } else { Vec::new() };
            let new = history.push(second(n), &[first, vec![measured(Key::P50, n as f64)]]);
            assert_eq!(new, n == 201);
        }
        let [first, second_series] = history.series() else {
            panic!("there are two")
        };
        assert_eq!((first.layer, second_series.layer), (0, 1));
        let at: Vec<_> = history.at(second(400)).collect();
        assert_eq!((at.len(), at[0], at[299]), (300, -299.0, 0.0));
        let values: Vec<_> = second_series.values().collect();
        assert_eq!((values.len(), values[0]), (300, Some(101.0)));
        let values: Vec<_> = first.values().collect();
        assert_eq!(
            (values.len(), values[99], values[100]),
            (300, None, Some(201.0))
        );
        assert_eq!(second_series.last(), Some(400.0));
        // A gap: nobody looked for a while.
        assert!(second_series.limits().is_none() && second_series.limit().is_none());
        let limited = Measured {
            of: Some(9.0),
            ..measured(Key::P50, 1.0)
        };
        history.push(second(649), &[vec![], vec![limited]]);
        assert_eq!(history.series()[1].limit(), Some(9.0));
        history.push(second(650), &[]);
        let limits: Vec<_> = history.series()[1].limits().into_iter().flatten().collect();
        assert_eq!(
            (limits.len(), limits[51], limits[52]),
            (53, Some(9.0), None)
        );
        assert_eq!(history.at(second(650)).count(), 53);
        assert_eq!(history.series()[1].last(), None, "its layer said nothing");
    }

    #[test]
    fn there_is_room_for_so_many_and_no_more() {
        let mut history = History::default();
        let layers: Vec<_> = (0..500)
            .map(|n| vec![measured(Key::P50, n as f64)])
            .collect();
        assert!(history.push(crate::clock::now(), &layers));
        assert!(!history.push(crate::clock::now(), &layers));
        assert_eq!(history.series().len(), MOST);
        assert_eq!(history.unshown(), 500 - MOST);
    }
}
