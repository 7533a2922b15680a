//! What `/events` tells: numbers once a second, the same for all who listen.
//!
//! The arithmetic has a file each and reads no clock: [`measure`] makes measures of vitals, [`history`] keeps the last
//! five minutes of them, [`rows`] makes table rows of snapshots, [`update`] cuts it all to size, [`book`] puts them
//! together. [`hub`] is what has clients, a lock and a task.

mod book;
mod history;
mod hub;
mod json;
mod measure;
mod rows;
mod update;

pub(super) use hub::{Hub, Listener, Refusal};
pub(super) use json::cut;
