use std::time::Duration;

use crate::base::error::{Reason, Rejection};
use crate::base::priority::Priority;

/// A refusal, before it is put into words: which request, why, and how things stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Refusal {
    /// Why.
    pub reason: Reason,
    /// Of the refused request.
    pub priority: Priority,
    /// Requests that are running.
    pub in_flight: usize,
    /// How many may.
    pub limit: usize,
    /// Requests that wait.
    pub waiting: usize,
    /// How many may.
    pub places: usize,
    /// When to come back: the measured time to drain what is ahead, jittered.
    pub retry_after: Duration,
}

impl Refusal {
    /// The refusal in words, with its numbers and what to do.
    pub fn message(&self) -> String {
        let Self {
            in_flight,
            limit,
            waiting,
            places,
            ..
        } = self;
        match self.reason {
            Reason::QueueFull => format!(
                "{in_flight} of {limit} slots busy and {waiting} of {places} waiting; retry later or raise the limit"
            ),
            Reason::QueueTimeout => format!(
                "waited too long for one of {limit} slots with {waiting} of {places} waiting; retry later or raise the limit"
            ),
            Reason::Deadline => format!(
                "cannot finish before its deadline with {in_flight} of {limit} slots busy; allow it more time"
            ),
            Reason::Pressure => format!(
                "priority {} is shed under pressure from outside; retry later or raise the priority",
                self.priority
            ),
            Reason::Quota => format!(
                "its partition has used its share of {limit} slots; retry later or raise the share"
            ),
            _ => format!("{in_flight} of {limit} slots busy; retry later or raise the limit"),
        }
    }

    /// The refusal as the error this crate's layers return.
    pub fn rejection(&self) -> Rejection {
        Rejection::new("shed", self.reason, self.message()).retry_after(self.retry_after)
    }
}
