use std::time::Duration;

use crate::base::clock::nanos;
use crate::base::phases::{Phase, Timings};
use crate::base::stats::{Bounds, Striped};

/// What the calls of one route spent on their connections, as their responses' [`Timings`] tell.
#[derive(Debug)]
pub(super) struct Connections {
    cells: Striped,
    bounds: Bounds,
}

/// Where in the cells what is counted. A histogram for each phase follows, with its sum first.
mod at {
    pub(super) const REUSED: usize = 0;
    pub(super) const NEW: usize = 1;
    pub(super) const HISTOGRAMS: usize = 2;
}

impl Connections {
    pub(super) fn new(bounds: &Bounds) -> Self {
        let histogram = 1 + bounds.buckets();
        Self {
            cells: Striped::new(at::HISTOGRAMS + Phase::ALL.len() * histogram),
            bounds: bounds.clone(),
        }
    }

    pub(super) fn note(&self, timings: &Timings) {
        let cells = self.cells.local();
        for phase in Phase::ALL {
            if let Some(spent) = timings.phase(phase) {
                let at = self.histogram_at(phase);
                cells.add(at, nanos(spent));
                cells.add(at + 1 + self.bounds.of(spent), 1);
            }
        }
        // Last, so that no phase is ever seen to have happened less often than there are connections.
        cells.add(
            if timings.reused() {
                at::REUSED
            } else {
                at::NEW
            },
            1,
        );
    }

    /// Calls on connections that others had used, and on new ones.
    pub(super) fn counts(&self) -> [u64; 2] {
        [at::REUSED, at::NEW].map(|cell| self.cells.sum(cell))
    }

    /// The phases that happened, with their buckets and sums.
    pub(super) fn histograms(&self) -> impl Iterator<Item = (Phase, Vec<u64>, Duration)> {
        Phase::ALL.into_iter().filter_map(|phase| {
            let mut cells = vec![0; 1 + self.bounds.buckets()];
            self.cells.sum_into(self.histogram_at(phase), &mut cells);
            let sum = Duration::from_nanos(cells.remove(0));
            let happened = cells.iter().any(|count| *count > 0);
            happened.then_some((phase, cells, sum))
        })
    }

    fn histogram_at(&self, phase: Phase) -> usize {
        at::HISTOGRAMS + phase as usize * (1 + self.bounds.buckets())
    }
}
