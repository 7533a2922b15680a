use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::hash::Hash;

use crate::base::error::BoxError;
use crate::middleware::batch::request::Batch;

/// The nth answer is that of the nth item: see [`GrpcStreamBatch::ordered`](super::GrpcStreamBatch::ordered).
pub struct Ordered<F, G> {
    ask: F,
    read: G,
}

/// An answer is that of the item with its id: see [`GrpcStreamBatch::by_id`](super::GrpcStreamBatch::by_id).
pub struct ById<F, G> {
    ask: F,
    read: G,
}

/// How items become messages, and whose answer is whose.
pub trait Pairing<Req, A> {
    type Message;
    type Response;
    type Error: Into<BoxError>;

    /// Whose answers are awaited.
    type Open;

    /// The messages, one for each item, in order.
    fn ask(&self, batch: Batch<Req>) -> (VecDeque<Self::Message>, Self::Open);

    /// The position of the item whose answer it is, if there is one, and what it gets.
    fn read(&self, answer: A, open: &mut Self::Open) -> (Option<usize>, Read<Self, Req, A>);
}

pub(super) type Read<P, Req, A> =
    Result<<P as Pairing<Req, A>>::Response, <P as Pairing<Req, A>>::Error>;

/// The positions of the items that ask for an id, in order. Several may ask for the same: the first answer with it is
/// that of the first of them.
#[derive(Debug)]
pub struct Ids<Id> {
    first: HashMap<Id, usize>,
    /// For each item the next with its id.
    next: Vec<Option<usize>>,
}

// ===== impl Ordered =====

impl<F, G> Ordered<F, G> {
    pub(super) fn new(ask: F, read: G) -> Self {
        Self { ask, read }
    }
}

impl<Req, A, F, G, M, R, E> Pairing<Req, A> for Ordered<F, G>
where
    F: Fn(Req) -> M,
    G: Fn(A) -> Result<R, E>,
    E: Into<BoxError>,
{
    type Message = M;
    type Response = R;
    type Error = E;

    /// How many have their answer.
    type Open = usize;

    fn ask(&self, batch: Batch<Req>) -> (VecDeque<M>, usize) {
        (batch.into_iter().map(&self.ask).collect(), 0)
    }

    fn read(&self, answer: A, answered: &mut usize) -> (Option<usize>, Result<R, E>) {
        let position = *answered;
        *answered += 1;
        (Some(position), (self.read)(answer))
    }
}

impl<F, G> fmt::Debug for Ordered<F, G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ordered").finish_non_exhaustive()
    }
}

// ===== impl ById =====

impl<F, G> ById<F, G> {
    pub(super) fn new(ask: F, read: G) -> Self {
        Self { ask, read }
    }
}

impl<Req, A, F, G, Id, M, R, E> Pairing<Req, A> for ById<F, G>
where
    F: Fn(Req) -> (Id, M),
    G: Fn(A) -> (Id, Result<R, E>),
    Id: Hash + Eq,
    E: Into<BoxError>,
{
    type Message = M;
    type Response = R;
    type Error = E;
    type Open = Ids<Id>;

    fn ask(&self, batch: Batch<Req>) -> (VecDeque<M>, Ids<Id>) {
        let (ids, messages): (Vec<_>, VecDeque<_>) = batch.into_iter().map(&self.ask).unzip();
        (messages, Ids::new(ids))
    }

    fn read(&self, answer: A, open: &mut Ids<Id>) -> (Option<usize>, Result<R, E>) {
        let (id, result) = (self.read)(answer);
        (open.take(id), result)
    }
}

impl<F, G> fmt::Debug for ById<F, G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ById").finish_non_exhaustive()
    }
}

// ===== impl Ids =====

impl<Id: Hash + Eq> Ids<Id> {
    fn new(ids: Vec<Id>) -> Self {
        let mut first = HashMap::with_capacity(ids.len());
        let mut next = vec![None; ids.len()];
        // From the last, so that what is found at an id is the next that has it.
        for (position, id) in ids.into_iter().enumerate().rev() {
            next[position] = first.insert(id, position);
        }
        Self { first, next }
    }

    /// The first item with this id that has no answer yet.
    fn take(&mut self, id: Id) -> Option<usize> {
        let position = self.first.remove(&id)?;
        if let Some(next) = self.next[position] {
            self.first.insert(id, next);
        }
        Some(position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_ids_are_answered_in_their_order() {
        let mut ids = Ids::new(vec!["a", "b", "a", "a"]);
        let taken = ["a", "c", "a", "b", "b", "a", "a"].map(|id| ids.take(id));
        assert_eq!(
            taken,
            [Some(0), None, Some(2), Some(1), None, Some(3), None]
        );
    }
}
